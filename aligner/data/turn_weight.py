"""Whether a turn is trained, as the row itself says: 1 or 0, true or false, under one of several
names.

`weight` is what OpenAI, Mistral and Together read, `train` and `training` Axolotl, `loss` ms-swift
and XTuner, `loss_mask` others. A typed row holds `weight: 0` for a turn that is not to be trained
and, where its turns may be trained, `weight: 1` on one that no method trains (another's than the
assistant's), so that this can be said. Templates never see it.
"""

from __future__ import annotations

from typing import Any

from aligner.data.checks import BadRow
from aligner.data.rows import WEIGHT, Messages

SWITCHES = (WEIGHT, "train", "training", "loss", "loss_mask")
PARTS = ("train_detail", "training_detail")
"""Where Axolotl reads which characters of a turn are trained."""


def with_weight(turn: dict[str, Any], name: str) -> dict[str, Any]:
    """The turn with what it says of its own training as `weight`."""
    for key in PARTS:
        if turn.get(key):
            raise BadRow(
                f"{name} has `{key}`; parts of a turn cannot be trained, only whole ones "
                "(`weight`: 0 or 1)"
            )
    said = {key: _switch(turn[key], key, name) for key in SWITCHES if key in turn}
    if not said:
        return turn
    if len(set(said.values())) > 1:
        raise BadRow(
            f"{name} is to be trained and not to be trained: "
            f"{', '.join(f'`{key}`' for key in said)} differ"
        )
    rest = {key: value for key, value in turn.items() if key not in SWITCHES}
    weight = next(iter(said.values()))
    return rest if weight and turn.get("role") == "assistant" else {**rest, WEIGHT: weight}


def _switch(value: Any, key: str, name: str) -> int:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return int(value)
    raise BadRow(
        f"`{key}` of {name} is {value!r}; a turn is trained (1 or true) or not (0 or false), and "
        "nothing between: "
        "`weight` of a source or of a pair scales whole rows"
    )


def without_weights(turns: Messages) -> Messages:
    """The turns without what they say of their training, for what is read and never trained."""
    if not any(WEIGHT in turn for turn in turns):
        return turns

    def unweighted(turn: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in turn.items() if key != WEIGHT}

    return list(map(unweighted, turns))


def trained_side(turns: Messages, name: str) -> Messages:
    """The turns of an answer that is compared as a whole, without their weights."""
    if any(turn.get(WEIGHT) == 0 for turn in turns):
        raise BadRow(
            f"{name} holds a turn of weight 0, and an answer of a pair is compared as a whole"
        )
    return without_weights(turns)
