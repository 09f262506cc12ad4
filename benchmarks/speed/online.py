"""What rounds of `aligner online` cost beside models: CPU-seconds and memory by the number of
prompts.

    python -m benchmarks.speed.online [--largest N] [--round MODEL] [--write]

A round of 8 responses to each prompt, up to its pairs, with the commands' own stages: an engine
that returns random ids at once stands for the model, and a function of the text for the scorer.
Each size is a process of its own. What is counted is CPU time, of reading the prompts, sampling
without the engine, scoring, and pairing, and the peak memory above the loaded libraries. With
`--write` the table goes into `benchmarks/RESULTS.md`.

`--round` measures a whole run of one round with a small chat model in its place, of few prompts:
which share of its CPU time is neither generation, scoring nor training. That is loading models,
tokenizing, saving, reports, and all that rounds do themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.speed.memory import peak_mib

SIZES = (10_000, 30_000, 100_000)
SAMPLES, HELD_OUT = 8, 16
TOKENS = (16, 64)
"""Shortest and longest response."""
STAGES = ("read", "sample", "score", "pair")
WORD = "abcdefgh"


class Scripted:
    """An engine that answers at once, with random ids of a tokenizer."""

    def __init__(self, stops: int, size: int) -> None:
        self.stop, self.size, self.cpu_s = stops, size, 0.0

    def generate(self, requests: Sequence[Any], on_finished: Any = None) -> list[list[Any]]:
        """Return ids that follow from the request's number."""
        from aligner.generation.requests import Generated

        began, found = time.process_time(), []
        for request in requests:
            draw, samples = random.Random(request.stream), []
            for _ in range(request.sampling.num_samples):
                ids = draw.choices(range(4, self.size), k=draw.randint(*TOKENS))
                samples.append(Generated([*ids, self.stop], "stop"))
            found.append(samples)
        self.cpu_s += time.process_time() - began
        return found


def score(prompts: Any, completions: Sequence[str], references: Any = None) -> list[float]:
    """The share of the letter e in each text."""
    return [text.count("e") / max(1, len(text)) for text in completions]


class Enough(Exception):
    """The pairs are there: nothing is trained."""


def measure(count: int) -> dict[str, float]:
    """A round in this process."""
    from aligner.config.load import load_recipe
    from aligner.generation import writers
    from aligner.methods.online import answering, preflight, rounds, scoring
    from aligner.methods.online.policies import Policies
    from aligner.reward_models.functions import FunctionScorer

    spent: Counter[str] = Counter()
    engines: list[Scripted] = []

    @contextmanager
    def scripted(generation: Any, section: Any, tokenizer: Any, **_: Any) -> Iterator[Any]:
        outline = writers.outline_of(section, tokenizer)
        engines.append(Scripted(tokenizer.eos_token_id, len(tokenizer)))
        yield outline, engines[-1]

    def enough(*_: Any) -> None:
        raise Enough

    answering.BESIDE = ()  # so that the time of each is its own
    for owner, name, stand_in in (
        (writers, "open_engine", scripted),
        (answering, "load_scorer", lambda _: FunctionScorer(score)),
        (Policies, "train", enough),
    ):
        setattr(owner, name, stand_in)
    preflight.read_inputs = rounds.read_inputs = timed(preflight.read_inputs, spent, "read")
    rounds.make_pairs = timed(rounds.make_pairs, spent, "pair")
    answering.finish_sampling = timed(answering.finish_sampling, spent, "sample")
    answering._sample_and_score = timed(answering._sample_and_score, spent, "sample")
    scoring.Scoring.run = timed(scoring.Scoring.run, spent, "score")  # type: ignore[method-assign]
    answering.finish_scoring = timed(answering.finish_scoring, spent, "score")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder, count)
        base = peak_mib()
        began = time.process_time()
        try:
            rounds.run_online(load_recipe("online", None, [], settings(folder)))
        except Enough:
            spent["all"] = time.process_time() - began
        written = sum(file.stat().st_size for file in (folder / "run").rglob("*.jsonl"))
    spent["sample"] -= engines[-1].cpu_s
    peak = peak_mib() - base
    spent["all"] -= sum(engine.cpu_s for engine in engines)
    return {**spent, "peak_mib": peak, "written_mb": written / 1e6}


PROMPTS, HELD, LONGEST, SHARE = 48, 8, 64, 4
"""Of a whole round: prompts, held-out prompts, tokens of the longest response, responses."""


def measure_round(model: str) -> dict[str, float]:
    """A run of one round in this process: CPU-seconds of its parts."""
    import transformers

    from aligner.config.load import load_recipe
    from aligner.generation import writers
    from aligner.methods.online import evaluation, rounds, scoring
    from aligner.training import reference

    spent: Counter[str] = Counter()
    open_engine = writers.open_engine

    @contextmanager
    def opened(*arguments: Any, **named: Any) -> Iterator[Any]:
        with open_engine(*arguments, **named) as (policy, engine):
            engine.generate = timed(engine.generate, spent, "generation")  # type: ignore[method-assign]
            yield policy, engine

    for owner, name, stand_in in (
        (writers, "open_engine", opened),
        (scoring, "ask", timed(scoring.ask, spent, "scoring")),
        (transformers.Trainer, "train", timed(transformers.Trainer.train, spent, "training")),
        (reference, "_compute", timed(reference._compute, spent, "training")),
        (evaluation, "_token_logps", timed(evaluation._token_logps, spent, "KL")),
    ):
        setattr(owner, name, stand_in)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_prompts(folder, PROMPTS, HELD)
        given = {
            **settings(folder),
            "model.name_or_path": model,
            "online.num_samples": SHARE,
            "online.max_new_tokens": LONGEST,
            "online.shard_size": 16,
            "online.reward_models": ["verifier:regex=[aeiou]{2}"],
            "trainer.per_device_train_batch_size": 4,
            "trainer.gradient_checkpointing": False,
        }
        began = time.process_time()
        rounds.run_online(load_recipe("online", None, [], given))
    return {**spent, "all": time.process_time() - began}


def timed(function: Callable[..., Any], spent: Counter[str], name: str) -> Callable[..., Any]:
    """Return a function that adds the CPU time of each call."""

    def wrapper(*arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            spent[name] += time.process_time() - began

    return wrapper


def write_world(folder: Path, count: int) -> None:
    """A random model of the toy world, and as many prompts as there are to be."""
    from aligner.toy.pretrain import new_model
    from aligner.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    new_model(tokenizer, 0).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_prompts(folder, count, HELD_OUT)


def write_prompts(folder: Path, count: int, held_out: int) -> None:
    """Prompts of random letters, each with an answer."""
    draw = random.Random(0)
    for name, rows in (("prompts", count), ("held", held_out)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(rows):
                text = f"sort: {''.join(draw.choices(WORD, k=24))}"
                turns = [{"role": "user", "content": text}]
                file.write(json.dumps({"prompt": turns, "answer": f"{name} {number}"}) + "\n")


def settings(folder: Path) -> dict[str, Any]:
    """The recipe of one round."""
    return {
        "output_dir": str(folder / "run"),
        "model.name_or_path": str(folder / "model"),
        "data.train": str(folder / "prompts.jsonl"),
        "data.eval": str(folder / "held.jsonl"),
        "data.max_length": 256,
        "online.rounds": 1,
        "online.num_samples": SAMPLES,
        "online.max_new_tokens": TOKENS[1] + 1,
        "online.reward_models": ["toy"],
        "trainer.use_cpu": True,
    }


def in_a_process(count: int) -> dict[str, float]:
    """Measure a size in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed.online", "--one", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", type=int)
    parser.add_argument("--round", help="a folder with a small chat model")
    given = parser.parse_args()
    if given.round:
        print(json.dumps(measure_round(given.round)))
        return
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    rows = ["| prompts | responses | " + " | ".join(STAGES) + " | all | a thousand responses | "]
    rows[0] += "memory, MiB | on disk, MB |"
    rows.append("| --- " * (len(STAGES) + 6) + "|")
    for size in (size for size in SIZES if size <= given.largest):
        found = in_a_process(size)
        stages = " | ".join(f"{found[name]:.1f}" for name in STAGES)
        each = 1e6 * found["all"] / (size * SAMPLES)
        rows.append(
            f"| {size:,} | {size * SAMPLES:,} | {stages} | {found['all']:.1f} | {each:.0f} ms | "
            f"{found['peak_mib']:.0f} | {found['written_mb']:.0f} |"
        )
        print(rows[-1], flush=True)
    if given.write:
        write("rounds", "\n".join(rows))


if __name__ == "__main__":
    main()
