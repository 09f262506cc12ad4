"""Check a finished mosaic: read strategy, rule, order and marks out of its text again, and refuse
faults.

This is a second implementation of the grammar, on purpose: it shares the phrasings with the
writer, and no code. It gets the examples that went in, and nothing of how they were put together.
From the prompt alone follows what the completion has to be, down to the byte; so a sample that
passes is right whatever its writer meant to do.

Examples may hold anything: numbers, tags, lines that look like meta-instructions. What decides is
that the text which is left, once the meta-instructions are taken off the prompt's ends, is exactly
the block of these examples. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

from aligner.builders.mosaic.phrasings import SLOTS, Meta, Phrasings

NEEDS_NUMBERS = frozenset(
    {
        "permute.explicit",
        "permute.odd_first",
        "permute.even_first",
        "maskout.explicit",
        "maskout.odd",
        "maskout.even",
    }
)
"""Labels of the rules that speak of an instruction's number."""

_BETWEEN = ("\n", "\n\n")
_DIGITS = frozenset("0123456789")
_TAG_SLOT = re.compile(r"\{(begin|end)\}")
_INTEGER = re.compile(r"[0-9]+")


class Violation(ValueError):
    """A text that breaks the grammar of mosaics.

    `detail` is a sentence. `kind` is a short stable word for counting: `structure` (no block of
    these examples is there), `meta` (a meta-instruction is missing, unknown or out of place),
    `form` (singular for plural or the reverse), `list`, `count` (what stands in a slot), `rule` (it
    does not apply to these instructions), `tie`, `numbers`, `tags`, `collision` (a mark occurs in
    an example), `content` (a text is not the example's), `masked` (a reply that should be absent),
    `order`.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a sample's text says about itself.

    `order` holds the answered indices (from 1, as the instructions stand) in the completion's
    order, `dropped` the others, rising. `begin` and `end` are "" without tags; `number` is a
    template with `{n}`, or "" without numbers.
    """

    strategy: str
    rule: str | None
    order: tuple[int, ...]
    dropped: tuple[int, ...]
    begin: str
    end: str
    number: str


def parse(
    completion: str, *, begin: str = "", end: str = "", number: str = "", gap: str = " "
) -> list[tuple[int | None, str]]:
    """Return the replies byte for byte, each with the index that is printed before it (None without
    numbers).

    Without tags and without numbers nothing can be told apart: the whole text is one reply.

    Raises: Violation when no mosaic with these marks reads like that, or when the marks cannot be
    any.
    """
    if bool(begin) != bool(end):
        raise Violation("tags", "tags come in pairs")
    if number and number.count("{n}") != 1:
        raise Violation("numbers", f"{number!r} does not hold {{n}} once")
    if not begin and not number:
        return [(None, completion)]
    opening, divider = _cutters(begin, end, number, gap)
    first = opening.match(completion)
    if first is None:
        numbered = number and _cutters("", "", number, gap)[0].match(completion) is None
        raise Violation(
            "numbers" if numbered else "tags",
            "the completion does not begin with the marks of a reply",
        )
    marks = [first, *divider.finditer(completion, first.end())]
    stops = [*(mark.start() for mark in marks[1:]), len(completion) - len(end)]
    if not completion.endswith(end) or stops[-1] < marks[-1].end():
        raise Violation("tags", f"the completion does not finish with {end!r}")
    texts = [completion[mark.end() : stop] for mark, stop in zip(marks, stops)]
    indices = [int(mark["n"]) for mark in marks] if number else [None] * len(marks)
    _refuse_uncut(texts, indices, begin, end, number)
    return list(zip(indices, texts))


def check(
    prompt: str, completion: str, examples: Sequence[tuple[str, str]], phrasings: Phrasings
) -> Reading:
    """Read a finished sample from its text, and return what it says.

    `examples` are (instruction, response) in the order in which they were given; all else is found
    in the text.

    Raises: Violation with the most telling reason why this is not a mosaic of these examples.
    """
    instructions = [instruction for instruction, _ in examples]
    responses = [response for _, response in examples]
    sample = _Sample(prompt, completion, instructions, responses, phrasings)
    if not instructions:
        raise Violation("structure", "a mosaic has at least one example")
    for text in (*instructions, *responses):
        if not text or text.isspace():
            raise Violation("structure", "an example's text is blank")
    if len(examples) == 1 and sample.instructions == [prompt] and sample.responses == [completion]:
        return Reading("plain", None, (1,), (), "", "", "")
    reason: Violation | None = None
    if separator := _separator(sample):
        try:
            return _primary(sample, separator)
        except Violation as violation:
            reason = violation
    for claim in _claims(sample):
        try:
            return _judge(sample, claim)
        except Violation as violation:
            reason = reason or violation
    raise reason or _without_block(sample)


# --- cutting a completion -------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _cutters(
    begin: str, end: str, number: str, gap: str
) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What the first reply opens with, and what stands between the texts of two replies."""
    opening = re.escape(begin)
    if number:
        before, after = map(re.escape, number.split("{n}"))
        opening = f"{before}(?P<n>[1-9][0-9]{{0,8}}){after}{re.escape(gap)}{opening}"
    return re.compile(opening), re.compile(f"{re.escape(end)}\n\n{opening}")


@lru_cache(maxsize=256)
def _line_initial(before: str, after: str) -> re.Pattern[str]:
    """The number mark of any integer at the beginning of a line that is not the first."""
    return re.compile(f"\n{re.escape(before)}[0-9]+{re.escape(after)}")


def _refuse_uncut(
    texts: list[str], indices: Sequence[int | None], begin: str, end: str, number: str
) -> None:
    """Marks that are left in a reply's text mean that something is wrong around it."""
    for text in texts:
        if not text or text.isspace():
            raise Violation("content", "a reply is blank")
        if begin and (begin in text or end in text):
            raise Violation(
                "tags", "a tag stands inside a reply, or something stands between two replies"
            )
        if not begin and _line_initial(*number.split("{n}")).search("\n" + text):
            raise Violation("numbers", "a line inside a reply begins with a number mark")
    if number and len(set(indices)) < len(indices):
        raise Violation("order", "two replies carry the same number")


# --- reading a prompt -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    prompt: str
    completion: str
    instructions: list[str]
    responses: list[str]
    phrasings: Phrasings

    @cached_property
    def count(self) -> int:
        return len(self.instructions)

    @cached_property
    def spare(self) -> int:
        """How many characters of the prompt are not the instructions' own."""
        return len(self.prompt) - sum(map(len, self.instructions))

    @cached_property
    def digits(self) -> int:
        """How many digits the numbers of all instructions have."""
        return sum(len(str(index)) for index in range(1, self.count + 1))


@dataclass(frozen=True, slots=True)
class _Number:
    """How an instruction or a reply is numbered: what stands before and after the integer, and the
    gap behind."""

    before: str
    after: str
    gap: str

    @property
    def template(self) -> str:
        return f"{self.before}{{n}}{self.after}"

    def mark(self, index: int) -> str:
        return f"{self.before}{index}{self.after}{self.gap}"


_Line = tuple[str, Meta]
"""A line of the prompt, and one of the meta-instructions that it can be."""


@dataclass(frozen=True, slots=True)
class _Edge:
    """Meta-instructions taken off one end of the prompt (outermost first), and where the rest
    begins or stops."""

    cut: int
    lines: tuple[list[_Line], ...]


@dataclass(frozen=True, slots=True)
class _Claim:
    """One way to understand the prompt: `nested` says that the first of two meta-instructions
    encloses the second."""

    metas: tuple[Meta, ...]
    nested: bool
    begin: str
    end: str
    number: _Number | None


def _claims(sample: _Sample) -> Iterator[_Claim]:
    """Every way to understand the prompt under which what the meta-instructions leave is the
    examples' block."""
    for top, bottom in _frames(sample):
        lines = (*top.lines, *bottom.lines)
        layout = _layout(sample, top.cut, bottom.cut)
        if not layout or (not lines and layout == [None]):
            continue
        nested = len(top.lines) == 2 or len(bottom.lines) == 2
        for combination in product(*lines):
            metas = tuple(meta for _, meta in combination)
            for begin, end in _tags(sample, combination):
                yield _Claim(metas, nested, begin, end, layout[0])


def _frames(sample: _Sample) -> list[tuple[_Edge, _Edge]]:
    """Up to two meta-instructions off the prompt's ends in every possible way, those with the most
    lines first."""
    spare = sample.spare
    if spare < 0:
        return []
    bottoms = list(_bottoms(sample, spare, len(sample.prompt), ()))
    frames = [
        (top, bottom)
        for top in _tops(sample, spare, 0, ())
        for bottom in bottoms
        if len(top.lines) + len(bottom.lines) <= 2
    ]
    frames.sort(key=lambda frame: -len(frame[0].lines) - len(frame[1].lines))
    return frames


def _tops(sample: _Sample, spare: int, cut: int, lines: tuple[list[_Line], ...]) -> Iterator[_Edge]:
    """Take lines off from above. A line that is longer than what the instructions spare is part of
    one."""
    yield _Edge(cut, lines)
    stop = sample.prompt.find("\n", cut, cut + spare + 1) if len(lines) < 2 else -1
    if stop >= 0 and (metas := _read(sample, cut, stop)):
        yield from _tops(sample, spare, stop + 1, (*lines, metas))
        if sample.prompt.startswith("\n", stop + 1):
            yield from _tops(sample, spare, stop + 2, (*lines, metas))


def _bottoms(
    sample: _Sample, spare: int, cut: int, lines: tuple[list[_Line], ...]
) -> Iterator[_Edge]:
    """Take lines off from below."""
    yield _Edge(cut, lines)
    start = sample.prompt.rfind("\n", max(0, cut - spare - 1), cut) if len(lines) < 2 else -1
    if start >= 0 and (metas := _read(sample, start + 1, cut)):
        yield from _bottoms(sample, spare, start, (*lines, metas))
        if start and sample.prompt[start - 1] == "\n":
            yield from _bottoms(sample, spare, start - 1, (*lines, metas))


def _read(sample: _Sample, start: int, stop: int) -> list[_Line]:
    line = sample.prompt[start:stop]
    return [(line, meta) for meta in sample.phrasings.read(line)]


def _layout(sample: _Sample, start: int, stop: int) -> list[_Number | None]:
    """How the block is numbered if prompt[start:stop] is the examples' block: one entry, or none if
    it is not.

    Lengths tell nearly all: with the instructions known, only one width of a number can fill the
    place.
    """
    count, texts = sample.count, sample.instructions
    own = len(sample.prompt) - sample.spare
    for between in _BETWEEN[: 1 if count == 1 else 2]:
        spare = stop - start - own - (count - 1) * len(between)
        if spare == 0 and sample.prompt.startswith(between.join(texts), start):
            return [None]
        width, rest = divmod(spare - sample.digits, count)
        if width > 0 and rest == 0 and (number := _number(sample, start, width, between)):
            return [number]
    return []


def _number(sample: _Sample, start: int, width: int, between: str) -> _Number | None:
    """The numbering whose marks are `width` characters wide without the integer, if the block at
    `start` has one."""
    mark, gap = sample.prompt[start : start + width], sample.prompt[start + width]
    if gap not in (" ", "\n") or "\n" in mark:
        return None
    if not sample.prompt.startswith(sample.instructions[0], start + width + 1):
        return None
    numbers = []
    for at in (at for at, letter in enumerate(mark) if letter == "1"):
        number = _Number(mark[:at], mark[at + 1 :], gap)
        if number.template.count("{n}") != 1:
            continue
        if number.before[-1:] in _DIGITS or number.after[:1] in _DIGITS:
            continue  # a digit beside the integer would change it
        block = between.join(
            number.mark(index) + text for index, text in enumerate(sample.instructions, 1)
        )
        if sample.prompt.startswith(block, start):
            numbers.append(number)
    known = [number for number in numbers if number.template in sample.phrasings.numbers] or numbers
    return known[-1] if known else None


def _tags(sample: _Sample, lines: Sequence[_Line]) -> list[tuple[str, str]]:
    """The tag pairs that a format text can name, or the pair of empty texts when no line names any.

    A tag may hold the very words that stand between the two slots. Then those pairs count that the
    completion shows.
    """
    for line, meta in lines:
        if meta.text.label == "format.tags":
            pairs = list(_splits(line, meta.text.wording))
            seen = [
                pair
                for pair in pairs
                if sample.completion.endswith(pair[1]) and pair[0] in sample.completion
            ]
            return seen or pairs[:1]
    return [("", "")]


def _splits(line: str, wording: str) -> Iterator[tuple[str, str]]:
    """Every way in which a line can be this wording with its two tags filled in."""
    before, slot, middle, _, after = _TAG_SLOT.split(wording)
    filled = line[len(before) : len(line) - len(after)]
    at = filled.find(middle)
    while at >= 0:
        pair = filled[:at], filled[at + len(middle) :]
        yield pair if slot == "begin" else pair[::-1]
        at = filled.find(middle, at + 1)


# --- judging what was read ------------------------------------------------------------------------


def _judge(sample: _Sample, claim: _Claim) -> Reading:
    """Work out what the completion has to be if the prompt means this, and compare."""
    style, rule = _roles(claim)
    _refuse_contradiction(sample, claim, style, rule)
    order = _order(sample, rule)
    dropped = tuple(sorted(set(range(1, sample.count + 1)).difference(order)))
    _refuse_form(style, "one" if sample.count == 1 else "many")
    _refuse_form(rule, "one" if len(dropped) == 1 else "many")
    begin, end = claim.begin, claim.end
    if (begin or end) and (begin in end or end in begin or "\n" in begin + end):
        raise Violation("tags", f"{begin!r} and {end!r} cannot be a pair of tags")
    _refuse_collision(sample, claim)
    marks = [claim.number.mark(index) if claim.number else "" for index in order]
    replies = (f"{begin}{sample.responses[index - 1]}{end}" for index in order)
    if sample.completion != "\n\n".join(map(str.__add__, marks, replies)):
        raise _fault(sample, claim, order)
    strategy, name = rule.text.label.split(".") if rule else ("format", None)
    number = claim.number.template if claim.number else ""
    return Reading(strategy, name, order, dropped, begin, end, number)


def _roles(claim: _Claim) -> tuple[Meta | None, Meta | None]:
    """Which meta-instruction speaks of the format, and which is the rule."""
    styles = [meta for meta in claim.metas if meta.text.label.startswith("format.")]
    rules = [meta for meta in claim.metas if meta not in styles]
    if len(styles) > 1 or len(rules) > 1:
        raise Violation(
            "meta", f"two meta-instructions of one sort: {claim.metas[0].text.label} and the next"
        )
    if claim.nested and claim.metas[0] in styles:
        raise Violation("meta", "the rule stands nearer to the instructions than the format text")
    return next(iter(styles), None), next(iter(rules), None)


def _refuse_contradiction(
    sample: _Sample, claim: _Claim, style: Meta | None, rule: Meta | None
) -> None:
    if claim.number is None and not claim.begin:
        raise Violation("structure", "the replies have neither numbers nor tags")
    if rule is None:
        return
    if sample.count == 1:
        raise Violation("form", f"{rule.text.label} beside a single instruction")
    if style is not None and style.text.label == "format.list":
        raise Violation("meta", f"one text asks for every answer, another for {rule.text.label}")
    if claim.number is None and rule.text.label in NEEDS_NUMBERS:
        raise Violation("numbers", f"{rule.text.label} speaks of numbers, and there are none")


def _refuse_form(meta: Meta | None, form: str) -> None:
    if meta is not None and len(SLOTS[meta.text.label]) > 1 and meta.text.form != form:
        raise Violation(
            "form",
            f"a text of {meta.text.label} speaks of {meta.text.form}, and it should of {form}",
        )


def _refuse_collision(sample: _Sample, claim: _Claim) -> None:
    """No tag in any example. No line that begins with a number mark, be it of an instruction or of
    an untagged reply."""
    texts = "\n".join(("", *sample.instructions, *sample.responses))
    for tag in (claim.begin, claim.end):
        if tag and tag in texts:
            raise Violation("collision", f"the tag {tag!r} occurs in an example")
    if claim.number is None:
        return
    numbered = "\n".join(("", *sample.instructions)) if claim.begin else texts
    if _line_initial(claim.number.before, claim.number.after).search(numbered):
        raise Violation(
            "collision", f"an example's line begins like the number mark {claim.number.template!r}"
        )


def _fault(sample: _Sample, claim: _Claim, order: Sequence[int]) -> Violation:
    """Say what is wrong with a completion that is not the one which the prompt asks for."""
    number, gap = (claim.number.template, claim.number.gap) if claim.number else ("", " ")
    try:
        replies = parse(sample.completion, begin=claim.begin, end=claim.end, number=number, gap=gap)
    except Violation as violation:
        return violation
    return _difference(sample, order, replies)


def _difference(
    sample: _Sample, order: Sequence[int], replies: Sequence[tuple[int | None, str]]
) -> Violation:
    indices, texts = zip(*replies)
    due = [sample.responses[index - 1] for index in order]
    if list(texts) == due and None not in indices:
        return Violation(
            "numbers", f"the replies are numbered {list(indices)}, they should be {list(order)}"
        )
    masked = set(range(1, sample.count + 1)).difference(order)
    absent = {sample.responses[index - 1] for index in masked}.difference(due)
    if masked.intersection(indices) or absent.intersection(texts):
        return Violation("masked", "a reply is there that should have been left out")
    if not set(texts) <= set(sample.responses):
        return Violation("content", "the text of a reply is not the example's response")
    return Violation(
        "order", f"the replies should be those to {list(order)}, in this order and no others"
    )


# --- what the rules ask for -----------------------------------------------------------------------


def _order(sample: _Sample, rule: Meta | None) -> tuple[int, ...]:
    """The indices that are to be answered, in order."""
    every = range(1, sample.count + 1)
    if rule is None:
        return tuple(every)
    strategy, name = rule.text.label.split(".")
    if strategy == "permute":
        return _permuted(sample, name, rule)
    dropped = _masked(sample, name, rule)
    if not 0 < len(dropped) < sample.count:
        raise Violation(
            "rule", f"{rule.text.label} leaves out {len(dropped)} of {sample.count} instructions"
        )
    return tuple(index for index in every if index not in dropped)


def _permuted(sample: _Sample, name: str, rule: Meta) -> tuple[int, ...]:
    every = range(1, sample.count + 1)
    if name == "explicit":
        order = _listed(sample, rule)
        if len(order) != sample.count:
            raise Violation("list", f"{list(order)} is not an order of {sample.count} instructions")
        return order
    if name == "reverse":
        return tuple(reversed(every))
    if name in ("odd_first", "even_first"):
        halves = (every[::2], every[1::2]) if name == "odd_first" else (every[1::2], every[::2])
        return (*halves[0], *halves[1])
    measure, _, direction = name.rpartition("_")
    sizes = _sizes(sample, measure)
    if len(set(sizes)) < sample.count:
        raise Violation("tie", f"two instructions are alike under {rule.text.label}")
    return tuple(
        sorted(every, key=lambda index: sizes[index - 1], reverse=direction == "descending")
    )


def _masked(sample: _Sample, name: str, rule: Meta) -> set[int]:
    every = range(1, sample.count + 1)
    if name == "explicit":
        listed = _listed(sample, rule)
        if list(listed) != sorted(listed):
            raise Violation("list", f"{list(listed)} does not rise")
        return set(listed)
    if name in ("odd", "even"):
        return set(every[::2] if name == "odd" else every[1::2])
    sizes, printed = _sizes(sample, "words"), rule.slots.get("count", "1")
    count = next((count for count in range(1, sample.count) if printed == str(count)), None)
    if count is None:
        raise Violation("count", f"{printed} of {sample.count} instructions cannot be left out")
    ranked = sorted(sizes, reverse=name == "longest")
    if ranked[count - 1] == ranked[count]:
        raise Violation(
            "tie", f"instructions of equal length stand on both sides of {rule.text.label}"
        )
    cut = set(ranked[:count])
    return {index for index in every if sizes[index - 1] in cut}


def _listed(sample: _Sample, rule: Meta) -> tuple[int, ...]:
    """The integers of a list slot, each once and each one of the instructions' numbers."""
    names = {str(index): index for index in range(1, sample.count + 1)}
    for items in _unbracketed(rule.slots["list"], sample.phrasings.list_brackets):
        integers = _INTEGER.findall(items)
        if not names.keys() >= set(integers) or len(set(integers)) < len(integers):
            continue
        if any(
            items == separator.join(integers)
            for separator in sample.phrasings.separators(rule.text.label)
        ):
            return tuple(names[integer] for integer in integers)
    raise Violation(
        "list",
        f"{rule.slots['list']!r} does not list instructions, each once, as the phrasings do",
    )


def _unbracketed(text: str, brackets: Sequence[str]) -> Iterator[str]:
    for bracket in brackets:
        before, after = bracket.split("{items}")
        if (
            text.startswith(before)
            and text.endswith(after)
            and len(text) > len(before) + len(after)
        ):
            yield text[len(before) : len(text) - len(after)]


def _sizes(sample: _Sample, measure: str) -> list[int]:
    """What a sorting rule compares: positions in the alphabet, words or characters."""
    if measure == "characters":
        return [len(text) for text in sample.instructions]
    if measure == "words":
        if not sample.phrasings.words:
            raise Violation(
                "rule", f"the language ({sample.phrasings.language}) does not count words"
            )
        return [len(text.split()) for text in sample.instructions]
    positions = {letter: position for position, letter in enumerate(sample.phrasings.alphabet)}
    letters = [next(filter(str.isalpha, text), "").casefold() for text in sample.instructions]
    if not positions.keys() >= set(letters):
        raise Violation(
            "rule", "an instruction has no first letter, or one outside the phrasings' alphabet"
        )
    return [positions[letter] for letter in letters]


# --- primary, and prompts that hold no block ------------------------------------------------------


def _separator(sample: _Sample) -> str:
    """What stands between the instructions, if nothing but one text stands between them and nothing
    around; else ""."""
    texts = sample.instructions
    if len(texts) < 2 or not sample.prompt.startswith(texts[0]):
        return ""
    width, rest = divmod(sample.spare, len(texts) - 1)
    separator = sample.prompt[len(texts[0]) : len(texts[0]) + max(width, 0)]
    return separator if rest == 0 and separator.join(texts) == sample.prompt else ""


def _primary(sample: _Sample, separator: str) -> Reading:
    """Judge a prompt that has neither marks nor meta-instructions."""
    order = tuple(range(1, sample.count + 1))
    if (
        len(separator) < 2
        or separator[0] != "\n"
        or separator[-1] != "\n"
        or "\n" in separator.strip("\n")
    ):
        raise Violation(
            "structure",
            f"{separator!r} cannot separate examples that have neither numbers nor tags",
        )
    if separator.join(sample.responses) != sample.completion:
        raise _difference(
            sample, order, [(None, text) for text in sample.completion.split(separator)]
        )
    if any(separator in text for text in (*sample.instructions, *sample.responses)):
        raise Violation("collision", f"the separator {separator!r} occurs in an example")
    return Reading("primary", None, order, (), "", "", "")


def _without_block(sample: _Sample) -> Violation:
    """Say why no block of these examples was found in the prompt."""
    at, first = 0, sample.prompt.find(sample.instructions[0])
    for index, text in enumerate(sample.instructions, 1):
        at = sample.prompt.find(text, at)
        if at < 0:
            return Violation(
                "content", f"instruction {index} is not in the prompt, or not in its place"
            )
        at += len(text)
    above = [
        line
        for line in sample.prompt[:first].split("\n")
        if line and not sample.phrasings.read(line)
    ]
    below = [
        line for line in sample.prompt[at:].split("\n") if line and not sample.phrasings.read(line)
    ]
    if below or len(above) > 1 or (above and "1" not in above[0]):
        return Violation("meta", "a line above or below the instructions is not in the phrasings")
    if above:
        return Violation("numbers", "the instructions are not numbered alike from 1 on")
    return Violation(
        "structure", "what the meta-instructions leave is not the block of the examples"
    )
