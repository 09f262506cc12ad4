"""Rows in another form or kind of file say the same, there and back; what would be lost is an error
that names the row."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from fakes import write_jsonl

from aligner.config.recipe import Source
from aligner.data.api import load_rows
from aligner.data.convert import CONVERSATIONS, meaning
from aligner.data.rewriting import KINDS, convert
from aligner.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": 'two "quoted"\r\nlines, and \u00e9'}
SAID = {"role": "assistant", "content": "[1] an answer"}
EARLIER = {"role": "assistant", "content": "not trained", "weight": 0}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "drizzle"}

ROWS = [
    {"messages": [USER, SAID]},
    {"messages": [SYSTEM, USER, SAID]},
    {"messages": [USER, EARLIER, {"role": "user", "content": "and?"}, SAID]},
]


def file_of(folder: Path, rows: list[dict[str, Any]]) -> Source:
    return Source(path=str(write_jsonl(folder / "rows.jsonl", rows)))


def meanings(path: Path, task: Any = "sft") -> list[Any]:
    return [meaning(row) for row in load_rows(path, task)]


@pytest.mark.parametrize(("one", "other"), [*permutations(CONVERSATIONS, 2)])
@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_every_form_becomes_every_other_and_comes_back(
    tmp_path: Path, one: str, other: str, kind: str
) -> None:
    source = file_of(tmp_path, ROWS)
    before = meanings(tmp_path / "rows.jsonl")
    there, back = tmp_path / f"there{kind}", tmp_path / f"back{kind}"
    convert(source, there, one)
    done = convert(Source(path=str(there)), back, other)
    assert (done.from_form, done.to_form, done.rows) == (one, other, 3)
    assert meanings(back) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["messages", "sharegpt"])
def test_tools_calls_and_results_stay(tmp_path: Path, kind: str, form: str) -> None:
    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]
    source = file_of(tmp_path, [{"messages": [USER, CALLS, RESULT, SAID], "tools": tools}, ROWS[0]])
    convert(source, tmp_path / f"there{kind}", form)
    assert meanings(tmp_path / f"there{kind}") == meanings(tmp_path / "rows.jsonl")


def test_simple_rows_become_simple_columns(tmp_path: Path) -> None:
    convert(file_of(tmp_path, ROWS), tmp_path / "out.jsonl", "prompt_completion")
    first, second, third = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == {"prompt": USER["content"], "completion": SAID["content"]}
    assert second == {**first, "system": "Be brief."}
    assert [turn["role"] for turn in third["prompt"]] == ["user", "assistant", "user"]
    convert(file_of(tmp_path, ROWS), tmp_path / "alpaca.jsonl", "alpaca")
    last = json.loads((tmp_path / "alpaca.jsonl").read_text().splitlines()[2])
    assert last["history"] == [[USER["content"], "not trained"]]
    assert last["instruction"] == "and?"


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_and_further_columns_go_along(tmp_path: Path, kind: str) -> None:
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "from": "here"},
        {"chosen": "x\n\nAssistant: y", "rejected": "x\n\nAssistant: z", "from": "there"},
    ]
    done = convert(file_of(tmp_path, rows), tmp_path / f"out{kind}")
    assert done.kept == {"from"}
    rows_again = meanings(tmp_path / f"out{kind}", "preference")
    assert rows_again == meanings(tmp_path / "rows.jsonl", "preference")


@pytest.mark.parametrize(
    ("row", "to", "kind", "why"),
    [
        ({"messages": [USER, SAID, USER, SAID]}, "alpaca", ".jsonl", "turn 2 is the assistant's"),
        ({"messages": [USER, CALLS, RESULT, SAID]}, "alpaca", ".jsonl", "turn 2 is not plain"),
        (
            {"messages": [{**USER, "role": "developer"}, USER, SAID]},
            *("sharegpt", ".jsonl", "developer"),
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "messages", ".jsonl", "two answers"),
        ({"text": "a"}, "messages", ".jsonl", "plain text without turns"),
        ({"messages": [USER, SAID], "system": None, "n": 1}, "messages", ".csv", "column `n`"),
        ({"messages": [USER, SAID], "prompt": "x"}, "prompt_completion", ".jsonl", "`prompt`"),
        (ROWS[2], "prompt_completion", ".csv", "this row"),
        ({"messages": [USER, {**SAID, "content": ""}]}, "messages", ".jsonl", "is empty"),
        ({"messages": [USER, SAID], "n": 2**70}, "messages", ".parquet", "Parquet"),
    ],
)
def test_what_would_be_lost_is_an_error_and_nothing_is_written(
    tmp_path: Path, row: dict[str, Any], to: str, kind: str, why: str
) -> None:
    good = {"messages": [USER, SAID], "n": "1"} if "messages" in row else {}
    rows = [good, row] if good else [row]
    with pytest.raises(DataError, match=why) as error:
        convert(file_of(tmp_path, rows), tmp_path / f"out{kind}", to)
    if why != "Parquet":
        assert f"rows.jsonl:{len(rows)}:" in error.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_half_a_surrogate_pair_is_an_error(tmp_path: Path) -> None:
    line = json.dumps({"messages": [USER, SAID], "n": "\ud800"})
    (tmp_path / "rows.jsonl").write_text(line)
    with pytest.raises(DataError, match="surrogate"):
        convert(Source(path=str(tmp_path / "rows.jsonl")), tmp_path / "out.jsonl")


def test_a_column_can_be_left_out(tmp_path: Path) -> None:
    rows = [{"messages": [USER, SAID], "n": 1}]
    convert(file_of(tmp_path, rows), tmp_path / "out.csv", "messages", ("n",))
    assert meanings(tmp_path / "out.csv") == meanings(tmp_path / "rows.jsonl")


def test_the_same_rows_there_and_back_are_the_same_bytes(tmp_path: Path) -> None:
    source = file_of(tmp_path, [{"prompt": "a", "completion": "b"}])
    convert(source, tmp_path / "there.parquet", "sharegpt")
    back = tmp_path / "back.jsonl"
    convert(Source(path=str(tmp_path / "there.parquet")), back, "prompt_completion")
    assert back.read_text() == (tmp_path / "rows.jsonl").read_text()
