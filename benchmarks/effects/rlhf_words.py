"""The task of `benchmarks.effects.rlhf`: answers of ten words, of which each is known to be good or
bad.

A word is a head, one of sixteen capitals, and the suffix that belongs to it, 1 to 3 small letters
that are the same each time: at the head a model chooses, behind it there is nothing to choose. A
prompt is one of four classes. Each word has a quality of 1, 0 or -1 in each class, which hangs
neither on its length nor on its place; what is not a word has -1. The quality of an answer is the
mean over its parts. The tokenizer is that of the toy world, a token for each letter.
"""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEADS = string.ascii_uppercase[:16]
LETTERS = string.ascii_lowercase[:8]
CLASSES = "0123"
WORDS = 10
ROWS = {"sft": 6000, "pairs": 2400, "prompts": 1200}
CORRUPTED = 0.3
"""Share of the answers in pairs that have a few wrong letters."""
SHARPNESS = 6.0
"""The better answer is preferred with sigmoid(SHARPNESS times the difference of the qualities)."""
TRUTH = """\
from benchmarks.effects.rlhf_words import Words


def quality(prompt, completion, reference):
    return Words.drawn({seed}).quality(prompt[-1]["content"], completion)
"""


@dataclass(frozen=True)
class Words:
    """The words of a seed: the suffix of each head, and its quality in each class."""

    suffixes: dict[str, str]
    qualities: dict[tuple[str, str], int]

    @classmethod
    def drawn(cls, seed: int) -> Words:
        """Draw them; in each class a third of the heads is good, a third bad."""
        rng = random.Random(f"words {seed}")
        suffixes = {
            head: "".join(rng.choices(LETTERS, k=1 + place % 3)) for place, head in enumerate(HEADS)
        }
        qualities = {}
        for kind in CLASSES:
            ranks = [1] * 5 + [0] * 6 + [-1] * 5
            rng.shuffle(ranks)
            qualities |= {(head, kind): rank for head, rank in zip(HEADS, ranks)}
        return cls(suffixes, qualities)

    def answer(self, rng: random.Random) -> str:
        """Return ten random words."""
        return "".join(head + self.suffixes[head] for head in rng.choices(HEADS, k=WORDS))

    def parts(self, kind: str, answer: str) -> Iterator[tuple[int, int, int | None]]:
        """Yield where each part of an answer starts and ends, and the quality of the word that it
        is, or None."""
        start = 0
        while start < len(answer):
            head = answer[start]
            behind = start + 1 + len(self.suffixes.get(head, ""))
            if head in self.suffixes and answer[start + 1 : behind] == self.suffixes[head]:
                yield start, behind - 1, self.qualities[head, kind]
            else:
                behind = start + 1
                while behind < len(answer) and answer[behind] not in HEADS:
                    behind += 1
                yield start, behind - 1, None
            start = behind

    def quality(self, kind: str, answer: str) -> float:
        """Return the mean over the parts of an answer, -1 for an empty one."""
        found = [-1 if one is None else one for _, _, one in self.parts(kind, answer)]
        return sum(found) / len(found) if found else -1.0


def write_world(folder: Path, seed: int) -> None:
    """Write a model that knows nothing, rows for SFT, pairs, prompts, and a file with the true
    quality as a function."""
    words, rng = Words.drawn(seed), random.Random(f"rows {seed}")
    rows = {
        "sft": [_turns(rng.choice(CLASSES), words.answer(rng)) for _ in range(ROWS["sft"])],
        "pairs": [_pair(words, rng) for _ in range(ROWS["pairs"])],
        "prompts": [{"prompt": _user(rng.choice(CLASSES))} for _ in range(ROWS["prompts"])],
    }
    _write_model(folder / "model", seed)
    for name, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "truth.py").write_text(TRUTH.format(seed=seed), encoding="utf-8")


def _user(kind: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": kind}]


def _turns(kind: str, answer: str) -> dict[str, object]:
    return {"messages": [*_user(kind), {"role": "assistant", "content": answer}]}


def _pair(words: Words, rng: random.Random) -> dict[str, object]:
    kind = rng.choice(CLASSES)
    first, second = (_corrupted(words.answer(rng), rng) for _ in range(2))
    gap = words.quality(kind, first) - words.quality(kind, second)
    if rng.random() > 1 / (1 + math.exp(-SHARPNESS * gap)):
        first, second = second, first
    sides = {"chosen": first, "rejected": second}
    turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": _user(kind), **turns}


def _corrupted(answer: str, rng: random.Random) -> str:
    """Replace up to three letters in some of the answers."""
    letters = list(answer)
    if rng.random() < CORRUPTED:
        for place in rng.sample(range(len(letters)), k=rng.randint(1, 3)):
            letters[place] = rng.choice(HEADS + LETTERS)
    return "".join(letters)


def _write_model(folder: Path, seed: int) -> None:
    # Whoever asks for the quality of an answer, a process for each call, needs none of this.
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from aligner.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.06,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.model_max_length = 256
    tokenizer.save_pretrained(folder)
