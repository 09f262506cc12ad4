"""How often a model prefers the chosen answer of a pair.

`accuracy` compares the log-probabilities of the two answers; it favours short answers, so
`accuracy_per_token` compares their means over tokens too. With a reference, `reward_accuracy`
compares the implicit rewards of DPO (arXiv 2305.18290), `log p - log p_reference`, and
`reward_margin` is their mean difference in nats; times beta it is what training logs as
`rewards/margins`. A tie counts as half a win everywhere (training's `rewards/accuracies` counts it
as none), so a policy that equals its reference has 0.5. Every pair counts the same here, whatever
its training weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

from aligner.data.rows import PreferenceRow, prompt_text
from aligner.errors import UsageError
from aligner.evaluation.figures import Figure, Figures, grouped, mean
from aligner.evaluation.likelihood import Likelihood, Tokens, likelihoods
from aligner.models.adapter_kinds import base_under_adapter
from aligner.models.forward import Progress
from aligner.runs.journal import Journal
from aligner.tokenization.encode import encode_pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def measure_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PreferenceRow],
    *,
    reference: PreTrainedModel | Literal["adapter_off"] | None = None,
    batch_size: int = 16,
    on_progress: Progress | None = None,
    journals: tuple[Journal | None, Journal | None] = (None, None),
) -> Figures:
    """Return the shares of pairs in which the chosen answer wins, by total, by token and by
    implicit reward.

    `journals` keep what the model, and what the reference, has computed.
    """
    sequences = _sequences(tokenizer, rows)
    passes = 1 if reference is None else 2
    progress = _over_passes(on_progress, len(sequences), passes)
    policy = likelihoods(
        model, sequences, batch_size=batch_size, on_progress=progress[0], journal=journals[0]
    )
    named = {
        "accuracy": _share(_margins([item.total for item in policy])),
        "accuracy_per_token": _share(_margins([item.total / len(item.logps) for item in policy])),
    }
    if reference is not None:
        judge, context = _reference(model, reference)
        with context:
            base = likelihoods(
                judge,
                sequences,
                batch_size=batch_size,
                on_progress=progress[1],
                journal=journals[1],
            )
        rewards = _margins(_rewards(policy, base))
        named |= {"reward_accuracy": _share(rewards), "reward_margin": mean(rewards, 1)}
    groups = grouped([prompt_text(row) for row in rows])
    return Figures(named, groups, {"rows": float(len(rows))})


def _sequences(tokenizer: PreTrainedTokenizerBase, rows: Sequence[PreferenceRow]) -> list[Tokens]:
    """Chosen and rejected of each pair, one after the other. Without a prompt the first token has
    nothing before it."""
    sequences = []
    for row in rows:
        pair = encode_pair(tokenizer, row)
        for answer_ids in (pair.chosen_ids, pair.rejected_ids):
            ids = pair.prompt_ids + answer_ids
            sequences.append(
                Tokens(ids, list(range(max(1, len(pair.prompt_ids)), len(ids))), row.origin)
            )
    return sequences


def _reference(
    model: PreTrainedModel, reference: PreTrainedModel | Literal["adapter_off"]
) -> tuple[PreTrainedModel, AbstractContextManager]:
    if not isinstance(reference, str):
        return reference, nullcontext()
    if base_under_adapter(model) is model:
        raise UsageError(
            "the reference is the base under the adapter, but the model has no adapter",
            "name a reference model, or load the adapter without merging it",
        )
    return model, model.disable_adapter()


def _rewards(policy: Sequence[Likelihood], reference: Sequence[Likelihood]) -> list[float]:
    """Token by token before the sum: equal models then give exactly zero, and long answers lose no
    digits."""
    return [
        float((mine.logps.double() - base.logps.double()).sum())
        for mine, base in zip(policy, reference)
    ]


def _margins(values: Sequence[float]) -> list[float]:
    return [chosen - rejected for chosen, rejected in zip(values[::2], values[1::2])]


def _share(margins: Sequence[float]) -> Figure:
    return mean([1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins], 1)


def _over_passes(on_progress: Progress | None, count: int, passes: int) -> list[Progress | None]:
    """One counter for every pass over the sequences, each going on where the one before ended."""

    def counter(start: int) -> Progress | None:
        if on_progress is None:
            return None
        return lambda done, _: on_progress(start + done, passes * count)

    return [counter(number * count) for number in range(passes)]
