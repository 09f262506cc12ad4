"""`compat: released` against the authors' own functions, for developers who have them:
MOSAIC_IT_CODE names their folder.

Each of our samples is given to their `get_formated_data_pro` with the same draws, and with our
wording in place of theirs.
"""

from __future__ import annotations

import importlib
import os
import random
import re
import sys
from types import ModuleType
from typing import Any

import pytest

from aligner.builders.mosaic.engine import Counts, Sample
from aligner.builders.mosaic.epochs import mosaics_of
from aligner.config.recipe import Mosaic
from aligner.data.rows import CompletionRow

FOLDER = os.environ.get("MOSAIC_IT_CODE")
ORDERS = {
    "explicit": "FIX",
    "reverse": "REVERSE",
    "alphabet_ascending": "ALPHA",
    "alphabet_descending": "REVERSE_ALPHA",
    "words_ascending": "LENGTH_WORD",
    "words_descending": "REVERSE_LENGTH_WORD",
    "characters_ascending": "LENGTH_CHAR",
    "characters_descending": "REVERSE_LENGTH_CHAR",
    "odd_first": "ODD_EVEN",
    "even_first": "EVEN_ODD",
}
MASKS = {
    "explicit": "FIX",
    "longest": "WORD_LONG",
    "shortest": "WORD_SHORT",
    "odd": "ODD",
    "even": "EVEN",
}
DRAWS = (
    *(
        "digit_punc_idx",
        "begin_end_tag_punc_idx",
        "begin_end_text_idx",
        "format_instruction_interval_tag_idx",
    ),
    *(
        "fomat_meta_instruction_idx",
        "fomat_meta_instruction_no_idx",
        "format_overall_instruction_idx",
    ),
    *(
        "order_method_idx",
        "order_meta_instruction_idx",
        "order_overall_instruction_idx",
        "order_seq_tag_idx",
    ),
    *(
        "order_seq_interval_idx",
        "mask_method_idx",
        "mask_meta_instruction_idx",
        "mask_overall_instruction_idx",
    ),
    *("mask_seq_tag_idx", "mask_seq_interval_idx"),
)

pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="MOSAIC_IT_CODE does not name a folder with the authors' code"
)


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    assert FOLDER is not None
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "mosaic_main", raising=False)
    return importlib.import_module("mosaic_main")


def theirs(authors: ModuleType, sample: Sample, rows: dict[str, Any]) -> dict[str, str]:
    """What their function writes for the rows of our sample."""
    plan, style = sample.plan, sample.plan.style
    examples = [rows[origin] for origin in sample.origins]
    rule_line, listed = (
        _open(style.rule_line) if plan.rule == "explicit" else (_escaped(style.rule_line), [])
    )
    wording: dict[str, Any] = {
        "DIGITS_TAG_LIST": ["", _escaped(style.number).replace("{{n}}", "{i}")],
        "DIGITS_PUNC_LIST": ["" if style.gap == "\n" else style.gap],
        "BEGIN_END_TEXT_LIST": [(style.begin, style.end)],
        "BEGIN_END_TAG_PUNC_LIST": ["{text}"],
        "FORMAT_META_INSTRUCTION_LIST": [_escaped(style.format_line)],
        "FORMAT_META_INSTRUCTION_NO_LIST": [style.format_line],
        "FORMAT_INSTRUCTION_INTERVAL_TAG_LIST": [style.separator],
        "FORMAT_OVERALL_INSTRUCTION_LIST": [_around(style.format_line, style.format_place)],
        "ORDER_METHOD_INSTRUCTION_PAIR_DICT": {ORDERS.get(plan.rule or "", "FIX"): [rule_line]},
        "MASK_METHOD_INSTRUCTION_PAIR_DICT": {MASKS.get(plan.rule or "", "FIX"): [rule_line]},
        "ORDER_OVERALL_INSTRUCTION_LIST": [_around(style.rule_line, style.rule_place)],
        "MASK_OVERALL_INSTRUCTION_LIST": [_around(style.rule_line, style.rule_place)],
        "ORDER_SEQ_TAG_LIST": ["{i}"],
        "MASK_SEQ_TAG_LIST": ["{i}"],
        "ORDER_SEQ_INTERVAL_LIST": [_between(style.rule_line)],
        "MASK_SEQ_INTERVAL_LIST": [_between(style.rule_line)],
    }
    for name, value in wording.items():
        setattr(authors, name, value)
    draws = {
        **dict.fromkeys(DRAWS, 0),
        "overall_indicator": {"format": 0, "permute": 1, "maskout": 2}[plan.strategy],
        "digit_tag_idx": int(bool(style.number)),
        "newline_for_digit": style.gap == "\n",
        "lowercase_for_begin_end_text": False,
        "do_begin_end_format": bool(style.begin),
        "do_no_begin_end_format_no_ins": not style.format_line,
        "order_fixed_list": [place - 1 for place in plan.order],
        "mask_ratio": (len(plan.dropped) + 0.5) / len(examples),
        "mask_fixed_list": [place - 1 for place in listed],
    }
    items = [{"instruction": row.prompt, "input": "", "output": row.completion} for row in examples]
    written: dict[str, str] = authors.get_formated_data_pro(draws, items)
    return written


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _open(line: str) -> tuple[str, list[int]]:
    """A rule's line with a slot in place of its list of numbers, and the numbers."""
    found = list(re.finditer(r"[0-9]+", line))
    opened = f"{_escaped(line[: found[0].start()])}{{}}{_escaped(line[found[-1].end() :])}"
    return opened, [int(number[0]) for number in found]


def _between(line: str) -> str:
    """What stands between the first two numbers of a rule's line."""
    found = list(re.finditer(r"[0-9]+", line))
    return line[found[0].end() : found[1].start()] if len(found) > 1 else ""


def _around(line: str, place: tuple[bool, str]) -> str:
    if not line:
        return "{instruction_all}"
    is_above, gap = place
    return (
        "{meta_instruction}" + gap + "{instruction_all}"
        if is_above
        else "{instruction_all}" + gap + "{meta_instruction}"
    )


def test_every_sample_is_what_their_function_writes(authors: ModuleType) -> None:
    rng = random.Random(0)
    asked = (
        f"{rng.choice('abcdeABCDE')}{' w' * rng.randint(0, 9)} {number}" for number in range(4000)
    )
    rows = [
        CompletionRow(question, f"answer {number}", f"r{number}")
        for number, question in enumerate(asked)
    ]
    by_origin = {row.origin: row for row in rows}
    made = mosaics_of(rows, Mosaic(plain_fraction=0.0, compat="released"), max_tokens=10**6, seed=0)
    samples = [sample for number in range(2) for sample in made.epoch_samples(number, Counts())]
    kinds = {(sample.plan.strategy, sample.plan.rule) for sample in samples}
    assert len(kinds) == 1 + len(ORDERS) + len(MASKS)
    for sample in samples:
        written = theirs(authors, sample, by_origin)
        assert written["instruction"] == sample.rendered.prompt
        assert written["output"] == sample.rendered.completion
