"""Battles on real answers: do the diagnoses find what is planted in a judge, and what do ratings by
a small reward model say?

    python -m benchmarks.real.arena MODEL DATA [--folder DIR] [--write]

DATA is a folder with the questions and answers of Arena-Hard (`arena_hard_questions.jsonl` and
`arena_hard_answers_*.jsonl`, 500 prompts, three models), MODEL a small chat model. It is skipped,
with its reason, where the folder is missing.

    planted      `aligner arena battle` with a panel of four judges on a server of this machine
                 (`simulated_judges.py`), which go through the whole chain of prompt, reply and
                 parser: one is fair, the others like the first answer, the longer answer, their own
                 family. `aligner arena diagnose` is to find each, and nothing in the fair one.
                 Ratings by category are those of the fair judge, with and without the others
    reward model `aligner reward` trains MODEL with an adapter on some prompts, the answer of the
                 strongest model of the benchmark's own table against that of the weakest; it judges
                 the others, the middle model among them, which it has not seen
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from aligner.config.load import load_recipe
from aligner.config.recipe import Model
from aligner.methods.catalogue import function_of, method_of
from aligner.models.tokenizers import load_tokenizer
from benchmarks.real.simulated_judges import FAMILY, JUDGES, JudgeServer
from benchmarks.results import write

QUESTIONS = "arena_hard_questions.jsonl"
MODELS = ("gpt-4-0314", "gpt-4-0613", "gpt-3.5-turbo-0125")
"""Strongest first, by the benchmark's own table."""
CODE = re.compile(
    r"\b(?:code|python|javascript|java|sql|html|css|api|script|function|class|docker|linux|react|"
    r"node|php|rust|git|bash|server|database|regex|json|yaml|excel|powershell|algorithm)\b|```|"
    r"\bc\+\+|\bc#",
    re.IGNORECASE,
)
MATHEMATICS = re.compile(
    r"\b(?:prove|proof|theorem|equation|integral|derivative|probability|matrix|calculate|compute|"
    r"solve|polynomial|vector|variance|formula|physics|quantum)\b",
    re.IGNORECASE,
)
MOST_TOKENS, TRAINED_ON = 400, 48
"""Of the reward model: tokens of a conversation, and prompts that it is trained on."""
REWARD = [
    "model.lora={r: 8, lora_alpha: 16}",
    f"data.max_length={MOST_TOKENS}",
    "reward.kind=bradley_terry",
    "trainer.learning_rate=5e-4",
    "trainer.num_train_epochs=1",
    "trainer.per_device_train_batch_size=1",
    "trainer.gradient_accumulation_steps=4",
    "trainer.save_strategy='no'",
    "report.num_prompts=0",
]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def category(prompt: str) -> str:
    """What a prompt is about, by its words: `code`, `mathematics` or `other`."""
    if CODE.search(prompt):
        return "code"
    return "mathematics" if MATHEMATICS.search(prompt) else "other"


def read_answers(data: Path) -> dict[str, dict[str, str]]:
    """Model -> prompt -> answer."""
    found: dict[str, dict[str, str]] = {}
    for model in MODELS:
        rows = _rows(data / f"arena_hard_answers_{model}.jsonl")
        found[model] = {row["uid"]: row["messages"][-1]["content"]["answer"] for row in rows}
    return found


def _run(method: str, recipe: Path | None, changes: Sequence[str]) -> Path:
    resolved = load_recipe(method, None if recipe is None else str(recipe), ["seed=0", *changes])
    carry_out = function_of(method_of(method).run)
    resume = Path(resolved.recipe.output_dir).exists()
    run: Path = carry_out(resolved, resume=resume, on_event=None).run_dir
    return run


def battle(data: Path, folder: Path, prompts: Path, judges: Sequence[dict[str, Any]]) -> Path:
    """Have the three models meet on prompts; return the folder of the run."""
    contestants = [
        {"name": model, "answers": str(data / f"arena_hard_answers_{model}.jsonl")}
        for model in MODELS
    ]
    arena = {"contestants": contestants, "judges": list(judges), "category": "category"}
    recipe = {"method": "arena", "data": {"train": str(prompts)}, "output_dir": str(folder)}
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**recipe, "arena": arena}), encoding="utf-8")
    return _run("arena", file, [])


# --- planted judges -------------------------------------------------------------------------------


def planted(data: Path, folder: Path, prompts: Path) -> list[str]:
    """Battles before judges that are swayed, and what their diagnosis says."""
    began = time.monotonic()
    with JudgeServer(read_answers(data), CODE) as server:
        judges = [
            {
                "name": name,
                "endpoint": {"model": name, "base_url": server.base_url, "max_in_flight": 16},
            }
            for name in JUDGES
        ]
        run = battle(data, folder / "planted", prompts, judges)
    seconds = time.monotonic() - began
    games = _rows(run / "games.jsonl")
    lines = [f"{len(games):,} games of {len(JUDGES)} judges in {seconds:,.0f} s.", ""]
    log = run / "games.jsonl"
    return [*lines, *diagnosed(log), "", *rated(log, list(JUDGES))]


def diagnosed(log: Path) -> list[str]:
    """The table of what `aligner arena diagnose` finds."""
    from aligner.arena.diagnosis import Settings, diagnose
    from aligner.arena.judgments import judgments_of
    from aligner.arena.readers import Reading, read_games

    games, _ = read_games([log], Reading("games"))
    record = diagnose(judgments_of(games, 0.0), Settings(families=FAMILY))
    head = "| judge | planted | first seat | length, beyond records | own family | found | fails |"
    lines = [head, "| --- |" + " --- |" * 6]
    for name, about in JUDGES.items():
        row = record["judges"][name]
        cells = [_interval(row.get(key)) for key in ("first_seat", "length_lead")]
        cells.append(_interval(row.get("self_preference")))
        cells.append("; ".join(re.split(r",? by:|:", text)[0] for text in row["findings"]))
        cells.append("; ".join(_reason(text) for text in row["failed"]))
        lines.append(f"| {name} | {about.planted} | {' | '.join(cells)} |")
    return lines


def _interval(found: dict[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return ""
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _reason(text: str) -> str:
    return text.partition(" is ")[0].removeprefix("the ")


def rated(log: Path, judges: Sequence[str]) -> list[str]:
    """Ratings by each judge, and by category those of the first one, where the prompts are enough
    for intervals."""
    from aligner.arena.rating import Settings, by_category, rate
    from aligner.arena.readers import Reading, read_votes

    head = f"| judge | prompts about | {' | '.join(MODELS)} |"
    lines = [head, "| --- |" + " --- |" * (len(MODELS) + 1)]
    for judge in judges:
        file = log.with_name(f"{judge}.jsonl")
        _write(file, [row for row in _rows(log) if row["judge_id"] == judge])
        votes = read_votes([file], Reading("games"))
        how = Settings(anchor=MODELS[-1])
        found: dict[str, Any] = {"anything": rate(votes, how)}
        if judge == judges[0]:
            found |= by_category(votes, how)
        for kind, ratings in found.items():
            if not isinstance(ratings, str) and np.isfinite([ratings.low, ratings.high]).all():
                lines.append(f"| {judge} | {kind} | {' | '.join(_cells(ratings))} |")
    return lines


def _cells(ratings: Any) -> list[str]:
    cells = []
    for model in MODELS:
        place = ratings.models.index(model)
        columns = (ratings.low, ratings.rating, ratings.high)
        low, value, high = (float(column[place]) for column in columns)
        is_anchor = model == MODELS[-1]
        cells.append(f"{value:.0f}" if is_anchor else f"{value:.0f} ({low:.0f} to {high:.0f})")
    return cells


# --- a reward model -------------------------------------------------------------------------------


def short_prompts(
    model: Path, questions: Sequence[dict[str, Any]], answers: dict[str, dict[str, str]]
) -> list[dict[str, Any]]:
    """The questions whose conversations with all three answers the reward model reads whole."""
    tokenizer = load_tokenizer(Model(name_or_path=str(model)))
    room = MOST_TOKENS - 50  # what a chat template writes

    def tokens(row: dict[str, Any], said: dict[str, str]) -> int:
        return len(tokenizer(row["prompt"] + said[row["uid"]])["input_ids"])

    return [row for row in questions if all(tokens(row, said) <= room for said in answers.values())]


def trained_judge(
    model: Path, data: Path, folder: Path, questions: Sequence[dict[str, Any]]
) -> list[str]:
    """Train a reward model on some prompts, let it judge others; what it says of the models."""
    answers, began = read_answers(data), time.monotonic()
    short = short_prompts(model, questions, answers)
    trained, judged = short[:TRAINED_ON], short[TRAINED_ON:]
    pairs = [
        {
            "prompt": row["prompt"],
            "chosen": answers[MODELS[0]][row["uid"]],
            "rejected": answers[MODELS[-1]][row["uid"]],
        }
        for row in trained
    ]
    places = [
        f"model.name_or_path={model}",
        f"data.train={_write(folder / 'pairs.jsonl', pairs)}",
        f"output_dir={folder / 'reward'}",
    ]
    reward = _run("reward", None, [*places, *REWARD])
    prompts = _write(folder / "judged.jsonl", judged)
    run = battle(data, folder / "judged", prompts, [{"name": "reward", "scorer": str(reward)}])
    seconds = time.monotonic() - began
    about = (
        f"{len(short)} prompts have three conversations of at most {MOST_TOKENS} tokens; trained "
        f"on {len(trained)} pairs, judged {len(judged)} others, in {seconds:,.0f} s."
    )
    return [about, "", *rated(run / "games.jsonl", ["reward"])]


def run(model: Path, data: Path, folder: Path) -> list[str]:
    """Both parts; return the lines of the tables."""
    questions = [{**row, "category": category(row["prompt"])} for row in _rows(data / QUESTIONS)]
    folder.mkdir(parents=True, exist_ok=True)
    prompts = _write(folder / "prompts.jsonl", questions)
    lines = planted(data, folder, prompts)
    return [*lines, "", *trained_judge(model, data, folder, questions)]


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
    if options.write:
        write("arena-real", "\n".join(lines))


if __name__ == "__main__":
    main()
