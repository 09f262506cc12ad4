"""Reward against KL over a grid of beta: DPO, DiscoPOP's LRML with two tau and with warm-up, and
PADLL.

    python -m benchmarks.effects.discopop [--part bandit|toy|controls] [--seeds N] [--write]

* `bandit`: the contextual bandit of `aligner discover` (known reward, exact KL).
* `toy`: DPO in the toy world from its base model, without a next-token term, learning rate 1e-4;
  gold score of sampled answers, and KL to the base estimated from those answers (mean of log pi(a)
  - log pi_base(a), a drawn from pi).
* `controls`: in the toy world, from the result of `tiny/sft`: the comparison alone, the next-token
  term alone, and both.

A seed changes the world, the order of rows and the sampling. With `--write` the tables go into
`benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Model, Source
from aligner.data.loading import load_rows
from aligner.evaluation.answers import measure_prompts
from aligner.evaluation.likelihood import Tokens, likelihoods
from aligner.generation.sampling import Sampling
from aligner.losses.bandit import run_bandit
from aligner.losses.catalogue import OBJECTIVES
from aligner.losses.types import Objective, PairLogps, Settings
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.catalogue import load_scorer
from aligner.tokenization.encode import encode_prompt
from aligner.toy.world import write_world
from benchmarks.results import write

BETAS = {"bandit": (0.05, 0.1, 0.5, 1.0), "toy": (0.05, 0.1, 0.5, 1.0)}
WARM_UP = {"bandit": 100, "toy": 70}

# name -> (objective, tau, warm-up steps as a share of those of the part)
VARIANTS = {
    "DPO": ("sigmoid", 0.05, False),
    "LRML tau .05": ("discopop", 0.05, False),
    "LRML tau .05, warm-up": ("discopop", 0.05, True),
    "LRML tau .2": ("discopop", 0.2, False),
    "PADLL": ("padll", 0.05, False),
}
CONTROLS = {
    "comparison alone": ["dpo.nll_weight=0"],
    "next-token term alone": ["dpo.nll_weight=0", "dpo.loss=sft"],
    "both (tiny/dpo)": [],
}


def warmed_up(objective: Objective, steps: int) -> Objective:
    """DPO for the first calls, as `dpo.warmup_steps_dpo` has it for the first steps."""
    calls = iter(range(steps))

    def switched(pairs: PairLogps, settings: Settings) -> Tensor:
        return (OBJECTIVES["sigmoid"] if next(calls, None) is not None else objective)(
            pairs, settings
        )

    return switched


def bandit(name: str, beta: float, seed: int) -> tuple[float, float]:
    """Reward gain and KL of one training."""
    loss, tau, warm = VARIANTS[name]
    objective = warmed_up(OBJECTIVES[loss], WARM_UP["bandit"]) if warm else OBJECTIVES[loss]
    found = run_bandit(objective, Settings(beta=beta, tau=tau), seed=seed)
    return found.reward_gain, found.kl


def worlds(seeds: int, folder: Path) -> dict[int, Path]:
    """Write the toy worlds."""
    for seed in range(seeds):
        write_world(folder / str(seed), seed=seed)
    return {seed: folder / str(seed) for seed in range(seeds)}


def toy(world: Path, name: str, beta: float, seed: int) -> tuple[float, float]:
    """Gold score and KL of one training in the toy world."""
    loss, tau, warm = VARIANTS[name]
    settings = [f"dpo.loss={loss}", f"dpo.beta={beta}", "dpo.nll_weight=0", "dpo.alarm_steps=0"]
    settings += ["trainer.num_train_epochs=2", "trainer.learning_rate=1e-4"]
    settings += [f"dpo.tau={tau}"] if loss == "discopop" else []
    settings += [f"dpo.warmup_steps_dpo={WARM_UP['toy']}"] if warm else []
    return measure(world, train(world, world / "model", seed, settings), seed)


def train(
    world: Path, start: Path, seed: int, settings: Sequence[str], recipe: str = "dpo"
) -> Path:
    """Run a tiny recipe in a world, and return its result."""
    data = "sft.jsonl" if recipe == "sft" else "preferences.jsonl"
    ours = [
        f"model.name_or_path={start}",
        f"data.train={world / data}",
        f"seed={seed}",
        f"output_dir={world / 'run' / recipe}",
        "report.num_prompts=0",
        "trainer.save_strategy='no'",
    ]
    return (
        run_recipe(
            load_recipe(recipe, f"tiny/{recipe}", [*ours, *settings]), overwrite=True
        ).run_dir
        / "final"
    )


def measure(world: Path, result: Path, seed: int) -> tuple[float, float]:
    """Gold score of one sampled answer (temperature 1) to each held-out prompt, and the estimate of
    the KL to the base."""
    tokenizer = load_tokenizer(Model(name_or_path=str(result)))
    policy, base = (
        load_policy(Model(name_or_path=str(path)), tokenizer, trainable=False)
        for path in (result, world / "model")
    )
    rows = load_rows(Data(train=[Source(path=str(world / "heldout.jsonl"))]), "prompts", 0).train
    sampling = Sampling(max_new_tokens=32, temperature=1.0, seed=seed)
    numbers, answers = measure_prompts(
        policy, tokenizer, rows, scorer=load_scorer("toy"), sampling=sampling, batch_size=100
    )
    prompts = [encode_prompt(tokenizer, row.prompt) for row in rows]
    tokens = [
        Tokens(
            [*prompt, *answer[0].token_ids],
            list(range(len(prompt), len(prompt) + len(answer[0].token_ids))),
        )
        for prompt, answer in zip(prompts, answers)
        if answer[0].token_ids
    ]
    ratios = [
        a.total - b.total for a, b in zip(likelihoods(policy, tokens), likelihoods(base, tokens))
    ]
    return numbers["score"], statistics.fmean(ratios)


def grid(
    part: str, one: Callable[[str, float, int], tuple[float, float]], seeds: int
) -> Iterator[str]:
    """A table of reward / KL for each variant and beta: means over seeds, and the worst seed's
    reward."""
    yield "| | " + " | ".join(f"beta {beta:g}" for beta in BETAS[part]) + " |"
    yield "| --- |" + " --- |" * len(BETAS[part])
    for name in VARIANTS:
        cells = []
        for beta in BETAS[part]:
            found = [one(name, beta, seed) for seed in range(seeds)]
            rewards, kls = zip(*found)
            cells.append(
                f"{statistics.fmean(rewards):.2f} / {statistics.fmean(kls):.2f} "
                f"({min(rewards):.2f})"
            )
            print(part, name, beta, cells[-1], flush=True)
        yield f"| {name} | " + " | ".join(cells) + " |"


def controls(found: dict[int, Path]) -> Iterator[str]:
    """A row for each seed: SFT, and what three trainings make of it."""
    yield "| seed | SFT | " + " | ".join(CONTROLS) + " |"
    yield "| --- |" + " --- |" * (len(CONTROLS) + 1)
    for seed, world in found.items():
        start = train(world, world / "model", seed, [], "sft")
        scores = [measure(world, start, seed)[0]]
        scores += [
            measure(world, train(world, start, seed, changes), seed)[0]
            for changes in CONTROLS.values()
        ]
        yield f"| {seed} | " + " | ".join(f"{score:.3f}" for score in scores) + " |"
        print(seed, scores, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("bandit", "toy", "controls"), help="only this one")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--write", action="store_true", help="write the tables into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        for part in [options.part] if options.part else ["bandit", "toy", "controls"]:
            found = {} if part == "bandit" else worlds_once(options.seeds, Path(name))
            lines = {
                "bandit": lambda: grid("bandit", bandit, options.seeds),
                "toy": lambda found=found: grid(
                    "toy", lambda v, b, s: toy(found[s], v, b, s), options.seeds
                ),
                "controls": lambda found=found: controls(found),
            }[part]()
            text = "\n".join(lines)
            print(text, flush=True)
            if options.write:
                write(f"discopop-{part}", text)


def worlds_once(seeds: int, folder: Path) -> dict[int, Path]:
    """The worlds, written by whichever part comes first."""
    there = {seed: folder / str(seed) for seed in range(seeds)}
    return there if all(path.exists() for path in there.values()) else worlds(seeds, folder)


if __name__ == "__main__":
    main()
