"""Names that stand twice: told, and never settled by keeping the last value."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from aligner.config.recipe import Data, Source
from aligner.data.loading import load_rows
from aligner.data.rows import Task
from aligner.data.strict_json import decode
from aligner.errors import DataError, RecipeError
from aligner.models.folder_kinds import read_object

GOOD = '{"prompt": "q", "completion": "a"}'
TURNS = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "content": "b"}]'


def load(path: Path, task: Task = "sft") -> list[object]:
    return load_rows(Data(train=[Source(path=str(path))]), task, 0).train


ROWS = {
    "in the row": ('{"prompt": "q", "completion": "a", "completion": "b"}', "completion"),
    "with equal values": ('{"prompt": "q", "completion": "a", "completion": "a"}', "completion"),
    "after a key spelt otherwise": (
        '{"prompt": "q", "completion": "", "pro\\u006dpt": ""}',
        "prompt",
    ),
    "in a column that is not used": (
        '{"prompt": "q", "completion": "a", "meta": {"deep": [{"id": 1, "id": 2}]}}',
        "id",
    ),
}


@pytest.mark.parametrize("case", ROWS)
@pytest.mark.parametrize("kind", [".jsonl", ".json", "list.json", ".jsonl.gz"])
def test_a_row_with_a_key_twice_is_broken_and_named(case: str, kind: str, tmp_path: Path) -> None:
    row, key = ROWS[case]
    path = tmp_path / f"rows{kind}"
    text = f"[{GOOD},\n{row}]" if kind == "list.json" else f"{GOOD}\n{row}\n"
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    with pytest.raises(DataError, match="1 of 2 rows") as caught:
        load(path)
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:2"
    assert problem.message == f"an object holds the key {key!r} twice"


def test_such_a_row_can_be_dropped_also_where_it_is_the_first(tmp_path: Path) -> None:
    for name, text in (
        ("rows.jsonl", f"{ROWS['in the row'][0]}\n{GOOD}"),
        ("rows.json", f"{ROWS['in the row'][0]}\n{GOOD}"),
        ("list.json", f"[{ROWS['in the row'][0]}, {GOOD}]"),
    ):
        (tmp_path / name).write_text(text)
        data = Data(train=[Source(path=str(tmp_path / name))], on_bad_row="drop")
        assert len(load_rows(data, "sft", 0).train) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": TURNS}, "in a conversation as JSON text, an object holds the key 'content'"),
        (
            {"messages": json.loads(TURNS), "tools": '[{"name": "f", "name": "g"}]'},
            "in tools, an object holds the key 'name' twice",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [
                            {"function": {"name": "f", "arguments": '{"x": 1, "x": 2}'}}
                        ],
                    },
                ]
            },
            "in the text of a call, an object holds the key 'x' twice",
        ),
    ],
)
def test_json_text_in_a_column_is_held_to_the_same(
    row: dict[str, object], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError) as caught:
        load(path)
    assert words in caught.value.problems[0].message


def test_columns_and_fields_of_one_name_in_a_table_are_refused(tmp_path: Path) -> None:
    one, path = pyarrow.array(["a"]), tmp_path / "rows.parquet"
    turn = pyarrow.StructArray.from_arrays([one, one, one], names=["role", "content", "content"])
    turns = pyarrow.ListArray.from_arrays([0, 1], turn)
    for table, name in (
        (pyarrow.Table.from_arrays([one, one, one], ["prompt", "completion", "prompt"]), "prompt"),
        (pyarrow.Table.from_arrays([turns], ["messages"]), "messages.content"),
    ):
        pyarrow.parquet.write_table(table, path)
        with pytest.raises(DataError, match=rf"rows.parquet has two columns .* '{name}'"):
            load(path)


def test_a_config_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"model_type": "llama", "hidden_size": 32, "hidden_size": 64}')
    with pytest.raises(
        RecipeError, match=r"in .*config.json, an object holds the key 'hidden_size"
    ):
        read_object(file, "model.name_or_path")


@pytest.mark.parametrize(
    "text",
    ['{"a": [1, {"b": null}], "c": NaN}', ' {"a": 1} ', '{"a": "\\ud800"}\n', "[1]", "3", '"x"'],
)
def test_all_else_is_read_as_json_reads_it(text: str) -> None:
    assert repr(decode(text)) == repr(json.loads(text))


@pytest.mark.parametrize("text", ["", "{", '{"a"}', '{"a": }', '{"a": 1} x', "{}\n{}", "nul"])
def test_what_is_broken_is_broken_at_the_same_place(text: str) -> None:
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(json.JSONDecodeError) as caught:
        decode(text)
    assert str(caught.value) == str(expected.value)
