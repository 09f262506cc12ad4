"""Compare two models on the same token ids, position by position: how far their logits are apart.

The probes are a few fixed texts (prose, code, numbers, other scripts, a turn of a conversation),
held-out prompts of the run where its record has some, and every token that training added. Logits
are taken in float32 of all positions of a probe, up to `MAX_POSITIONS`.

Legend: T positions of a probe, P positions of all of them, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aligner.models.adapter_kinds import base_under_adapter
from aligner.models.forward import eval_mode
from aligner.tokenization.encode import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_POSITIONS = 96
"""Of a probe, from its start."""

WORTH_TELLING = 0.05
"""What rounding moves, as a share of what the adapter moves, from which a warning says so."""

FEWEST_TOKENS = 32
"""What has fewer outputs at a position gives scores, and no logits of tokens."""

TEXTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the n-th Fibonacci number.\n\ndef fibonacci(n):\n    ",
    "A shop sells 48 pens at $1.25 each and 17 rulers at $0.80. How much is that in all?",
    "Résumez : « L'été, les cigales chantent jusqu'à 22 h 30. »",
    "请用一句话介绍北京。 東京の天気は？ Сколько будет 7 × 8?",
    '{"name": "Ada", "tags": ["x", "y"], "score": 3.5e-2}',
    "List three fruits 🍎🍌, then three vegetables.",
    "no",
)


@dataclass(frozen=True)
class Comparison:
    """How far two models are apart over `positions` positions of `probes` texts.

    `largest_difference` and `mean_difference`: of two logits of the same token. `spread`: the
    standard deviation of the first model's logits at a position; of scores, that over the probes.
    `top1_agreement`: share of positions at which both find the same token likeliest.
    """

    probes: int
    positions: int
    largest_difference: float
    mean_difference: float
    spread: float
    top1_agreement: float

    @property
    def mean_share(self) -> float:
        """The mean difference, as a share of the spread."""
        return self.mean_difference / max(self.spread, 1e-30)

    def to_json(self) -> dict[str, Any]:
        """Return it for a record."""
        return asdict(self)


def probe_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Any] = (), new_ids: Sequence[int] = ()
) -> list[list[int]]:
    """Return the ids of the probes: our texts, further prompts, and new tokens in a row."""
    found = [encode_prompt(tokenizer, prompt)[:MAX_POSITIONS] for prompt in (*TEXTS, *prompts)]
    if new_ids:
        found.append([*found[0][:8], *new_ids][:MAX_POSITIONS])
    return found


def logits_of(model: Any, probes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the logits (T, V) of each probe in float32, on the CPU; of a model with a head the
    scores (1, V)."""
    device = base_under_adapter(model).device
    found = []
    with torch.no_grad(), eval_mode(model):
        for ids in probes:
            ids_1T = torch.tensor([list(ids)], device=device)
            mask_1T = torch.ones_like(ids_1T)
            logits = model(input_ids=ids_1T, attention_mask=mask_1T, use_cache=False).logits
            found.append(logits.float().cpu().reshape(-1, logits.shape[-1]))
    return found


def compare(first: Sequence[Tensor], second: Sequence[Tensor]) -> Comparison:
    """Compare two models by their logits on the same probes; rows beyond the smaller vocabulary,
    which no token has, are left out."""
    gaps, agreed, entries = [], [], 0
    total, squares = torch.zeros(2, dtype=torch.float64)
    mean_V = torch.cat(list(first)).mean(0)
    for a_TV, b_TV in zip(first, second, strict=True):
        rows = min(a_TV.shape[1], b_TV.shape[1])
        a_TV, b_TV = a_TV[:, :rows], b_TV[:, :rows]
        gap_TV = (a_TV - b_TV).abs()
        gaps.append(gap_TV.max())
        total += gap_TV.double().sum()
        center = mean_V if rows < FEWEST_TOKENS else a_TV.mean(1, keepdim=True)
        squares += (a_TV - center).double().square().sum()
        agreed.append(a_TV.argmax(1) == b_TV.argmax(1))
        entries += gap_TV.numel()
    agreed_P = torch.cat(agreed)
    return Comparison(
        probes=len(first),
        positions=len(agreed_P),
        largest_difference=float(torch.stack(gaps).max()),  # of which a NaN is the largest
        mean_difference=float(total) / entries,
        spread=float(squares / entries) ** 0.5,
        top1_agreement=float(agreed_P.float().mean()),
    )


def effect_of_adapter(
    adapted: Any, logits: Sequence[Tensor], probes: Sequence[Sequence[int]]
) -> Comparison:
    """Compare the logits of a model with an adapter with those of its base alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers with bias")
        with adapted.disable_adapter():
            return compare(logits, logits_of(adapted, probes))


def cost_of_rounding(
    kind: str, rounding: Comparison, effect: Comparison, what: str = "logits"
) -> str | None:
    """Return a sentence on what rounding to a type takes from an adapter; None where that is
    little."""
    share = rounding.mean_difference / max(effect.mean_difference, 1e-30)
    if share < WORTH_TELLING:
        return None
    return (
        f"rounding to {kind} moves the {what} by {share:.0%} of what the adapter moves them, "
        "on the mean"
    )
