"""Pairwise preference models (`pairwise`): a language model that is asked whether answer A or
answer B is better.

It is asked in both orders, and P(first is better) = (P_AB + 1 - P_BA) / 2, so a liking for one
place cancels out; where the order decided, the row is among the `flips`. An answer has a score only
beside others to the same prompt: the mean probability that it is better than each of them (arXiv
2405.07863 takes the best by a tournament, which gives no scores).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import torch

from aligner.data.rows import Messages
from aligner.errors import DataError, Problem
from aligner.models.forward import batched_forward
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.runs.files import dumps

from .base import SHARE, Preferences, Prompt, Range, Scorer, Scores, check_lengths, placed
from .card import Card
from .heads import ModelScorer, OnProgress, refuse_no_numbers, section_of, within_positions
from .pairwise_prompt import PairwisePrompt, encode_question, length_of_answers, question_text


class PairScorer(ModelScorer):
    """P(A) = softmax([z_A, z_B])[A] at the place of the letter, with the model's whole vocabulary
    left aside."""

    @property
    def range(self) -> Range:
        """Probabilities."""
        return SHARE

    def prefer(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[str],
        second: Sequence[str],
        *,
        on_progress: OnProgress | None = None,
    ) -> Preferences:
        """Say how likely each first answer is better; see `Comparer.prefer`."""
        check_lengths(prompts, first, None)
        check_lengths(prompts, second, None)
        count, remarks = len(prompts), {}
        questions: list[PairwisePrompt] = []
        for one, other in ((first, second), (second, first)):
            for row in range(count):
                asked = encode_question(
                    self.tokenizer, prompts[row], one[row], other[row], f"row {row + 1}"
                )
                questions.append(asked)
                cut = len(asked.input_ids) - self.card.max_length
                if cut > 0:
                    remarks[row] = self._told(cut, one[row], other[row])
        chances = self._ask(questions, on_progress)
        forward, backward = chances[:count], [1.0 - chance for chance in chances[count:]]
        flips = [row for row in range(count) if (forward[row] - 0.5) * (backward[row] - 0.5) < 0]
        return Preferences(((a + b) / 2 for a, b in zip(forward, backward)), flips, remarks)

    def _told(self, cut: int, first: str, second: str) -> str:
        longest = self.card.max_length
        rest = ""
        if length_of_answers(self.tokenizer, first, second) > longest:
            rest = ", a part of the answers among them"
        return (
            f"longer than {longest} tokens: it was read without {cut} tokens from its "
            f"beginning{rest}"
        )

    def _ask(
        self, questions: Sequence[PairwisePrompt], on_progress: OnProgress | None
    ) -> list[float]:
        """P(A) of each question, read at the last place of rows that are padded on the left."""
        sequences = [question.input_ids[-self.card.max_length :] for question in questions]

        def read(batch: dict[str, torch.Tensor], rows: Sequence[int]) -> list[float]:
            logits = self.model(**batch, logits_to_keep=1, use_cache=False).logits[:, -1].float()
            letters = torch.tensor(
                [[questions[row].first_id, questions[row].second_id] for row in rows]
            )
            return logits.gather(1, letters.to(logits.device)).softmax(-1)[:, 0].tolist()

        assert self.tokenizer.pad_token_id is not None, "load_tokenizer sees to it"
        chances = batched_forward(
            self.model,
            sequences,
            read,
            pad_token_id=self.tokenizer.pad_token_id,
            batch_tokens=self.card.batch_tokens,
            left=True,
            on_progress=on_progress,
        )
        refuse_no_numbers(self.name, [[chance] for chance in chances])
        return chances

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
        *,
        on_progress: OnProgress | None = None,
    ) -> Scores:
        """Score each answer by the mean probability that it is better than the other answers to its
        prompt.

        Raises: DataError naming the rows whose prompt has no other answer.
        """
        check_lengths(prompts, completions, references)
        groups: dict[str, list[int]] = defaultdict(list)
        for row, prompt in enumerate(prompts):
            groups[dumps(prompt)].append(row)
        alone = [rows[0] + 1 for rows in groups.values() if len(rows) == 1]
        if alone:
            raise DataError(
                f"{self.name} compares answers, and {len(alone)} prompts have only one",
                "give several answers to each prompt, or use a reward model that scores answers "
                "one by one",
                [
                    Problem("the only answer to its prompt", where=f"row {row}")
                    for row in alone[:10]
                ],
            )
        pairs = [pair for rows in groups.values() for pair in combinations(rows, 2)]
        asked: list[str | Messages] = [prompts[a] for a, _ in pairs]
        try:
            chances = self.prefer(
                asked,
                [completions[a] for a, _ in pairs],
                [completions[b] for _, b in pairs],
                on_progress=on_progress,
            )
        except DataError as error:  # which counts pairs
            raise placed(error, [f"row {a + 1}" for a, _ in pairs]) from error
        wins: dict[int, list[float]] = defaultdict(list)
        for (a, b), chance in zip(pairs, chances):
            wins[a].append(chance)
            wins[b].append(1.0 - chance)
        remarks = {row: said for place, said in chances.remarks.items() for row in pairs[place]}
        return Scores(
            (sum(wins[row]) / len(wins[row]) for row in range(len(prompts))), remarks=remarks
        )

    def also_decides(self) -> str:
        """The form of the question."""
        roles = ("user", "assistant", "user")
        return question_text([{"role": role, "content": role} for role in roles], "x", "y")


def make(card: Card) -> Scorer:
    """Load the model of a card of the kind `pairwise`."""
    section = section_of(card)
    tokenizer = load_tokenizer(section)
    model = load_policy(section, tokenizer, trainable=False)
    return PairScorer(within_positions(card, model), model, tokenizer)
