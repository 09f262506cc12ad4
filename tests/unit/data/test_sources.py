"""Files, folders, globs and hub ids: what is read, and what is said when it is not there."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from aligner.config.recipe import Data
from aligner.data import files, sources
from aligner.data.files import BLANK
from aligner.data.ledger import Ledger
from aligner.data.loading import load_rows, read_source
from aligner.errors import DataError

ROWS = [{"prompt": f"question {number}", "completion": f"answer {number} é"} for number in range(5)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write(path: str, content: bytes | None = None) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(lines() if content is None else content)


def write_parquet(path: str) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_csv(path: str) -> None:
    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(ROWS)


def texts(**source: Any) -> list[Any]:
    rows: list[Any] = list(load_rows(Data(train=[source]), "sft", seed=0).train)
    return [(row.prompt, row.completion) for row in rows]


WANTED = [(row["prompt"], row["completion"]) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", lines()),
        ("x.jsonl.gz", gzip.compress(lines(), mtime=0)),
        ("X.JSONL", lines()),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines()),
        ("crlf.jsonl", lines().replace(b"\n", b"\r\n")),
        ("noend.jsonl", lines().rstrip(b"\n")),
        ("x.json", json.dumps(ROWS, indent=2).encode()),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode()),
        ("lines.json", lines()),
        ("x.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_json_is_read_in_every_wrapping(name: str, content: bytes) -> None:
    write(name, content)
    assert texts(path=name) == WANTED


def test_parquet_and_csv_hold_the_same_rows() -> None:
    write_parquet("x.parquet")
    write_csv("x.csv")
    Path("x.csv.gz").write_bytes(gzip.compress(Path("x.csv").read_bytes()))
    assert texts(path="x.parquet") == texts(path="x.csv") == texts(path="x.csv.gz") == WANTED


def test_a_line_separator_inside_a_text_ends_no_line() -> None:
    write("x.jsonl", lines([{"prompt": "a\u2028b\x85c", "completion": "d\ne"}]))
    assert texts(path="x.jsonl") == [("a\u2028b\x85c", "d\ne")]


def test_lines_of_a_text_file_are_rows_and_blank_lines_are_counted() -> None:
    write("x.txt", b"one\n\n  two\r\n")
    loaded = load_rows(Data(train="x.txt"), "sft", seed=0)
    rows: list[Any] = list(loaded.train)
    assert [(row.text, row.origin) for row in rows] == [("one", "x.txt:1"), ("  two", "x.txt:3")]
    assert loaded.ledger.sources[0].blank_lines == 1


def test_origins_count_lines_in_jsonl_and_positions_elsewhere() -> None:
    write("x.jsonl", b"\n" + lines())
    write("x.json", json.dumps(ROWS, indent=4).encode())
    write_csv("x.csv")
    for path, first in (("x.jsonl", "x.jsonl:2"), ("x.json", "x.json:1"), ("x.csv", "x.csv:1")):
        assert load_rows(Data(train=path), "sft", seed=0).train[0].origin == first


def test_files_are_recorded_with_the_digest_of_their_bytes() -> None:
    write("x.jsonl.gz", gzip.compress(lines()))
    record = load_rows(Data(train="x.jsonl.gz"), "sft", seed=0).ledger.sources[0].files[0]
    content = Path("x.jsonl.gz").read_bytes()
    assert (record.path, record.sha256, record.bytes) == (
        "x.jsonl.gz",
        hashlib.sha256(content).hexdigest(),
        len(content),
    )


def test_a_folder_gives_all_its_files_in_the_order_of_their_names() -> None:
    write("d/b.jsonl", lines(ROWS[3:]))
    write("d/a.jsonl", lines(ROWS[:3]))
    write("d/README.txt", b"not a row")
    write("d/.hidden/c.jsonl")
    write("d/dataset_info.json", b"{}")
    assert texts(path="d") == WANTED


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("d/train.jsonl", "d/test.jsonl"),
        ("d/data/train-00000-of-00001.jsonl", "d/data/test-00000-of-00001.jsonl"),
        ("d/train/part.jsonl", "d/test/part.jsonl"),
        ("d/train-extra.jsonl.gz", "d/test.json"),
    ],
)
def test_a_folder_laid_out_by_split_gives_the_split(train: str, test: str) -> None:
    write(train, gzip.compress(lines()) if train.endswith(".gz") else lines())
    write(test, lines(ROWS[:1]))
    assert texts(path="d") == WANTED
    assert texts(path="d", split="test") == WANTED[:1]


def test_a_missing_split_names_those_that_are_there() -> None:
    write("d/train.jsonl")
    write("d/test_sft-00000-of-00001.jsonl")
    with pytest.raises(DataError) as caught:
        texts(path="d", split="trian")
    assert caught.value.message == "d: no split `trian`; there are test_sft, train"
    assert caught.value.hint == "did you mean `split: train`?"


def test_a_split_of_a_folder_without_splits_is_refused() -> None:
    write("d/a.jsonl")
    with pytest.raises(DataError, match="not laid out by split"):
        texts(path="d", split="test")


@pytest.mark.parametrize(
    ("file", "hint"),
    [("d/x.arrow", "save_to_disk"), ("d/x.txt", "format: text"), ("d/x.bin", r"known are \.jsonl")],
)
def test_a_folder_without_rows_says_what_to_do(file: str, hint: str) -> None:
    write(file)
    with pytest.raises(DataError, match=hint):
        texts(path="d")


def test_a_glob_gives_the_files_that_match() -> None:
    write("d/a-1.jsonl", lines(ROWS[:3]))
    write("d/e/a-2.jsonl", lines(ROWS[3:]))
    write("d/b.jsonl")
    assert texts(path="d/**/a-*.jsonl") == WANTED
    with pytest.raises(DataError, match=r"no file matches d/c\*"):
        texts(path="d/c*")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("d/pears.jsonl", "did you mean d/pairs.jsonl?"),
        ("d/pairs", "did you mean d/pairs.jsonl?"),
        ("./pairs.jsonl", "holds d"),
        ("e/f/pairs.jsonl", "there is no folder e/f either"),
        ("~/zzz/pairs.jsonl", "there is no folder"),
    ],
)
def test_a_missing_file_names_what_is_near(path: str, hint: str) -> None:
    write("d/pairs.jsonl")
    with pytest.raises(DataError) as caught:
        texts(path=path)
    assert "there is no file or folder" in caught.value.message
    assert hint in caught.value.hint


def test_a_link_to_nowhere_is_called_one() -> None:
    Path("x.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"it is a link to gone\.jsonl, which is not there"):
        texts(path="x.jsonl")


def test_an_empty_path_is_not_the_working_directory() -> None:
    write("x.jsonl")
    with pytest.raises(DataError, match="`path` of a source is empty"):
        texts(path=" ")


def test_what_is_no_path_and_not_on_the_hub_is_said_without_delay() -> None:
    with pytest.raises(
        DataError, match="owner/name is neither a local path nor a dataset that can be reached"
    ):
        texts(path="owner/name")


def test_without_a_network_the_hub_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def no_such_host(*_: Any) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("aligner.data.sources.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", no_such_host)
    with pytest.raises(DataError, match="the hub cannot be reached"):
        texts(path="owner/name")


class Hub:
    """A stand-in for the hub: one dataset with two splits."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def load_dataset(
        self, path: str, subset: str | None, *, split: str, revision: str | None
    ) -> Dataset:
        self.calls.append((path, subset, split, revision))
        if split != "train":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train', 'test_sft'].")
        return Dataset.from_list(ROWS)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(datasets, "load_dataset", stand_in.load_dataset)
    return stand_in


def test_a_hub_id_is_loaded_with_subset_split_and_revision(hub: Hub) -> None:
    assert texts(path="owner/name", subset="main", revision="abc") == WANTED
    assert hub.calls == [("owner/name", "main", "train", "abc")]
    loaded = load_rows(Data(train="owner/name"), "sft", seed=0)
    assert loaded.train[0].origin == "owner/name[train]:1"
    assert len(loaded.ledger.sources[0].files[0].sha256) == 64


def test_a_missing_split_on_the_hub_names_those_that_are_there(hub: Hub) -> None:
    with pytest.raises(DataError) as caught:
        texts(path="owner/name", split="test")
    assert caught.value.message == "owner/name: no split `test`; there are train, test_sft"


def test_a_hub_id_that_exists_as_a_folder_is_local(hub: Hub) -> None:
    write("owner/name/a.jsonl")
    assert texts(path="owner/name") == WANTED
    assert hub.calls == []


def test_one_source_can_be_read_by_itself() -> None:
    write("x.jsonl")
    ledger = Ledger()
    rows = read_source(Data(train="x.jsonl").train[0], "sft", "error", ledger)
    assert len(rows) == ledger.sources[0].rows_mapped == 5


def test_rows_are_drawn_from_files_of_several_kinds_each_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("all/a.jsonl", lines(ROWS[:2]) + b"\n" + lines(ROWS[2:]).removesuffix(b"\n"))
    write_parquet("all/b.parquet")
    monkeypatch.setattr(sources, "DRAWN_AT_ONCE", 3)
    (source,) = Data(train="all").train
    stream = sources.drawn_rows(source, random.Random(0))
    assert stream is not None
    found = [origin for origin, row in stream if row is not BLANK]
    numbers = {"all/a.jsonl": (1, 2, 4, 5, 6), "all/b.parquet": range(1, 6)}
    assert sorted(found) == [f"{name}:{at}" for name, places in numbers.items() for at in places]
    assert found != sorted(found)


def test_only_lines_that_are_drawn_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.jsonl", b"{broken\n" * 50 + lines(ROWS[:1]))
    monkeypatch.setattr(sources, "DRAWN_AT_ONCE", 1)
    decoded: list[bytes] = []
    monkeypatch.setattr(files, "_parse", lambda line: decoded.append(line) or {})
    stream = sources.drawn_rows(Data(train="a.jsonl").train[0], random.Random(0))
    assert stream is not None
    next(stream)
    assert len(decoded) == 1


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json", "a.csv", "a.txt"])
def test_some_files_can_only_be_read_from_their_beginning(name: str) -> None:
    write(name, gzip.compress(lines()) if name.endswith("gz") else b"[]")
    assert sources.drawn_rows(Data(train=name).train[0], random.Random(0)) is None
