"""Reward models with a value at every token (`segment`): an answer's score is the mean of the
values at its segments' ends.

That is how such a model is trained (arXiv 2501.02790), so it is how it is read here; `values` gives
the numbers themselves, which segment-level RLHF is made of. A value alone has an arbitrary level
that drifts along the answer: do not read it as quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from aligner.config.recipe import Model
from aligner.config.segments import Segments
from aligner.errors import RecipeError
from aligner.models.fingerprint import model_fingerprint
from aligner.models.forward import answer_entropies, batched_forward
from aligner.models.loading import load_policy, load_reward_model
from aligner.models.reward_head import return_token_values
from aligner.models.tokenizers import load_tokenizer
from aligner.tokenization.encode import stop_token_ids
from aligner.tokenization.segments import segment_ends, third_of

from .base import Prompt, Scorer, Scores, check_lengths
from .card import Card
from .heads import (
    Conversations,
    ModelScorer,
    OnProgress,
    refuse_no_numbers,
    section_of,
    within_positions,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Valued:
    """One answer: the value after each of its tokens (T,), and the places of its segments' last
    tokens, ascending."""

    token_ids: list[int]
    values: list[float]
    ends: list[int]

    @property
    def mean(self) -> float:
        """The mean of the values at the ends of the segments."""
        return fmean(self.values[end] for end in self.ends)

    def third(self, number: int) -> float:
        """The mean over the segments of the first, second or last third (0 to 2) of the answer; of
        fewer than three segments, the value of the one that lies there."""
        return fmean(self.values[end] for end in self.ends[third_of(len(self.ends), number)])


@dataclass(frozen=True)
class SegmentScorer(ModelScorer):
    """e(x, y) = (1/K) sum_j r_end(j), over the K segments of an answer."""

    reference: PreTrainedModel | None

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
        *,
        finished: Sequence[bool] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Scores:
        """Score answers by the mean over their segments; `segments` in the attributes counts
        these, and `early`, `middle` and `late` are the means over thirds of them."""
        found, remarks = self.values(
            prompts, completions, finished=finished, on_progress=on_progress
        )
        attributes = {
            "segments": [float(len(one.ends)) for one in found],
            "early": [one.third(0) for one in found],
            "middle": [one.third(1) for one in found],
            "late": [one.third(2) for one in found],
        }
        return Scores([one.mean for one in found], attributes, remarks)

    def values(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        *,
        finished: Sequence[bool] | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[list[Valued], dict[int, str]]:
        """Return the values of n answers, and remarks on the rows that were cut."""
        check_lengths(prompts, completions, None)
        encoded = Conversations(self.card, self.tokenizer, prompts, completions, finished)
        parts = [
            (ids[:start], ids[start:]) for ids, start in zip(encoded.sequences, encoded.starts)
        ]
        parts = [(ids[:-1], ids[-1:]) if not answer else (ids, answer) for ids, answer in parts]
        return self.values_of_ids(parts, on_progress=on_progress), encoded.remarks

    def values_of_ids(
        self,
        answers: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        on_progress: OnProgress | None = None,
    ) -> list[Valued]:
        """Return the values of n answers that are given as token ids, each with those of its
        prompt; nothing is tokenized again, and nothing is cut."""
        sequences = [[*prompt, *answer] for prompt, answer in answers]
        pad_id = self.tokenizer.pad_token_id

        def read(batch: dict[str, torch.Tensor], rows: Sequence[int]) -> list[list[float]]:
            values_BT = self.model(**batch).logits[..., 0]
            return [
                values_T[: len(sequences[row])].tolist() for values_T, row in zip(values_BT, rows)
            ]

        values = batched_forward(
            self.model,
            sequences,
            read,
            pad_token_id=pad_id,
            batch_tokens=self.card.batch_tokens,
            on_progress=on_progress,
        )
        found = [
            Valued(list(answer), row[len(prompt) :], ends)
            for (prompt, answer), row, ends in zip(answers, values, self._ends(answers, pad_id))
        ]
        refuse_no_numbers(self.name, [one.values for one in found])
        return found

    def refuse_other_tokenizer(self, tokenizer: PreTrainedTokenizerBase, whose: str) -> None:
        """Refuse token ids of a tokenizer that this model was not trained with.

        Raises: RecipeError that says whether the tokens or the chat template differ.
        """
        own = self.tokenizer
        if own.get_vocab() != tokenizer.get_vocab():
            what = "its token ids mean other texts"
        elif own.chat_template != tokenizer.chat_template:
            what = "its chat template writes conversations in another form"
        else:
            return
        raise RecipeError(
            f"{self.name} has another tokenizer than {whose}: {what}",
            "train the segment reward model from the same model as the policy",
        )

    def _ends(
        self, parts: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int
    ) -> list[list[int]]:
        """The places of the segments' ends of each answer."""
        segments, stops = _segments(self.card), stop_token_ids(self.tokenizer)
        entropies: Sequence[list[float] | None] = [None] * len(parts)
        if self.reference is not None:
            entropies = answer_entropies(
                self.reference, parts, pad_token_id=pad_id, batch_tokens=self.card.batch_tokens
            )
        return [
            segment_ends(segments, answer, self.tokenizer, entropies=found, stop_ids=stops)
            for (_, answer), found in zip(parts, entropies)
        ]

    def also_decides(self) -> str:
        """The weights of the reference, where there is one."""
        return "" if self.reference is None else model_fingerprint(_reference_section(self.card))


def _segments(card: Card) -> Segments:
    assert card.segments is not None, "NEEDED sees to it"
    return card.segments


def _reference_section(card: Card) -> Model:
    segments = _segments(card)
    return Model(
        name_or_path=str(segments.reference),
        revision=segments.revision,
        dtype=card.dtype,
        trust_remote_code=card.trust_remote_code,
    )


def make(card: Card) -> Scorer:
    """Load the model of a card of the kind `segment`, and the reference where its rule asks for
    one."""
    section, segments = section_of(card), _segments(card)
    if segments.rule == "entropy" and segments.reference is None:
        raise RecipeError(
            f"the card {card.name} cuts by entropy and names no reference model",
            "add `reference:` under `segments:`, the model whose entropies decided the segments "
            "in training",
        )
    tokenizer = load_tokenizer(section)
    model = load_reward_model(section, tokenizer, outputs=None, trainable=False)
    if model.config.num_labels != 1:
        raise RecipeError(
            f"{card.model} has {model.config.num_labels} outputs", "a segment reward model has one"
        )
    return_token_values(model)
    reference = None
    if segments.rule == "entropy":
        other = _reference_section(card)
        reference = load_policy(other, load_tokenizer(other), trainable=False)
    return SegmentScorer(within_positions(card, model), model, tokenizer, reference)
