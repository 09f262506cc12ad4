"""What scorers hold in memory beside a policy, and what they compute at once, from their cards: for
estimates. Loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from aligner.config.recipe import Model
from aligner.memory.footprint import Batch, Beside, Head, Pass
from aligner.models.files import adapter_config, base_of

from .card import Card
from .catalogue import members_of

HEADS: dict[str, Head] = {
    "bradley_terry": "values",
    "regression": "values",
    "segment": "values",
    "pairwise": "letters",
}
"""Kinds that hold a model in this process -> what its head gives."""


def held_by(
    cards: Sequence[Card], policy: Model, rows: int, tokens: int
) -> tuple[list[Beside], list[Pass]]:
    """Return the models of scorers, and their passes over `rows` answers of so many `tokens`, the
    prompt included."""
    beside: list[Beside] = []
    passes: list[Pass] = []
    for card in _all_of(cards):
        for name, model, head in _models_of(card):
            outputs = max(1, len(card.attributes)) if head == "values" else None
            shares = _stands_on(model, policy) and (outputs is None or _is_adapter(model))
            beside.append(Beside(name, model, outputs, on_base=shares))
            at_once = max(1, min(rows, card.batch_tokens // tokens))
            read = at_once * tokens if head != "letters" else at_once
            passes.append(Pass(f"scoring by {name}", Batch(at_once, tokens, read), head, of=name))
    return beside, passes


def _all_of(cards: Sequence[Card]) -> Iterator[Card]:
    """Cards with those of their members, at any depth."""
    for card in cards:
        yield card
        yield from _all_of(members_of(card))


def _models_of(card: Card) -> Iterator[tuple[str, Model, Head]]:
    """The models that a card has loaded: its own, and the reference that its segments end by."""
    if card.kind not in HEADS or card.model is None:
        return
    name = card.name or Path(card.model).name
    yield f"reward model {name}", _section(card, card.model), HEADS[card.kind]
    if card.segments is not None and card.segments.rule == "entropy":
        reference = card.segments.reference or card.model
        yield f"reference of {name}", _section(card, reference), "logits"


def _section(card: Card, name: str) -> Model:
    keys = ("dtype", "quantization", "double_quant", "attn_implementation", "trust_remote_code")
    return Model(name_or_path=name, **{key: getattr(card, key) for key in keys})


def _is_adapter(model: Model) -> bool:
    return adapter_config(model.name_or_path) is not None


def _stands_on(model: Model, policy: Model) -> bool:
    """Say whether a model can stand on the base of the policy, as far as names tell
    (`aligner.models.shared_base` compares weights)."""
    if policy.lora is None or model.quantization != policy.quantization:
        return False
    bases = [Path(base_of(one)[0]).expanduser().resolve() for one in (model, policy)]
    return bases[0] == bases[1]
