"""Write out a plan: the prompt and the completion of a mosaic, and where each example is in them.
Nothing is decided here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aligner.builders.mosaic.examples import Example
from aligner.builders.mosaic.plan import PLAIN, PRIMARY, REPLY_SEPARATOR, Plan

Span = tuple[int, int, int]
"""1-based index of an example, and the half-open range of characters that its text takes."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The texts of a sample, with the spans of the examples' own words in each."""

    prompt: str
    completion: str
    asked: tuple[Span, ...]
    answered: tuple[Span, ...]


def render(plan: Plan, examples: Sequence[Example]) -> Rendered:
    """Write a sample out: the block of instructions with its meta-instructions around it, and the
    answers in order."""
    style = plan.style
    if plan.strategy in (PLAIN, PRIMARY):
        block, asked = _joined(
            [("", example.instruction, "") for example in examples], style.separator
        )
        completion, answered = _joined(
            [("", example.response, "") for example in examples], style.separator
        )
        return Rendered(
            block, completion, _numbered(asked, plan.order), _numbered(answered, plan.order)
        )
    indices = range(1, len(examples) + 1)
    block, asked = _joined(
        [
            (style.numbered(index), example.instruction, "")
            for index, example in zip(indices, examples)
        ],
        style.separator,
    )
    completion, answered = _joined(
        [
            (style.numbered(index) + style.begin, examples[index - 1].response, style.end)
            for index in plan.order
        ],
        REPLY_SEPARATOR,
    )
    prompt, shift = block, 0
    for line, (is_above, gap) in (
        (style.format_line, style.format_place),
        (style.rule_line, style.rule_place),
    ):
        if line and is_above:
            prompt = f"{line}{gap}{prompt}"
            shift += len(line) + len(gap)
        elif line:
            prompt = f"{prompt}{gap}{line}"
    moved = [(start + shift, stop + shift) for start, stop in asked]
    return Rendered(
        prompt, completion, _numbered(moved, tuple(indices)), _numbered(answered, plan.order)
    )


def _joined(
    parts: Sequence[tuple[str, str, str]], separator: str
) -> tuple[str, list[tuple[int, int]]]:
    """Join (before, text, after) and return where each text came to stand."""
    spans, length, pieces = [], 0, []
    for before, text, after in parts:
        start = length + len(before)
        spans.append((start, start + len(text)))
        pieces.append(f"{before}{text}{after}")
        length += len(pieces[-1]) + len(separator)
    return separator.join(pieces), spans


def _numbered(spans: Sequence[tuple[int, int]], indices: Sequence[int]) -> tuple[Span, ...]:
    return tuple((index, start, stop) for index, (start, stop) in zip(indices, spans))
