"""How fast `aligner score` is by the number of answers, and how much memory it takes.

    python -m benchmarks.speed.scoring [--largest N] [--before COMMIT] [--write]

Rows are GSM8K-like: a question, an answer of some lines and the right number; the rule
`verifier:number` judges them, and the scored rows are written to a file. Once every answer has a
row and a prompt of its own, once all are in one row. Each run is a process of its own: CPU-seconds
of the whole command, and its peak memory. `--before` measures an older commit beside, in turns, so
that the ratio holds on a busy machine; of its answers in one row only the smallest numbers are
tried, since its time grew with their square. With `--write` the table goes into
`benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.same_bytes import ROOT, assemble, environment, name_of, unpack

SIZES = (10_000, 40_000, 160_000)
FEW = 10_000
"""Answers in one row that an older commit is given."""
SHAPES = ("a row each", "one row for all")
SENTENCE = "She sells {a} of them for ${b} each, so she has {a} * {b} = <<{a}*{b}={c}>>{c} dollars."


def answers(count: int) -> Iterator[dict[str, str]]:
    """Questions with an answer that is right in two of three rows."""
    rng = random.Random(0)
    for number in range(count):
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        said = SENTENCE.format(a=a, b=b, c=a * b)
        yield {
            "prompt": f"Shop {number} has {a} boxes. {said.partition(',')[0]}. {said} How many?",
            "completion": f"{said}\n{said}\n#### {a * b}",
            "answer": str(a * b if number % 3 else b),
        }


def write_rows(path: Path, count: int, shape: str) -> None:
    """The answers as rows of their own, or as those of one row."""
    with path.open("w", encoding="utf-8") as file:
        if shape == SHAPES[0]:
            file.writelines(json.dumps(row) + "\n" for row in answers(count))
        else:
            texts = [row["completion"] for row in answers(count)]
            file.write(json.dumps({"prompt": "q", "completions": texts, "answer": "7"}) + "\n")


def measure(folder: Path, data: Path) -> tuple[float, float]:
    """CPU-seconds and peak memory, in MiB, of scoring a file with the package of a folder."""
    output = folder / "scored.jsonl"
    command = [
        *(sys.executable, "-m", "aligner", "score", "--data", str(data)),
        *("--reward-model", "verifier:number", "--output", str(output), "--overwrite"),
    ]
    streams = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    child = subprocess.Popen(command, cwd=folder, env=environment(folder), **streams)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = status
    assert status == 0, f"{' '.join(command)} failed"
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def lines(folder: Path, largest: int, before: str | None) -> Iterator[str]:
    """The table, line by line."""
    trees = {"now": ROOT}
    if before is not None:
        trees["before"] = unpack(before, folder / "tree")
        yield f"Before: {name_of(before)}. Ratios are of answers per CPU-second, and of memory.\n"
    for name, tree in trees.items():
        assemble(tree, folder / name / "site")
    yield "| answers | rows | CPU-seconds | answers per CPU-second | ratio | peak memory | ratio |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for shape in SHAPES:
        for count in (size for size in SIZES if size <= largest):
            yield _line(folder, count, shape, with_before=before is not None)


def _line(folder: Path, count: int, shape: str, *, with_before: bool) -> str:
    data = folder / "rows.jsonl"
    write_rows(data, count, shape)
    compares = with_before and (shape == SHAPES[0] or count <= FEW)
    old = measure(folder / "before", data) if compares else None
    seconds, memory = measure(folder / "now", data)
    faster, smaller = (
        ("", "") if old is None else (f"{old[0] / seconds:.2f}", f"{memory / old[1]:.2f}")
    )
    cells: list[Any] = [f"{count:,}", shape, f"{seconds:.1f}", f"{count / seconds:,.0f}", faster]
    return f"| {' | '.join([*cells, f'{memory:.0f} MiB', smaller])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--before", metavar="COMMIT", help="an older commit to compare with")
    parser.add_argument(
        "--write", action="store_true", help="write the result into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    text = ""
    with tempfile.TemporaryDirectory() as name:
        for line in lines(Path(name), options.largest, options.before):
            print(line, flush=True)
            text += f"{line}\n"
    if options.write:
        write("scoring", text.rstrip())


if __name__ == "__main__":
    main()
