"""The rows that a build keeps on disk: equal when they come back, and never run."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer, write_jsonl

from aligner.builders.mosaic.build import ShardBuilder, run_mosaic
from aligner.builders.mosaic.row_store import ROWS, TABLE
from aligner.config.load import load_recipe
from aligner.data.row_store import RowStore
from aligner.data.rows import (
    CompletionRow,
    ConversationRow,
    PreferenceRow,
    PromptRow,
    Row,
    TextRow,
)
from aligner.events import Notice

TOOLS = [{"type": "function", "function": {"name": "zähle", "parameters": {"max": 2**80}}}]
TURN = {"role": "user", "content": "what is 1+1?\u2028\x00\n 日本 🙂"}
ANSWER = {"role": "assistant", "content": "2", "tool_calls": [{"id": "a", "arguments": {"x": 0.1}}]}
IMAGE = {"role": "user", "content": [{"type": "image", "url": "a.png"}, {"type": "text"}]}

EVERY_KIND: dict[str, Row] = {
    "a conversation": ConversationRow([TURN, ANSWER], TOOLS, "a.jsonl:1", "maths", {"n": None}),
    "one with an image": ConversationRow([IMAGE, ANSWER]),
    "a completion of turns": CompletionRow([TURN], [ANSWER], "ä.jsonl:2", "g", {"x": 1}, TOOLS),
    "a completion of strings": CompletionRow("q", "a"),
    "half a surrogate pair, and both": CompletionRow("q \ud83d", "a \ud83d\ude42 \U0001f642"),
    "plain text": TextRow("text", "a.jsonl:3"),
    "a pair": PreferenceRow("q", "good", "bad", 0.1 + 0.2, "a.jsonl:4", {"deep": [[1, [2.5]]]}),
    "a prompt": PromptRow([TURN], "42", {"big": 10**40, "small": 5e-324, "yes": True}),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_row_of_every_kind_comes_back_equal_also_to_another_process(
    kind: str, tmp_path: Path
) -> None:
    store = RowStore(tmp_path / ROWS)
    number = store.append(TextRow("before")) + 1
    assert store.append(EVERY_KIND[kind]) == number
    store.append(TextRow("behind"))
    store.flush()
    for opened in (store, RowStore.open(tmp_path / ROWS)):
        assert len(opened) == 3
        assert opened[number] == EVERY_KIND[kind]
        assert type(opened[number]) is type(EVERY_KIND[kind])
        assert opened[2] == TextRow("behind")


def test_rows_without_a_place_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = RowStore()
    for row in EVERY_KIND.values():
        store.append(row)
    store.flush()
    assert [store[number] for number in range(len(store))] == list(EVERY_KIND.values())
    assert not list(tmp_path.iterdir())


class Marker:
    """Leaves a file where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build that was killed in its first shard."""
    monkeypatch.chdir(tmp_path)
    questions = [(f"what is {i}?", f"it is {i}") for i in range(60)]
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": q, "completion": a} for q, a in questions])
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def dies(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def build_and_die() -> None:
        ShardBuilder.build = dies  # type: ignore[method-assign]
        build("killed")

    process = multiprocessing.get_context("fork").Process(target=build_and_die)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    return tmp_path / "killed"


def build(output: str, **options: Any) -> bytes:
    flags = {"data.train": "rows.jsonl", "output_dir": output}
    resolved = load_recipe("mosaic", None, ["mosaic.tokenizer=tokenizer"], flags)
    return (run_mosaic(resolved, **options).run_dir / "data" / "train.jsonl").read_bytes()


def test_rows_that_an_older_version_pickled_are_read_again_and_never_unpickled(
    killed: Path,
) -> None:
    marker = killed.parent / "marker"
    for name in ("checksums.json", *(path.name for path in (killed / "prepared").iterdir())):
        (killed / "prepared" / name).unlink(missing_ok=True)
    for name in ("rows.bin", "examples.bin", "rows.index"):
        (killed / "prepared" / name).write_bytes(pickle.dumps(Marker(marker)))
    said: list[Any] = []
    assert build("killed", resume=True, on_event=said.append) == build("whole")
    assert not marker.exists()
    [remark] = [event.text for event in said if isinstance(event, Notice)]
    assert "are read again: another version of aligner kept them" in remark


def other_format(prepared: Path) -> None:
    from aligner.runs.files import write_checksums

    about, numbers = (prepared / TABLE).read_bytes().split(b"\n", 1)
    table = json.dumps({**json.loads(about), "format": [0]}).encode() + b"\n" + numbers
    (prepared / TABLE).write_bytes(table)
    (prepared / "checksums.json").unlink()
    write_checksums(prepared)


def flipped(prepared: Path) -> None:
    rows = prepared / ROWS
    rows.write_bytes(rows.read_bytes().replace(b"what is 7?", b"what is 6?"))


@pytest.mark.parametrize(
    ("spoil", "why"), [(other_format, "another version of aligner"), (flipped, "is damaged")]
)
def test_kept_rows_that_are_damaged_or_of_another_format_are_read_again(
    killed: Path, spoil: Any, why: str
) -> None:
    spoil(killed / "prepared")
    said: list[Any] = []
    assert build("killed", resume=True, on_event=said.append) == build("whole")
    assert why in next(event.text for event in said if isinstance(event, Notice))


def test_kept_rows_are_used_without_their_source(killed: Path) -> None:
    whole = build("whole")
    (killed.parent / "rows.jsonl").unlink()
    assert build("killed", resume=True) == whole
