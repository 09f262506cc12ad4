"""How fast ratings with intervals are, beside evalica and a bootstrap with scikit-learn.

    python -m benchmarks.speed.arena [--votes N] [--write]

Votes are drawn in memory, 50 models on 10,000 prompts; each measurement is a process of its own, on
one core: seconds of the work, without imports, and its peak memory. evalica and scikit-learn are
installed into a temporary folder; where that fails the table says so. evalica's time is of one fit
without intervals. scikit-learn solves a few resamples of the same sums of each pair, and the table
says what all of them would take. With `--write` the table goes into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import write

ROOT = Path(__file__).parents[2]
MODELS, PROMPTS, RESAMPLES = 50, 10_000, 1_000
SOLVED = 5
"""Resamples that scikit-learn gets."""
PACKAGES = {"evalica": "evalica==0.4.2", "scikit-learn": "scikit-learn==1.9.1"}


def drawn(count: int) -> Any:
    """Votes of models whose strengths lie apart, with a seat that helps and answers of any
    length."""
    from aligner.arena.votes import Votes

    rng = np.random.default_rng(0)
    strengths = np.linspace(-1.5, 1.5, MODELS)
    a = rng.integers(MODELS, size=count)
    b = (a + rng.integers(1, MODELS, size=count)) % MODELS
    long_a, long_b = rng.lognormal(6, 0.5, (2, count)).round()
    odds = strengths[a] - strengths[b] + 0.3 + 0.5 * (long_a - long_b) / (long_a + long_b)
    outcome = (rng.random(count) < 1 / (1 + np.exp(-odds))).astype(np.float64)
    outcome[rng.random(count) < 0.1] = 0.5
    return Votes(
        [f"model-{number:02}" for number in range(MODELS)],
        [f"p{number}" for number in range(PROMPTS)],
        [""],
        a,
        b,
        rng.integers(PROMPTS, size=count),
        np.zeros(count, np.int64),
        outcome,
        np.ones(count),
        np.ones(count),
        np.full(count, np.nan),
        np.stack([long_a, *(np.zeros((3, count)))], axis=1),
        np.stack([long_b, *(np.zeros((3, count)))], axis=1),
    )


def ours(controls: tuple[str, ...] = (), resamples: int = RESAMPLES) -> Callable[[Any], None]:
    """Ratings of this package."""
    from aligner.arena.rating import Settings, rate

    how = Settings(controls=controls, resamples=resamples)  # type: ignore[arg-type]
    return lambda votes: print(rate(votes, how).rating[:2], file=sys.stderr)


def evalica_once(votes: Any) -> None:
    """One fit, from names and outcomes as evalica takes them."""
    import evalica

    kinds = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    names = votes.models
    evalica.bradley_terry(
        [names[number] for number in votes.a.tolist()],
        [names[number] for number in votes.b.tolist()],
        [kinds[outcome] for outcome in votes.outcome.tolist()],
    )


def sklearn_some(votes: Any) -> None:
    """Resamples of prompts, each solved by logistic regression on two weighted rows a pair."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    pair = votes.a * MODELS + votes.b
    design = np.zeros((MODELS * MODELS, MODELS))
    design[np.arange(len(design)), np.arange(len(design)) // MODELS] += 1.0
    design[np.arange(len(design)), np.arange(len(design)) % MODELS] -= 1.0
    for _ in range(SOLVED):
        times = np.bincount(rng.integers(PROMPTS, size=PROMPTS), minlength=PROMPTS)
        weight = times[votes.prompt].astype(np.float64)
        won = np.bincount(pair, weight * votes.outcome, len(design))
        lost = np.bincount(pair, weight * (1 - votes.outcome), len(design))
        LogisticRegression(C=np.inf, fit_intercept=False, max_iter=1000).fit(
            np.concatenate([design, design]),
            np.repeat([1, 0], len(design)),
            sample_weight=np.concatenate([won, lost]),
        )


WORK: dict[str, tuple[int, Callable[[], Callable[[Any], None]]]] = {
    "1,000 resamples": (1, lambda: ours()),
    "1,000 resamples, seat and length": (1, lambda: ours(("seat", "length"))),
    "one fit": (1, lambda: ours(resamples=0)),
    "evalica, one fit": (1, lambda: evalica_once),
    "scikit-learn, 1,000 resamples": (1, lambda: sklearn_some),
    "one fit, ten times the votes": (10, lambda: ours(resamples=0)),
}
"""What is measured -> how many times the votes, and the function."""


def measure(name: str, votes: int, packages: Path) -> dict[str, Any]:
    """Seconds and MiB of one piece of work in a process of its own."""
    import resource

    sys.path.append(str(packages))
    times, make = WORK[name]
    data = drawn(votes * times)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    work = make()
    work(drawn(1000) if "scikit" not in name and "evalica" not in name else data)
    start, cpu = time.perf_counter(), time.process_time()
    work(data)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scale = RESAMPLES / SOLVED if "scikit" in name else 1
    return {"wall": took * scale, "cpu": cpu * scale, "data": before, "peak": peak}


def lines(votes: int) -> Iterator[str]:
    """The table, line by line."""
    yield f"{votes:,} votes, {MODELS} models, {PROMPTS:,} prompts, one core; load {load()}"
    yield ""
    yield "| work | seconds | CPU-seconds | memory above the votes |"
    yield "| --- | --- | --- | --- |"
    with tempfile.TemporaryDirectory() as folder:
        missing = install(Path(folder))
        for name in WORK:
            package = next((one for one in missing if one in name), None)
            if package:
                yield f"| {name} | {package} could not be installed | | |"
                continue
            found = in_a_process(name, votes, folder)
            about = "about " if "scikit" in name else ""
            yield (
                f"| {name} | {about}{found['wall']:.1f} | {about}{found['cpu']:.1f} | "
                f"{max(0, found['peak'] - found['data']):,.0f} MiB |"
            )


def load() -> str:
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def install(folder: Path) -> list[str]:
    """Put the packages there, and return those that are missing."""
    missing = []
    for name, wanted in PACKAGES.items():
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), wanted]
        done = subprocess.run([*command, "--no-deps"], capture_output=True)
        if done.returncode:
            missing.append(name)
    if "scikit-learn" not in missing:
        more = ["scipy", "joblib", "cloudpickle", "threadpoolctl", "narwhals"]
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), *more]
        if subprocess.run([*command, "--no-deps"], capture_output=True).returncode:
            missing.append("scikit-learn")
    return missing


def in_a_process(name: str, votes: int, packages: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed.arena", "--one", name]
    command += ["--votes", str(votes), "--packages", packages]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table, or measure one line of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--votes", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one")
    parser.add_argument("--packages", default="")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.votes, Path(given.packages))))
        return
    table = []
    for line in lines(given.votes):
        print(line, flush=True)
        table.append(line)
    if given.write:
        write("arena-speed", "\n".join(table))


if __name__ == "__main__":
    main()
