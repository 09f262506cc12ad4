"""Sections of recipes with battles: who answers, who judges, and how verdicts become ratings; and
what is wrong with those who answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from aligner.config.named import Names
from aligner.config.recipe import Endpoint, Model, Section, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at


def _as_model(value: Any) -> Any:
    """Allow `model: runs/sft/final` for the everyday case."""
    return {"name_or_path": value} if isinstance(value, str) else value


def _as_judge(value: Any) -> Any:
    """A judge decodes greedily, unless its section says otherwise."""
    return {"temperature": 0.0, **value} if isinstance(value, dict) else value


class Contestant(Section):
    """One who answers: a model here, a model behind an endpoint, or a file of answers."""

    name: Annotated[str, Field(min_length=1)]
    """What logs and ratings call it."""
    model: (
        Annotated[Model, BeforeValidator(_as_model, json_schema_input_type=str | Model)] | None
    ) = None
    """A model that is loaded here: a hub id or folder, or a section with the keys of `model`."""
    endpoint: Endpoint | None = None
    """A model that is asked: a section with the keys of `endpoint`."""
    answers: Annotated[str | None, Names("file")] = None
    """A file of its answers: what `aligner generate` writes, rows with `prompt_id` or `prompt` and
    `answer`, answers of Arena-Hard, or outputs of AlpacaEval."""
    license: str = ""
    """Licence of its answers, noted in every row that is trained on."""
    may_be_trained_on: bool = True
    """False: its licence forbids it, so that it fights and no row holds its answers."""


class Faults(Section):
    """What makes a judge of a scorer fallible, to try things out with: on scores from 1 to 10."""

    noise: float = Field(0.0, ge=0.0, le=1000.0)
    """Standard deviation of the noise of each score."""
    seat: float = Field(0.0, ge=-1000.0, le=1000.0)
    """Points for the answer that is seen first."""
    length: float = Field(0.0, ge=-1000.0, le=1000.0)
    """Points for each doubling of the length against the other answer."""
    family: str = ""
    """Contestants whose name begins so get `liking`."""
    liking: float = Field(0.0, ge=-1000.0, le=1000.0)
    """Points for the family."""
    is_blind: bool = False
    """The scorer is not asked: nothing but the faults decides."""


class Judge(Section):
    """One who judges: a language model that gives both answers a score, or any scorer."""

    name: str = ""
    """What logs and ratings call it. Absent: the endpoint's model, or the scorer."""
    endpoint: Annotated[Endpoint, BeforeValidator(_as_judge)] | None = None
    """A language model that reads both answers and scores each from 1 to 10; with a temperature of
    0 where none is given."""
    scorer: Annotated[str | None, Names("scorer")] = None
    """In place of a language model: a card, or `kind:argument`: a reward model, a verifier, a
    rubric, an ensemble."""
    criteria: str | None = None
    """What a language model judges by, in place of our own words."""
    faults: Faults | None = None
    """With `scorer`, whose range must be finite: a stand-in for a judge that errs. Its scores are
    stretched to 1 to 10."""


class Rating(Section):
    """How battles become ratings, as `aligner arena rate` does it."""

    merge: Literal["mean", "inconsistent_is_tie", "drop_inconsistent", "votes"] = "mean"
    """How the two orders of a battle become one verdict."""
    tie_margin: float = Field(0.0, ge=0.0, le=1e6)
    """Scores so close are a tie."""
    anchor: str | None = None
    """The contestant whose rating is fixed."""
    anchor_rating: float = Field(1000.0, ge=-1e6, le=1e6)
    """The anchor's rating, or the mean of all."""
    resamples: Whole = Field(1000, ge=0, le=1_000_000)
    """Resamples of prompts for the intervals."""


KINDS = ("model", "endpoint", "answers")
OF_REQUESTS = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_new_tokens"}
"""Keys of an endpoint that all contestants share -> the key of `arena` that sets them."""


def contestant_problems(found: Sequence[dict[str, Any]], where: str) -> RecipeProblems:
    """Say which contestants are not one thing, or have keys without effect. `where`: their key in
    the recipe."""
    section = where.partition(".")[0]
    for place, one in enumerate(found):
        key = f"{where}[{place}]"
        given = [kind for kind in KINDS if one.get(kind) is not None]
        if len(given) != 1:
            said = f"has {' and '.join(f'`{kind}`' for kind in given)}" if given else "has neither"
            yield problem_at(key, said, "give it one of `model`, `endpoint` and `answers`")
        for own, shared in OF_REQUESTS.items():
            if isinstance(one.get("endpoint"), dict) and own in one["endpoint"]:
                hint = f"set {section}.{shared}, which all contestants share"
                yield problem_at(f"{key}.endpoint.{own}", "has no effect", hint)
        if isinstance(one.get("model"), dict) and one["model"].get("lora") is not None:
            yield problem_at(f"{key}.model.lora", "has no effect: nothing is trained", "drop it")
