"""A row as a training reads it, for people: its tokens, which of them are trained, where it is cut,
and what each turn comes to.

What is shown are the columns that the method's own encoder gives for the row, before and after the
cut at `data.max_length`. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aligner.data.row_texts import conversations_of
from aligner.data.rows import PreferenceRow, Row, TextRow
from aligner.errors import DataError
from aligner.tokenization.chat_template import Conversation, has_template
from aligner.tokenization.dataset import Encode, SkipRow, TokenizedRow
from aligner.tokenization.encode import IGNORED, stop_token_ids
from aligner.tokenization.turn_ends import turn_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"
"""What a decoder writes for the first bytes of a character whose others are in the next token."""

Cut = Callable[[Sequence[int]], Sequence[int]]
"""The ids of an answer -> the place of the last token of each segment; nothing where that is not
known."""


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token: the text that it adds, whether it is a special one, trained, or cut off."""

    id: int
    text: str
    special: bool = False
    trained: bool = False
    cut: bool = False


@dataclass(frozen=True, slots=True)
class ShownSequence:
    """Tokens that are read one after the other: a whole row, a prompt, one of its answers."""

    name: str
    tokens: list[ShownToken]
    marks: dict[int, str] = field(default_factory=dict)
    """Place of a token -> what begins there: a segment, a row of a packed sequence."""


@dataclass(frozen=True, slots=True)
class TurnCount:
    """What a turn comes to, in tokens; `cut` of them are lost at the longest length."""

    role: str
    tokens: int
    trained: int
    cut: int


@dataclass(frozen=True, slots=True)
class ShownRow:
    """A row. `problem`: why it is not trained, where it is not; nothing may be left to show."""

    origin: str
    sequences: list[ShownSequence] = field(default_factory=list)
    turns: list[TurnCount] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str = ""


@dataclass(frozen=True)
class RowViewer:
    """Shows rows as a training reads them. `cuts`: whether longer rows are cut and not left out;
    `cut_answer`: cuts answers into segments, where a training reads them so."""

    tokenizer: PreTrainedTokenizerBase
    encode: Encode
    max_length: int | None = None
    cuts: bool = False
    cut_answer: Cut | None = None

    def show(self, row: Row) -> ShownRow:
        """Show a row."""
        try:
            whole = self.encode(row, None)
        except DataError as error:
            return ShownRow(row.origin, problem=error.message.removeprefix(f"{row.origin}: "))
        if isinstance(whole, SkipRow):
            return ShownRow(row.origin, problem=whole.reason)
        kept, problem = self._kept(row, whole)
        parts = _parts(whole.columns)
        cut = {part.name: _cut_of(part, kept) for part in parts}
        sequences = [self._sequence(part, cut[part.name]) for part in parts]
        turns = list(self._turns(row, sequences))
        return ShownRow(row.origin, sequences, turns, self._notes(whole, sequences), problem)

    def _kept(self, row: Row, whole: TokenizedRow) -> tuple[list[_Part], str]:
        """What is left within the longest length, and why the row is not trained."""
        limit = self.max_length
        if limit is None or (whole.num_untruncated <= limit and not self.cuts):
            return _parts(whole.columns), ""
        found = self.encode(row, limit)
        length = f"{whole.num_untruncated:,} tokens, and data.max_length is {limit:,}"
        if isinstance(found, SkipRow):
            return [], f"{length}: {found.reason}" if self.cuts else length
        return _parts(found.columns), "" if self.cuts else length

    def tokens(self, ids: Sequence[int], labels: Sequence[int]) -> list[ShownToken]:
        """Show ids with their labels, of which -100 is not trained."""
        part = _Part("", list(ids), [label != IGNORED for label in labels])
        return self._tokens(part, [False] * len(ids))

    def _sequence(self, part: _Part, cut: Sequence[bool]) -> ShownSequence:
        return ShownSequence(part.name, self._tokens(part, cut), self._segments(part))

    def _tokens(self, part: _Part, cut: Sequence[bool]) -> list[ShownToken]:
        special = frozenset(self.tokenizer.all_special_ids)
        special |= frozenset(self.tokenizer.added_tokens_decoder)
        texts = token_texts(self.tokenizer, part.ids)
        return [
            ShownToken(id, text, id in special, trained and not lost, lost)
            for id, text, trained, lost in zip(part.ids, texts, part.trained, cut, strict=True)
        ]

    def _segments(self, part: _Part) -> dict[int, str]:
        if self.cut_answer is None or part.name not in ANSWERS or not part.ids:
            return {}
        ends = self.cut_answer(part.ids)
        starts = [0, *(end + 1 for end in ends[:-1])] if ends else []
        return {start: f"segment {number}" for number, start in enumerate(starts, start=1)}

    def _turns(self, row: Row, sequences: Sequence[ShownSequence]) -> Iterator[TurnCount]:
        """What each turn comes to; nothing of a text without turns, nor of a question about both
        answers of a pair, which is a conversation of its own."""
        if isinstance(row, TextRow) or (isinstance(row, PreferenceRow) and len(sequences) == 1):
            return
        readings = list(_readings(sequences))
        for (name, tokens), (messages, first) in zip(readings, conversations_of(row)):
            if has_template(self.tokenizer):
                chat = Conversation.of_row(self.tokenizer, messages, row)
                ends = turn_ends(chat, [token.id for token in tokens])
            else:
                ends = _plain_ends(sequences, tokens, len(messages))
            roles = [str(message["role"]) for message in messages]
            if name in ANSWERS and len(readings) > 1:
                roles[-1] = name
            start = ends[first - 1] if first else 0
            for role, end in zip(roles[first:], ends[first:]):
                yield _counted(role, tokens[start:end])
                start = end
            if start < len(tokens):
                yield _counted("(opens an answer)", tokens[start:])

    def _notes(self, whole: TokenizedRow, sequences: Sequence[ShownSequence]) -> list[str]:
        """Beginning and end of the sequences, in words."""
        notes = [_beginning(self.tokenizer, sequences[0])]
        stops = stop_token_ids(self.tokenizer)
        for sequence in sequences:
            notes += _ends(self.tokenizer, sequence, stops)
        letters = whole.columns.get("letter_ids")
        if letters is not None:
            right, wrong = (self.tokenizer.decode([int(letter)]) for letter in letters)
            notes.append(f"trained to answer {right!r}, and not {wrong!r}")
        return [note for note in notes if note]


# --- columns --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    ids: list[int]
    trained: list[bool]


ANSWERS = ("chosen", "rejected", "answer")
"""Columns with answers, whose every token a loss or a reward reads."""


def _parts(columns: Mapping[str, Any]) -> list[_Part]:
    """The sequences in the columns of an encoder, in the order in which they are read."""
    if "input_ids" in columns:
        ids = list(map(int, columns["input_ids"]))
        labels = map(int, columns.get("labels", [IGNORED] * len(ids)))
        return [_Part("row", ids, [label != IGNORED for label in labels])]
    parts = []
    for name in ("prompt", *ANSWERS):
        if (found := columns.get(f"{name}_ids")) is not None:
            ids = list(map(int, found))
            parts.append(_Part(name, ids, [name in ANSWERS] * len(ids)))
    return parts


def _cut_of(part: _Part, kept: Sequence[_Part]) -> list[bool]:
    """Which tokens of a part are lost, at its end or at its beginning."""
    left = next((other.ids for other in kept if other.name == part.name), [])
    lost = len(part.ids) - len(left)
    at_start = lost and left and part.ids[: len(left)] != left
    tail = [False] * len(left)
    return [*([True] * lost), *tail] if at_start else [*tail, *([True] * lost)]


def _readings(sequences: Sequence[ShownSequence]) -> Iterator[tuple[str, list[ShownToken]]]:
    """What the model reads at once: a row, or the prompt with each of its answers."""
    first, *answers = sequences
    if not answers:
        yield first.name, first.tokens
    for answer in answers:
        yield answer.name, [*first.tokens, *answer.tokens]


def _plain_ends(
    sequences: Sequence[ShownSequence], tokens: Sequence[ShownToken], turns: int
) -> list[int]:
    """Where prompt and answer end, which are joined as plain text."""
    border = len(sequences[0].tokens)
    if len(sequences) == 1:
        border = next((place for place, token in enumerate(tokens) if token.trained), border)
    return [*([border] * (turns - 1)), len(tokens)]


def _counted(role: str, tokens: Sequence[ShownToken]) -> TurnCount:
    trained = sum(token.trained for token in tokens)
    return TurnCount(role, len(tokens), trained, sum(token.cut for token in tokens))


# --- words ----------------------------------------------------------------------------------------


def _beginning(tokenizer: PreTrainedTokenizerBase, sequence: ShownSequence) -> str:
    bos = tokenizer.bos_token_id
    if bos is None or not sequence.tokens:
        return "the tokenizer has no beginning-of-sequence token" if sequence.tokens else ""
    name = f"{tokenizer.bos_token} ({bos})"
    if sequence.tokens[0].id == bos:
        return f"starts with the beginning-of-sequence token {name}"
    return f"starts without the beginning-of-sequence token {name}"


def _ends(
    tokenizer: PreTrainedTokenizerBase, sequence: ShownSequence, stops: Sequence[int]
) -> Iterator[str]:
    """How trained runs end, and what was cut."""
    tokens = sequence.tokens
    lost = sum(token.cut for token in tokens)
    if lost:
        where = "beginning" if tokens[0].cut else "end"
        yield f"{sequence.name}: {lost:,} of {len(tokens):,} tokens are cut off at its {where}"
    last = [
        token
        for token, following in zip(tokens, [*tokens[1:], None])
        if token.trained and (following is None or not following.trained)
    ]
    closed = [token for token in last if token.id in stops]
    for stop in dict.fromkeys(token.id for token in closed):
        count = sum(token.id == stop for token in closed)
        what = "the trained part ends" if count == 1 else f"{count} trained parts end"
        name = tokenizer.convert_ids_to_tokens(stop)
        yield f"{sequence.name}: {what} with the stop token {name} ({stop}), which is trained"
    if open_ended := len(last) - len(closed):
        what = "a trained part ends" if open_ended == 1 else f"{open_ended} trained parts end"
        yield f"{sequence.name}: {what} without a stop token"


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds to those before it; of a character in several tokens the
    last one adds it."""
    texts, begin, read = [], 0, 0
    for place in range(len(ids)):
        before = _decoded(tokenizer, ids[begin:read])
        after = _decoded(tokenizer, ids[begin : place + 1])
        last = place == len(ids) - 1
        if after.endswith(UNFINISHED) and place + 1 - read < LONGEST_CHARACTER and not last:
            texts.append("")
            continue
        texts.append(after[len(before) :] if after.startswith(before) else after)
        begin, read = read, place + 1
    return texts


LONGEST_CHARACTER = 6
"""Tokens that one character may take; a text may hold the replacement character itself."""


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(list(ids), **options)) if ids else ""
