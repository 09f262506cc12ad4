"""Does credit for segments help GRPO? `aligner rlhf` by unit of the reward, where what is good is
known.

    python -m benchmarks.effects.rlhf [--seeds N] [--folder DIR] [--part NAME ...] [--write]

The task is that of `rlhf_words`: ten words an answer, each good, bad or neither, so that length and
quality have nothing to do with each other at the start. `tiny/sft` on random words gives the start,
and its pairs, ordered by a noisy comparison, train a Bradley-Terry model and two segment models,
cut by entropy (1.5 nats) and after each token, for as many steps with the same settings. From these

    learned   GRPO on them: 12 prompts an iteration, 8 responses to each
    oracle    the true quality in their place, of the whole answer or of each word, and few
              responses: 3 prompts, 4 responses to each
    planted   20 iterations with a nuisance planted in the segment model's values, an offset, or a
              drift, with the product's normalizer and with none (which exists here alone)
    settings  20 iterations by interpolation and aggregate

Everything is read off the responses that training itself samples: quality by the true function,
`kl` as the trainer logs it times the response's length, in nats a response; with the weights of the
moment. "At a KL" is the quality where the mean over `SMOOTH` iterations first passes it. The
correlation is between the advantage of the token at which a word is chosen and the word's true
quality, at iteration 0. A seed changes words, qualities, model, rows and sampling.

`--folder` keeps worlds, runs and `results.json`, and continues there when it is started again.
With `--write` the tables go into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch

from aligner.config.load import Resolved, load_recipe
from aligner.methods.pipeline import run_recipe
from aligner.methods.rlhf import train as rlhf_train
from aligner.methods.rlhf.credit import Credit
from aligner.methods.rlhf.normalizer import LocationNormalizer
from aligner.methods.rlhf.recipe import Rlhf
from aligner.methods.rlhf.rollout import Group, Response, Roller
from aligner.runs.files import dumps, parse_json, read_metrics, write_atomically
from benchmarks.effects.rlhf_tables import tables
from benchmarks.effects.rlhf_words import Words, write_world
from benchmarks.results import write

Shift = Callable[[float, float], float]
"""From a value and its location in (0, 1] to the value with a nuisance."""

COMMON = [
    "data.eval=null",
    "report.num_prompts=0",
    "trainer.save_strategy='no'",
    "trainer.logging_steps=1",
]
SFT = ["trainer.learning_rate=3e-3", "trainer.num_train_epochs=2"]
REWARD = ["trainer.learning_rate=1e-3", "trainer.num_train_epochs=4"]
RLHF = [
    "rlhf.max_new_tokens=48",
    "rlhf.beta=0.05",
    "rlhf.group_size=8",
    "trainer.per_device_train_batch_size=12",
    "trainer.learning_rate=4e-4",
    "trainer.max_steps=45",
]
FEW = [
    "rlhf.group_size=4",
    "trainer.per_device_train_batch_size=3",
    "trainer.max_steps=100",
]
SHORT = ["trainer.max_steps=20"]
MODELS = {
    "sequence": ("tiny/reward", ["reward.center_rewards_coefficient=0"]),
    "segment": (
        "tiny/reward-segment",
        ["reward.segments.target_length=null", "reward.segments.cutoff=1.5"],
    ),
    "token": (
        "tiny/reward-segment",
        ["reward.segments.target_length=null", "reward.segments.rule=token"],
    ),
}


@dataclass(frozen=True)
class Arm:
    """A way of training: what gets rewards, changes to the recipe, and what is done to values."""

    unit: str
    changes: list[str] = field(default_factory=list)
    is_oracle: bool = False
    shift: Shift | None = None
    is_normalized: bool = True


def _offset(by: float) -> Shift:
    return lambda value, location: value + by


def _drift(value: float, location: float) -> float:
    return (1 + 1.5 * location) * value + 6 * float(torch.tensor(location).log()) + 4


SUM = ["rlhf.aggregate=sum"]
MIXED = ["rlhf.credit=mixed"]
PARTS: dict[str, dict[str, Arm]] = {
    "learned": {
        "sequence": Arm("sequence"),
        "segment, `location`": Arm("segment"),
        "segment, `process`": Arm("segment", ["rlhf.credit=process"]),
        "token, `location`": Arm("token"),
        "segment, `mixed`": Arm("segment", MIXED),
    },
    "oracle": {
        "sequence": Arm("sequence", FEW, is_oracle=True),
        "segment, `location`": Arm("segment", FEW, is_oracle=True),
        "segment, `mixed`": Arm("segment", [*FEW, *MIXED], is_oracle=True),
    },
    "planted": {
        f"{name}, `{aggregate}`, {'weighted' if is_normalized else 'none'}": Arm(
            "segment",
            [*SHORT, f"rlhf.aggregate={aggregate}"],
            shift=shift,
            is_normalized=is_normalized,
        )
        for name, shift in (("+3", _offset(3.0)), ("-3", _offset(-3.0)), ("drift", _drift))
        for aggregate in (("sum",) if name != "drift" else ("sum", "mean"))
        for is_normalized in (True, False)
    },
    "settings": {
        "`even`, `mean`": Arm("segment", SHORT),
        "`last`, `mean`": Arm("segment", [*SHORT, "rlhf.interpolation=last"]),
        "`repeat`, `mean`": Arm("segment", [*SHORT, "rlhf.interpolation=repeat"]),
        "`even`, `sum`": Arm("segment", [*SHORT, *SUM]),
    },
}


# --- what is watched ------------------------------------------------------------------------------


@dataclass
class Watch:
    """Reads the true quality off the responses of a run, and changes what segments are worth."""

    words: Words
    arm: Arm
    steps: list[dict[str, float]] = field(default_factory=list)
    first: list[Group] = field(default_factory=list)
    """The groups of iteration 0."""
    kinds: list[str] = field(default_factory=list)
    """The class that each of them answers for."""

    def value(self, kind: str, one: Response) -> None:
        """Set what the segments of a response are worth."""
        if self.arm.is_oracle:
            parts = list(self.words.parts(kind, one.text))
            one.ends = [end for _, end, _ in parts] or [0]
            one.values = [0.0] * len(one.token_ids)
            for _, end, quality in parts:
                one.values[end] = -1.0 if quality is None else float(quality)
        if self.arm.shift is not None:
            for number, end in enumerate(one.ends, 1):
                one.values[end] = self.arm.shift(one.values[end], number / len(one.ends))

    def note(self, kinds: Sequence[str], groups: list[Group]) -> None:
        """Keep what the responses of an iteration truly are."""
        if not self.steps:
            self.first, self.kinds = groups, list(kinds)
        seen = [(kind, one) for kind, group in zip(kinds, groups) for one in group]
        parts = [list(self.words.parts(kind, one.text)) for kind, one in seen]
        lengths = [end - start + 1 for row in parts for start, end, _ in row]
        self.steps.append(
            {
                "quality": fmean(self.words.quality(kind, one.text) for kind, one in seen),
                "words": fmean(map(len, parts)),
                "word_length": fmean(lengths) if lengths else 0.0,
                "malformed": fmean(any(part[2] is None for part in row) for row in parts),
                "truncated": fmean(not one.is_finished for _, one in seen),
            }
        )


def watched(watch: Watch) -> type[Roller]:
    """A roller whose responses are watched."""

    class Watched(Roller):
        def sample(self, model: Any, rows: Any, step: int | str, **flags: Any) -> list[Group]:
            object.__setattr__(self, "step", step)
            return super().sample(model, rows, step, **flags)

        def score(self, rows: Any, groups: Any) -> None:
            if self.scorers or not watch.arm.is_oracle:
                super().score(rows, groups)
            kinds = [json.loads(row["prompt"])[-1]["content"] for row in rows]
            if self.settings.unit != "sequence":
                for kind, group in zip(kinds, groups):
                    for one in group:
                        watch.value(kind, one)
            if isinstance(self.step, int):  # type: ignore[attr-defined]
                watch.note(kinds, groups)

    return Watched


def untouched(samples: Any, **flags: Any) -> LocationNormalizer:
    """A normalizer that leaves values as they are."""
    segments = sum(map(len, samples))
    return LocationNormalizer(0.0, 0.0, 0.0, 1.0, 0.1, 1.0, 1.0, segments, flags["fingerprint"])


def correlation(watch: Watch, settings: Rlhf, run: Path) -> float:
    """The correlation of the advantage where a word is chosen with its quality, at iteration 0."""
    normalizer = None
    if settings.unit != "sequence":
        file = run / rlhf_train.NORMALIZER
        fingerprint = parse_json(file, "fit it again", needed=["fingerprint"])["fingerprint"]
        normalizer = LocationNormalizer.load(file, fingerprint)
    advantages = Credit(settings, normalizer).advantages(watch.first)
    found, truth = [], []
    responses = list(chain.from_iterable(watch.first))
    kinds = [kind for kind, group in zip(watch.kinds, watch.first) for _ in group]
    for kind, one, row in zip(kinds, responses, advantages.tolist()):
        for start, _, quality in watch.words.parts(kind, one.text):
            found.append(row[start])
            truth.append(-1.0 if quality is None else float(quality))
    return float(torch.corrcoef(torch.tensor([found, truth]))[0, 1])


# --- runs -----------------------------------------------------------------------------------------


def recipe_of(world: Path, seed: int, name: str, recipe: str, changes: list[str]) -> Resolved:
    """A tiny recipe in a world, as a run of this name."""
    method = recipe.split("/")[1].split("-")[0]
    place = [f"output_dir={world / 'runs' / name}", f"seed={seed}"]
    return load_recipe(method, recipe, [*place, *COMMON, *changes])


def prepare(world: Path, seed: int) -> None:
    """Write the world, and train the start and the reward models."""
    if not (world / "truth.py").exists():
        world.mkdir(parents=True, exist_ok=True)
        write_world(world, seed)
    jobs = {"sft": ("tiny/sft", [f"model.name_or_path={world / 'model'}", *SFT], "sft.jsonl")}
    start = f"model.name_or_path={world / 'runs/sft/final'}"
    for unit, (recipe, changes) in MODELS.items():
        jobs[f"reward-{unit}"] = (recipe, [start, *REWARD, *changes], "pairs.jsonl")
    for name, (recipe, changes, rows) in jobs.items():
        done = world / f"{name}.done"
        if not done.exists():
            shutil.rmtree(world / "runs" / name, ignore_errors=True)  # one that was broken off
            began = time.process_time()
            data = f"data.train={world / rows}"
            run_recipe(recipe_of(world, seed, name, recipe, [data, *changes]))
            done.touch()
            print(f"seed {seed}: {name}, {time.process_time() - began:.0f} s", flush=True)


def run_arm(world: Path, seed: int, name: str, arm: Arm) -> dict[str, Any]:
    """Train by an arm, and return what was seen: a list for each iteration, and `correlation`."""
    model = world / f"runs/reward-{arm.unit}"
    changes = [
        f"model.name_or_path={world / 'runs/sft/final'}",
        f"data.train={world / 'prompts.jsonl'}",
        *RLHF,
        *arm.changes,
    ]
    if arm.unit == "sequence" or "rlhf.credit=mixed" in arm.changes:
        truth, learned = f"verifier:{world / 'truth.py'}:quality", world / "runs/reward-sequence"
        changes += [f"rlhf.reward_models=['{truth if arm.is_oracle else learned}']"]
    if arm.unit != "sequence":
        changes += [f"rlhf.unit={arm.unit}", f"rlhf.segment_model={model}"]
    base = "tiny/rlhf-sequence" if arm.unit == "sequence" else "tiny/rlhf"
    shutil.rmtree(world / "runs" / name, ignore_errors=True)  # one that was broken off
    recipe = recipe_of(world, seed, name, base, changes)
    return run_watched(recipe, Watch(Words.drawn(seed), arm))


def run_watched(recipe: Resolved, watch: Watch) -> dict[str, Any]:
    """Run a recipe of `rlhf` and read it."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(rlhf_train, "Roller", watched(watch)))
        if not watch.arm.is_normalized:
            stack.enter_context(patch.object(rlhf_train, "fit_normalizer", untouched))
        run = run_recipe(recipe).run_dir
    logged = [line for line in read_metrics(run) if line["split"] == "train" and "kl" in line]
    found: dict[str, Any] = {
        key: [round(step[key], 4) for step in watch.steps] for key in watch.steps[0]
    }
    logged = logged[: len(watch.steps)]
    found["kl"] = [round(line["kl"] * line["completions/mean_length"], 4) for line in logged]
    found["tokens"] = [round(line["completions/mean_length"], 2) for line in logged]
    found["correlation"] = round(correlation(watch, recipe.recipe.rlhf, run), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep worlds and results here, and go on")
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument(
        "--write", action="store_true", help="write the tables into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        lines = tables(measure(folder, options.part, options.seeds))
    print("\n".join(lines), flush=True)
    if options.write:
        write("rlhf", "\n".join(lines))


def measure(folder: Path, parts: Sequence[str], seeds: int) -> dict[str, Any]:
    """Run what is not yet in `results.json`, and return all of it: part -> arm -> seed -> seen."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results: dict[str, Any] = parse_json(file, f"delete {file}") if file.exists() else {}
    for part in parts:
        for seed in range(seeds):
            for name, arm in PARTS[part].items():
                seen = results.setdefault(part, {}).setdefault(name, {})
                if str(seed) in seen:
                    continue
                world = folder / str(seed)
                prepare(world, seed)
                began = time.process_time()
                place = f"{part}-{list(PARTS[part]).index(name)}"
                seen[str(seed)] = run_arm(world, seed, place, arm)
                write_atomically(file, dumps(results))
                print(
                    f"seed {seed}: {part}, {name}, {time.process_time() - began:.0f} s, quality "
                    f"{fmean(seen[str(seed)]['quality'][-5:]):.3f}",
                    flush=True,
                )
    return results


if __name__ == "__main__":
    main()
