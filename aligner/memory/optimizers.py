"""What optimizers keep of each weight that is trained, by their name in transformers."""

from __future__ import annotations

from dataclasses import dataclass

from aligner.memory.shape import Shape

OF_8_BITS = 1 + 4 / 256
"""Bytes of a number in 8 bits: blocks of 256 share a scale in float32 (bitsandbytes)."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Numbers that an optimizer keeps of each weight, `bits` each; 0 for those of the weight's own
    type. `is_factored`: of a matrix, one of each row and column in their place."""

    numbers: float
    bits: int = 0
    is_factored: bool = False
    note: str = ""


ADAM = Kept(2)
LESS = "a part of what AdamW keeps, and a projection of it: an upper bound"
BY_NAME: dict[str, Kept] = {
    "adafactor": Kept(0, is_factored=True),
    "adamw_torch_4bit": Kept(2, 4),
    "adamw_torch_8bit": Kept(2, 8),
    "adamw_anyprecision": Kept(3),
    "ademamix": Kept(3, 32),
    "ademamix_8bit": Kept(3, 8),
    "sgd": Kept(0),
    "adagrad": Kept(1),
    "adamw_bnb_8bit": Kept(2, 8),
    "adamw_8bit": Kept(2, 8),
    "lion_8bit": Kept(1, 8),
    "lion_32bit": Kept(1, 32),
    "paged_adamw_32bit": Kept(2, 32),
    "paged_adamw_8bit": Kept(2, 8),
    "paged_ademamix_32bit": Kept(3, 32),
    "paged_ademamix_8bit": Kept(3, 8),
    "paged_lion_32bit": Kept(1, 32),
    "paged_lion_8bit": Kept(1, 8),
    "rmsprop": Kept(1),
    "rmsprop_bnb": Kept(1, 32),
    "rmsprop_bnb_8bit": Kept(1, 8),
    "rmsprop_bnb_32bit": Kept(1, 32),
    "galore_adamw": Kept(2, note=LESS),
    "galore_adamw_8bit": Kept(2, 8, note=LESS),
    "galore_adafactor": Kept(0, is_factored=True),
    "apollo_adamw": Kept(2, note=LESS),
    "lomo": Kept(0),
    "adalomo": Kept(0, is_factored=True),
    "grokadamw": Kept(3),
    "schedule_free_sgd": Kept(1),
}
"""Name -> what it keeps, where that is not what AdamW does: two numbers of the weight's own
type."""


def optimizer_bytes(name: str, shape: Shape, weights: int, in_ends: int, each: int) -> int:
    """Return what an optimizer keeps of `weights` of `each` bytes, of which `in_ends` are
    embeddings and head.

    bitsandbytes keeps those of embeddings in float32 where the others are in 8 bits (so does
    transformers ask), and those of a head of its own.
    """
    kept = BY_NAME.get(name.removesuffix("_layerwise"), ADAM)
    if kept.is_factored:
        # Rows and columns of matrices: of each D weights there is about one, twice over.
        return round(4 * 2 * weights / shape.width)
    if kept.bits == 8:
        return round(kept.numbers * (OF_8_BITS * (weights - in_ends) + 4 * in_ends))
    size = kept.bits / 8 if kept.bits else each
    return round(kept.numbers * size * weights)


def is_paged(name: str) -> bool:
    """Say whether an optimizer's numbers may move to the CPU's memory."""
    return name.startswith("paged_")


def note_of(name: str) -> str:
    """Return a remark on what an optimizer is taken to keep; or nothing."""
    kept = BY_NAME.get(name.removesuffix("_layerwise"), ADAM)
    return f"trainer.optim={name}: {kept.note}" if kept.note else ""
