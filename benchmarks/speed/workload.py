"""The work that both tools do: the toy model with random weights, and chats and pairs of the toy
world with a long tail.

Lengths are lognormal (median 40 characters of user text, up to 400), as chats are: a random batch
is mostly padding.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from aligner.toy.pretrain import new_model
from aligner.toy.tokenizer import build_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def write_workload(folder: Path, num_rows: int, seed: int = 0) -> None:
    """Write `model/`, `chats/train.jsonl` and `pairs/train.jsonl`: folders, because TRL takes no
    files."""
    rng = random.Random(seed)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, seed)
    model.config.max_position_embeddings = 1024  # the longest rows have 800 tokens
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for name, make in (("chats", _chat), ("pairs", _pair)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows = (json.dumps(make(rng)) for _ in range(num_rows))
        (folder / name / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _text(rng: random.Random) -> str:
    length = min(400, max(3, int(rng.lognormvariate(3.7, 0.9))))
    return "".join(rng.choices(LETTERS, k=length)).strip() or "a"


def _chat(rng: random.Random) -> dict[str, object]:
    text = _text(rng)
    return {"messages": [_turn("user", f"reverse: {text}"), _turn("assistant", text[::-1])]}


def _pair(rng: random.Random) -> dict[str, object]:
    text = _text(rng)
    wrong = "".join(rng.sample(text, len(text)))
    if wrong == text[::-1]:
        wrong += "?"
    return {
        "prompt": [_turn("user", f"reverse: {text}")],
        "chosen": [_turn("assistant", text[::-1])],
        "rejected": [_turn("assistant", wrong)],
    }


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
