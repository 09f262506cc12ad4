"""The third stage of a round: its pairs, in the form that `aligner dpo` reads, and what was lost.

    pairs.jsonl     prompt, chosen, rejected, the token ids that were sampled, and what decided
    best.jsonl      in its place, where rounds train on the best responses: prompt and completion

The shards of responses and scores are read one after the other, so memory does not grow with the
number of prompts; the file gets its name once it is whole.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from aligner.data.rows import Messages, PromptRow
from aligner.methods.online.pairing import FUTURE, Pair, Scored, best_of, guided, pairs_of
from aligner.methods.online.recipe import Online
from aligner.runs.files import json_line
from aligner.runs.stages import Stage

PAIRS, BEST = "pairs.jsonl", "best.jsonl"

Shard = Sequence[Sequence[Scored]]
"""Of each prompt of a shard, its scored responses."""


@dataclass
class Tally:
    """Sums over the pairs of a stage."""

    pairs: int = 0
    prompts: int = 0
    margin: float = 0.0
    tokens: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    longer_chosen: int = 0
    from_future: int = 0
    by_length: list[float] = field(default_factory=list)
    """Of each prompt the correlation of score and length."""

    def add(self, pair: Pair) -> None:
        """Count a pair."""
        self.pairs += 1
        self.margin += pair.margin
        chosen, rejected = len(pair.chosen.token_ids), len(pair.rejected.token_ids)
        self.tokens["chosen"] += chosen
        self.tokens["rejected"] += rejected
        self.longer_chosen += chosen > rejected
        self.from_future += pair.chosen.source == FUTURE

    def facts(self) -> dict[str, Any]:
        """Return what the stage says of itself."""
        count = max(1, self.pairs)
        return {
            "pairs": self.pairs,
            "prompts": self.prompts,
            "margin": self.margin / count,
            "tokens of the chosen": self.tokens["chosen"] / count,
            "tokens of the rejected": self.tokens["rejected"] / count,
            "longer ones chosen": self.longer_chosen / count,
            "chosen from the future": self.from_future / count,
            "correlation of score and length": _mean(self.by_length),
            "lost": dict(sorted(self.lost.items())),
        }


def make_pairs(
    stage: Stage,
    rows: Sequence[PromptRow],
    shards: Iterator[tuple[range, Shard]],
    online: Online,
    *,
    seed: int,
    name: str,
) -> None:
    """Write the pairs of all shards, and finish the stage. `name`: the round, for the rows."""
    if stage.is_done:
        return
    is_sft = online.train == "sft"
    target = stage.folder / (BEST if is_sft else PAIRS)
    unfinished = target.with_suffix(".unfinished")
    tally = Tally()
    with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        for numbers, shard in shards:
            for number, responses in zip(numbers, shard, strict=True):
                tally.prompts += 1
                tally.by_length += _correlation(responses)
                if is_sft:
                    _write_best(file, tally, rows[number], responses, online)
                    continue
                draw = random.Random(f"{seed} {name} {number}")
                futures = [one for one in responses if one.source == FUTURE]
                others = [one for one in responses if one.source != FUTURE]
                pairs, lost = pairs_of(others, online.pairing, draw)
                tally.lost += lost
                for pair in (guided(one, futures, online.pairing) for one in pairs):
                    tally.add(pair)
                    file.write(json_line(_pair_row(rows[number], pair, name)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, target)
    stage.finish(tally.facts(), [target])


def _write_best(
    file: IO[str], tally: Tally, row: PromptRow, responses: Sequence[Scored], online: Online
) -> None:
    best, lost = best_of(responses, online.pairing)
    tally.lost += lost
    if best is not None:
        tally.pairs += 1
        tally.tokens["chosen"] += len(best.token_ids)
        turns = as_answer(row.prompt, best.text)
        made = {"prompt": row.prompt, "completion": turns, "score": best.score}
        file.write(json_line({**made, "origin": row.origin}))


def _pair_row(row: PromptRow, pair: Pair, name: str) -> dict[str, Any]:
    chosen, rejected, margin = pair
    return {
        "prompt": row.prompt,
        "chosen": as_answer(row.prompt, chosen.text),
        "rejected": as_answer(row.prompt, rejected.text),
        "pair_token_ids": [list(chosen.token_ids), list(rejected.token_ids)],
        "scores": [chosen.score, rejected.score],
        "margin": margin,
        "written_by": [chosen.source, rejected.source],
        "round": name,
        "origin": row.origin,
    }


def as_answer(prompt: str | Messages, text: str) -> str | Messages:
    """Return a response in the form of its prompt: a text, or one turn."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _correlation(responses: Sequence[Scored]) -> list[float]:
    """Pearson's correlation of score and tokens over the responses to a prompt, where both vary."""
    known = [(one.score, len(one.token_ids)) for one in responses if one.score is not None]
    if len(known) < 3:
        return []
    scores, lengths = zip(*known)
    mean_score, mean_length = _mean(scores) or 0.0, _mean(lengths) or 0.0
    left = [score - mean_score for score in scores]
    right = [length - mean_length for length in lengths]
    spread = sum(a * a for a in left) * sum(b * b for b in right)
    if spread <= 0.0:
        return []
    return [float(sum(a * b for a, b in zip(left, right)) / spread**0.5)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def pair_file(stage: Stage) -> Path:
    """Return the file that a finished stage wrote."""
    best = stage.folder / BEST
    return best if best.exists() else stage.folder / PAIRS
