"""The likelihood of given tokens under a model: loss and perplexity of rows, and the
log-probabilities behind them.

The loss is the mean over all trained tokens of all rows together, so a long row weighs more than a
short one, as in training. Which tokens are trained is decided in `aligner.tokenization.encode`, the
same as for training.

Legend: N wanted positions of one row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from aligner.data.rows import Row, prompt_text
from aligner.errors import DataError
from aligner.evaluation.figures import Figure, Figures, bits, exponential, grouped, mean
from aligner.models.forward import Progress, read_tokens, token_logps
from aligner.models.positions import max_positions
from aligner.runs.journal import Journal
from aligner.tokenization.encode import IGNORED, encode_sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.config.recipe import LossOn


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, and the positions (from 1 on) whose tokens are to be predicted from what stands
    before them."""

    input_ids: list[int]
    wanted: list[int]
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-probabilities of the wanted tokens (N,) in nats, and how many of them were the model's
    first choice."""

    logps: torch.Tensor
    first_choices: int

    @property
    def total(self) -> float:
        """Log-probability of the wanted tokens together."""
        return float(self.logps.sum(dtype=torch.float64))


def measure_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    loss_on: LossOn = "auto",
    batch_size: int = 16,
    on_progress: Progress | None = None,
    journal: Journal | None = None,
) -> Figures:
    """Return loss (nats per trained token), its other two forms, and the share of tokens guessed
    right; `row_loss` is in nats per row."""
    sequences = []
    for row in rows:
        encoded = encode_sft(tokenizer, row, loss_on)
        wanted = [i for i, label in enumerate(encoded.labels) if i and label != IGNORED]
        sequences.append(Tokens(encoded.input_ids, wanted, row.origin))
    found = likelihoods(
        model, sequences, batch_size=batch_size, on_progress=on_progress, journal=journal
    )
    lost = np.array([-item.total for item in found])
    tokens = np.array([len(item.logps) for item in found], dtype=np.float64)
    hits = np.array([item.first_choices for item in found], dtype=np.float64)
    named = {
        "loss": Figure(lost, tokens, -1, of_tokens=True),
        "perplexity": Figure(lost, tokens, -1, exponential, repeats=True),
        "bits_per_token": Figure(lost, tokens, -1, bits, repeats=True),
        "token_accuracy": Figure(hits, tokens, 1, of_tokens=True),
        "row_loss": mean(lost.tolist(), -1),
    }
    others = {"tokens": float(tokens.sum()), "rows": float(len(found))}
    return Figures(named, grouped([prompt_text(row) for row in rows]), others)


def likelihoods(
    model: PreTrainedModel,
    sequences: Sequence[Tokens],
    *,
    batch_size: int = 16,
    on_progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[Likelihood]:
    """Return the likelihood of each sequence, in their order; batches go from the longest to the
    shortest.

    `journal`: where each batch is kept, so that the same call resumes after a kill.

    Raises: DataError naming a row that is longer than the positions of the model.
    """
    assert batch_size >= 1, "a batch holds at least one row"
    _check_lengths(model, sequences)
    numbers = read_tokens(
        model,
        [item.input_ids for item in sequences],
        [item.wanted for item in sequences],
        _logps_and_hits,
        pad_token_id=0,
        batch_tokens=None,
        batch_rows=batch_size,
        on_progress=on_progress,
        journal=journal,
    )
    found = []
    for pairs in numbers:
        logps = [float(logp) for logp, _ in pairs]  # a journal holds NaN as text
        found.append(Likelihood(torch.tensor(logps), sum(int(hit) for _, hit in pairs)))
    return found


def _logps_and_hits(logits_NV: torch.Tensor, ids_N: torch.Tensor) -> torch.Tensor:
    """(N, 2): the log-probability of each token, and 1 where it is the model's first choice."""
    hits_N = logits_NV.argmax(dim=-1) == ids_N
    return torch.stack([token_logps(logits_NV, ids_N), hits_N.float()], dim=1)


def _check_lengths(model: PreTrainedModel, sequences: Sequence[Tokens]) -> None:
    positions = max_positions(model)
    for item in sequences:
        if not item.wanted:
            raise DataError(
                f"{item.origin} holds no token that could be predicted",
                "drop the row: it measures nothing",
            )
        if positions is not None and len(item.input_ids) > positions:
            raise DataError(
                f"{item.origin} has {len(item.input_ids)} tokens, but the model has {positions} "
                "positions",
                "shorten or drop the row: nothing is cut off here, since that would change the "
                "number silently",
            )
