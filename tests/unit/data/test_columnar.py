"""Parquet, saved and hub datasets: what Arrow did to the rows is undone, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from aligner.config.recipe import Data
from aligner.data.loading import Loaded, load_rows
from aligner.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(path: str, **data: Any) -> Loaded:
    return load_rows(Data.model_validate({"train": path, **data}), "sft", seed=0)


def talk(arguments: dict[str, Any], tool: dict[str, Any]) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]
    return {"messages": turns, "tools": [tool]}


ROWS = [
    talk({"x": 1}, {"name": "a", "parameters": {"properties": {"x": {"type": "integer"}}}}),
    talk(
        {"city": "Paris"}, {"name": "b", "parameters": {"properties": {"city": {"type": "string"}}}}
    ),
]


def turns_and_tools(loaded: Loaded) -> list[dict[str, Any]]:
    return [{"messages": row.messages, "tools": row.tools} for row in loaded.train]


@pytest.mark.parametrize("kind", ["parquet", "saved", "hub"])
def test_nulls_that_arrow_put_into_structs_are_absent_keys_at_any_depth(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Dataset.from_list(ROWS)
    padded = stored[0]["messages"][1]["tool_calls"][0]["function"]["arguments"]
    assert padded == {"x": 1, "city": None}
    path = {"parquet": "rows.parquet", "saved": "saved", "hub": "owner/name"}[kind]
    if kind == "parquet":
        stored.to_parquet(path)
    elif kind == "saved":
        stored.save_to_disk(path)
    monkeypatch.setattr("aligner.data.sources._load_hub", lambda source: stored)
    loaded = load(path)
    assert turns_and_tools(loaded) == ROWS
    entry = loaded.ledger.sources[0]
    assert entry.nulls == 2 * 5  # a row: tool_calls of three turns, one argument, one property
    assert ("  nulls", "10 in nested columns, taken as absent keys") in loaded.ledger.table()


def test_a_null_in_json_lines_is_what_somebody_wrote() -> None:
    rows = [talk({"x": 1, "city": None}, {"name": "a", "default": None})]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    loaded = load("rows.jsonl")
    assert turns_and_tools(loaded) == rows
    assert loaded.ledger.sources[0].nulls == 0


def written_as_json_columns(rows: list[dict[str, Any]]) -> Dataset:
    """What `datasets` makes of JSON lines whose values vary in keys or types."""
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return datasets.load_dataset("json", data_files="rows.jsonl", split="train", cache_dir="cache")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_json_columns_are_decoded_with_the_nulls_that_were_written(kind: str) -> None:
    rows = [talk({"x": 1, "city": None}, {"name": "a"}), ROWS[1]]
    stored = written_as_json_columns(rows)
    assert "Json" in str(stored.features["messages"])
    if kind == "parquet":
        stored.to_parquet("rows.parquet")
    else:
        stored.save_to_disk("saved")
    assert turns_and_tools(load("rows.parquet" if kind == "parquet" else "saved")) == rows


@pytest.mark.parametrize("is_text_to_arrow", [False, True])
def test_plain_text_in_a_json_column_loses_its_quotes(is_text_to_arrow: bool) -> None:
    asked = [{"role": "user", "content": "Hello"}]
    rows = [
        {"prompt": "What is 2+2?", "completion": "4"},
        {"prompt": asked, "completion": [{"role": "assistant", "content": "Hi"}]},
    ]
    written_as_json_columns(rows).to_parquet("rows.parquet")
    table = pyarrow.parquet.read_table("rows.parquet")
    assert table.column("prompt")[0].as_py() == '"What is 2+2?"'
    if is_text_to_arrow:  # the type is only in what `datasets` notes beside the schema
        names = table.column_names
        text = [table.column(name).cast(pyarrow.string()) for name in names]
        plain = pyarrow.table(text, names=names).replace_schema_metadata(table.schema.metadata)
        pyarrow.parquet.write_table(plain, "rows.parquet")
    loaded = load("rows.parquet")
    assert [(row.prompt, row.completion) for row in loaded.train] == [
        ("What is 2+2?", "4"),
        (asked, [{"role": "assistant", "content": "Hi"}]),
    ]


def test_text_that_is_also_a_number_stays_text_in_the_content_of_a_turn() -> None:
    blocks = [{"type": "text", "text": "What is 2+2?"}]
    rows = [
        {"messages": [{"role": "user", "content": blocks}, {"role": "assistant", "content": "4"}]},
        {
            "messages": [
                {"role": "user", "content": "Nothing?"},
                {"role": "assistant", "content": "null"},
            ]
        },
    ]
    stored = written_as_json_columns(rows)
    assert stored[0]["messages"][1]["content"] == 4, "what `datasets` makes of it"
    stored.to_parquet("rows.parquet")
    contents = [[turn["content"] for turn in row.messages] for row in load("rows.parquet").train]
    assert contents == [["What is 2+2?", "4"], ["Nothing?", "null"]]


def test_text_that_only_looks_like_json_stays_text() -> None:
    rows = [
        {"prompt": '"What is 2+2?"', "completion": "4"},
        {"prompt": "[1]", "completion": "null"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), "rows.parquet")
    assert [(row.prompt, row.completion) for row in load("rows.parquet").train] == [
        ('"What is 2+2?"', "4"),
        ("[1]", "null"),
    ]


def test_broken_json_in_a_column_costs_its_row() -> None:
    features = {
        "info": {
            "features": {
                "prompt": {"_type": "Json"},
                "completion": {"dtype": "string", "_type": "Value"},
            }
        }
    }
    table = pyarrow.table({"prompt": ['"2+2?"', "What?"], "completion": ["4", "5"]})
    noted = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(noted, "rows.parquet")
    with pytest.raises(DataError) as caught:
        load("rows.parquet")
    assert [(problem.where, problem.message) for problem in caught.value.problems] == [
        ("rows.parquet:2", "a column of JSON holds 'What?', which is none")
    ]
    assert len(load("rows.parquet", on_bad_row="drop").train) == 1


def test_maps_become_objects_and_lists_keep_their_nulls() -> None:
    from aligner.data.columnar import Nulls, rows_of

    column = pyarrow.array(
        [[("k", 1), ("v", None)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())
    )
    table = pyarrow.table(
        {"map": column, "list": [["a", None]], "nested": [{"list": [{"x": None}, None]}]}
    )
    nulls = Nulls()
    assert list(rows_of(table, nulls)) == [
        {"map": {"k": 1, "v": None}, "list": ["a", None], "nested": {"list": [{}, None]}}
    ]
    assert nulls.count == 1


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_conversation_may_be_json_text_where_a_column_cannot_hold_lists(column: str) -> None:
    turns = {
        "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
        "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}],
    }[column]
    pyarrow.parquet.write_table(pyarrow.table({column: [json.dumps(turns)]}), "rows.parquet")
    assert [turn["content"] for turn in load("rows.parquet").train[0].messages] == ["2+2?", "4"]
