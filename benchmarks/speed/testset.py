"""What it takes to hold 100,000 training rows against a test set, and to build one from as many
prompts.

    python -m benchmarks.speed.testset [--rows N] [--write]

Rows are drawn: words as frequent as in a natural language (Zipf), prompts of 45 words on average
and answers of 60, about subjects that share words. A hundred rows overlap with the test set of
2,000 items, fifty by a run of words and fifty by a changed copy; the table says how many were
found. Each line is a process of its own, on one core: seconds of the work, reading the file
included, and its peak memory. With `--write` the table goes into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import write

ROOT = Path(__file__).parents[2]
ITEMS, PLANTED, WORDS, SUBJECTS = 2000, 50, 50_000, 500

WORK = {
    "words: n-grams, short prompts, duplicates": {},
    "and the five nearest, by TF-IDF": {"nearest": 5},
    "and a cosine, by TF-IDF": {"cosine": 0.95},
}
"""What is measured -> the checks."""
BUILD = "build: 500 clusters, 1,000 diverse items"


def texts(count: int, mean: int, seed: int) -> Iterator[str]:
    """Texts whose words are drawn by their rank, half of them from a subject."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        length = 8 + int(rng.poisson(mean - 8))
        common = (WORDS ** rng.random(length)).astype(np.int64)
        own = 1000 + 97 * int(rng.integers(SUBJECTS)) + rng.integers(90, size=length)
        chosen = np.where(rng.random(length) < 0.5, common, own)
        yield " ".join(f"w{number}" for number in chosen.tolist())


def changed(text: str) -> str:
    """A copy in which every twelfth word is another: no thirteen in a row are left."""
    words = text.split()
    return " ".join("other" if place % 12 == 11 else word for place, word in enumerate(words))


def write_files(folder: Path, rows: int) -> None:
    """Training rows, prompts of a pool, and a test set, whose first items are planted."""
    from aligner.arena.testset.frozen import ITEMS as FILE
    from aligner.arena.testset.frozen import freeze

    items = [
        {"prompt_id": f"t{number}", "prompt": text, "split": "test"}
        for number, text in enumerate(texts(ITEMS, 45, 1))
    ]
    (folder / "set").mkdir()
    lines = freeze(folder / "set", items, {}, {})
    (folder / "set" / FILE).write_text("".join(lines))
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for number, (prompt, answer) in enumerate(zip(texts(rows, 45, 2), texts(rows, 60, 3))):
            item = items[number]["prompt"] if number < 2 * PLANTED else ""
            if number < PLANTED:
                answer = f"{answer} {' '.join(item.split()[:20])}"
            elif item:
                prompt = changed(item)
            file.write(json.dumps({"prompt": prompt, "completion": answer}) + "\n")


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Seconds and MiB of one piece of work in this process, and what it found."""
    import resource

    from aligner.config.recipe import Source

    source = Source(path=str(folder / "rows.jsonl"))
    start, cpu = time.perf_counter(), time.process_time()
    found = build(source) if name == BUILD else verify(source, folder / "set", WORK[name])
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"wall": took, "cpu": cpu, "peak": peak, "found": found}


def verify(source: Any, folder: Path, checks: dict[str, Any]) -> str:
    """Which of the planted rows are found, and how many others."""
    from aligner.arena.testset.embedding import embedding_of
    from aligner.arena.testset.frozen import read_testset
    from aligner.arena.testset.training_rows import TrainingRows
    from aligner.arena.testset.verify import Checks, look

    found, _ = look(
        read_testset(folder),
        TrainingRows([source]),
        Checks(near_duplicates=0.5, **checks),
        embedding_of("tfidf"),
    )
    planted = sum(number < 2 * PLANTED for number in found)
    return f"{planted} of {2 * PLANTED} planted rows, {len(found) - planted:,} others"


def build(source: Any) -> str:
    """How many items are chosen."""
    from aligner.arena.testset.build import Settings, choose
    from aligner.arena.testset.embedding import embedding_of
    from aligner.arena.testset.pool import read_pool
    from aligner.runs.journal import Journal

    pool = read_pool([source])
    asked = [item.asked for item in pool.items]
    vectors = embedding_of("tfidf").spread(asked, Journal(None), lambda done, total: None)
    chosen = choose(pool, vectors, Settings())
    return f"{len(chosen.rows):,} items of {len(pool.items):,} prompts"


def lines(rows: int) -> Iterator[str]:
    """The table, line by line."""
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    yield f"{rows:,} rows, {ITEMS:,} items, one core; load {load}"
    yield ""
    yield "| work | seconds | CPU-seconds | peak memory | found |"
    yield "| --- | --- | --- | --- | --- |"
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), rows)
        for name in (*WORK, BUILD):
            found = in_a_process(name, folder)
            yield (
                f"| {name} | {found['wall']:.0f} | {found['cpu']:.0f} | {found['peak']:,.0f} MiB | "
                f"{found['found']} |"
            )


def in_a_process(name: str, folder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed.testset", "--one", name, "--folder", folder]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table, or measure one line of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.folder)))
        return
    table = []
    for line in lines(given.rows):
        print(line, flush=True)
        table.append(line)
    if given.write:
        write("testset-speed", "\n".join(table))


if __name__ == "__main__":
    main()
