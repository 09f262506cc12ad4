"""YAML with lines: numbers, booleans, duplicate keys, broken files."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml

from aligner.config import yaml_lines
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
    values = read_document(
        "base: &base {r: 8}\nlora:\n  <<: *base\n  lora_alpha: 16\n", "r.yaml"
    ).values
    assert values["lora"] == {"r": 8, "lora_alpha": 16}


def test_a_key_given_twice_is_a_problem_at_every_depth() -> None:
    problems = read_document("a: 1\nb: {c: 1, c: 2}\na: 2\n", "r.yaml").problems
    assert [(problem.where, problem.key) for problem in problems] == [
        ("r.yaml:2", "b.c"),
        ("r.yaml:3", "a"),
    ]
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


def fan(letters: str, width: int) -> str:
    """Lists of `width` aliases of the one before: a few lines that stand for width ** len(letters)
    texts."""
    lines = [f"{letters[0]}: &{letters[0]} [{', '.join(['x'] * width)}]"]
    for before, here in itertools.pairwise(letters):
        lines.append(f"{here}: &{here} [{', '.join([f'*{before}'] * width)}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        (fan("abcd", 3), "r.yaml:3", "more than 100 characters, with every alias written out"),
        ("a: &a {k: v, self: *a}\n", "r.yaml:1", "the alias `*a` stands inside what it names"),
        ("a: &a [1, *a]\n", "r.yaml:1", "stands inside"),
        ("a: &a {b: 1, <<: *a}\n", "r.yaml:1", "stands inside"),
        (f"a:\n  {'[' * 9}{']' * 9}\n", "r.yaml:2", "more than 6 levels deep"),
        ("a:\n  - b: {c: {d: {e: {f: 1}}}}\n", "r.yaml:2", "more than 6 levels deep"),
        (f"a: 1\nb: {'9' * 21}\n", "r.yaml:2", "a number of 21 characters"),
        (f"a: 0.{'9' * 21}\n", "r.yaml:1", "a number of 23 characters"),
        (f"a: {'long ' * 21}\n", "r.yaml:1", "more than 100 characters"),
    ],
)
def test_what_goes_beyond_the_limits_is_refused_before_it_is_built(
    text: str, where: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in (("LARGEST", 100), ("DEEPEST", 6), ("LONGEST_NUMBER", 20)):
        monkeypatch.setattr(yaml_lines, name, limit)
    with pytest.raises(RecipeError) as caught:
        read_document(text, "r.yaml")
    (problem,) = caught.value.problems
    assert problem.where == where
    assert words in problem.message
    assert "alias" in caught.value.hint


def test_aliases_within_the_limit_are_written_out_as_often_as_they_stand() -> None:
    values = read_document(fan("abc", 3), "r.yaml").values
    assert values["c"] == [[["x"] * 3] * 3] * 3


def test_a_value_of_a_command_line_has_the_same_limits() -> None:
    for text in ("&a [*a]", "9" * 5000, "[" * 3000 + "]" * 3000):
        with pytest.raises(yaml.YAMLError):
            read_value(text)


@pytest.mark.parametrize(
    ("text", "key"), [("1: x", "1"), ("null: x", "null"), ("true: x", "true"), ("5e-6: x", "5e-6")]
)
def test_a_key_is_the_text_that_stands_there(text: str, key: str) -> None:
    document = read_document(f"{text}\n", "r.yaml")
    assert document.values == {key: "x"}
    assert document.lines == {(key,): 1}


def test_a_key_given_as_number_and_as_text_is_given_twice() -> None:
    (problem,) = read_document("1: x\n'1': y\n", "r.yaml").problems
    assert problem.where == "r.yaml:2"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a]: x", "a key must be a text"),
        ("{a: b}: x", "a key must be a text"),
        ("a: !!int hello", "no int: `hello`"),
        ("a: !!float hello", "no float: `hello`"),
        ("a: !!bool hello", "no bool: `hello`"),
        ("a: !!timestamp hello", "timestamp"),
        ("a: !!set {b, c}", "set"),
        ("a: !!int [1]", "expected a scalar node"),
        ("a: !!str {b: c}", "expected a scalar node"),
        ("a: !!map hello", "expected a mapping node"),
        ("a: {<<: hello}", "for merging"),
        ('a: "\\ud83d"', "half a surrogate pair"),
    ],
)
def test_tags_and_keys_that_do_not_fit_are_one_problem(text: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_document(f"{text}\n", "r.yaml")
    (problem,) = caught.value.problems
    assert problem.where == "r.yaml:1"
    assert words in problem.message


def test_two_halves_of_a_character_as_json_writes_them_become_that_character() -> None:
    assert read_document('{"a": "\\ud83d\\ude00"}', "r.json").values == {"a": "\N{GRINNING FACE}"}


def test_a_merged_key_may_be_given_anew_and_has_the_line_where_it_stands() -> None:
    document = read_document(
        "base: &base\n  r: 8\n  bias: none\nlora:\n  <<: *base\n  r: 4\n", "r.yaml"
    )
    assert document.problems == []
    assert document.values["lora"] == {"r": 4, "bias": "none"}
    assert document.lines[("lora", "r")] == 6
    assert document.lines[("lora", "bias")] == 3
