"""What a judge gets and what it gives back: one sheet for each game, and what was made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

from aligner.arena.records import ParseStatus
from aligner.errors import EndpointError

Prompt = str | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt of the arena: plain, or the turns up to the answer."""

    id: str
    prompt: Prompt
    category: str = ""
    reference: str | None = None
    """A right answer, where there is one."""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a contestant answered. `is_cut`: it ended at the longest length."""

    model: str
    text: str
    is_cut: bool = False

    @property
    def sha(self) -> str:
        """SHA-256 of the text."""
        return sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Sheet:
    """One game: a prompt with two answers, in the order in which they are shown."""

    item: Item
    first: Answer
    second: Answer

    @property
    def answers(self) -> tuple[Answer, Answer]:
        """Both answers, in this order."""
        return self.first, self.second


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge made of a sheet, in the words of `records.Game`; without scores unless
    `parse_status` is `ok` or `repaired`."""

    parse_status: ParseStatus
    score_first: float | None = None
    score_second: float | None = None
    raw_text: str = ""
    decoding: dict[str, Any] = field(default_factory=dict)
    cache_hit: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    latency_ms: float = 0.0
    usd: float | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Judging:
    """The verdicts on sheets, None for those that were not judged, and what stopped it."""

    judged: list[Judged | None]
    stopped: EndpointError | None = None


class BattleJudge(Protocol):
    """One of the judges of a recipe."""

    @property
    def id(self) -> str:
        """What the log calls it."""
        ...

    @property
    def rev(self) -> str:
        """What decides its verdicts beside the sheet, as one short text: model or scorer, criteria,
        decoding."""
        ...

    @property
    def template_sha(self) -> str:
        """SHA-256 of its prompt; empty for a scorer."""
        ...

    def judge(self, sheets: Sequence[Sheet]) -> Judging:
        """Judge games; what was judged before is read from what was kept, and asks nobody."""
        ...

    def usage(self) -> dict[str, Any]:
        """What was asked and spent since it was opened (`aligner.endpoints.usage`)."""
        ...

    def close(self) -> None:
        """Let go of client and models."""
        ...
