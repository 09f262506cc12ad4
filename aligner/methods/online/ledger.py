"""The ledger of an oracle: every answer that it gave, so that none is paid for twice. Imports no
torch.

    $ALIGNER_CACHE/oracle/NAME.jsonl   one for each scorer, whose name is what decides its answers

A line is on the disk before the next pair is asked about. A pair is known by its prompt, its two
responses in whatever order, and the right answer where the oracle compares with one: so a killed
run, and another run whose policy says the same, find what was said. A pair without a verdict is not
in it, and another run may ask about it again. Deleting it costs what the answers did.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from aligner.events import OnEvent
from aligner.reward_models.batching import prompt_key
from aligner.runs.cache import cache_folder, check_cache
from aligner.runs.journal import Journal

Pair = Mapping[str, Any]
"""`prompt`, `a`, `b`, and `answer` where there is one."""


class Ledger:
    """The answers of a scorer. `made_of`: a hash of all that decides them."""

    def __init__(self, made_of: str, on_event: OnEvent | None = None) -> None:
        self.file = cache_folder("oracle") / f"{made_of[:32]}.jsonl"
        self._journal = Journal(self.file, made_of)
        self._journal.tell_damaged(on_event)

    def check(self) -> None:
        """Raise UsageError where an answer could not be kept: to be asked before one is paid."""
        check_cache(self.file)

    def known(self, pair: Pair) -> float | None:
        """Return how likely `a` is better by the oracle, as it said; None where it was not
        asked."""
        number = _number(pair)
        if number not in self._journal:
            return None
        first, value = self._journal[number]
        return float(value) if first == _digest(pair["a"]) else 1.0 - float(value)

    def add(self, pair: Pair, value: float) -> None:
        """Keep an answer; it is on the disk when this returns."""
        self._journal.add(_number(pair), [_digest(pair["a"]), value])


def _number(pair: Pair) -> int:
    texts = sorted((pair["a"], pair["b"]))
    said = json.dumps([prompt_key(pair["prompt"]), *texts, pair.get("answer")])
    return int(_digest(said), 16)


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
