"""What reinforcement learning holds in memory: the policy and its reference, a critic, scorers, and
the cache of the responses that are sampled."""

from __future__ import annotations

from aligner.config.callables import is_callable
from aligner.config.defaults import trainer_value
from aligner.memory.footprint import Footprint, Lengths, Pass, Sampling, answers_together, halved
from aligner.methods.rlhf.recipe import RlhfRecipe

LEAST_RESPONSE = 64
"""Responses are not offered to be shorter than this, in tokens."""


def footprint_of(recipe: RlhfRecipe, lengths: Lengths) -> Footprint:
    """Return a rollout, its scoring, and the update on it, with the longest prompts and responses.

    `lengths` are those of prompts.
    """
    from aligner.reward_models.catalogue import read_spec
    from aligner.reward_models.held import held_by

    rlhf = recipe.rlhf
    new, group = rlhf.max_new_tokens, rlhf.group_size
    known = lengths.trained is not None
    prompt = lengths.longest if known else max(1, recipe.data.max_length - new)
    answered = Lengths(prompt + new, prompt + group * new, group * new)
    batch = answers_together(recipe, answered, answers=group)
    specs = [*rlhf.reward_models, *([rlhf.segment_model] if rlhf.segment_model else [])]
    cards = [read_spec(spec) for spec in specs if not is_callable(spec)]
    steps = int(trainer_value(recipe, "gradient_accumulation_steps"))
    rows = int(trainer_value(recipe, "per_device_train_batch_size")) * steps * group
    at_once = rlhf.generation_batch_size or rows
    beside, scoring = held_by(cards, recipe.model, rows, prompt + new)
    passes = [Pass("update", batch, trains=True), *scoring]
    if rlhf.beta:
        passes.append(Pass("reference", batch))
    return Footprint(
        tuple(passes),
        (Sampling("sampling", at_once, prompt, new),),
        tuple(beside),
        copies=("reference",) if rlhf.beta else (),
        has_critic=rlhf.algorithm == "ppo",
        lines=(
            halved("rlhf.generation_batch_size", at_once, 1.0, "slower sampling"),
            halved("rlhf.max_new_tokens", new, 10.0, "responses end sooner", least=LEAST_RESPONSE),
        ),
    )
