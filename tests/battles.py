"""A judge that is a function, and contestants whose answers are numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aligner.arena.battle.sheets import Answer, Item, Judged, Judging, Sheet
from aligner.errors import EndpointError


def by_number(sheet: Sheet) -> Judged:
    """The higher number is better."""
    return Judged("ok", float(sheet.first.text), float(sheet.second.text), "seen")


@dataclass
class FakeJudge:
    """Judges by a function, counts what it is asked, and stops after `most` sheets."""

    verdict: Callable[[Sheet], Judged] = by_number
    id: str = "fake"
    rev: str = "1"
    template_sha: str = "t"
    most: int = 10**9
    asked: list[Sheet] = field(default_factory=list)

    def judge(self, sheets: Sequence[Sheet]) -> Judging:
        found: list[Judged | None] = []
        stopped = None
        for sheet in sheets:
            if len(self.asked) >= self.most:
                stopped = EndpointError("the budget is spent", "raise it")
                found.append(None)
                continue
            self.asked.append(sheet)
            found.append(self.verdict(sheet))
        return Judging(found, stopped)

    def usage(self) -> dict[str, Any]:
        counted = {"calls": len(self.asked), "cached": 0, "usd": 0.01 * len(self.asked)}
        return {**counted, "prompt_tokens": 10 * len(self.asked), "completion_tokens": 0}

    def close(self) -> None:
        pass


def items_of(count: int) -> list[Item]:
    """Prompts p000, p001, ..."""
    return [Item(f"p{number:03d}", f"prompt {number}") for number in range(count)]


def answers_of(
    items: Sequence[Item], **texts: Callable[[int], Any]
) -> dict[str, dict[str, Answer]]:
    """Each contestant's answers, from the number of the prompt."""
    return {
        name: {item.id: Answer(name, str(text(number))) for number, item in enumerate(items)}
        for name, text in texts.items()
    }
