"""What a row says as texts, whatever its form, for comparing: what is asked, and what else is said;
and what a source's rows are for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aligner.config.recipe import Source
from aligner.data.formats import FORMS_OF_TASK, REQUIRED
from aligner.data.rows import (
    CompletionRow,
    ConversationRow,
    Messages,
    PreferenceRow,
    PromptRow,
    Row,
    Task,
    TextRow,
    as_turns,
)
from aligner.data.sources import open_source

LISTS = ("completions", "responses")
"""Columns that may hold several answers to a prompt."""


@dataclass(frozen=True, slots=True)
class RowTexts:
    """What a row says. `asked`: each turn of the user; `told`: answers, system prompts, all
    else."""

    origin: str
    asked: list[str]
    told: list[str]

    @property
    def whole(self) -> str:
        """What is asked, all turns."""
        return "\n".join(self.asked)


def task_of(source: Source) -> Task:
    """Return what the columns of the first row allow: pairs before answers before prompts alone."""
    first = next((row for _, row in open_source(source) if isinstance(row, dict)), {})
    names = {*source.columns, *(name for name, value in first.items() if value is not None)}
    if names.issuperset(REQUIRED["preference"]):
        return "preference"
    answered = any(names.issuperset(REQUIRED[form]) for form in FORMS_OF_TASK["sft"])
    return "prompts" if "prompt" in names and not answered else "sft"


def texts_of(row: Row) -> RowTexts:
    """Return what a row says."""
    if isinstance(row, TextRow):
        return RowTexts(row.origin, [row.text], [])
    if isinstance(row, ConversationRow):
        return _parted(row.origin, row.messages)
    sides: list[str | Messages] = []
    if isinstance(row, CompletionRow):
        sides = [row.completion]
    elif isinstance(row, PreferenceRow):
        sides = [row.chosen, row.rejected]
    elif isinstance(row, PromptRow):
        sides = [*([row.answer] if row.answer else []), *_listed(row)]
    turns = [turn for side in sides for turn in as_turns(side, "assistant")]
    return _parted(row.origin, [*as_turns(row.prompt, "user"), *turns])


def _listed(row: PromptRow) -> list[str]:
    lists = (row.extra.get(name) for name in LISTS)
    every = [answer for found in lists if isinstance(found, list) for answer in found]
    texts = [answer.get("text") if isinstance(answer, dict) else answer for answer in every]
    return [text for text in texts if isinstance(text, str)]


def _parted(origin: str, turns: Sequence[dict[str, Any]]) -> RowTexts:
    asked = [str(turn["content"]) for turn in turns if turn["role"] == "user"]
    told = [str(turn.get("content") or "") for turn in turns if turn["role"] != "user"]
    return RowTexts(origin, asked, told)


def conversations_of(row: Row) -> Iterator[tuple[Messages, int]]:
    """The conversations of a row, each with the turn from which on it has not been looked at."""
    if isinstance(row, ConversationRow):
        yield row.messages, 0
    elif isinstance(row, CompletionRow):
        yield [*as_turns(row.prompt, "user"), *as_turns(row.completion, "assistant")], 0
    elif isinstance(row, PreferenceRow):
        prompt = as_turns(row.prompt, "user")
        yield [*prompt, *as_turns(row.chosen, "assistant")], 0
        yield [*prompt, *as_turns(row.rejected, "assistant")], len(prompt)
    elif isinstance(row, PromptRow):
        yield as_turns(row.prompt, "user"), 0
