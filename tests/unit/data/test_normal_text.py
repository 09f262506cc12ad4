"""Texts as they are compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aligner.data.normal_text import normal_text, words_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't STOP, now!", "dont stop now"),
        ("  a\tb\n\nc ", "a b c"),
        ("**Bold** and `code`", "bold and code"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "full width"),
        ("it\u2019s", "it's"),
        ("zero\u200bwidth", "zerowidth"),
        ("STRASSE", "straße"),
        ("- an item\n- another", "* an item\n* another"),
        ("well-known", "well known"),
    ],
)
def test_the_same_words_are_the_same(one: str, other: str) -> None:
    assert normal_text(one) == normal_text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is 2+3?", "What is 2-3?"),
        ("What is 2 * 3?", "What is 2 / 3?"),
        ("What is 3.5?", "What is 35?"),
        ("Pay $5", "Pay €5"),
        ("Use C#", "Use C"),
        ("Use C++", "Use C"),
        ("x^2 = 4", "x2 4"),
        ("5%", "5"),
    ],
)
def test_signs_that_change_a_question_stay(one: str, other: str) -> None:
    assert normal_text(one) != normal_text(other)


def test_chinese_characters_are_words_and_neither_vowel_signs_nor_digits_part_one() -> None:
    assert words_of("今天, ok 天气") == ["今", "天", "ok", "天", "气"]
    assert words_of("GPT4, 16GB: 3.5x") == ["gpt4", "16gb", "3.5x"]
    assert words_of("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


@given(st.text(max_size=60))
def test_a_normal_text_stays_one(text: str) -> None:
    assert " ".join(normal_text(text).split()) == normal_text(text)
