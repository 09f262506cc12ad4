"""The part `adapters` of `benchmarks.effects.rlhf`: does reinforcement learning raise the gold
score of the toy world when all weights are trained, when adapters are, and when these stand on a
base of 4 bits?

A seed is a toy world of its own, with `tiny/sft` and `tiny/reward-segment` in it. From there the
shipped recipes train each kind of model; adapters with a larger learning rate (`RECIPES`), and
nothing else is changed. "Segments alone" is `tiny/rlhf` without its verifier. The gold score is
that of 400 held-out prompts, greedy and sampled at temperature 1, before, by the start loaded in
the same way, and after.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Model
from aligner.data.loading import load_rows
from aligner.evaluation.evaluate import evaluate
from aligner.generation.sampling import Sampling
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.catalogue import load_scorer
from aligner.toy.world import write_world

START = "runs/sft/final"
BEFORE = {"runs/sft": "tiny/sft", "runs/reward-segment": "tiny/reward-segment"}
RECIPES = {
    "tiny/rlhf-verifier": (1e-4, 1e-3),
    "tiny/rlhf": (2e-4, 1e-3),
    "tiny/rlhf-ppo": (3e-4, 3e-3),
}
"""Recipe -> its learning rate, and that of adapters."""
LORA = "model.lora={r: 16, lora_alpha: 32}"
ALONE = "segments alone"
KINDS: dict[str, list[str]] = {
    "full": [],
    "LoRA": [LORA],
    "NF4": [LORA, "model.quantization=nf4"],
    ALONE: ["rlhf.credit=location", "rlhf.alpha=0", "rlhf.reward_models=[]"],
}
"""Kind of model -> changes to the recipe."""
TEMPERATURES = (0.0, 1.0)

Scores = dict[str, list[float]]
"""`before` and `after`, each greedy and sampled."""


def arms() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the recipe and the kind of each arm."""
    for recipe in RECIPES:
        for kind in KINDS:
            if kind != ALONE or recipe == "tiny/rlhf":
                yield f"`{recipe}`, {kind}", recipe, kind


def prepare(world: Path, seed: int) -> None:
    """Write the world, and train the start and the segment model."""
    if not (world / "manifest.json").exists():
        shutil.rmtree(world, ignore_errors=True)  # one that was broken off
        write_world(world, seed=seed)
    with chdir(world):
        for run, recipe in BEFORE.items():
            if not Path(run, "manifest.json").exists():
                shutil.rmtree(run, ignore_errors=True)
                run_recipe(
                    load_recipe(recipe.split("/")[1].split("-")[0], recipe, [f"seed={seed}"])
                )


def run_arm(world: Path, seed: int, recipe: str, kind: str) -> Scores:
    """Train by a recipe, and return the gold scores around it."""
    full, adapters = RECIPES[recipe]
    out = f"runs/{recipe.split('/')[1]}-{kind.lower().replace(' ', '-')}"
    place = [f"output_dir={out}", f"seed={seed}", "report.num_prompts=0"]
    rate = f"trainer.learning_rate={adapters if LORA in KINDS[kind] else full:g}"
    with chdir(world):
        shutil.rmtree(out, ignore_errors=True)
        run_recipe(load_recipe("rlhf", recipe, [*place, rate, *KINDS[kind]]))
        return {
            "before": gold_scores(START, seed, kind),
            "after": gold_scores(f"{out}/final", seed, kind),
        }


def gold_scores(folder: str, seed: int, kind: str) -> list[float]:
    """Return the gold score at each of the temperatures."""
    section = Model(name_or_path=folder, quantization="nf4" if kind == "NF4" else "none")
    tokenizer = load_tokenizer(section)
    model = load_policy(section, tokenizer, trainable=False)
    rows = load_rows(Data(train="heldout.jsonl"), "prompts", 0).train
    found = []
    for temperature in TEMPERATURES:
        sampling = Sampling(max_new_tokens=32, temperature=temperature, seed=seed)
        numbers = evaluate(
            model,
            tokenizer,
            rows,
            task="prompts",
            scorer=load_scorer("toy"),
            sampling=sampling,
            batch_size=100,
        )
        found.append(round(numbers["score"], 4))
    return found
