"""The examples that a mosaic is made of: rows of one question and one answer, kept in memory or on
disk.

A row can be an example when it is one instruction and one answer in plain text, with or without a
system prompt before them. Of longer conversations the first round can be taken, if asked for; tool
calls, plain text and turns that carry more than text are left out, each with its reason. Rows with
different system prompts, or of different groups, never meet in a sample. A row that cannot stand
beside others is used, but always alone: one that speaks of other messages ("ignore the previous
instruction"), one whose answer begins with its author's thinking, and one that the chat template
would change inside a longer text.
"""

from __future__ import annotations

import array
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aligner.builders.mosaic.phrasings import Phrasings
from aligner.data.row_store import FORMAT
from aligner.data.rows import WEIGHT, CompletionRow, ConversationRow, Row, as_turns, variables_of

if TYPE_CHECKING:
    from aligner.builders.mosaic.lengths import Lengths

LEADS = ("system", "developer")
PLAIN_KEYS = {"role", "content"}

THINKING = re.compile(
    r"</?(?:think|thinking|thought|thoughts|reasoning)>|\[/?THINK\]|<\|channel\|>|<\|(?:begin|end)_of_thought\|>",
    re.IGNORECASE,
)
"""What marks thinking in an answer. Templates cut there, and a sample of several such answers would
think in its middle."""


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction and its answer; `lead` are the turns before them, as (role, text)."""

    instruction: str
    response: str
    lead: tuple[tuple[str, str], ...] = ()
    group: str = ""
    origin: str = ""
    is_text: bool = False
    """Prompt and completion came as plain strings, not as turns."""

    def row(self) -> CompletionRow:
        """Return the example by itself, as a sample would hold it."""
        return finished_row(self, self.instruction, self.response, self.origin)


def finished_row(like: Example, prompt: str, completion: str, origin: str) -> CompletionRow:
    """Return prompt and completion in the form of the example: plain strings, or turns behind its
    system prompt."""
    if like.is_text:
        return CompletionRow(prompt, completion, origin, like.group)
    lead = [{"role": role, "content": content} for role, content in like.lead]
    return CompletionRow(
        [*lead, {"role": "user", "content": prompt}],
        [{"role": "assistant", "content": completion}],
        origin,
        like.group,
    )


def example_of(row: Row, multiturn: str = "skip") -> Example | str:
    """Return the row as an example, or why it cannot be one. `multiturn` is `skip` or
    `first_turn`."""
    if isinstance(row, CompletionRow) and row.tools:
        return "tool calls"
    if variables_of(row):
        return "variables of the chat template"
    if (
        isinstance(row, CompletionRow)
        and isinstance(row.prompt, str)
        and isinstance(row.completion, str)
    ):
        if not row.prompt.strip() or not row.completion.strip():
            return "an empty turn"
        return Example(row.prompt, row.completion, (), row.group, row.origin, is_text=True)
    if isinstance(row, ConversationRow):
        turns, tools = row.messages, row.tools
    elif isinstance(row, CompletionRow):
        turns, tools = [*as_turns(row.prompt, "user"), *as_turns(row.completion, "assistant")], None
    else:
        return "plain text has no question"
    if tools or any(turn.get("tool_calls") or turn["role"] == "tool" for turn in turns):
        return "tool calls"
    lead = tuple((turn["role"], turn["content"]) for turn in turns if turn["role"] in LEADS)
    rest = turns[len(lead) :]
    if any(turn["role"] in LEADS for turn in rest):
        return "a system prompt after the first turn"
    if len(rest) > 2 and multiturn == "skip":
        return "more than one round"
    rest = rest[:2]
    if [turn["role"] for turn in rest] != ["user", "assistant"]:
        return "not a question and its answer"
    # only the assistant's turns are ever trained: the weight of a question means nothing
    if not (set(rest[0]) - {WEIGHT} <= PLAIN_KEYS and set(rest[1]) <= PLAIN_KEYS):
        return "turns that carry more than text"
    question, answer = rest[0]["content"], rest[1]["content"]
    if not question.strip() or not answer.strip():
        return "an empty turn"
    return Example(question, answer, lead, row.group, row.origin)


class Examples:
    """All examples of a dataset, by number, with what the planning needs to know of each without
    reading it.

    `tokens[i]` and `trained[i]` are the lengths of example i standing alone under the chat
    template; `alone[i]` says that it may not be combined, and `alone_because` counts why; `groups`
    maps a group's name to the numbers of its examples, in their order. `left_out` counts the rows
    that could not become examples, by reason. With `read`, an example is read again by its row's
    number in `rows`.
    """

    def __init__(self, read: Callable[[int], Row] | None, multiturn: str) -> None:
        self.tokens, self.trained, self.rows = array.array("Q"), array.array("Q"), array.array("Q")
        self.alone = array.array("b")
        self.groups: dict[str, array.array] = {}
        self.left_out: Counter[str] = Counter()
        self.alone_because: Counter[str] = Counter()
        self.kinds: set[str] = set()
        """`text` and `turns` for the forms in which examples came, `lead` where one has a system
        prompt."""
        self._read, self._multiturn = read, multiturn
        self._kept: list[Example] = []

    def add(self, number: int, row: Row, phrasings: Phrasings, lengths: Lengths) -> bool:
        """Take up a row, or count why it cannot be an example; return whether it is one.

        Raises: DataError when the chat template refuses it.
        """
        example = example_of(row, self._multiturn)
        if isinstance(example, str):
            self.left_out[example] += 1
            return False
        total, trained = lengths.measure(example.row())
        reason = _why_alone(example, phrasings, lengths)
        self.kinds.add("text" if example.is_text else "turns")
        if example.lead:
            self.kinds.add("lead")
        # two examples share a group exactly when they may stand in one sample
        group = repr((example.is_text, example.lead, example.group))
        digest = hashlib.sha256(group.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.groups.setdefault(digest, array.array("Q")).append(len(self))
        self.tokens.append(total)
        self.trained.append(trained)
        self.rows.append(number)
        self.alone.append(bool(reason))
        if reason:
            self.alone_because[reason] += 1
        if self._read is None:
            self._kept.append(example)
        return True

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Example:
        if self._read is None:
            return self._kept[number]
        example = example_of(self._read(self.rows[number]), self._multiturn)
        assert isinstance(example, Example), "a row that was an example once stays one"
        return example

    def save(self, path: Path) -> None:
        """Write the tables, for other processes and for a resumed run: a line of JSON, then the
        numbers."""
        about = {
            "format": FORMAT,
            "multiturn": self._multiturn,
            "examples": len(self),
            "groups": {name: len(numbers) for name, numbers in self.groups.items()},
            "left_out": self.left_out,
            "alone_because": self.alone_because,
            "kinds": sorted(self.kinds),
        }
        with path.open("wb") as file:
            file.write(f"{json.dumps(about)}\n".encode())
            for numbers in (*self._columns(), *self.groups.values()):
                numbers.tofile(file)

    @classmethod
    def load(cls, path: Path, read: Callable[[int], Row]) -> Examples:
        """Read what `save` wrote."""
        with path.open("rb") as file:
            about = json.loads(file.readline())
            examples = cls(read, about["multiturn"])
            for column in examples._columns():
                column.fromfile(file, about["examples"])
            for name, length in about["groups"].items():
                examples.groups[name] = array.array("Q")
                examples.groups[name].fromfile(file, length)
        examples.left_out.update(about["left_out"])
        examples.alone_because.update(about["alone_because"])
        examples.kinds.update(about["kinds"])
        return examples

    def _columns(self) -> tuple[array.array, ...]:
        return self.tokens, self.trained, self.rows, self.alone


def _why_alone(example: Example, phrasings: Phrasings, lengths: Lengths) -> str:
    """Return why an example may not be combined; empty where it may."""
    if phrasings.stands_alone(example.instruction):
        return "it speaks of other messages"
    if THINKING.search(example.response):
        return "its answer holds thinking"
    return (
        ""
        if lengths.keeps(example.row())
        else "the chat template would change it inside a longer text"
    )
