"""Find a scorer by its name, and load it.

A scorer is named by a short text, the same on the command line, in a recipe and in Python: a card
(a file, a folder that holds `reward_model.yaml`, or the name of a shipped one), or `kind:argument`,
as in `load_scorer("verifier:number").score(prompts, completions, references)`. Adding a kind is one
module and one line in `KINDS`. Imports no torch until a kind that needs it is loaded.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Container
from pathlib import Path

from aligner.errors import RecipeError

from .base import Scorer
from .card import ALLOWED, NEEDED, Card, find_card, shipped_cards
from .grants import CARD_FILE

KINDS: dict[str, str] = {
    "toy": "aligner.reward_models.toy",
    "verifier": "aligner.reward_models.verifier",
    "bradley_terry": "aligner.reward_models.heads",
    "regression": "aligner.reward_models.heads",
    "segment": "aligner.reward_models.segment",
    "pairwise": "aligner.reward_models.pairwise",
    "judge": "aligner.reward_models.judge",
    "rating": "aligner.reward_models.rating",
    "rules": "aligner.reward_models.rules",
    "rubric": "aligner.reward_models.rubric",
    "ensemble": "aligner.reward_models.ensemble",
    "tournament": "aligner.reward_models.tournament",
}
"""Kind -> the module whose `make(card)` gives the scorer."""


COMPARING = ("pairwise", "judge")
"""Kinds whose scorers compare two answers; an ensemble and a tournament do with such a member."""


RELATIVE = ("pairwise", "tournament")
"""Kinds whose score says how an answer compares with others to its prompt, so that scores of two
calls have nothing to do with one another."""


def load_scorer(spec: str, *, trust_remote_code: bool = False) -> Scorer:
    """The scorer that `spec` names; with `trust_remote_code`, code that ships with its models is
    run.

    Raises: RecipeError when there is none, when it cannot be loaded, or when the card in a model's
    folder asks for what only the user can allow.
    """
    card = read_spec(spec, trust_remote_code=trust_remote_code)
    scorer: Scorer = importlib.import_module(KINDS[card.kind]).make(card)
    return scorer


def read_spec(spec: str, *, trust_remote_code: bool = False) -> Card:
    """The card that `spec` names, without loading what it is the card of; see `load_scorer`.

    With `trust_remote_code` the card says so too; one with members, for these.
    """
    card = _found(spec, trust_remote_code)
    if trust_remote_code and (card.members or "trust_remote_code" in ALLOWED[card.kind]):
        return card.model_copy(update={"trust_remote_code": True})
    return card


def members_of(card: Card) -> list[Card]:
    """The cards of the members of an ensemble or a tournament, in order; none for other kinds."""
    trusted = card.trust_remote_code
    return [read_spec(member, trust_remote_code=trusted) for member in card.members]


def _found(spec: str, trust_remote_code: bool) -> Card:
    kind, colon, argument = spec.partition(":")
    if kind in KINDS and (colon or kind in ("toy", "verifier")):
        return _card_of(kind, argument, spec)
    card = find_card(spec, trust_remote_code=trust_remote_code) if spec else None
    if card is not None:
        return card
    if spec and Path(spec).expanduser().is_dir():
        raise RecipeError(
            f"the folder {spec} holds no {CARD_FILE}",
            f"write one, or say what it is: bradley_terry:{spec}",
        )
    close = difflib.get_close_matches(kind, [*KINDS, *shipped_cards()], n=1)
    raise RecipeError(
        f"there is no scorer {spec!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        f"the kinds are {', '.join(sorted(KINDS))}; for example `toy`, `verifier:number`, a "
        "reward model's card (a file, or the "
        "folder of a run), or `bradley_terry:HUB_ID`",
    )


def holds(card: Card, kinds: Container[str]) -> bool:
    """Say whether a card, or that of a member at any depth, is of one of these kinds."""
    return card.kind in kinds or any(holds(member, kinds) for member in members_of(card))


def only_compares(card: Card) -> bool:
    """Say whether a card, or that of a member at any depth, is of a kind that compares answers,
    and no tournament makes scores of its verdicts."""
    if card.kind == "tournament":
        return False
    return card.kind in COMPARING or any(map(only_compares, members_of(card)))


def _card_of(kind: str, argument: str, spec: str) -> Card:
    """The card of `kind:argument`, for the kinds that one argument is enough for."""
    if kind == "toy":
        if argument:
            raise RecipeError(
                f"the scorer `toy` takes no argument, found {argument!r}", "write just `toy`"
            )
        return Card(kind="toy", name="toy")
    if kind == "verifier":
        return Card(kind="verifier", name=spec, verifier=argument)
    if NEEDED[kind] != ("model",):
        raise RecipeError(
            f"a {kind} scorer needs more than one argument: {', '.join(NEEDED[kind])}",
            "write a card, a YAML file with `kind:` and these keys, and name the file",
        )
    if not argument:
        raise RecipeError(f"{spec!r} names no model", f"write {kind}:HUB_ID or {kind}:FOLDER")
    # What other tools have trained reads its score behind the last token that the chat template
    # writes.
    return Card(
        kind=kind,
        name=spec,
        model=argument,
        **({"read_at": "end"} if kind == "bradley_terry" else {}),
    )
