"""The task of `benchmarks.effects.online`: translate four letters by a hidden table.

A prompt is four of eight capitals, an answer the small letter that belongs to each, in their order.
Gold is what is true: the number of leading letters that are right (so what stands behind a mistake
counts nothing, and can only be learned from answers that were right up to it), less a quarter for
each letter too many or too few, less 1 without an end. The start has seen answers in which each
letter is right with a probability of .35. A reward model sees answers of four qualities, a third of
them cut short, ordered by a noisy comparison of gold; the weak one sees few of them, by more noise,
and none that is cut.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

KEYS, VALUES, LENGTH = "ABCDEFGH", "abcdefgh", 4
START = 0.35
SFT_ROWS = 6000
TRAIN, HELD_OUT = 1152, 400
"""Prompts of all rounds together, and those that policies are measured on."""
QUALITIES = (0.2, 0.5, 0.8, 0.95)
TRUTH = """\
from benchmarks.effects.online_world import World


def gold(prompt, completion, reference):
    return World.drawn({seed}).gold(prompt[-1]["content"], completion)
"""


@dataclass(frozen=True)
class Proxy:
    """How a reward model's pairs are made."""

    pairs: int
    sharpness: float
    """The better answer is preferred with sigmoid(this times the difference of gold)."""
    cut: float
    """Share of the answers that are cut short."""


PROXIES = {"reward": Proxy(8000, 4.0, 0.3), "weak": Proxy(600, 1.0, 0.0)}
MORE = PROXIES["reward"]
"""As many again for the first, drawn last. With the 8,000 alone it misses what some letters are
worth in some seeds, and policies end there."""


@dataclass(frozen=True)
class World:
    """The hidden table of a seed."""

    table: dict[str, str]

    @classmethod
    def drawn(cls, seed: int) -> World:
        """Draw it."""
        values = list(VALUES)
        random.Random(f"table {seed}").shuffle(values)
        return cls(dict(zip(KEYS, values)))

    def gold(self, prompt: str, answer: str) -> float:
        """Return what an answer is worth, as text: one without an end is longer than any other."""
        right = 0
        for key, value in zip(prompt, answer):
            if self.table[key] != value:
                break
            right += 1
        return right - 0.25 * abs(len(answer) - LENGTH)

    def answer(self, prompt: str, quality: float, rng: random.Random) -> str:
        """Return an answer in which each letter is right with this probability."""
        letters = []
        for key in prompt:
            wrong = [value for value in VALUES if value != self.table[key]]
            letters.append(self.table[key] if rng.random() < quality else rng.choice(wrong))
        return "".join(letters)


def write_world(folder: Path, seed: int) -> None:
    """Write an untrained model, rows for SFT, prompts, pairs for each proxy, and gold as a
    function."""
    # Where gold is computed, nothing else is needed.
    from benchmarks.effects.rlhf_words import _write_model

    world, rng = World.drawn(seed), random.Random(f"rows {seed}")
    every = ["".join(letters) for letters in product(KEYS, repeat=LENGTH)]
    rng.shuffle(every)
    train, held_out = every[:TRAIN], every[TRAIN : TRAIN + HELD_OUT]
    sft = []
    for _ in range(SFT_ROWS):
        prompt = rng.choice(every[TRAIN + HELD_OUT :])
        said = {"role": "assistant", "content": world.answer(prompt, START, rng)}
        sft.append({"messages": [*_user(prompt), said]})
    rows = {
        "sft": sft,
        "prompts": [{"prompt": _user(prompt)} for prompt in train],
        "heldout": [{"prompt": _user(prompt)} for prompt in held_out],
        **{name: list(_pairs(world, proxy, every, rng)) for name, proxy in PROXIES.items()},
    }
    rows["reward"] += _pairs(world, MORE, every, rng)
    _write_model(folder / "model", seed)
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "truth.py").write_text(TRUTH.format(seed=seed), encoding="utf-8")


def _user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def _pairs(
    world: World, proxy: Proxy, every: list[str], rng: random.Random
) -> Iterator[dict[str, object]]:
    made = 0
    while made < proxy.pairs:
        prompt = rng.choice(every)
        sides = []
        for _ in range(2):
            answer = world.answer(prompt, rng.choice(QUALITIES), rng)
            if rng.random() < proxy.cut:
                answer = answer[: rng.randint(1, LENGTH - 1)]
            sides.append(answer)
        if sides[0] == sides[1]:
            continue
        gap = world.gold(prompt, sides[0]) - world.gold(prompt, sides[1])
        if rng.random() > 1 / (1 + math.exp(-proxy.sharpness * gap)):
            sides.reverse()
        turns = [[{"role": "assistant", "content": text}] for text in sides]
        yield {"prompt": _user(prompt), "chosen": turns[0], "rejected": turns[1]}
        made += 1
