"""Row and token accounting, from source file to training target.

`load_rows` fills one `SourceLedger` per source and the `rows_in` of each split; tokenization and
packing add to the splits through `ledger.split(name).count(...)`. `check()` asserts that nothing
went missing: an imbalance is a mistake of ours, never of the user's. The whole is plain dataclasses
and goes to `data.json` with `to_json()`, and to the screen and the report with `table()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

LISTED = 20
"""How many broken rows are named; all of them are counted."""
SHOWN = 3
"""How many rows that cannot be trained on the screen names."""


NAMES_OF_LENGTHS = ("shortest", "25%", "50%", "75%", "90%", "99%", "longest")
"""What the quantiles of lengths are called: so many rows are as long as that, or shorter."""


def told_lengths(quantiles: Sequence[int]) -> str:
    """Return quantiles of lengths with their names: `shortest 97, 25% 165, ..., longest 446`."""
    return ", ".join(f"{name} {length:,}" for name, length in zip(NAMES_OF_LENGTHS, quantiles))


@dataclass
class FileRecord:
    """One file that was read: where it lies and what its bytes were."""

    path: str
    sha256: str
    bytes: int


@dataclass
class BadRowRecord:
    """One broken row: file and row number, and what is wrong with it."""

    where: str
    reason: str


@dataclass
class SourceLedger:
    """What became of the rows of one source."""

    path: str
    role: Literal["train", "eval"] = "train"
    files: list[FileRecord] = field(default_factory=list)
    format: str = ""
    evidence: str = ""
    """Why the format is what it is: given by the user, or which columns were found in how many
    rows."""
    unused_columns: list[str] = field(default_factory=list)
    unused_parts: dict[str, int] = field(default_factory=dict)
    """Those of them that look like a part of the conversation -> in how many of the first rows they
    are filled in."""
    looked_at: int = 0
    """How many rows these are."""
    rows_read: int = 0
    blank_lines: int = 0
    nulls: int = 0
    """Nulls in nested columns of Parquet and Arrow that were taken as absent keys."""
    added_by_function: int = 0
    """Rows beyond the first where the user's function made several out of one."""
    dropped_by_function: int = 0
    bad: int = 0
    bad_rows: list[BadRowRecord] = field(default_factory=list)
    duplicates: int = 0
    not_sampled: int = 0
    repeated: int = 0
    to_train: int = 0
    to_eval: int = 0

    @property
    def rows_mapped(self) -> int:
        """Rows that were read, understood and kept by the user's function."""
        return self.rows_read + self.added_by_function - self.dropped_by_function - self.bad

    @property
    def rows_out(self) -> int:
        """Rows that reach a split, repeats included."""
        return self.to_train + self.to_eval

    def note_bad(self, where: str, reason: str) -> None:
        """Count a broken row, and list it if it is among the first."""
        self.bad += 1
        if len(self.bad_rows) < LISTED:
            self.bad_rows.append(BadRowRecord(where, reason))

    def remarks(self) -> list[str]:
        """What to warn of: a sentence for each column that is not used and looks as if it should
        be."""
        rows = "the only row" if self.looked_at == 1 else f"{{}} of the first {self.looked_at} rows"
        return [
            f"{self.path}: the column `{name}` says something in {rows.format(filled)} and is not "
            "used. If it belongs to the "
            "conversation, map it with `columns:`"
            for name, filled in self.unused_parts.items()
        ]

    def check(self) -> None:
        """Assert that every row read is accounted for."""
        expected = self.rows_mapped - self.duplicates - self.not_sampled + self.repeated
        assert self.rows_out == expected, (
            f"{self.path}: {self.rows_out} rows came out where the books say {expected}"
        )
        assert len(self.bad_rows) == min(self.bad, LISTED), (
            f"{self.path}: broken rows counted and listed differ"
        )

    def summary(self) -> str:
        """One line: read, lost and why, out."""
        losses = (
            (-self.added_by_function, "added by the function"),
            (self.dropped_by_function, "dropped by the function"),
            (self.bad, "broken"),
            (self.duplicates, "duplicates"),
            (self.not_sampled, "not sampled"),
            (-self.repeated, "repeats"),
        )
        parts = [f"{self.rows_read:,} read"]
        parts += [
            f"{'+' if number < 0 else '-'} {abs(number):,} {name}"
            for number, name in losses
            if number
        ]
        return f"{' '.join(parts)} = {self.rows_out:,} rows"


@dataclass
class SplitLedger:
    """What became of the rows of one split on their way to token ids and batches."""

    rows_in: int = 0
    """Rows that the sources gave to this split."""
    made: int | None = None
    """Rows that were made of them, over all epochs, where training is on such rows (mosaics)."""
    made_of: str = ""
    """What was made of what, in a few words."""
    rows: int = 0
    """Rows that were tokenized and kept."""
    too_long_dropped: int = 0
    unusable: int = 0
    """Rows that could not become a trained sequence, or had nothing left to train once cut; the
    first are listed."""
    unusable_rows: list[BadRowRecord] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)
    """What the chat template leaves out of the rows that were kept -> in how many turns."""
    control_tokens: dict[str, int] = field(default_factory=dict)
    """Control tokens in the texts of the rows that were kept -> how often they stand there."""
    rows_with_control: int = 0
    chats_with_control: int = 0
    """Of those, rows that a chat template wrote."""
    tokens: int = 0
    """Tokens kept, in prompt and answers: trained and masked ones together."""
    trained_tokens: int = 0
    masked_tokens: int = 0
    truncated_rows: int = 0
    truncated_tokens: int = 0
    """Tokens cut off; no part of `tokens`."""
    lengths: list[int] = field(default_factory=list)
    """Quantiles of the row lengths in tokens, those of `NAMES_OF_LENGTHS`."""
    sequences: int | None = None
    """Sequences after packing; None where nothing is packed."""
    packed_fill: float | None = None
    """Share of the packed sequences' places that hold a token."""
    padding_share: float | None = None
    """Share of padding in an average batch."""

    def count(
        self,
        *,
        rows: int = 0,
        tokens: int = 0,
        trained_tokens: int = 0,
        masked_tokens: int = 0,
        too_long_dropped: int = 0,
        truncated_rows: int = 0,
        truncated_tokens: int = 0,
        lengths: Sequence[int] | None = None,
        sequences: int | None = None,
        packed_fill: float | None = None,
        padding_share: float | None = None,
    ) -> None:
        """Add the counts, and set the lengths, the packing and the padding where they are given."""
        self.rows += rows
        self.tokens += tokens
        self.trained_tokens += trained_tokens
        self.masked_tokens += masked_tokens
        self.too_long_dropped += too_long_dropped
        self.truncated_rows += truncated_rows
        self.truncated_tokens += truncated_tokens
        self.lengths = self.lengths if lengths is None else list(lengths)
        self.sequences = self.sequences if sequences is None else sequences
        self.packed_fill = self.packed_fill if packed_fill is None else packed_fill
        self.padding_share = self.padding_share if padding_share is None else padding_share

    def note_unusable(self, where: str, reason: str) -> None:
        """Count a row that cannot be trained on, and list it if it is among the first."""
        self.unusable += 1
        if len(self.unusable_rows) < LISTED:
            self.unusable_rows.append(BadRowRecord(where, reason))

    def note_unread(self, lost: Mapping[str, int]) -> None:
        """Count what of a row reaches no token."""
        for what, turns in lost.items():
            self.unread[what] = self.unread.get(what, 0) + turns

    def note_control_tokens(self, marks: Mapping[str, int], *, is_chat: bool) -> None:
        """Count a row whose texts hold control tokens."""
        self.rows_with_control += 1
        self.chats_with_control += is_chat
        for mark, times in marks.items():
            self.control_tokens[mark] = self.control_tokens.get(mark, 0) + times

    def check(self, name: str) -> None:
        """Assert that, once tokenized, rows and tokens add up."""
        dropped = self.too_long_dropped + self.unusable
        if not self.rows and not dropped:
            return
        given = self.rows_in if self.made is None else self.made
        assert self.rows + dropped == given, (
            f"{name}: {self.rows} rows kept and {dropped} dropped out of {given}"
        )
        assert self.trained_tokens + self.masked_tokens == self.tokens, (
            f"{name}: {self.trained_tokens} tokens trained and {self.masked_tokens} masked out of "
            f"{self.tokens}"
        )

    def table(self, name: str) -> list[tuple[str, str]]:
        """Lines for the screen."""
        lost = _lost(self.too_long_dropped, "too long, dropped") + _lost(
            self.unusable, "untrainable, dropped"
        )
        lines = [(name, f"{self.rows_in:,} rows{'' if self.made is not None else lost}")]
        if self.made is not None:
            lines.append((f"{name} mosaics", f"{self.made_of}{lost}"))
        if self.tokens:
            masked = self.masked_tokens / self.tokens
            cut = (
                f", {self.truncated_tokens:,} cut off in {self.truncated_rows:,} rows"
                if self.truncated_rows
                else ""
            )
            lines.append(
                (
                    f"{name} tokens",
                    f"{self.tokens:,}: {self.trained_tokens:,} trained, {masked:.0%} masked{cut}",
                )
            )
        if self.lengths:
            lines.append((f"{name} lengths", f"{told_lengths(self.lengths)} tokens"))
        if self.unread:
            ordered = sorted(self.unread.items(), key=lambda item: (-item[1], item[0]))
            lines.append(
                (
                    f"{name} not read",
                    ", ".join(f"{what} in {_times(what, times)}" for what, times in ordered),
                )
            )
        if self.control_tokens:
            ordered = sorted(self.control_tokens.items(), key=lambda item: (-item[1], item[0]))
            marks = ", ".join(f"{mark} {times:,}" for mark, times in ordered[:SHOWN])
            more = " ..." if len(ordered) > SHOWN else ""
            lines.append(
                (
                    f"{name} control tokens",
                    f"in the texts of {self.rows_with_control:,} rows: {marks}{more}",
                )
            )
        for record in self.unusable_rows[:SHOWN]:
            lines.append(("  untrainable", f"{record.where}: {record.reason}"))
        if self.unusable > SHOWN:
            lines.append(
                ("  untrainable", f"... and {self.unusable - SHOWN:,} more (see data.json)")
            )
        if self.sequences is not None:
            fill = "" if self.packed_fill is None else f", {self.packed_fill:.1%} full"
            lines.append((f"{name} packed", f"{self.sequences:,} sequences{fill}"))
        if self.padding_share is not None:
            lines.append((f"{name} padding", f"{self.padding_share:.1%} of each batch"))
        return lines


@dataclass
class Ledger:
    """The books of one data section: its sources and its splits."""

    sources: list[SourceLedger] = field(default_factory=list)
    splits: dict[str, SplitLedger] = field(default_factory=dict)
    prompts_in_both: int = 0
    """Held-out rows whose prompt is also trained on; only possible when `eval` has sources of its
    own."""

    def source(self, path: str, role: Literal["train", "eval"] = "train") -> SourceLedger:
        """Open the books of a further source."""
        entry = SourceLedger(path, role)
        self.sources.append(entry)
        return entry

    def split(self, name: str) -> SplitLedger:
        """The books of a split ("train" or "eval"), opened on first use."""
        return self.splits.setdefault(name, SplitLedger())

    def remarks(self) -> list[str]:
        """What to warn of in any of the sources."""
        return [remark for entry in self.sources for remark in entry.remarks()]

    def check(self) -> None:
        """Assert that the books balance."""
        for entry in self.sources:
            entry.check()
        for name, split in self.splits.items():
            split.check(name)
        for name, given in (
            ("train", sum(entry.to_train for entry in self.sources)),
            ("eval", sum(entry.to_eval for entry in self.sources)),
        ):
            taken = self.splits[name].rows_in if name in self.splits else 0
            assert given == taken, f"{name}: the sources gave {given} rows, the split holds {taken}"

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        sources = [{**asdict(entry), "rows_out": entry.rows_out} for entry in self.sources]
        splits = {name: asdict(split) for name, split in self.splits.items()}
        return {"sources": sources, "splits": splits, "prompts_in_both": self.prompts_in_both}

    def table(self) -> list[tuple[str, str]]:
        """The books as (label, value) lines, for screens and reports."""
        lines: list[tuple[str, str]] = []
        for entry in self.sources:
            label = entry.path if entry.role == "train" else f"{entry.path} (eval)"
            lines += [(label, entry.summary()), ("  format", f"{entry.format}: {entry.evidence}")]
            if entry.unused_columns:
                lines.append(("  not used", ", ".join(entry.unused_columns)))
            if entry.blank_lines:
                lines.append(("  blank lines", f"{entry.blank_lines:,}"))
            if entry.nulls:
                lines.append(
                    ("  nulls", f"{entry.nulls:,} in nested columns, taken as absent keys")
                )
            lines += [("  broken", f"{bad.where}: {bad.reason}") for bad in entry.bad_rows[:3]]
        for name, split in self.splits.items():
            lines += split.table(name)
        if self.prompts_in_both:
            lines.append(("eval prompts also in train", f"{self.prompts_in_both:,}"))
        return lines


def _times(what: str, number: int) -> str:
    unit = "row" if what.startswith("the column") else "turn"
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def _lost(number: int, why: str) -> str:
    return f", {number:,} {why}" if number else ""
