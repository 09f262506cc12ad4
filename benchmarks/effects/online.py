"""Do answers of the current policy beat answers of the start? `aligner online` in rounds against
the same budget in one round.

    python -m benchmarks.effects.online [--seeds N] [--folder DIR] [--part NAME ...] [--write]

The task is that of `online_world`: gold is known and never trained on. All arms start from the same
model, ask the same reward model about as many answers (1,152 prompts, 8 each), make as many
optimizer steps on as many pairs, and have the same SFT term (0.2 times the next-token loss on the
chosen answer). They differ in when answers are sampled:

    offline   all by the start, in one round; each pair is trained on twice
    online    in three rounds of 384 prompts, by the policy of the moment

    rates      both at several learning rates, so that each can be taken at its best one
    stages     online at one rate, one thing changed: reference, start, pairs, temperatures
    future     the best response of a temporary policy chosen (`online.future`), with and without
               the start's worst rejected; 16 samples are as many as `future` takes in all
    naive      each round trains a fresh adapter on the start, on its own pairs alone, with four
               samples: what a plain loop around a preference trainer does
    weak       a reward model that ranks badly, with the stop rule and without
    rules      the share of written rules that a response keeps to (`kind: rules`, AutoRule), by a
               judge who errs in one verdict of ten or in three, alone and beside that reward model;
               a third of the prompts and half of the responses of the other parts
    oracle     the same weak reward model, and gold as an oracle that is asked about 64 pairs of
               each round (`online.oracle`): the proxy is trained on these labels before it scores,
               by selector; three times the queries; and as many labels trained on directly, of two
               samples to each of 64 prompts, for two epochs and for as many steps as the others

Gold, reward and KL are of 400 held-out prompts, 4 answers each at temperature 1, after the last
round. `--folder` keeps worlds, runs and `results.json`, and continues there.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml

from aligner.config.load import load_recipe
from aligner.config.shipped import recipe_text
from aligner.methods.catalogue import function_of, method_of
from aligner.methods.online.policies import Policies
from aligner.methods.online.train_stage import Training
from aligner.runs.files import dumps, parse_json, write_atomically
from aligner.runs.stages import done_record
from benchmarks.effects.online_judge import judge
from benchmarks.effects.online_world import write_world
from benchmarks.results import write

SFT = ["trainer.learning_rate=3e-3", "trainer.num_train_epochs=3", "data.eval=null"]
REWARD = ["trainer.learning_rate=1e-3", "trainer.num_train_epochs=6"]
WEAK = ["trainer.learning_rate=1e-3", "trainer.num_train_epochs=3"]
QUIET = ["report.num_prompts=0", "trainer.save_strategy='no'", "trainer.logging_steps=10"]
ONLINE = [
    "online.max_new_tokens=8",
    "online.generation_batch_size=512",
    "online.shard_size=384",
    "online.temperatures=[1.0,0.7]",
    "online.evaluation.num_samples=4",
    "online.stop.over_optimized=false",
    "dpo.beta=0.1",
    "dpo.nll_weight=0.2",
    "trainer.per_device_train_batch_size=32",
    "trainer.num_train_epochs=2",
]
IN_ROUNDS = ["online.rounds=3", "online.prompts_per_round=384"]
AT_ONCE = ["online.rounds=1", "online.prompts_per_round=1152"]
SFT_STAGE = "online.train=sft"
ANCHORED = ["online.pairing.rule=anchored"]
WARMER = "online.temperatures=[1.3,1.0]"
SMALLER = [
    "online.rounds=3",
    "online.prompts_per_round=128",
    "online.num_samples=4",
    "online.evaluation.num_samples=2",
    WARMER,
]
RATES = ("3e-4", "1e-3", "2e-3")


@dataclass(frozen=True)
class Arm:
    """A way of training: changes to the recipe, the reward model, and whether a round forgets."""

    changes: list[str] = field(default_factory=list)
    proxy: str = "reward"
    forgets: bool = False
    asks: bool = False
    """Whether gold is the oracle of `online.oracle`."""
    errs: float | None = None
    """A judge of rules scores too, and errs in this share of its verdicts; with no proxy, alone."""


def _at(rate: str, *changes: str) -> list[str]:
    return [f"trainer.learning_rate={rate}", *changes]


def _asking(*changes: str, queries: int = 64) -> Arm:
    """The weak reward model with an oracle."""
    budget = [f"online.oracle.budget={3 * queries}"]
    refresh = ["learning_rate=1e-3", "num_train_epochs=10"]
    budget += [f"online.oracle.refresh.{setting}" for setting in refresh]
    return Arm(_at("1e-3", *IN_ROUNDS, WARMER, *budget, *changes), proxy="weak", asks=True)


LABELS_ALONE = [
    "online.rounds=3",
    "online.prompts_per_round=64",
    "online.num_samples=2",
    "online.temperatures=[1.0]",
]

PARTS: dict[str, dict[str, Arm]] = {
    "rates": {
        f"{name}, {rate}": Arm(_at(rate, *changes))
        for name, changes in (("offline", AT_ONCE), ("online", IN_ROUNDS))
        for rate in RATES
    },
    "stages": {
        "reference: previous": Arm(_at("1e-3", *IN_ROUNDS, "online.reference=previous")),
        "reference: ema": Arm(_at("1e-3", *IN_ROUNDS, "online.reference=ema")),
        "start: initial": Arm(_at("1e-3", *IN_ROUNDS, "online.start=initial")),
        "rule: max_random": Arm(_at("1e-3", *IN_ROUNDS, "online.pairing.rule=max_random")),
        "rule: random": Arm(_at("1e-3", *IN_ROUNDS, "online.pairing.rule=random")),
        "rule: anchored": Arm(_at("1e-3", *IN_ROUNDS, "online.pairing.rule=anchored")),
        "temperatures: [1]": Arm(_at("1e-3", *IN_ROUNDS, "online.temperatures=[1.0]")),
        "train: sft": Arm(_at("1e-3", *IN_ROUNDS, SFT_STAGE)),
    },
    "future": {
        "rule: max_min": Arm(_at("1e-3", *IN_ROUNDS)),
        "rule: max_min, 16 samples": Arm(_at("1e-3", *IN_ROUNDS, "online.num_samples=16")),
        "rule: max_min, future": Arm(_at("1e-3", *IN_ROUNDS, "online.future=true")),
        "rule: anchored": Arm(_at("1e-3", *IN_ROUNDS, *ANCHORED)),
        "rule: anchored, future": Arm(_at("1e-3", *IN_ROUNDS, *ANCHORED, "online.future=true")),
    },
    "naive": {
        "adapters, in rounds": Arm(_at("3e-3", *IN_ROUNDS, "model.lora={}")),
        "adapters, fresh each round": Arm(
            _at(
                "3e-3",
                *IN_ROUNDS,
                "model.lora={}",
                "online.start=initial",
                "online.num_samples=4",
                "online.temperatures=[1.0]",
            ),
            forgets=True,
        ),
    },
    "weak": {
        "offline": Arm(_at("1e-3", *AT_ONCE), proxy="weak"),
        "online": Arm(_at("1e-3", *IN_ROUNDS), proxy="weak"),
        "online, five rounds": Arm(
            _at("1e-3", "online.rounds=5", "online.prompts_per_round=230"), proxy="weak"
        ),
        "online, five rounds, stop rule": Arm(
            _at(
                "1e-3",
                "online.rounds=5",
                "online.prompts_per_round=230",
                "online.stop.over_optimized=true",
            ),
            proxy="weak",
        ),
    },
    "rules": {
        "the weak reward model": Arm(_at("2e-3", *SMALLER), proxy="weak"),
        "rules, 1 verdict of 10 wrong": Arm(_at("2e-3", *SMALLER), proxy="", errs=0.1),
        "rules, 3 verdicts of 10 wrong": Arm(_at("2e-3", *SMALLER), proxy="", errs=0.3),
        "both, 1 verdict of 10 wrong": Arm(_at("2e-3", *SMALLER), proxy="weak", errs=0.1),
    },
    "oracle": {
        "the proxy alone": Arm(_at("1e-3", *IN_ROUNDS, WARMER), proxy="weak"),
        "refreshed, random": _asking("online.oracle.selector=random"),
        "refreshed, coreset_response": _asking(),
        "refreshed, uncertainty": _asking("online.oracle.selector=uncertainty"),
        "refreshed, coreset_response, 192 a round": _asking(queries=192),
        "64 labels a round alone": Arm(_at("1e-3", *LABELS_ALONE), proxy="gold"),
        "64 labels a round alone, 12 epochs": Arm(
            _at("1e-3", *LABELS_ALONE, "trainer.num_train_epochs=12"), proxy="gold"
        ),
    },
}


WRITTEN = {
    "online": {*PARTS} - {"future", "rules", "oracle"},
    "online-options": {"future", "rules"},
    "online-oracle": {"oracle"},
}
"""Marks in RESULTS.md -> the parts between them."""


# --- runs -----------------------------------------------------------------------------------------


def _run(
    world: Path, seed: int, name: str, method: str, recipe: str, changes: Sequence[str]
) -> Path:
    place = [f"output_dir={world / 'runs' / name}", f"seed={seed}"]
    resolved = load_recipe(method, recipe, [*place, *QUIET, *changes])
    run: Path = function_of(method_of(method).run)(resolved).run_dir
    return run


def prepare(world: Path, seed: int) -> None:
    """Write the world, and train the start and the reward models."""
    if not (world / "truth.py").exists():
        world.mkdir(parents=True, exist_ok=True)
        write_world(world, seed)
    start = f"model.name_or_path={world / 'runs/sft/final'}"
    model = f"model.name_or_path={world / 'model'}"
    jobs = {
        "sft": ("tiny/sft", [model, *SFT], "sft"),
        "reward": ("tiny/reward", [start, *REWARD], "reward"),
        "weak": ("tiny/reward", [start, *WEAK], "weak"),
    }
    for name, (recipe, changes, rows) in jobs.items():
        done = world / f"{name}.done"
        if not done.exists():
            shutil.rmtree(world / "runs" / name, ignore_errors=True)  # one that was broken off
            began = time.process_time()
            changes = [f"data.train={world / f'{rows}.jsonl'}", *changes]
            _run(world, seed, name, recipe.removeprefix("tiny/"), recipe, changes)
            done.touch()
            print(f"seed {seed}: {name}, {time.process_time() - began:.0f} s", flush=True)


def run_arm(world: Path, seed: int, name: str, arm: Arm) -> dict[str, Any]:
    """Train by an arm, and return what the start and each round measured."""
    scorers = [str(world / "runs" / arm.proxy)] if arm.proxy else []
    if arm.proxy == "gold":  # by another name, as held-out prompts are measured by that of gold
        shutil.copy(world / "truth.py", world / "labels.py")
        scorers = [f"verifier:{world / 'labels.py'}:gold"]
    with nullcontext() if arm.errs is None else judge(world, seed, arm.errs) as card:
        scorers += [str(card)] if card is not None else []
        return _rounds(world, seed, name, arm, scorers)


def _rounds(world: Path, seed: int, name: str, arm: Arm, scorers: Sequence[str]) -> dict[str, Any]:
    changes = [
        f"model.name_or_path={world / 'runs/sft/final'}",
        f"data.train={world / 'prompts.jsonl'}",
        f"data.eval={world / 'heldout.jsonl'}",
        f"online.reward_models={dumps(scorers)}",
        f"online.evaluation.gold=verifier:{world / 'truth.py'}:gold",
        *ONLINE,
        *arm.changes,
        *([f"online.oracle.scorer=verifier:{world / 'truth.py'}:gold"] if arm.asks else []),
    ]
    recipe = "tiny/online"
    if SFT_STAGE in changes:
        recipe = str(_without_dpo(world / "online-sft.yaml"))
        changes = [change for change in changes if not change.startswith("dpo.")]
    shutil.rmtree(world / "runs" / name, ignore_errors=True)  # one that was broken off
    with patch.object(Policies, "_training", _forgetting) if arm.forgets else nullcontext():
        run = _run(world, seed, name, "online", recipe, changes)
    summary = parse_json(run / "rounds.json", "run it again")
    rounds = [_whole(one) for one in summary["rounds"]]
    labels = [done_record(folder) for folder in sorted(run.glob("rounds/*/refresh"))]
    shutil.rmtree(run / "rounds")
    found = {"rounds": rounds, "best": summary["best"], "stopped": summary["stopped"]}
    return {**found, "refreshed": [one["facts"] for one in labels]} if labels else found


def _without_dpo(file: Path) -> Path:
    """Write the tiny recipe for training on the best responses alone."""
    recipe = yaml.safe_load(recipe_text("tiny/online"))
    del recipe["dpo"]
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return file


_OF_PRODUCT = Policies._training


def _forgetting(policies: Policies, number: int) -> Training:
    """What a loop trains that starts each round from the start, on its own pairs."""
    found = _OF_PRODUCT(policies, number)
    return replace(found, pairs=found.pairs[-1:])


def _whole(measured: dict[str, Any]) -> dict[str, float]:
    """Both parts of the held-out prompts together."""
    parts = [measured["validation"], measured["test"]]
    total = sum(part["prompts"] for part in parts)
    keys = ("gold", "reward", "kl", "tokens", "finished", "proxy_accuracy")
    return {
        key: sum((part[key] or 0.0) * part["prompts"] for part in parts) / total for key in keys
    }


# --- tables ---------------------------------------------------------------------------------------

COLUMNS = {"gold": 2, "reward": 2, "kl": 1, "tokens": 2, "finished": 2, "proxy_accuracy": 3}


def tables(results: dict[str, Any]) -> list[str]:
    """The lines of the tables: the mean over seeds, and each seed."""
    lines = []
    for part, arms in results.items():
        lines += ["", f"{part.capitalize()}:", ""]
        lines += [f"| arm | {' | '.join(COLUMNS)} | rounds |", "| --- |" + " --- |" * 7]
        if part == "rates":
            first = next(iter(arms.values()))
            lines.append(
                _line("the start", {seed: one["rounds"][0] for seed, one in first.items()})
            )
        for name, seen in arms.items():
            last = {seed: one["rounds"][-1] for seed, one in seen.items()}
            counts = ", ".join(str(len(one["rounds"]) - 1) for one in seen.values())
            lines.append(_line(name, last, counts))
        lines += _of_labels(arms)
    return lines[1:]


def _of_labels(arms: dict[str, Any]) -> list[str]:
    """A table of the held-out labels that proxies order rightly, after the last refresh; nothing
    where none was refreshed."""
    asked = {name: seen for name, seen in arms.items() if "refreshed" in next(iter(seen.values()))}
    if not asked:
        return []
    head = ("labels trained on", "held out", "right, original", "right, refreshed")
    lines = ["", f"| arm | {' | '.join(head)} |", "| --- |" + " --- |" * len(head)]
    for name, seen in asked.items():
        last = [one["refreshed"][-1] for one in seen.values()]
        cells = [", ".join(f"{one[key]}" for one in last) for key in ("trained on", "held out")]
        for key in ("original", "after"):
            cells.append(", ".join(f"{one['accuracy'][key]:.2f}" for one in last))
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


def _line(name: str, seen: dict[str, dict[str, float]], rounds: str = "") -> str:
    cells = [name]
    for key, digits in COLUMNS.items():
        values = [one[key] for one in seen.values()]
        each = ", ".join(f"{value:.{digits}f}" for value in values)
        cells.append(f"{sum(values) / len(values):.{digits}f} ({each})")
    return f"| {' | '.join([*cells, rounds])} |"


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
                found = seen[str(seed)] = run_arm(world, seed, place, arm)
                write_atomically(file, dumps(results))
                gold = [round(one["gold"], 2) for one in found["rounds"]]
                spent = time.process_time() - began
                print(f"seed {seed}: {part}, {name}, {spent:.0f} s, gold {gold}", flush=True)
    return results


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
        results = measure(options.folder or Path(name), options.part, options.seeds)
    for mark, parts in WRITTEN.items():
        lines = tables({part: arms for part, arms in results.items() if part in parts})
        print("\n".join(lines), flush=True)
        if options.write and lines:
            write(mark, "\n".join(lines))


if __name__ == "__main__":
    main()
