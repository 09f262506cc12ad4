"""JSON in answers: what is read, what equals what, what is valid, and that nothing an answer holds
is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aligner.errors import DataError, RecipeError
from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.json_extract import INVALID, last_block, read_json, same_value

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^(a+)+$"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
    "$ref": "#/$defs/tree",
}

HOSTILE = {
    "nothing": "",
    "words": "I cannot do that.",
    "deep": "[" * 100_000 + "]" * 100_000,
    "fairly deep": "[" * 60 + "]" * 60,
    "deep objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "a long integer": "9" * 5_000,
    "an integer beyond a float": "9" * 400,
    "a float beyond a float": "1e999",
    "inside": '{"a": [-1e999]}',
    "not a number": "NaN",
    "infinity": '{"a": -Infinity}',
    "a key twice": '{"a": 1, "a": 1}',
    "a key twice inside": '[{"b": {"a": 1, "a": 2}}]',
    "a lone surrogate": '"\\ud800"',
    "a lone surrogate as key": '{"\\udfff": 1}',
    "a raw lone surrogate": '"\ud800"',
    "a null byte": "\0",
    "two values": "{} {}",
    "a comment": "{} // fine",
    "a trailing comma": "[1,]",
    "single quotes": "{'a': 1}",
    "a byte order mark": "\ufeff{}",
    "ten megabytes": json.dumps("x" * 10_000_000),
    "ten megabytes of backticks": "```json\n" * 1_250_000,
    "many lines": "\n" * 1_000_000 + "x",
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("reference", [None, "1"])
def test_what_is_no_json_gets_zero_and_is_never_an_error(what: str, reference: str | None) -> None:
    assert load_scorer("verifier:json").score(["p"], [HOSTILE[what]], [reference]) == [0.0]


def test_no_hostile_answer_is_valid_or_stops_the_others(tmp_path: Path) -> None:
    (tmp_path / "any.json").write_text("true")
    answers = [*HOSTILE.values(), "[]"]
    scores = load_scorer(f"verifier:json={tmp_path}/any.json").score(["p"] * len(answers), answers)
    assert scores == [0.0] * len(HOSTILE) + [1.0]


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ('{"a": 1}', None, 1.0),
        ("null", None, 1.0),
        ("null", "null", 1.0),
        ("null", "false", 0.0),
        (' {"a": [1, 2.0], "b": null}\n', '{"b": null, "a": [1.0, 2]}', 1.0),
        ("[1, 2]", "[2, 1]", 0.0),
        ("[1, 2]", "[1]", 0.0),
        ("1", "true", 0.0),
        ("[0]", "[false]", 0.0),
        ("true", "true", 1.0),
        ('{"a": 1}', '{"a": 1, "b": 1}', 0.0),
        ('"1"', "1", 0.0),
        ("100000000000000000001", "100000000000000000002", 0.0),
        ('Here:\n```json\n{"a": 2}\n```\nI mean\n```json\n{"a": 1}\n```\nbye', '{"a": 1}', 1.0),
        ('```json\n{"a": 1}\n```\n```python\nprint()\n```', '{"a": 1}', 1.0),
        ('```JSON\n{"a": 1}\n  ```', '{"a": 1}', 1.0),
        ('```json\n{"a": 1}', '{"a": 1}', 0.0),
        ('```json\n{"a":\n```json\n{"a": 1}\n```', '{"a": 1}', 1.0),
        ('```\n{"a": 1}\n```', '{"a": 1}', 0.0),
        ("```json\n```", None, 0.0),
    ],
)
def test_the_json_of_an_answer(answer: str, reference: str | None, expected: float) -> None:
    assert load_scorer("verifier:json").score(["p"], [answer], [reference]) == [expected]


def test_rows_with_and_without_a_reference_go_together() -> None:
    scorer = load_scorer("verifier:json")
    assert scorer.score(["p"] * 3, ["1", "2", "x"], ["1", None, None]) == [1.0, 1.0, 0.0]
    assert scorer.score(["p"], ["2"]) == [1.0]
    assert scorer.score([], []) == []


def test_a_reference_that_is_no_json_is_an_error_of_the_data() -> None:
    with pytest.raises(
        DataError, match=r"row 2: verifier:json finds no JSON in the right answer 'yes'"
    ):
        load_scorer("verifier:json").score(["p", "p"], ["1", "1"], ["1", "yes"])


def test_code_blocks_are_found_by_language() -> None:
    text = "```python\na\n```\n```\nb\n```\n```py extra words\nc\nd\n```\n```json\n"
    assert last_block(text, "python") == "a"
    assert last_block(text, "python", "py") == "c\nd"
    assert last_block(text, "json") is None


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_every_json_value_is_read_as_it_was_written(value: Any) -> None:
    found = read_json(json.dumps(value))
    assert found is not INVALID
    assert same_value(found, value)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_gets_a_score(text: str) -> None:
    (score,) = load_scorer("verifier:json").score(["p"], [text])
    assert score in (0.0, 1.0)


# --- schemas --------------------------------------------------------------------------------------


@pytest.fixture
def schemas(tmp_path: Path) -> Path:
    for name, schema in (("person", PERSON), ("tree", TREE), ("none", False)):
        (tmp_path / f"{name}.json").write_text(json.dumps(schema))
    return tmp_path


def test_an_answer_is_valid_against_a_schema_or_not(schemas: Path) -> None:
    scorer = load_scorer(f"verifier:json={schemas}/person.json")
    answers = [
        '{"name": "aa", "age": 3}',
        '```json\n{"name": "a"}\n```',
        '{"age": 3}',
        '{"name": "a", "age": 3.5}',
        "[]",
        "x",
    ]
    assert scorer.score(["p"] * 6, answers, ["not looked at"] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert load_scorer(f"verifier:json={schemas}/none.json").score(["p"], ["1"]) == [0.0]


def test_a_schema_that_refers_to_itself_goes_as_deep_as_answers_are_read(schemas: Path) -> None:
    scorer = load_scorer(f"verifier:json={schemas}/tree.json")
    assert scorer.score(["p"] * 3, ["[" * 50 + "]" * 50, "[" * 51 + "]" * 51, "[[1]]"]) == [
        1.0,
        0.0,
        0.0,
    ]


def test_a_schema_whose_pattern_looks_for_ever_is_stopped(schemas: Path) -> None:
    scorer = load_scorer(f"verifier:json={schemas}/person.json,timeout_s=0.5")
    hostile = json.dumps({"name": "a" * 40 + "!"})
    scores = scorer.score(["p"] * 2, [hostile, '{"name": "a"}'])
    assert scores == [0.0, 1.0]
    assert scores.remarks == {0: "scored as failed: it took longer than 0.5 s and was stopped"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "objekt"}', "is not a JSON schema: type: 'objekt'"),
        ('{"properties": {"a": {"minimum": "x"}}}', "is not a JSON schema: properties/a/minimum"),
        ('{"type": "object", "type": "array"}', "is not a JSON schema"),
        ("[]", "is not a JSON schema"),
        ("{", "is not a JSON schema"),
        ('{"$ref": "#/$defs/gone"}', "refers to '#/\\$defs/gone', which is not in it"),
        (
            '{"items": {"$ref": "https://example.com/schema.json"}}',
            "refers to 'https://example.com/schema.json'",
        ),
    ],
)
def test_a_broken_schema_is_refused_before_anything_is_scored(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_scorer(f"verifier:json={tmp_path}/broken.json")


def test_a_schema_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no file nowhere\.json"):
        load_scorer("verifier:json=nowhere.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(RecipeError, match="is not a JSON schema"):
        load_scorer(f"verifier:json={tmp_path}/bytes.json")


def test_the_fingerprint_follows_the_content_of_the_schema(schemas: Path) -> None:
    spec = f"verifier:json={schemas}/person.json"
    first = load_scorer(spec).fingerprint()
    assert first == load_scorer(spec).fingerprint()
    assert first != load_scorer(f"{spec},timeout_s=3").fingerprint()
    (schemas / "person.json").write_text(json.dumps({**PERSON, "required": []}))
    assert first != load_scorer(spec).fingerprint()
