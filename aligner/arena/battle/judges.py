"""The judges of a recipe: what they are called, whether they can be asked, and how they are opened.

A judge is a language model that scores both answers (`llm_judge.py`), or any scorer
(`scorer_judge.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from aligner.arena.battle.sheets import BattleJudge, Item
from aligner.config.battles import Judge
from aligner.config.recipe import Model
from aligner.errors import AlignerError, DataError, Problem, RecipeError
from aligner.events import OnEvent
from aligner.models.files import check_model_path
from aligner.reward_models.base import Scorer, placed
from aligner.reward_models.card import Card
from aligner.reward_models.catalogue import load_scorer, members_of, read_spec
from aligner.reward_models.ensemble import refuse_cycles, scored_together
from aligner.reward_models.isolation import announce_walls
from aligner.reward_models.toy import ToyScorer
from aligner.reward_models.verifier import JsonVerifier, NumberVerifier

LISTED = 20
"""Prompts without a right answer that an error lists."""

LOOK_FOR_THEMSELVES = (ToyScorer, NumberVerifier, JsonVerifier)
"""Scorers that say of a prompt, or its right answer, whether they can judge by it."""


WHERE = "arena.judges"
"""The key of the recipe that judges stand at, unless somebody says another one."""


def names_of(sections: Sequence[Judge], where: str = WHERE) -> list[str]:
    """What the log calls each judge: its name, or the endpoint's model, or the scorer.

    Raises: RecipeError for two of one name, and for a judge that is neither or both.
    """
    names = [_name(section, f"{where}[{place}]") for place, section in enumerate(sections)]
    for name, count in Counter(names).items():
        if count > 1:
            places = [place for place, other in enumerate(names) if other == name]
            keys = " and ".join(f"{where}[{place}].name" for place in places)
            raise RecipeError(
                f"{count} judges are called {name!r}", f"give them different names: {keys}"
            )
    return names


def _name(section: Judge, key: str) -> str:
    if (section.endpoint is None) == (section.scorer is None):
        found = "neither is" if section.endpoint is None else "both are"
        raise RecipeError(
            f"{key}: a judge is an `endpoint` or a `scorer`, and {found} given",
            "name one of them; several judges are several items of the list",
        )
    if section.scorer is not None:
        return section.name or section.scorer
    assert section.endpoint is not None
    return section.name or section.endpoint.model or section.endpoint.backend


def check_judges(sections: Sequence[Judge], items: Sequence[Item] = (), where: str = WHERE) -> None:
    """Refuse judges that cannot be asked about these prompts, before a model is loaded. Asks
    nobody.

    Raises: RecipeError or UsageError naming the key; DataError for prompts without a right answer
    where a scorer compares with one.
    """
    names_of(sections, where)
    for place, section in enumerate(sections):
        key = f"{where}[{place}]"
        try:
            if section.scorer is not None:
                _check_scorer(section, key, items)
            else:
                _check_endpoint(section)
        except AlignerError as error:
            if error.message.startswith(key):
                raise
            raise type(error)(f"{key}: {error.message}", error.hint, error.problems) from error


def _check_endpoint(section: Judge) -> None:
    from aligner.endpoints.client import check_endpoint

    assert section.endpoint is not None, "names_of has looked"
    if section.faults is not None:
        raise RecipeError("faults belong to a `scorer`", "drop them: a language model has its own")
    check_endpoint(section.endpoint)


def _check_scorer(section: Judge, key: str, items: Sequence[Item]) -> None:
    assert section.scorer is not None
    if section.criteria is not None:
        raise RecipeError(
            f"{key}.criteria: a scorer has criteria of its own",
            "drop the key; of a card of the kind `judge` or `rating` they stand in `rubric`",
        )
    card = read_spec(section.scorer)
    refuse_cycles(card)
    _check_faults(section, card, key)
    if scored_together(card):
        raise RecipeError(
            f"{key}.scorer: {section.scorer} brings the scores of one call to one scale, and "
            "scores of several calls are compared here",
            "take `standardize` out of its card, or name its members as judges",
        )
    if section.faults is not None and section.faults.is_blind:
        return
    for spec, part in _parts(section.scorer, card):
        if part.model is not None:
            check_model_path(Model(name_or_path=part.model), f"{key}.scorer")
        else:  # the others load nothing
            check_items(load_scorer(spec), f"{key}.scorer", items)


def _check_faults(section: Judge, card: Card, key: str) -> None:
    """Faults are points from 1 to 10, and need a scale that can be stretched to that."""
    if section.faults is None or section.faults.is_blind:
        return
    is_loaded = card.model is not None or bool(card.members)
    if is_loaded or not all(map(math.isfinite, load_scorer(str(section.scorer)).range)):
        raise RecipeError(
            f"{key}.faults: the scores of {section.scorer} have no ends to be stretched from",
            "use a scorer with a worst and a best score (a verifier, toy), or is_blind: true",
        )


def _parts(spec: str, card: Card) -> Iterator[tuple[str, Card]]:
    """The scorer itself, or the members of an ensemble down to those that are none."""
    if not card.members:
        yield spec, card
    for member, inner in zip(card.members, members_of(card)):
        yield from _parts(member, inner)


def check_items(scorer: Scorer, key: str, items: Sequence[Item]) -> None:
    """Refuse prompts that a scorer cannot judge answers to. `key`: what names it.

    Raises: DataError with the prompts.
    """
    missing = [item for item in items if item.reference is None]
    if missing and getattr(scorer, "needs_references", False):
        raise DataError(
            f"{key}: {scorer.name} compares with a right answer, and {len(missing):,} of "
            f"{len(items):,} prompts have none",
            "give every prompt an `answer`, or map the column that holds it: `columns: {answer: "
            "your_column}`",
            [Problem("no right answer", item.origin or item.id) for item in missing[:LISTED]],
        )
    if isinstance(scorer, LOOK_FOR_THEMSELVES):
        references = [item.reference for item in items]
        try:
            scorer.score([item.prompt for item in items], [""] * len(items), references)
        except DataError as error:
            raise placed(error, [item.origin or item.id for item in items]) from error


def open_judges(
    sections: Sequence[Judge], cache: Path, on_event: OnEvent | None = None
) -> list[BattleJudge]:
    """Open the judges of a recipe. `cache`: the SQLite file that keeps their replies and scores, so
    that nothing is asked twice. A model is loaded when it is first needed.

    Raises: what `check_judges` does; UsageError where the file cannot be used.
    """
    from aligner.arena.battle.faulty_judge import erring
    from aligner.arena.battle.llm_judge import LLMJudge
    from aligner.arena.battle.scorer_judge import ScorerJudge

    opened: list[BattleJudge] = []
    announce_walls([read_spec(one.scorer) for one in sections if one.scorer is not None], on_event)
    for name, section in zip(names_of(sections), sections):
        if section.scorer is not None:
            judge = ScorerJudge(name, section.scorer, cache)
            opened.append(judge if section.faults is None else erring(judge, section.faults))
        elif section.endpoint is not None:
            opened.append(LLMJudge(name, section.endpoint, cache, section.criteria))
    return opened
