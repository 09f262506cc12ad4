"""Does credit for segments help GRPO and PPO? `aligner rlhf` by unit of the reward, where what is
good is known.

    python -m benchmarks.effects.rlhf [--seeds N] [--folder DIR] [--part NAME ...] [--write]

The task is that of `rlhf_words`: ten words an answer, each good, bad or neither, so that length and
quality have nothing to do with each other at the start. `tiny/sft` on random words gives the start,
and its pairs, ordered by a noisy comparison, train a Bradley-Terry model and two segment models,
cut by entropy (1.5 nats) and after each token, for as many steps with the same settings. From these

    learned   training on them: 12 prompts an iteration, 8 responses to each, one optimizer step
    oracle    the true quality in their place, of the whole answer or of each word, and few
              responses: 3 prompts, 4 responses to each
    planted   20 iterations with a nuisance planted in the segment model's values, an offset, or a
              drift, with the product's normalizer and with none (which exists here alone)
    settings  20 iterations by interpolation and aggregate
    adapters  the gold score of the toy world instead, by kind of model (`rlhf_adapters`)

"Sampled on" is credit by sampling on from the cuts of a response (`rlhf_cuts`), with so many fewer
responses that an iteration samples about as many tokens: 7 prompts, 2 responses to each and 2
continuations from each second word; with true quality 1 prompt, 3 responses and 1 continuation. Its
quality is the mean over responses and continuations, all of which are answers of the policy.

Everything is read off the responses that training itself samples: quality by the true function,
`kl` as the trainer logs it times the response's length, in nats a response; with the weights of the
moment. "At a KL" is the quality where the mean over `SMOOTH` iterations first passes it. The
correlation is between the advantage of the token at which a word is chosen and the word's true
quality, at iteration 0; under PPO with a critic that knows nothing yet. A seed changes words,
qualities, model, rows and sampling.

`--folder` keeps worlds, runs and `results.json`, and continues there when it is started again.
With `--write` the tables go into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch

from aligner.config.load import Resolved, load_recipe
from aligner.methods.pipeline import run_recipe
from aligner.methods.rlhf import train as rlhf_train
from aligner.methods.rlhf import trainer
from aligner.methods.rlhf.grpo import GrpoTrainer
from aligner.methods.rlhf.normalizer import LocationNormalizer
from aligner.methods.rlhf.ppo import PpoTrainer
from aligner.runs.files import dumps, parse_json, read_metrics, write_atomically
from benchmarks.effects import rlhf_adapters
from benchmarks.effects.rlhf_arms import PARTS, RLHF, Arm
from benchmarks.effects.rlhf_tables import tables
from benchmarks.effects.rlhf_watch import Watch, watched_advantages, watched_roller
from benchmarks.effects.rlhf_words import Words, write_world
from benchmarks.results import write

ADAPTERS = "adapters"
ALL_PARTS = [*PARTS, ADAPTERS]
COMMON = [
    "data.eval=null",
    "report.num_prompts=0",
    "trainer.save_strategy='no'",
    "trainer.logging_steps=1",
]
SFT = ["trainer.learning_rate=3e-3", "trainer.num_train_epochs=2"]
REWARD = ["trainer.learning_rate=1e-3", "trainer.num_train_epochs=4"]
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


def untouched(samples: Any, **flags: Any) -> LocationNormalizer:
    """A normalizer that leaves values as they are."""
    segments = sum(map(len, samples))
    return LocationNormalizer(0.0, 0.0, 0.0, 1.0, 0.1, 1.0, 1.0, segments, flags["fingerprint"])


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
    if arm.has_scorer:
        truth, learned = f"verifier:{world / 'truth.py'}:quality", world / "runs/reward-sequence"
        changes += [f"rlhf.reward_models=['{truth if arm.is_oracle else learned}']"]
    else:
        changes += ["rlhf.reward_models=[]"]
    if arm.unit != "sequence":
        changes += [f"rlhf.unit={arm.unit}", f"rlhf.segment_model={model}"]
    shutil.rmtree(world / "runs" / name, ignore_errors=True)  # one that was broken off
    recipe = recipe_of(world, seed, name, "tiny/rlhf-sequence", changes)
    return run_watched(recipe, Watch(Words.drawn(seed), arm))


def run_watched(recipe: Resolved, watch: Watch) -> dict[str, Any]:
    """Run a recipe of `rlhf` and read it."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(rlhf_train, "Roller", watched_roller(watch)))
        for kind in (GrpoTrainer, PpoTrainer):
            find = watched_advantages(watch, kind.find_advantages)
            stack.enter_context(patch.object(kind, "find_advantages", find))
        if not watch.arm.is_normalized:
            stack.enter_context(patch.object(rlhf_train, "fit_normalizer", untouched))
        if watch.sampled_on is not None:
            stack.enter_context(patch.object(trainer, "Credit", watch.sampled_on.credit()))
        run = run_recipe(recipe).run_dir
    logged = [line for line in read_metrics(run) if line["split"] == "train" and "kl" in line]
    found: dict[str, Any] = {
        key: [round(step[key], 4) for step in watch.steps] for key in watch.steps[0]
    }
    logged = logged[: len(watch.steps)]
    found["kl"] = [round(line["kl"] * line["completions/mean_length"], 4) for line in logged]
    found["tokens"] = [round(line["completions/mean_length"], 2) for line in logged]
    if watch.arm.is_ppo:
        explained = [line.get("explained_variance", 0.0) for line in logged]
        found["explained"] = [round(value, 4) for value in explained]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep worlds and results here, and go on")
    parser.add_argument("--part", nargs="*", choices=ALL_PARTS, default=ALL_PARTS)
    parser.add_argument(
        "--write", action="store_true", help="write the tables into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
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
        for seed, name in product(range(seeds), names(part)):
            seen = results.setdefault(part, {}).setdefault(name, {})
            if str(seed) in seen:
                continue
            began = time.process_time()
            seen[str(seed)], shown = run_one(folder, part, seed, name)
            write_atomically(file, dumps(results))
            seconds = time.process_time() - began
            print(f"seed {seed}: {part}, {name}, {seconds:.0f} s, {shown}", flush=True)
    return {part: _ordered(results[part], names(part)) for part in ALL_PARTS if part in results}


def _ordered(arms: dict[str, Any], order: Sequence[str]) -> dict[str, Any]:
    return {name: arms[name] for name in order if name in arms}


def names(part: str) -> list[str]:
    """The arms of a part, in order."""
    return [name for name, _, _ in rlhf_adapters.arms()] if part == ADAPTERS else list(PARTS[part])


def run_one(folder: Path, part: str, seed: int, name: str) -> tuple[Any, str]:
    """Run an arm, and return what was seen, and a few words on it."""
    if part == ADAPTERS:
        world = folder / f"toy-{seed}"
        rlhf_adapters.prepare(world, seed)
        _, recipe, kind = next(arm for arm in rlhf_adapters.arms() if arm[0] == name)
        scores = rlhf_adapters.run_arm(world, seed, recipe, kind)
        return scores, f"{scores['before']} -> {scores['after']}"
    world = folder / str(seed)
    prepare(world, seed)
    seen = run_arm(world, seed, f"{part}-{names(part).index(name)}", PARTS[part][name])
    return seen, f"quality {fmean(seen['quality'][-5:]):.3f}"


if __name__ == "__main__":
    main()
