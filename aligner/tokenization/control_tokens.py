"""Control tokens (`<|im_end|>`, `</s>`) that stand in the text of a row: found, counted, and
written as text where asked.

A tokenizer cannot tell the marks that a chat template wrote from the same characters in somebody's
text; both become the control token, and a text that quotes `<|im_end|>` ends its turn. That is what
every server does with such a text too, so `allow` is the default. `as_text` keeps the two apart:
before a conversation is rendered, control tokens in its texts are put out of sight; in the
rendering, what is left of them is the template's, and gets names of its own, which a copy of the
tokenizer knows by the ids of the real ones. All else is text to that copy. Names are characters of
the private-use plane.

A control token is one that the tokenizer calls special. Others that it has added (`<think>` and
`<tool_call>` of Qwen) are vocabulary like any other, and stay what they are.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from aligner.data.rows import (
    VARIABLES,
    CompletionRow,
    ConversationRow,
    Messages,
    PreferenceRow,
    PromptRow,
    Row,
    TextRow,
    variables_of,
)
from aligner.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

ControlTokens = Literal["allow", "as_text", "error"]

OUT_OF_SIGHT, OF_TEMPLATE = 0xF0000, 0xF8000
"""Where the names begin that stand for control tokens of a text, and for those of the template."""
PRIVATE = re.compile("[\U000f0000-\U000ffffd]")
SHOWN = 4
"""How many control tokens are named."""
HINT = "use data.control_tokens=allow or error"

_HOW: WeakKeyDictionary[Any, ControlTokens] = WeakKeyDictionary()
_MARKS: WeakKeyDictionary[Any, dict[tuple, re.Pattern[str]]] = WeakKeyDictionary()
_READERS: WeakKeyDictionary[Any, dict[tuple, TextReader]] = WeakKeyDictionary()


def set_control_tokens(tokenizer: PreTrainedTokenizerBase, how: ControlTokens) -> None:
    """Say what control tokens in texts are to this tokenizer from now on.

    Raises: RecipeError where they cannot be written as text.
    """
    if how == "as_text" and not tokenizer.is_fast:
        raise RecipeError(
            "data.control_tokens=as_text needs a fast tokenizer, and this one is not", HINT
        )
    _HOW[tokenizer] = how


def control_tokens_of(tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
    """Return what control tokens in texts are to this tokenizer: `allow` unless something else was
    set."""
    return _HOW.get(tokenizer, "allow")


# --- finding --------------------------------------------------------------------------------------


def found_in(marks: re.Pattern[str], row: Row) -> Counter[str]:
    """Return the control tokens, by their pattern, in the texts of a row, and how often each stands
    there."""
    if isinstance(row, TextRow):
        return Counter(marks.findall(row.text))
    texts = _strings([*_parts(row).values(), getattr(row, "tools", None), variables_of(row)])
    return Counter(mark for text in texts for mark in marks.findall(text))


def texts_of(row: Row) -> Iterator[tuple[str, str]]:
    """Every text of a row that can reach the model, with its place in words."""
    if isinstance(row, TextRow):
        yield "the text", row.text
        return
    for name, value in _parts(row).items():
        if isinstance(value, str):
            yield name, value
            continue
        for number, turn in enumerate(value, start=1):
            yield from ((f"turn {number} of {name}", text) for text in _strings(turn))
    yield from (("tools", text) for text in _strings(getattr(row, "tools", None)))
    yield from ((VARIABLES, text) for text in _strings(variables_of(row)))


def _parts(row: Row) -> dict[str, str | Messages]:
    if isinstance(row, ConversationRow):
        return {"messages": row.messages}
    if isinstance(row, CompletionRow):
        return {"prompt": row.prompt, "completion": row.completion}
    if isinstance(row, PreferenceRow):
        return {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
    assert isinstance(row, PromptRow), row
    return {"prompt": row.prompt}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def refuse_control_tokens(tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
    """Raise DataError with the place of the first control token in the texts of a row."""
    pattern = pattern_of(tokenizer)
    for place, text in texts_of(row):
        if found := pattern.search(text):
            raise DataError(
                f"{row.origin}: {place} holds the control token `{found[0]}`",
                "take it out of the text, or say data.control_tokens=as_text or allow",
            )


def pattern_of(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return what finds the control tokens of a tokenizer in a text."""
    known = _MARKS.setdefault(tokenizer, {})
    key = _state(tokenizer)
    if key not in known:
        marks = sorted(_special(tokenizer), key=lambda mark: (-len(mark), mark))
        known[key] = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
    return known[key]


def _state(tokenizer: PreTrainedTokenizerBase) -> tuple:
    return (tuple(map(str, tokenizer.special_tokens_map.items())), len(tokenizer))


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text of each control token -> its id."""
    added = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special
    }
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
    return {text: number for text, number in (named | added).items() if text.strip()}


def remark_on(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row]) -> str | None:
    """Return what to say of rows whose texts hold control tokens, where nobody has decided about
    them; else None."""
    pattern = pattern_of(tokenizer)
    found = [marks for row in rows if (marks := found_in(pattern, row))]
    if not found or control_tokens_of(tokenizer) != "allow":
        return None
    total = sum(found, Counter[str]())
    what = "one row holds" if len(found) == 1 else f"{len(found):,} rows hold"
    return f"{what} control tokens in their texts, which act as such: {in_words(total)}"


def in_words(marks: Mapping[str, int]) -> str:
    """Return the most frequent control tokens with their counts."""
    ordered = sorted(marks.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ordered) - SHOWN} others" if len(ordered) > SHOWN else ""
    return (
        ", ".join(
            f"`{mark}` {count:,} time{'' if count == 1 else 's'}" for mark, count in ordered[:SHOWN]
        )
        + more
    )


# --- writing as text ------------------------------------------------------------------------------


def reader_of(tokenizer: PreTrainedTokenizerBase) -> TextReader | None:
    """Return what reads control tokens of texts as text; None where they are not to be."""
    if control_tokens_of(tokenizer) != "as_text":
        return None
    known = _READERS.setdefault(tokenizer, {})
    key = _state(tokenizer)
    if key not in known:
        known[key] = TextReader.of(tokenizer)
    return known[key]


@dataclass(frozen=True)
class TextReader:
    """A copy of a tokenizer to which control tokens are text, unless the template wrote them."""

    twin: PreTrainedTokenizerBase
    marks: re.Pattern[str]
    hidden: dict[str, str]
    """Control token -> what stands for it in a text while the template is at work."""
    shown: dict[str, str]
    """The same, the other way round."""
    named: dict[str, str]
    """Control token -> what stands for it where the template wrote it."""
    ids: dict[int, int]
    """The copy's id of such a name -> the id of the control token."""
    control: frozenset[int]
    """Ids that no text may become."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> TextReader:
        """Copy a tokenizer."""
        from tokenizers import AddedToken

        special = _special(tokenizer)
        hidden = {mark: chr(OUT_OF_SIGHT + place) for place, mark in enumerate(special)}
        named = {mark: chr(OF_TEMPLATE + place) for place, mark in enumerate(special)}
        twin = copy.deepcopy(tokenizer)
        twin.split_special_tokens = True
        for mark, name in named.items():
            old = tokenizer.added_tokens_decoder.get(special[mark])
            how = {
                key: getattr(old, key, False)
                for key in ("lstrip", "rstrip", "single_word", "normalized")
            }
            twin.add_tokens(AddedToken(name, special=False, **how))
        ids = {twin.convert_tokens_to_ids(named[mark]): number for mark, number in special.items()}
        control = frozenset(special.values()) - {tokenizer.unk_token_id}
        shown = {stand_in: mark for mark, stand_in in hidden.items()}
        return cls(twin, pattern_of(tokenizer), hidden, shown, named, ids, control)

    def out_of_sight(self, value: Any) -> Any:
        """Return turns, tools or text with other characters in the place of control tokens.

        Raises: DataError for text that holds such characters itself.
        """
        if isinstance(value, str):
            if PRIVATE.search(value):
                raise DataError(
                    "a text holds characters of the private-use plane, by which texts are kept "
                    "apart",
                    HINT,
                )
            return self.marks.sub(lambda found: self.hidden[found[0]], value)
        if isinstance(value, dict):
            return {self.out_of_sight(key): self.out_of_sight(item) for key, item in value.items()}
        return (
            [self.out_of_sight(item) for item in value]
            if isinstance(value, list | tuple)
            else value
        )

    def in_sight(self, rendered: str) -> str:
        """Return a rendering with names for the template's control tokens, and those of texts as
        they were."""
        text = self.marks.sub(lambda found: self.named[found[0]], rendered)
        return PRIVATE.sub(lambda found: self.shown.get(found[0], found[0]), text)

    def encode(self, text: str, **options: Any) -> tuple[list[int], BatchEncoding]:
        """Return the ids of a text, those of control tokens only for the template's; and the
        encoding by the copy.

        Raises: RecipeError when the tokenizer knows no other way to write a control token, or drops
        a name.
        """
        encoding = self.twin(text, return_special_tokens_mask=True, verbose=False, **options)
        ids, added = list(encoding["input_ids"]), list(encoding["special_tokens_mask"])
        strays = [
            number
            for number, is_added in zip(ids, added)
            if number in self.control and not is_added
        ]
        lost = sum(ord(letter) >= OF_TEMPLATE for letter in text) - sum(
            number in self.ids for number in ids
        )
        if strays or lost:
            mark = (
                self.twin.convert_ids_to_tokens(strays[0]) if strays else "a mark of the template"
            )
            raise RecipeError(
                f"data.control_tokens=as_text: this tokenizer cannot write {mark!r} as text", HINT
            )
        return [self.ids.get(number, number) for number in ids], encoding


def as_seen(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a rendering as people read it, without names."""
    reader = reader_of(tokenizer)
    if reader is None:
        return text
    for mark, name in reader.named.items():
        text = text.replace(name, mark)
    return text
