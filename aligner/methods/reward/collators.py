"""What stacks the rows of each kind of reward model into batches.

Legend: B pairs, N answers (2B: the chosen ones, then the rejected ones), R rows, T tokens, S
segments, K attributes, M places that are read in rows that share prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aligner.models.answers import Prefix, is_shared, joined
from aligner.models.forward import Answer, pad
from aligner.models.shared_prefix import lay_out

PAD_SEGMENT = -1


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Stack pairs into one batch of N = 2B answers, chosen first: in right-padded rows of their
    own, or with their prompts shared (`aligner.models.shared_prefix`).

    Each answer loses as much of the beginning of its prompt as `max_length` asks for, as it does
    when it is scored alone.
    """

    pad_token_id: int
    max_length: int
    prefix: Prefix = "separate"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `answer_lengths` (N,), `weight` and `strength` (B,), and `input_ids` and
        `attention_mask` (N, T), with segments also `ends` (N, S): places of their last tokens,
        filled with -1.

        With shared prefixes: `input_ids`, `position_ids`, `groups`, `branches` (R, T), `read_from`
        and `owners` (M,), the places that are read, and the answer of each.
        """
        chosen = [self._within(row, "chosen") for row in rows]
        rejected = [self._within(row, "rejected") for row in rows]
        answers = [*chosen, *rejected]
        ends = list(_ends(rows, answers)) if "chosen_ends" in rows[0] else None
        whole = list(map(joined, zip(chosen, rejected)))
        if is_shared(whole, self.prefix):
            batch = _shared(whole, ends, self.pad_token_id)
        else:
            batch = pad(joined(answers), self.pad_token_id)
            if ends is not None:
                batch["ends"] = _padded(ends)
        lengths = [len(answer) for _, answer in answers]
        batch["answer_lengths"] = torch.tensor(lengths, dtype=torch.float32)
        for key in ("weight", "strength"):
            batch[key] = torch.tensor([row[key] for row in rows], dtype=torch.float32)
        return batch

    def _within(self, row: dict[str, Any], side: str) -> Answer:
        """A prompt and an answer that `max_length` has room for."""
        prompt, answer = row["prompt_ids"], row[f"{side}_ids"]
        return prompt[max(0, len(prompt) + len(answer) - self.max_length) :], answer


def _ends(rows: Sequence[dict[str, Any]], answers: Sequence[Answer]) -> Iterator[list[int]]:
    """Where the segments of each answer end, in its sequence."""
    found = [row[f"{side}_ends"] for side in ("chosen", "rejected") for row in rows]
    for ends, (prompt, _) in zip(found, answers, strict=True):
        yield [len(prompt) + end for end in ends]


def _padded(ends: Sequence[Sequence[int]]) -> Tensor:
    padded = torch.full((len(ends), max(map(len, ends))), PAD_SEGMENT)
    for row, places in zip(padded, ends):
        row[: len(places)] = torch.tensor(places)
    return padded


def _shared(
    pairs: Sequence[Sequence[Sequence[int]]], ends: Sequence[list[int]] | None, pad_token_id: int
) -> dict[str, Tensor]:
    """Lay out pairs, each answer read at its ends of segments, or at its last token."""
    rows = lay_out(pairs, pad_token_id)
    read: list[int] = []
    owners: list[int] = []
    for answer, where in enumerate([*rows.places[::2], *rows.places[1::2]]):
        wanted = ends[answer] if ends is not None else [len(where) - 1]
        read += [where[end] for end in wanted]
        owners += [answer] * len(wanted)
    return {
        "input_ids": rows.input_ids,
        "position_ids": rows.position_ids,
        "groups": rows.groups,
        "branches": rows.branches,
        "read_from": torch.tensor(read, dtype=torch.long),
        "owners": torch.tensor(owners, dtype=torch.long),
    }


@dataclass(frozen=True, slots=True)
class RatingCollator:
    """Stack rated answers into one right-padded batch."""

    pad_token_id: int
    max_length: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` (N, T), `ratings` (N, K) and `weight` (N,)."""
        batch = pad([[*row["prompt_ids"], *row["answer_ids"]] for row in rows], self.pad_token_id)
        batch["ratings"] = torch.tensor([row["ratings"] for row in rows], dtype=torch.float32)
        batch["weight"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return batch


@dataclass(frozen=True, slots=True)
class QuestionCollator:
    """Stack questions into one left-padded batch, so that the letter is predicted at the last place
    of every row."""

    pad_token_id: int
    max_length: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask`, `position_ids` (B, T), `letter_ids` (B, 2) and
        `weight` (B,)."""
        batch = pad([row["input_ids"] for row in rows], self.pad_token_id, left=True)
        batch["letter_ids"] = torch.tensor([list(row["letter_ids"]) for row in rows])
        batch["weight"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return batch
