"""Reward models with a head on a language model: `bradley_terry` (one output) and `regression`
(several, weighted).

They are Hugging Face's for sequence classification, so public reward models load. A conversation is
turned into ids by its chat template as in training, longest first, padded on the right, and read at
the token that ends the answer (or behind it: the card's `read_at`). A conversation that is too long
loses its beginning, never its end, and its score says so. The head computes in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import torch

from aligner.config.recipe import Model
from aligner.data.rows import CompletionRow
from aligner.errors import DataError, Problem, RecipeError
from aligner.models.fingerprint import model_fingerprint
from aligner.models.forward import batched_forward
from aligner.models.loading import load_reward_model
from aligner.models.positions import max_positions
from aligner.models.reward_head import pool_by_mask
from aligner.models.tokenizers import load_tokenizer
from aligner.tokenization.control_tokens import found_in, in_words, pattern_of
from aligner.tokenization.encode import encode_answer, stop_token_ids

from .base import Prompt, Range, Scorer, Scores, check_lengths
from .card import Card, range_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class ModelScorer:
    """What scorers with a model share: a card, the model that it names, and their fingerprint."""

    card: Card
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def name(self) -> str:
        """The card's name."""
        return self.card.name

    @property
    def range(self) -> Range:
        """What the card says."""
        return range_of(self.card)

    def fingerprint(self) -> str:
        """A hash of the weights, of how they are loaded, and of how text becomes ids."""
        return self._fingerprint

    def also_decides(self) -> str | None:
        """What decides the scores beside the model and how it reads, as text."""
        return None

    @cached_property
    def _fingerprint(self) -> str:
        own, more = fingerprint_of(self.card, self.tokenizer), self.also_decides()
        return own if more is None else sha256(f"{own} {more}".encode()).hexdigest()


@dataclass(frozen=True)
class HeadScorer(ModelScorer):
    """Scores by a head: r(x, y) = sum_k w_k f_k(x, y), with one output and a weight of 1 for
    `bradley_terry`.

    A score has no unit; differences between answers to one prompt are log-odds for `bradley_terry`.
    A regression gives ratings on the scale that it was trained on, each under its name in
    `attributes`.
    """

    weights: list[float]

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
        *,
        finished: Sequence[bool] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Scores:
        """Score answers; see `Scorer.score`.

        `finished[i]` False: the answer was cut off by a limit, so it is read without a stop token,
        at its last token. Raises: DataError naming the rows whose score is NaN or inf.
        """
        check_lengths(prompts, completions, references)
        encoded = Conversations(self.card, self.tokenizer, prompts, completions, finished)

        def read(batch: dict[str, torch.Tensor], _: Sequence[int]) -> list[list[float]]:
            return self.model(**batch).logits.tolist()

        rows = batched_forward(
            self.model,
            encoded.sequences,
            read,
            pad_token_id=encoded.pad_id,
            batch_tokens=self.card.batch_tokens,
            on_progress=on_progress,
        )
        refuse_no_numbers(self.name, rows)
        attributes = {}
        for index, name in enumerate(self.card.attributes):
            attributes[name] = [row[index] for row in rows]
        return Scores(map(self._weighted, rows), attributes, encoded.remarks)

    def _weighted(self, row: Sequence[float]) -> float:
        return sum(weight * value for weight, value in zip(self.weights, row))


def within_positions(card: Card, model: PreTrainedModel) -> Card:
    """Return the card with no longer rows than the model has positions for."""
    positions = max_positions(model)
    return (
        card
        if positions is None
        else card.model_copy(update={"max_length": min(card.max_length, positions)})
    )


class Conversations:
    """Prompts with their answers as ids, each within the card's `max_length`, and remarks on those
    that were cut."""

    def __init__(
        self,
        card: Card,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        finished: Sequence[bool] | None = None,
    ) -> None:
        assert tokenizer.pad_token_id is not None, "load_tokenizer sees to it"
        self.pad_id: int = tokenizer.pad_token_id
        self.sequences: list[list[int]] = []
        self.starts: list[int] = []
        """Where each answer begins."""
        self.remarks: dict[int, str] = {}
        stops, first = stop_token_ids(tokenizer), _second_bos(card, tokenizer)
        control_tokens = pattern_of(tokenizer)
        for row, (prompt, completion) in enumerate(zip(prompts, completions)):
            before, answer = encode_answer(
                tokenizer, prompt, completion, f"row {row + 1}", tail=card.read_at == "end"
            )
            before = [*first, *before]
            if finished is not None and not finished[row]:
                # without the stop token, which was added to it
                ends = [place for place, token in enumerate(answer) if token in stops]
                answer = answer[: ends[-1]] if ends else answer
            self._add(row, before, answer, card.max_length)
            if marks := found_in(control_tokens, CompletionRow(prompt, completion)):
                remark = f"its text holds control tokens, which act as such: {in_words(marks)}"
                self.remarks[row] = "; ".join(filter(None, (self.remarks.get(row), remark)))

    def _add(self, row: int, prompt: list[int], answer: list[int], longest: int) -> None:
        cut = max(0, len(prompt) + len(answer) - longest)
        self.sequences.append([*prompt, *answer][cut:])
        self.starts.append(max(0, len(prompt) - cut))
        if cut:
            lost = f"{cut} tokens from its beginning"
            rest = ", a part of the answer among them" if cut > len(prompt) else ""
            self.remarks[row] = f"longer than {longest} tokens: it was read without {lost}{rest}"


def _second_bos(card: Card, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the card wants before those of the rendered conversation."""
    if not card.second_bos:
        return []
    if tokenizer.bos_token_id is None:
        raise RecipeError(
            f"the card {card.name} says second_bos, but its tokenizer has no start token",
            "drop the key",
        )
    return [tokenizer.bos_token_id]


def refuse_no_numbers(name: str, rows: Sequence[Sequence[float]]) -> None:
    """Raise for rows that hold a NaN or inf."""
    bad = [place for place, row in enumerate(rows, start=1) if not all(map(math.isfinite, row))]
    if bad:
        raise DataError(
            f"{name} gives {len(bad)} of {len(rows)} rows a score that is NaN or inf",
            "its weights are broken, or overflow in this data type: try dtype: float32 in its card",
            [Problem("NaN or inf", where=f"row {place}") for place in bad[:10]],
        )


def section_of(card: Card) -> Model:
    """The card's model as a section of a recipe."""
    assert card.model is not None, "NEEDED sees to it"
    return Model(
        name_or_path=card.model,
        revision=card.revision,
        dtype=card.dtype,
        quantization=card.quantization,
        double_quant=card.double_quant,
        attn_implementation=card.attn_implementation,
        trust_remote_code=card.trust_remote_code,
        chat_template=card.chat_template,
        pad_token=card.pad_token,
    )


def fingerprint_of(card: Card, tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what decides a neural model's scores."""
    says = card.model_dump_json(
        exclude={
            "name",
            "description",
            "license",
            "url",
            "model",
            "batch_tokens",
            "accuracy",
            "recipe_hash",
        }
    )
    text = f"{says} {tokenizer.chat_template} {model_fingerprint(section_of(card))}"
    return sha256(text.encode()).hexdigest()


def attribute_weights(attributes: Sequence[str], weights: dict[str, float]) -> list[float]:
    """The weight of each attribute in a score: as given, absent ones 0; without any, all the
    same."""
    if not weights:
        return [1.0 / len(attributes)] * len(attributes)
    return [weights.get(name, 0.0) for name in attributes]


def make(card: Card) -> Scorer:
    """Load the model of a card of the kind `bradley_terry` or `regression`.

    Raises: RecipeError when it cannot be loaded, or has another number of outputs than the card
    says.
    """
    section = section_of(card)
    tokenizer = load_tokenizer(section)
    model = load_reward_model(section, tokenizer, outputs=None, trainable=False)
    outputs = int(model.config.num_labels)
    wanted = len(card.attributes) if card.kind == "regression" else 1
    if outputs != wanted:
        names = f" ({', '.join(card.attributes)})" if card.attributes else ""
        raise RecipeError(
            f"the card {card.name} of kind {card.kind} says {wanted} output(s){names}, but "
            f"{card.model} has {outputs}",
            "list all outputs under `attributes` with kind: regression, or check the model",
        )
    pool_by_mask(model)
    weights = (
        attribute_weights(card.attributes, card.weights) if card.kind == "regression" else [1.0]
    )
    return HeadScorer(within_positions(card, model), model, tokenizer, weights)
