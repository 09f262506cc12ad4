"""Mosaic-IT against plain SFT in the toy world: rules followed, single prompts answered, and what
each costs.

    python -m benchmarks.effects.mosaic [--world all|simple] [--seeds N] [--workers N] [--write]

Every arm trains the base model on the same 4,000 right answers, eight sequences a step: plain rows,
or mosaics of up to two rows drawn anew for each epoch, with 10% plain samples and with none. The
wording is `mosaic_phrasings.yaml`, short enough for a model of half a million weights that reads
letters, and the rules are those that it can hope to learn (`RULES`); with three rows in a sample it
would need several times the training.

In the world `all` they are all kinds of exercises, for 14 epochs: more than so small a model can
master, so what it learns for mosaics is missed for single prompts. The world `simple` has those
that it can master, in 40 epochs: one part, and no sums.

A rule is followed when the greedy answer to a mosaic of held-out exercises, read without regard to
what the answers say, has the right numbers in the right order, every tag in its place and nothing
else. A seed changes the world, the base, the mosaics, the order of rows and the sampling. With
`--write` the tables go into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from aligner.builders.mosaic.check import Violation, parse
from aligner.builders.mosaic.engine import Counts, Sample
from aligner.builders.mosaic.epochs import mosaics_of
from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Model, Mosaic, Source
from aligner.data.loading import load_rows
from aligner.data.rows import CompletionRow
from aligner.evaluation.answers import measure_prompts
from aligner.generation.decode import generate
from aligner.generation.sampling import Sampling
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.catalogue import load_scorer
from aligner.runs.checkpoints import checkpoints_in, step_of
from aligner.toy.tasks import draw, gold_score
from aligner.toy.world import write_world
from benchmarks.results import write

PHRASINGS = str(Path(__file__).with_name("mosaic_phrasings.yaml"))
EPOCHS = {"all": 14, "simple": 40}
ROWS = 4000
BATCH = 8
LIMIT = 320
EXAMPLES = 2
LEARNING_RATE = 1.5e-3
CHECKPOINTS = 8
ARMS: dict[str, float | None] = {
    "plain SFT": None,
    "mosaics, 10% plain": 0.1,
    "mosaics, none plain": 0.0,
}
RULES = {
    "permute_rules": ["explicit", "reverse", "even_first"],
    "mask_rules": ["explicit", "odd", "even"],
}
STRATEGIES = ("format", "permute", "maskout")


@dataclass(frozen=True)
class Point:
    """A checkpoint of an arm: what it has cost so far, and how well it answers single prompts."""

    steps: int
    padded: float
    """Tokens, with every sequence padded to the limit."""
    packed: float
    """Tokens, without padding."""
    single: float


@dataclass(frozen=True)
class RunResult:
    """What an arm came to with one seed."""

    single: float
    followed: dict[str, float]
    right: dict[str, float]
    by_rule: dict[str, list[float]]
    points: list[Point]


def is_simple(prompt: str) -> bool:
    """Whether an exercise has one part and is no sum."""
    return ";" not in prompt and not prompt.startswith("add")


def write_rows(world: Path, seed: int, kind: str) -> None:
    """Right answers to exercises of which none is held out, one a row; of the held-out ones, keep
    those of the kind."""
    file = world / "heldout.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    held_out = {row["prompt"][0]["content"] for row in rows}
    kept = [row for row in rows if kind == "all" or is_simple(row["prompt"][0]["content"])]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    rng, prompts = random.Random(f"mosaic {seed}"), {}
    while len(prompts) < ROWS:
        exercise = draw(rng)
        if exercise.prompt not in held_out and (kind == "all" or is_simple(exercise.prompt)):
            prompts[exercise.prompt] = exercise.answer
    turns = (
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        for asked, said in prompts.items()
    )
    (world / "single.jsonl").write_text(
        "".join(json.dumps({"messages": talk}) + "\n" for talk in turns), encoding="utf-8"
    )


def train(world: Path, seed: int, kind: str, name: str, plain: float | None) -> Path:
    """Train an arm from the base, and return its run directory."""
    mosaic = json.dumps(
        {"max_examples": EXAMPLES, "plain_fraction": plain, "phrasings": PHRASINGS, **RULES}
    )
    overrides = [
        f"model.name_or_path={world / 'model'}",
        f"data.train={world / 'single.jsonl'}",
        f"data.max_length={LIMIT}",
        "data.eval=null",
        f"seed={seed}",
        f"output_dir={world / 'runs' / name.replace(' ', '-')}",
        "report.num_prompts=0",
        f"trainer.num_train_epochs={EPOCHS[kind]}",
        f"trainer.per_device_train_batch_size={BATCH}",
        f"trainer.learning_rate={LEARNING_RATE}",
        "trainer.logging_steps=1",
        f"trainer.save_steps={1 / CHECKPOINTS}",
        "trainer.save_total_limit=100",
        *([] if plain is None else [f"data.mosaic={mosaic}"]),
    ]
    return run_recipe(load_recipe("sft", "tiny/sft", overrides)).run_dir


def held_out_mosaics(world: Path, seed: int) -> list[Sample]:
    """Mosaics of two exercises that no training has seen."""
    rows = load_rows(Data(train=[Source(path=str(world / "heldout.jsonl"))]), "prompts", 0).train
    examples = [
        CompletionRow(row.prompt, [{"role": "assistant", "content": row.answer}], row.origin)
        for row in rows
    ]
    settings = Mosaic(
        max_examples=EXAMPLES, min_examples=2, plain_fraction=0.0, phrasings=PHRASINGS, **RULES
    )
    made = mosaics_of(
        examples,
        settings,
        tokenizer=load_tokenizer(Model(name_or_path=str(world / "model"))),
        seed=seed,
    )
    samples = [sample for number in range(2) for sample in made.epoch_samples(number, Counts())]
    return [sample for sample in samples if len(sample.plan.examples) > 1]


def outcome(world: Path, run: Path, seed: int, samples: list[Sample]) -> RunResult:
    """Measure the result of an arm."""
    tokenizer = load_tokenizer(Model(name_or_path=str(run / "final")))
    model = load_policy(Model(name_or_path=str(run / "final")), tokenizer, trainable=False)
    greedy = Sampling(max_new_tokens=120, temperature=0.0)
    prompts = [sample.row.prompt for sample in samples]
    answers = [one[0].text for one in generate(model, tokenizer, prompts, greedy, batch_size=100)]
    followed, right, by_rule = defaultdict(list), defaultdict(list), defaultdict(list)
    for sample, answer in zip(samples, answers):
        does, share = judge(sample, answer)
        followed[sample.plan.strategy].append(does)
        right[sample.plan.strategy].append(share)
        if sample.plan.rule:
            by_rule[f"{sample.plan.strategy}.{sample.plan.rule}"].append(does)
    means = [
        {key: statistics.fmean(found[key]) for key in STRATEGIES} for found in (followed, right)
    ]
    points = list(curve(world, run, seed))
    return RunResult(single(world, run / "final", seed), means[0], means[1], dict(by_rule), points)


def judge(sample: Sample, answer: str) -> tuple[float, float]:
    """Whether the answer has the form that was asked for; and if so, the mean gold score of its
    parts, else 0."""
    style = sample.plan.style
    try:
        parts = parse(answer, begin=style.begin, end=style.end, number=style.number, gap=style.gap)
    except Violation:
        return 0.0, 0.0
    wanted = list(sample.plan.order)
    found = [index for index, _ in parts]
    if (style.number and found != wanted) or len(parts) != len(wanted):
        return 0.0, 0.0
    texts = [sample.rendered.prompt[start:stop] for _, start, stop in sample.rendered.asked]
    scores = [gold_score(texts[place - 1], text) for place, (_, text) in zip(wanted, parts)]
    return 1.0, statistics.fmean(scores)


def single(world: Path, result: Path, seed: int) -> float:
    """Gold score of one sampled answer to each held-out prompt."""
    tokenizer = load_tokenizer(Model(name_or_path=str(result)))
    model = load_policy(Model(name_or_path=str(result)), tokenizer, trainable=False)
    rows = load_rows(Data(train=[Source(path=str(world / "heldout.jsonl"))]), "prompts", 0).train
    sampling = Sampling(max_new_tokens=32, temperature=1.0, seed=seed)
    found = measure_prompts(
        model, tokenizer, rows, scorer=load_scorer("toy"), sampling=sampling, batch_size=100
    )
    return float(found[0]["score"])


def curve(world: Path, run: Path, seed: int) -> Iterator[Point]:
    """Cost and score at every checkpoint; tokens are those that went through the model, padding not
    counted."""
    metrics = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    tokens = {line["step"]: line["num_tokens"] for line in metrics}
    for checkpoint in checkpoints_in(run / "checkpoints"):
        steps = step_of(checkpoint)
        yield Point(steps, steps * BATCH * LIMIT, tokens[steps], single(world, checkpoint, seed))


def first_reaching(points: list[Point], score: float) -> Point | None:
    """The first checkpoint that answers single prompts this well."""
    return next((point for point in points if point.single >= score), None)


def tables(kind: str, found: dict[str, list[RunResult]], base: list[float]) -> dict[str, list[str]]:
    """The tables of RESULTS.md by mark."""
    mark = "mosaic" if kind == "all" else f"mosaic-{kind}"
    seeds = len(base)
    head = [
        "| | " + " | ".join(f"seed {seed}" for seed in range(seeds)) + " | mean |",
        "| --- |" + " --- |" * (seeds + 1),
    ]

    def row(name: str, values: list[float]) -> str:
        return (
            f"| {name} | "
            + " | ".join(f"{value:.3f}" for value in [*values, statistics.fmean(values)])
            + " |"
        )

    singles = [*head, row("base model", base)]
    singles += [row(name, [one.single for one in outcomes]) for name, outcomes in found.items()]
    rules = [
        "| | " + " | ".join(f"{strategy}: followed (right)" for strategy in STRATEGIES) + " |",
        "| --- |" + " --- |" * 3,
    ]
    for name, outcomes in found.items():
        cells = []
        for key in STRATEGIES:
            seen = ", ".join(f"{one.followed[key]:.2f}" for one in outcomes)
            cells.append(f"{seen} ({statistics.fmean(one.right[key] for one in outcomes):.2f})")
        rules.append(f"| {name} | " + " | ".join(cells) + " |")
    return {
        f"{mark}-single": singles,
        f"{mark}-rules": rules,
        f"{mark}-each": _each(found),
        f"{mark}-cost": _cost(found),
    }


def _each(found: dict[str, list[RunResult]]) -> list[str]:
    names = sorted(
        {rule for outcomes in found.values() for one in outcomes for rule in one.by_rule}
    )
    lines = ["| rule | " + " | ".join(found) + " |", "| --- |" + " --- |" * len(found)]
    for rule in names:
        cells = [
            statistics.fmean(value for one in outcomes for value in one.by_rule.get(rule, []))
            for outcomes in found.values()
        ]
        lines.append(f"| {rule} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return lines


def _cost(found: dict[str, list[RunResult]]) -> list[str]:
    """Steps, padded and packed tokens up to the single-prompt score that plain SFT ends with, as
    ratios to plain SFT's own."""
    lines = [
        "| to plain SFT's last score | seed | steps | padded to the limit | packed |",
        "| --- | --- | --- | --- | --- |",
    ]
    plain = found["plain SFT"]
    for name, outcomes in found.items():
        for seed, (one, reference) in enumerate(zip(outcomes, plain)):
            target = reference.points[-1].single
            own, other = (
                first_reaching(reference.points, target),
                first_reaching(one.points, target),
            )
            assert own is not None
            if other is None:
                best = max(point.single for point in one.points)
                lines.append(
                    f"| {name} | {seed} | not reached (best {best:.3f} of {target:.3f}) | | |"
                )
                continue
            ratios = (other.steps / own.steps, other.padded / own.padded, other.packed / own.packed)
            lines.append(f"| {name} | {seed} | {other.steps} | {ratios[1]:.2f} | {ratios[2]:.2f} |")
    return lines


def prepare(world: Path, seed: int, kind: str) -> float:
    """Write a world, and return how well its base model answers."""
    torch.set_num_threads(1)
    write_world(world, seed=seed)
    write_rows(world, seed, kind)
    return single(world, world / "model", seed)


def run_arm(world: Path, seed: int, kind: str, arm: str) -> RunResult:
    """Train an arm and measure it."""
    torch.set_num_threads(1)
    found = outcome(
        world, train(world, seed, kind, arm, ARMS[arm]), seed, held_out_mosaics(world, seed)
    )
    print(
        seed,
        arm,
        found.single,
        found.followed,
        found.right,
        [point.single for point in found.points],
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", choices=list(EPOCHS), default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="arms that are trained side by side")
    parser.add_argument(
        "--write", action="store_true", help="write the tables into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(options.workers, get_context("spawn")) as pool,
    ):
        worlds = [Path(name) / str(seed) for seed in range(options.seeds)]
        base = list(
            pool.map(prepare, worlds, range(options.seeds), [options.world] * options.seeds)
        )
        jobs = {
            arm: [
                pool.submit(run_arm, world, seed, options.world, arm)
                for seed, world in enumerate(worlds)
            ]
            for arm in ARMS
        }
        found = {arm: [job.result() for job in waiting] for arm, waiting in jobs.items()}
    for mark, lines in tables(options.world, found, base).items():
        print("\n".join(lines), flush=True)
        if options.write:
            write(mark, "\n".join(lines))


if __name__ == "__main__":
    main()
