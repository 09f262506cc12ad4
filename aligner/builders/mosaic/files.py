"""The files of `aligner mosaic`: samples and held-out rows in the columns and the kind of file that
were asked for.

Everything is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from aligner.data.rows import VARIABLES, CompletionRow, Messages, Row, as_turns, variables_of
from aligner.runs.files import dumps, write_atomically


def join(files: Iterable[Path], target: Path) -> None:
    """Put files together under a temporary name, then rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with unfinished.open("wb") as out:
        for file in files:
            with file.open("rb") as part:
                shutil.copyfileobj(part, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
    os.replace(unfinished, target)


def write_data(run_dir: Path, files: Sequence[Path], file_type: str) -> None:
    folder = run_dir / "data"
    folder.mkdir(exist_ok=True)
    if file_type == "jsonl":
        join(files, folder / "train.jsonl")
        return
    parquet = folder / "train.parquet"
    _write_parquet(files, parquet)
    if file_type == "dataset":
        from datasets import Dataset, DatasetDict

        from aligner.models.libraries import disable_progress_bars

        disable_progress_bars()
        shutil.rmtree(folder / "train", ignore_errors=True)
        cache = str(run_dir / "prepared" / "cache")
        DatasetDict({"train": Dataset.from_parquet(str(parquet), cache_dir=cache)}).save_to_disk(
            str(folder)
        )
        parquet.unlink()


def _write_parquet(files: Sequence[Path], target: Path) -> None:
    """One row group for each part, so that memory never holds more than one."""
    import pyarrow
    import pyarrow.parquet

    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    writer = None
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if rows:
            table = pyarrow.Table.from_pylist(rows)
            writer = writer or pyarrow.parquet.ParquetWriter(
                unfinished, table.schema, compression="zstd"
            )
            writer.write_table(table)
    assert writer is not None, "there are examples, so there are samples"
    writer.close()
    os.replace(unfinished, target)


def as_written(row: CompletionRow, form: str, kinds: Collection[str]) -> dict[str, Any]:
    """Return a sample in the columns of a form; all samples of a dataset have the same, by the
    `kinds` of its examples."""
    turns = _as_turns(row)
    if form == "messages":
        return {"messages": turns}
    if form == "alpaca":
        made = {"instruction": turns[-2]["content"], "input": "", "output": turns[-1]["content"]}
        system = "\n\n".join(turn["content"] for turn in turns[:-2])
        return {**made, "system": system} if "lead" in kinds else made
    if "turns" in kinds:
        return {"prompt": turns[:-1], "completion": turns[-1:]}
    return {"prompt": row.prompt, "completion": row.completion}


def _as_turns(row: Row) -> Messages:
    if not isinstance(row, CompletionRow):
        return list(getattr(row, "messages", []))
    return [*as_turns(row.prompt, "user"), *as_turns(row.completion, "assistant")]


def write_held_out(target: Path, rows: Sequence[Row]) -> None:
    """Write rows that no mosaic may hold, as conversations; plain strings stay what they are where
    all rows are such."""
    if not rows:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if all(
        isinstance(row, CompletionRow)
        and isinstance(row.prompt, str)
        and not row.tools
        and not variables_of(row)
        for row in rows
    ):
        lines = [{"prompt": row.prompt, "completion": row.completion} for row in rows]  # type: ignore[union-attr]
    else:
        lines = []
        for row in rows:
            if not (turns := _as_turns(row)):
                continue
            lines.append({"messages": turns})
            if (tools := getattr(row, "tools", None)) is not None:
                lines[-1]["tools"] = tools
            if variables := variables_of(row):
                lines[-1][VARIABLES] = variables
    write_atomically(target, "".join(dumps(line) + "\n" for line in lines))
