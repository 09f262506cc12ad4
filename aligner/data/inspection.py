"""Look at data as a whole, row by row as they are read: what a training would refuse, and what it
would take and should not.

Found here is what texts show: broken rows, pairs of the same answer, repeated turns, odd orders of
roles, duplicates, prompts that are in another split, and overlaps with held-out files. What a
model's tokenizer makes of a row is `aligner.tokenization.row_checks`. Memory holds a digest and a
place for each row. Rows that say the same in other words are not found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Literal

from aligner.config.recipe import Source
from aligner.data.ledger import Ledger, SourceLedger
from aligner.data.loading import read_source
from aligner.data.mapping import SAME_ANSWERS
from aligner.data.mixture import content_key
from aligner.data.normal_text import normal_text
from aligner.data.overlaps import TestTexts
from aligner.data.row_texts import conversations_of, task_of, texts_of
from aligner.data.rows import Row, prompt_text
from aligner.data.sources import SPLIT_NAMES, local_files
from aligner.errors import DataError

SHOWN = 5
"""How many rows of each finding are named; all of them are counted."""

LONG_TURN = 8
"""Words from which a turn that stands twice in a conversation is a finding: "go on" may."""

FAILS = {
    "broken": "cannot be used",
    "identical_pair": "chosen and rejected are the same",
    "repeated_turn": "a turn stands twice",
    "duplicate": "an earlier row is the same",
    "across_splits": "the prompt is in another split or held-out file",
    "held_out": "shares words with a held-out file",
    "refused": "the chat template or the encoding refuses it",
    "dropped": "the chat template drops a part of it",
    "too_long": "longer than --max-length",
}
"""Findings that fail a check."""

REMARKS = {
    "same_prompt": "another answer to an earlier prompt",
    "role_order": "roles do not alternate",
    "outlier": "far longer or shorter than the others",
    "control_tokens": "control tokens in its texts",
}
"""Findings that are only told."""


@dataclass
class Findings:
    """What was found: name -> number of rows, and the first of them with what was found there."""

    rows: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def note(self, name: str, where: str, what: str) -> None:
        """Count a row, and list it if it is among the first."""
        assert name in FAILS or name in REMARKS, name
        self.rows[name] = self.rows.get(name, 0) + 1
        listed = self.examples.setdefault(name, [])
        if len(listed) < SHOWN:
            listed.append((where, what))

    def failed(self, allowed: Sequence[str] = ()) -> list[str]:
        """The findings that fail the check, but for those that are allowed."""
        return [name for name in FAILS if name in self.rows and name not in allowed]

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values, in the order of the tables."""
        names = [name for name in (*FAILS, *REMARKS) if name in self.rows]
        return {name: self._one(name) for name in names}

    def _one(self, name: str) -> dict[str, Any]:
        examples = [{"row": row, "what": what} for row, what in self.examples[name]]
        return {"fails": name in FAILS, "rows": self.rows[name], "examples": examples}


class HeldOut:
    """What training rows must not be about: the prompts of other splits, and the texts of held-out
    files. `ngram`: words in a row that are an overlap."""

    def __init__(self, ngram: int = 13) -> None:
        self._texts = TestTexts(ngram)
        self._prompts: dict[bytes, str] = {}

    def add(self, row: Row, *, with_words: bool) -> None:
        """Add a row; `with_words`: its texts too, and not its prompt alone."""
        self._prompts.setdefault(_prompt_key(row), row.origin)
        if with_words:
            texts = texts_of(row)
            self._texts.add(row.origin, texts.whole, "\n".join(texts.told))

    def look(self, row: Row, findings: Findings) -> None:
        """Note what a row has in common with them."""
        same = self._prompts.get(_prompt_key(row))
        if same is not None:
            findings.note("across_splits", row.origin, f"the prompt of {same}")
            return
        texts = texts_of(row)
        for overlap in list(self._texts.layers(texts.asked, texts.told).values())[:1]:
            findings.note("held_out", row.origin, f"{overlap.test}: {overlap.words}")


class RowLooker:
    """Looks at one row after the other, and notes what is found."""

    def __init__(self, findings: Findings, held_out: HeldOut) -> None:
        self.findings, self.held_out = findings, held_out
        self._rows: dict[bytes, str] = {}
        self._prompts: dict[bytes, str] = {}

    def look(self, row: Row) -> None:
        """Look at a further row."""
        for name, what in _of_turns(row):
            self.findings.note(name, row.origin, what)
        self.held_out.look(row, self.findings)
        first = self._rows.setdefault(content_key(row)[:16], row.origin)
        same = self._prompts.setdefault(_prompt_key(row), row.origin)
        if first != row.origin:
            self.findings.note("duplicate", row.origin, f"the same as {first}")
        elif same != row.origin:
            self.findings.note("same_prompt", row.origin, f"the prompt of {same}")


@dataclass
class _Books(SourceLedger):
    """The books of a source whose broken rows are findings."""

    findings: Findings = field(default_factory=Findings)

    def note_bad(self, where: str, reason: str) -> None:
        super().note_bad(where, reason)
        name = "identical_pair" if reason == SAME_ANSWERS else "broken"
        self.findings.note(name, where, reason)


@dataclass
class _Ledger(Ledger):
    findings: Findings = field(default_factory=Findings)

    def source(self, path: str, role: Literal["train", "eval"] = "train") -> SourceLedger:
        entry = _Books(path, role, findings=self.findings)
        self.sources.append(entry)
        return entry


@dataclass
class Inspection:
    """What came out of looking at data. `ledger`: the books of what was read."""

    findings: Findings
    ledger: Ledger

    @property
    def rows(self) -> int:
        """How many rows were looked at, broken ones included; held-out ones are not."""
        return sum(entry.rows_read for entry in self.ledger.sources if entry.role == "train")


def inspect(
    sources: Sequence[Source],
    held_out: Sequence[Source] = (),
    looks: Sequence[Callable[[Row], None]] = (),
    findings: Findings | None = None,
    ngram: int = 13,
) -> Inspection:
    """Read sources, and look at every row of theirs; each of `looks` sees every usable one.

    Other splits of a folder that is laid out by split are read too: their prompts must not be in
    the sources. `findings` are added to.

    Raises: DataError where a source cannot be read at all, or has no usable row.
    """
    found = Findings() if findings is None else findings
    ledger, apart = _Ledger(findings=found), HeldOut(ngram)
    for source, with_words in _apart_from(sources, held_out):
        _read(source, ledger, partial(apart.add, with_words=with_words))
    for entry in ledger.sources:
        entry.role = "eval"
    looker = RowLooker(found, apart)

    def look(row: Row) -> None:
        looker.look(row)
        for further in looks:
            further(row)

    for source in sources:
        _read(source, ledger, look)
    return Inspection(found, ledger)


def _read(source: Source, ledger: Ledger, look: Callable[[Row], None]) -> None:
    read_source(source, task_of(source), "drop", ledger, put=look)


def _apart_from(
    sources: Sequence[Source], held_out: Sequence[Source]
) -> Iterator[tuple[Source, bool]]:
    """What is held out, and whether its words count: files that are named, and other splits."""
    yield from ((source, True) for source in held_out)
    for source in sources:
        yield from ((other, False) for other in other_splits(source))


def other_splits(source: Source) -> list[Source]:
    """The other splits of a local folder, each under the first of the names that it has."""
    if (own := _files_of(source)) is None:
        return []
    found: dict[str, Source] = {}
    for name in SPLIT_NAMES:
        other = source.model_copy(update={"split": name})
        files = _files_of(other)
        if files and files != own:
            found.setdefault(files, other)
    return list(found.values())


def _files_of(source: Source) -> str | None:
    """The files of a split, as one text; None where there are none."""
    try:
        return "\n".join(map(str, local_files(source) or ())) or None
    except DataError:
        return None


def _prompt_key(row: Row) -> bytes:
    text = prompt_text(row)
    return blake2b(
        (normal_text(text) or text).encode("utf-8", "surrogatepass"), digest_size=16
    ).digest()


def _of_turns(row: Row) -> Iterator[tuple[str, str]]:
    """What is odd about the turns of a row: each finding once."""
    for turns, _ in conversations_of(row):
        repeated = next(_repeated(turns), None)
        order = next(_out_of_order(turns), None)
        if repeated is not None:
            yield "repeated_turn", repeated
        if order is not None:
            yield "role_order", order
        if repeated is not None or order is not None:
            return


def _repeated(turns: Sequence[dict[str, Any]]) -> Iterator[str]:
    earlier: dict[str, int] = {}
    for number, turn in enumerate(turns, start=1):
        text = str(turn.get("content") or "").strip()
        if not text or turn["role"] == "tool":
            continue
        before = turns[number - 2] if number > 1 else {}
        at_once = before.get("role") == turn["role"] and before.get("content") == turn["content"]
        first = earlier.setdefault(text, number)
        if at_once or (first != number and len(text.split()) >= LONG_TURN):
            yield f"turn {number} says what turn {first} says"


def _out_of_order(turns: Sequence[dict[str, Any]]) -> Iterator[str]:
    for number, (before, turn) in enumerate(pairwise(turns), start=2):
        role = turn["role"]
        if role in ("system", "developer"):
            yield f"turn {number} is the {role}'s, and not the first"
        elif role == before["role"] != "tool":
            yield f"turns {number - 1} and {number} are both the {role}'s"
