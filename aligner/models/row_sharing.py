"""Test whether packed rows stay apart, on the model itself, since its class does not say.

Several rows in one sequence (packing) save padding, and are right only where a model's forward
tells them apart by their positions. Some hand those to their attention mask, some do not, some have
states that run on from row to row, and some refuse: with another version or another kernel the
answer changes. So three short rows are read in one sequence, exactly as the trainer would feed
them, and each alone, and the log-probabilities of their tokens are compared.

How much they may differ is measured too: by as much as rows do that see each other, when they stand
behind one another like a single text. Rounding is a small share of that, in any data type; a leak
is about all of it.

    finding = rows_apart(model)                # of a model that is loaded
    finding = foretell_packing(recipe.model)   # of a small random twin of it, before anything is
                                               tokenized or loaded

Another way to share a sequence is asked about by another arrangement: see `Arrange` and `packed`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd as _Dropout

from aligner.config.recipe import Model
from aligner.errors import RecipeError
from aligner.models.load_errors import MODEL_ERRORS, first_line
from aligner.models.twin import FIRST_FREE_ID, VOCABULARY, NoTwin, random_twin
from aligner.tokenization.batching import RowsApart

LENGTHS = (11, 7, 13)
SHARE = {torch.float32: 0.005}
"""How much of the difference that seeing each other makes may be rounding; in 16 bits (and less)
`ROUGH_SHARE`."""
ROUGH_SHARE = 0.25
LEAST_EFFECT = 1e-4
"""Where rows that see each other differ by less, in nats a token, the model's numbers cannot answer
the question."""
NOISE = ("drop", "jitter", "noise")
"""Parts of the names of what is random in train mode."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Rows in one sequence: what the model is given, and at which places of it the tokens of each
    row stand."""

    inputs: dict[str, Any]
    places: list[list[int]]


Arrange = Callable[[Sequence[Sequence[int]]], Shared]
"""Rows of token ids -> one sequence of them."""


def packed(rows: Sequence[Sequence[int]]) -> Shared:
    """Concatenate rows as TRL's collator does: positions start again at 0, no mask, borders for
    kernels."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    ids = [token for row in rows for token in row]
    sequence = {"input_ids": ids, "labels": ids, "seq_lengths": [len(row) for row in rows]}
    inputs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)([sequence])
    del inputs["labels"]
    return Shared(inputs, packed_places(rows))


def foretell_packing(model: Model) -> RowsApart:
    """Say whether a recipe's model would keep packed rows apart, from a small random twin of it.

    Raises: RecipeError when the model's config cannot be read.
    """
    try:
        twin = random_twin(model)
        return rows_apart(twin)
    except NoTwin as error:
        return RowsApart(
            None,
            "whether packed rows stay apart is unknown: no small model of its kind can be made "
            f"({error})",
        )


def cannot_pack(finding: RowsApart) -> RecipeError:
    """Return the refusal of a packed training."""
    return RecipeError(
        f"sft.packing: {finding.why}",
        "set sft.packing=auto or false: rows of like length go together",
    )


def rows_apart(
    model: Any, arrange: Arrange = packed, around: AbstractContextManager[Any] | None = None
) -> RowsApart:
    """Compare rows that share a sequence with each of them alone, and with what they would be if
    they saw each other.

    The model is read in train mode with everything random switched off, and is left as it was;
    `around` is a context that forwards run in (autocast).
    """
    device = model.get_input_embeddings().weight.device
    rows = _random_rows(model.get_input_embeddings().num_embeddings)
    joined = torch.tensor([[token for row in rows for token in row]], device=device)
    with torch.no_grad(), without_noise(model), around or nullcontext():
        try:
            alone = [
                _log_probs(model, {"input_ids": torch.tensor([row], device=device)}) for row in rows
            ]
            seen = _log_probs(model, {"input_ids": joined})
        except MODEL_ERRORS as error:
            return RowsApart(
                None,
                "whether packed rows stay apart is unknown: it cannot read one "
                f"({first_line(error)})",
            )
        shared = arrange(rows)
        try:
            inputs = {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in shared.inputs.items()
            }
            found = _log_probs(model, inputs)
        except MODEL_ERRORS as error:
            return RowsApart(False, f"the model cannot read packed rows ({first_line(error)})")
    behind = packed_places(rows)
    effect = _distance(seen, rows[1:], behind[1:], alone[1:])
    gap = _distance(found, rows, shared.places, alone)
    if not effect > LEAST_EFFECT:
        return RowsApart(
            None, "whether packed rows stay apart is unknown: the model hardly reads its context"
        )
    share = (
        SHARE.get(next(model.parameters()).dtype, ROUGH_SHARE) if around is None else ROUGH_SHARE
    )
    if not gap <= share * effect:
        return RowsApart(
            False, f"packed rows see each other in this model (log-probabilities are {gap:.2g} off)"
        )
    return RowsApart(True)


def packed_places(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return where the tokens of rows stand that follow one another."""
    places = iter(range(sum(map(len, rows))))
    return [list(islice(places, len(row))) for row in rows]


def _random_rows(num_embeddings: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    end = min(VOCABULARY, num_embeddings)
    return [
        torch.randint(min(FIRST_FREE_ID, end - 1), end, (n,), generator=generator).tolist()
        for n in LENGTHS
    ]


def _log_probs(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Return the log-probabilities (T, V) of a single sequence, in float32."""
    return model(**inputs, use_cache=False).logits[0].float().log_softmax(-1)


def _distance(
    found_TV: Tensor,
    rows: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    alone: Sequence[Tensor],
) -> float:
    """Return the mean difference of the log-probabilities of the rows' tokens, each from the one
    before it."""
    gaps = []
    for row, where, alone_TV in zip(rows, places, alone, strict=True):
        target = torch.tensor(row[1:], device=found_TV.device)[:, None]
        gaps.append(
            (found_TV[list(where)][:-1].gather(1, target) - alone_TV[:-1].gather(1, target)).abs()
        )
    return float(torch.cat(gaps).mean())


@contextmanager
def without_noise(model: Any) -> Iterator[None]:
    """Put a model into train mode with dropout, jitter and the like at 0; afterwards everything is
    as it was."""
    modes = [(module, module.training) for module in model.modules()]
    configs = [getattr(module, "config", None) for module, _ in modes]
    places = [
        *(vars(module) for module, _ in modes),
        *{id(c): vars(c) for c in configs if hasattr(c, "to_dict")}.values(),
    ]
    noisy = [
        (place, name, value)
        for place in places
        for name, value in place.items()
        if _is_noise(name, value)
    ]
    # Not only put into eval mode: some attention reads the number.
    noisy += [(vars(module), "p", module.p) for module, _ in modes if isinstance(module, _Dropout)]
    model.train()
    for place, name, _ in noisy:
        place[name] = 0.0
    try:
        yield
    finally:
        for place, name, value in noisy:
            place[name] = value
        for module, mode in modes:
            module.training = mode


def _is_noise(name: str, value: Any) -> bool:
    return isinstance(value, float) and value > 0 and any(part in name for part in NOISE)
