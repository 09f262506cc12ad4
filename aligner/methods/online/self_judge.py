"""Self-rewarding: the policy of a round rates its own responses (Self-Rewarding Language Models,
arXiv 2401.10020).

The judge of a round is the policy that answered in it, so it changes from round to round: its
ratings stand in the stage of scores under the digest of that policy. How it is asked and read is
the business of `kind: rating`. A served policy is asked through its server, any other one is loaded
here.

Where we differ from the paper: prompts are given, and not written by the model; there is no seed
set that teaches it to rate; and what rounds are worth is measured by `online.evaluation.gold`,
since the ratings of two policies are no measure of both.
"""

from __future__ import annotations

from aligner.config.recipe import Endpoint
from aligner.methods.online.policies import Policies
from aligner.methods.online.recipe import Online, OnlineRecipe
from aligner.reward_models.judge_base import read_rubric
from aligner.reward_models.rating import CRITERIA, Rating

SELF = "the policy itself"
"""What the policy is called among scorers."""


def scorers_of(online: Online) -> list[str]:
    """Return what scores the responses of a round."""
    return list(online.reward_models) if online.self_rewarding is None else [SELF]


def self_judge(recipe: OnlineRecipe, policies: Policies, number: int) -> Rating:
    """Return a policy as a judge. Nothing is loaded yet.

    Raises: RecipeError for criteria that cannot be read.
    """
    settings, engine = recipe.online.self_rewarding, recipe.generation
    assert settings is not None, "the recipe asks for it"
    sampling = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_new_tokens,
    }
    rubric = CRITERIA if settings.rubric is None else read_rubric(settings.rubric)
    key = policies.key(number)
    if engine.engine == "endpoint":
        assert engine.endpoint is not None, "a rule asks for it"
        served = engine.endpoint.model_copy(update=sampling)
        return Rating(SELF, served, rubric, settings.samples, identity=key)
    size = recipe.online.generation_batch_size
    local = Endpoint(backend="local", model="the policy", max_in_flight=size, **sampling)
    weights = policies.section(number)
    return Rating(SELF, local, rubric, settings.samples, weights=weights, identity=key)
