"""An output until it is whole: what is kept of it, and where nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aligner.errors import UsageError
from aligner.runs.partial_output import PartialOutput, part_folder


def never() -> dict[str, Any]:
    raise AssertionError("nothing is kept, so nothing has to be compared")


def test_parts_are_kept_until_the_file_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "result.jsonl"
    with PartialOutput(output, lambda: {"the seed": 1}) as part:
        part.journal("answers").add(0, "one")
    assert not output.exists()
    with PartialOutput(output, lambda: {"the seed": 1}) as part:
        assert part.journal("answers")[0] == "one"
        part.finish(["one\n", "two\n"])
    assert output.read_text() == "one\ntwo\n"
    assert not part_folder(output).exists()


def test_parts_of_something_else_are_refused_and_stay(tmp_path: Path) -> None:
    output = tmp_path / "result.jsonl"
    with PartialOutput(output, lambda: {"the seed": 1}) as part:
        part.journal("answers").add(0, "one")
    other = PartialOutput(output, lambda: {"the seed": 2})
    with pytest.raises(UsageError, match="started with something else: the seed changed"), other:
        pass
    with PartialOutput(output, lambda: {"the seed": 2}, overwrite=True) as part:
        assert part.journal("answers").done == 0
    assert not part_folder(output).exists()


def test_without_an_output_nothing_is_kept_or_written(tmp_path: Path) -> None:
    with PartialOutput(None, never) as part:
        assert part.journal("answers").path is None
        part.finish(["one\n"])
    assert not list(tmp_path.iterdir())


def test_a_device_is_written_to_and_nothing_is_kept() -> None:
    with PartialOutput(Path("/dev/null"), never) as part:
        assert part.journal("answers").path is None
        part.finish(["one\n"])
    assert not part_folder(Path("/dev/null")).exists()
