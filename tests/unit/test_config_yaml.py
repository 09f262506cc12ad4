"""YAML with lines: numbers, booleans, duplicate keys, broken files."""

from __future__ import annotations

from typing import Any

import pytest

from aligner.config.yaml_lines import read_document, read_value
from aligner.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6),
        ("5.0e-6", 5e-6),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("10", 10),
        ("-1", -1),
        ("1_000", 1000),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("null", None),
        ("007", "007"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("[a, 2]", ["a", 2]),
        ("{r: 8}", {"r": 8}),
        ("e5", "e5"),
        ("'5e-6'", "5e-6"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = read_value(text)
    assert found == value
    assert type(found) is type(value)


def test_the_line_of_every_key_and_item_is_known() -> None:
    document = read_document("# a comment\na: 1\nb:\n  c: [x,\n      y]\n  d: {e: 2}\n", "r.yaml")
    assert document.values == {"a": 1, "b": {"c": ["x", "y"], "d": {"e": 2}}}
    assert document.lines == {
        ("a",): 2,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 0): 4,
        ("b", "c", 1): 5,
        ("b", "d"): 6,
        ("b", "d", "e"): 6,
    }


def test_anchors_and_merge_keys_work() -> None:
    values = read_document("base: &base {r: 8}\nlora:\n  <<: *base\n  lora_alpha: 16\n", "r.yaml").values
    assert values["lora"] == {"r": 8, "lora_alpha": 16}


def test_a_key_given_twice_is_a_problem_at_every_depth() -> None:
    problems = read_document("a: 1\nb: {c: 1, c: 2}\na: 2\n", "r.yaml").problems
    assert [(problem.where, problem.key) for problem in problems] == [("r.yaml:2", "b.c"), ("r.yaml:3", "a")]
    assert "line 1" in problems[1].message


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("a: 1\n\tb: 2\n", "r.yaml:2", "tab"),
        ("a: [1, 2\nb: 3\n", "r.yaml:2", "column"),
        ("a: b: c\n", "r.yaml:1", "column 5 of `a: b: c`"),
        ("a: 'open\n", "r.yaml:2", "end"),
        ("a: *nowhere\n", "r.yaml:1", "nowhere"),
        ("a: !!python/object:os.system x\n", "r.yaml:1", "python/object"),
        ("- a\n- b\n", "r.yaml:1", "found a list"),
        ("just words\n", "r.yaml:1", "just words"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2", "column 1"),
    ],
)
def test_broken_yaml_is_one_problem_with_its_line(text: str, where: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_document(text, "r.yaml")
    (problem,) = caught.value.problems
    assert problem.where == where
    assert words in problem.message
    assert caught.value.hint


def test_an_empty_file_is_an_empty_recipe() -> None:
    assert read_document("# nothing yet\n", "r.yaml").values == {}
