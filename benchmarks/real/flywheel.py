"""One round of the flywheel on a real model: does it win more often after it learned what it lost?

    python -m benchmarks.real.flywheel MODEL DATA [--folder DIR] [--write]

MODEL is a small chat model, DATA a folder with the questions and answers of Arena-Hard
(`arena_hard_questions.jsonl` and `arena_hard_answers_*.jsonl`); it is skipped, with its reason,
where the folder is missing. Three steps, each resumed with `--folder`:

    answers   MODEL answers some short prompts
    reward    MODEL becomes a reward model (LoRA) by pairs of the strongest model's answer and its
              own: what judges is trained here, and mostly tells the two apart
    flywheel  MODEL fights the three models on other prompts, the reward model judges, SFT (LoRA)
              learns from the winners; ratings before and after, on prompts that were in no battle

Answers of the three models are cut at `MOST_TOKENS` where the reward model reads and MODEL learns,
and MODEL's own end at `NEW_TOKENS`. A gain is one in the eyes of this judge.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from aligner.arena.testset.frozen import ITEMS, freeze
from aligner.config.load import load_recipe
from aligner.methods.catalogue import function_of, method_of
from aligner.runs.files import parse_json, write_parts_atomically
from benchmarks.real.arena import MODELS, QUESTIONS, _rows, _write, read_answers
from benchmarks.results import write

MOST_TOKENS, NEW_TOKENS, WORDS = 256, 96, 40
TAUGHT, FOUGHT, TESTED = 120, 48, 40
CUT = 600
"""Prompts of the reward model, of the battle, and of the test set; and characters of the strongest
model's answers that the reward model learns from, so that each pair fits."""
LORA = {"r": 8, "lora_alpha": 16}


def _run(method: str, settings: dict[str, Any]) -> Path:
    resolved = load_recipe(method, None, [], {"seed": 0, **settings})
    carry_out = function_of(method_of(method).run)
    resume = Path(resolved.recipe.output_dir).exists()
    run: Path = carry_out(resolved, resume=resume, on_event=None).run_dir
    return run


def own_answers(model: Path, folder: Path, questions: list[dict[str, Any]]) -> dict[str, str]:
    """What the model says to prompts, by their id: a battle against nobody who matters."""
    prompts = _write(folder / "taught.jsonl", questions)
    run = _run(
        "arena",
        {
            "data.train": str(prompts),
            "output_dir": str(folder / "answers"),
            "arena.contestants": [
                {"name": "model", "model": str(model)},
                {"name": "file", "answers": str(folder / "strongest.jsonl")},
            ],
            "arena.judges": [{"scorer": "toy", "faults": {"is_blind": True}}],
            "arena.max_new_tokens": NEW_TOKENS,
            "arena.temperature": 0.7,
        },
    )
    rows = _rows(run / "stages/answers/model/answers.jsonl")
    return {row["prompt_id"]: row["answer"] for row in rows}


def reward_model(model: Path, folder: Path, pairs: list[dict[str, Any]]) -> Path:
    """Train the judge."""
    return _run(
        "reward",
        {
            "model.name_or_path": str(model),
            "model.lora": LORA,
            "data.train": str(_write(folder / "pairs.jsonl", pairs)),
            "data.max_length": MOST_TOKENS,
            "data.on_too_long": "truncate",
            "output_dir": str(folder / "reward"),
            "trainer.learning_rate": 1e-3,
            "trainer.num_train_epochs": 2,
            "trainer.per_device_train_batch_size": 2,
            "trainer.gradient_accumulation_steps": 2,
            "trainer.save_strategy": "no",
            "report.num_prompts": 0,
        },
    )


def run(model: Path, data: Path, folder: Path) -> list[str]:
    """All steps; return the lines of the tables."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    answers = read_answers(data)
    questions = [row for row in _rows(data / QUESTIONS) if len(row["prompt"].split()) <= WORDS]
    questions = [{"prompt_id": row["uid"], "prompt": row["prompt"]} for row in questions]
    random.Random(0).shuffle(questions)
    taught, rest = questions[:TAUGHT], questions[TAUGHT:]
    strongest = [
        {"prompt_id": row["prompt_id"], "answer": answers[MODELS[0]][row["prompt_id"]]}
        for row in taught
    ]
    _write(folder / "strongest.jsonl", strongest)
    own = own_answers(model, folder, taught)
    pairs = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [
                {"role": "assistant", "content": answers[MODELS[0]][row["prompt_id"]][:CUT]}
            ],
            "rejected": [{"role": "assistant", "content": own[row["prompt_id"]]}],
        }
        for row in taught
        if own[row["prompt_id"]].strip()
    ]
    judge = reward_model(model, folder, pairs)
    pool = _write(folder / "pool.jsonl", rest[: FOUGHT + 10])
    tests = folder / "testset"
    if not tests.exists():
        tests.mkdir()
        rows = []
        for number, row in enumerate(rest[FOUGHT + 10 : FOUGHT + 10 + TESTED]):
            part = {"split": "dev" if number % 2 else "test", "subset": "diverse"}
            rows.append({**row, **part})
        write_parts_atomically(tests / ITEMS, freeze(tests, rows, {}, {}))
    turn = _run(
        "flywheel",
        {
            "model.name_or_path": str(model),
            "model.lora": LORA,
            "data.train": str(pool),
            "data.max_length": MOST_TOKENS,
            "output_dir": str(folder / "flywheel"),
            "flywheel.rounds": 1,
            "flywheel.strategies": ["sft"],
            "flywheel.prompts_per_battle": FOUGHT,
            "flywheel.opponents": [
                {"name": name, "answers": str(data / f"arena_hard_answers_{name}.jsonl")}
                for name in MODELS
            ],
            "flywheel.judges": [{"name": "reward model", "scorer": str(judge)}],
            "flywheel.test_set": str(tests),
            "flywheel.max_new_tokens": NEW_TOKENS,
            "flywheel.noise_prompts": 30,
            "flywheel.sft.k": [0.5],
            "flywheel.sft.min_winner_score": None,
            "flywheel.stop.min_rows": 10,
            "trainings.sft": {
                "data": {"on_too_long": "truncate"},
                "trainer": {
                    "learning_rate": 3e-4,
                    "num_train_epochs": 2,
                    "per_device_train_batch_size": 2,
                    "gradient_accumulation_steps": 2,
                    "save_strategy": "no",
                },
                "report": {"num_prompts": 0},
            },
        },
    )
    return [*_report(turn), "", f"{time.monotonic() - began:,.0f} s in all, on one core."]


def _report(folder: Path) -> list[str]:
    found = parse_json(folder / "flywheel.json", "run it again")
    head = "| model | rating, test prompts (95%) | rating, development prompts (95%) | characters |"
    lines = [head, "| --- | --- | --- | --- |"]
    for name, one in found["models"].items():
        length = "" if one["mean_length"] is None else f"{one['mean_length']:,.0f}"
        lines.append(f"| {name} | {_rating(one['test'])} | {_rating(one['dev'])} | {length} |")
    for stage in found["stages"]:
        chosen, noise = stage["selection"], stage["noise"]
        winners = ", ".join(f"{name} {count}" for name, count in chosen["winners"].items())
        lines += [
            "",
            f"{chosen['rows']} rows of {chosen['prompts']} prompts (K {chosen['k']:g}); winners: "
            f"{winners}. Lost by K to others in {noise['loss_rate']:.0%} of the battles, to a "
            f"second sample of itself in {noise['false_loss_rate']:.0%}.",
        ]
    for gain in found["gains"]:
        ends = f" ({gain['low']:+.0f} to {gain['high']:+.0f})" if gain.get("low") else ""
        lines.append(f"Gain on the development prompts: {gain['value']:+.0f}{ends}.")
    if found["stopped"]:
        lines.append(f"Ended: {found['stopped']}.")
    return lines


def _rating(one: dict[str, Any]) -> str:
    low, high = (("?" if end is None else f"{end:,.0f}") for end in (one["low"], one["high"]))
    return f"{one['rating']:,.0f} ({low} to {high})"


def samples(folder: Path, count: int = 5) -> str:
    """Answers before and after, to be read."""
    found = []
    places = ("rounds/00/eval/answers/start", "rounds/01/sft/eval/answers/sft-1")
    if not (folder / "flywheel" / places[1]).exists():
        return "nothing was trained"
    sides = [_rows(folder / "flywheel" / place / "answers.jsonl") for place in places]
    for one, other in list(zip(*sides))[:count]:
        found.append(json.dumps({"before": one, "after": other}, indent=1, ensure_ascii=False))
    return "\n".join(found)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, help="keep what is done here, and resume it")
    parser.add_argument("--write", action="store_true", help="write into benchmarks/RESULTS.md")
    options = parser.parse_args()
    if not (options.data / QUESTIONS).is_file():
        print(f"skipped: {options.data} has no {QUESTIONS}")
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = (options.folder or Path(name)).resolve()
        lines = run(options.model.resolve(), options.data.resolve(), folder)
        print("\n".join(lines), flush=True)
        print(samples(folder), flush=True)
    if options.write:
        write("flywheel-real", "\n".join(lines))


if __name__ == "__main__":
    main()
