"""A real policy that rates itself: `online.self_rewarding` on SmolLM2, with and without having been
taught to rate.

    python -m benchmarks.real.self_rewarding MODEL TASKS... [--folder DIR] [--write]

The task is that of `benchmarks.real.online`: a list of three short lines, which a program can check
(`examples/three_lines.py`). A model of this size cannot rate, so it is first trained on ratings of
its own responses (the paper's evaluation fine-tuning, arXiv 2401.10020, section 2.1), which here
come from the program: points from 0 to 5 for the share of what was asked, by criteria of this task.
Then two rounds are rated by the policy alone. The program measures (`evaluation.gold`), and trains
nothing in the rounds.

    rows      how many ratings can be read, and how they agree with the program: Spearman's
              correlation over responses, before and after being taught
    rounds    gold of held-out prompts after each round

The prompts whose responses teach are none of those that are rated. `--folder` keeps what is done.
"""

from __future__ import annotations

import json
import runpy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aligner.config.load import load_recipe
from aligner.config.recipe import Endpoint, Model
from aligner.evaluation.correlation import spearman
from aligner.generation.decode import generate
from aligner.generation.sampling import Sampling
from aligner.methods.catalogue import function_of, method_of
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.base import NoVerdict
from aligner.reward_models.rating import Rating, rating
from aligner.runs.files import parse_json
from benchmarks.real.online import SETTINGS, TASK, measure, write_prompts

CRITERIA = """\
- Every line of the answer starts with a hyphen and a blank.
- Every line is short: at most five words.
- No line repeats another one, or one of the example.
- The list has at least two lines.
- The list has exactly three lines."""
TAUGHT, COMPARED, ROUND, SAMPLES = 24, 8, 24, 4
"""Prompts whose responses teach to rate; those that judges are compared on; those of a round;
responses to each."""
SENTENCE = {True: "It keeps to most of what was asked.", False: "It misses most of what was asked."}
"""What is said before the points."""
SFT = [
    "model.lora={}",
    "data.max_length=1024",
    "trainer.learning_rate=1e-3",
    "trainer.num_train_epochs=1",
    "trainer.per_device_train_batch_size=8",
    "trainer.save_strategy='no'",
    "report.num_prompts=0",
]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _run(method: str, recipe: str | None, changes: Sequence[str], resume: bool) -> Path:
    resolved = load_recipe(method, recipe, ["seed=0", *changes])
    carry_out = function_of(method_of(method).run)
    run: Path = carry_out(resolved, resume=resume, on_event=print).run_dir
    return run


def answer(model: Path, prompts: Sequence[Any], file: Path) -> list[list[str]]:
    """Return the responses of a model to each prompt, at temperature 1; from `file`, if there."""
    if not file.exists():
        tokenizer = load_tokenizer(Model(name_or_path=str(model)))
        policy = load_policy(Model(name_or_path=str(model)), tokenizer, trainable=False)
        sampling = Sampling(32, 1.0, num_samples=SAMPLES, seed=0)
        found = generate(policy, tokenizer, prompts, sampling, batch_size=64)
        texts = []
        for samples in found:
            texts.append([one.text for one in samples])
        file.write_text(json.dumps(texts), encoding="utf-8")
    said: list[list[str]] = json.loads(file.read_text(encoding="utf-8"))
    return said


def teach(model: Path, folder: Path, prompts: Sequence[Any]) -> Path:
    """Train the model on ratings of its own responses by the program; return its folder."""
    share, rows = runpy.run_path(str(TASK))["share"], []
    for prompt, texts in zip(prompts, answer(model, prompts, folder / "taught.json"), strict=True):
        for text in texts:
            points = round(5 * share(prompt, text, None))
            reply = f"{SENTENCE[points > 2]}\nPoints: {points}"
            messages = list(rating(prompt, text, None, CRITERIA))
            rows.append({"prompt": messages, "completion": [_assistant(reply)]})
    _write(folder / "ratings.jsonl", rows)
    place = [f"data.train={folder / 'ratings.jsonl'}", f"output_dir={folder / 'sft'}"]
    resume = (folder / "sft").exists()
    return _run("sft", None, [f"model.name_or_path={model}", *place, *SFT], resume) / "final"


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def agreement(judge: Path, prompts: Sequence[Any], said: Sequence[Sequence[str]]) -> str:
    """Ask a model for ratings of responses, and say how many there are and how they agree with the
    program."""
    share = runpy.run_path(str(TASK))["share"]
    asked = [(prompt, text) for prompt, texts in zip(prompts, said) for text in texts]
    endpoint = Endpoint(
        backend="local", model=str(judge), max_in_flight=16, temperature=0.0, max_tokens=64
    )
    scorer = Rating("the policy", endpoint, CRITERIA)
    kept = list(range(len(asked)))
    try:
        points = list(scorer.score([one for one, _ in asked], [text for _, text in asked]))
    except NoVerdict as error:
        kept = [row for row in kept if row not in error.rows]
        left = [asked[row] for row in kept]
        points = list(scorer.score([one for one, _ in left], [text for _, text in left]))
    finally:
        scorer.close()
    truth = [share(*asked[row], None) for row in kept]
    found = spearman(np.array(points), np.array(truth)) if len(set(points)) > 1 else None
    return f"{len(kept)} of {len(asked)} | {'' if found is None else f'{found:.2f}'}"


def run(model: Path, files: Sequence[Path], folder: Path) -> list[str]:
    """Teach, compare and carry out the rounds; return the lines of the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(files, folder)
    rows, began = _rows(folder / "train.jsonl"), time.process_time()
    _write(folder / "prompts.jsonl", rows[: 2 * ROUND])
    (folder / "criteria.txt").write_text(CRITERIA, encoding="utf-8")
    prompts = [row["prompt"] for row in rows]
    taught = teach(model, folder, prompts[-TAUGHT:])
    compared = prompts[:COMPARED]
    said = answer(model, compared, folder / "compared.json")
    lines = ["| judge | ratings that can be read | correlation with the program |"]
    lines.append("| --- | --- | --- |")
    for name, judge in (("as it comes", model), ("taught", taught)):
        lines.append(f"| {name} | {agreement(judge, compared, said)} |")
    changes = [
        f"model.name_or_path={taught}",
        f"data.train={folder / 'prompts.jsonl'}",
        f"data.eval={folder / 'heldout.jsonl'}",
        f"output_dir={folder / 'run'}",
        f"online.self_rewarding.rubric={folder / 'criteria.txt'}",
        "online.self_rewarding.samples=1",
        "online.self_rewarding.temperature=0.3",
        "online.self_rewarding.max_new_tokens=32",
        f"online.evaluation.gold=verifier:{TASK}:share",
        *(line for line in SETTINGS if not line.startswith(("seed", "online.prompts"))),
        f"online.prompts_per_round={ROUND}",
    ]
    done = _run("online", None, changes, (folder / "run").exists())
    summary = parse_json(done / "rounds.json", "run it again")
    lines += ["", "| round | gold | of test prompts | KL | tokens | end by themselves |"]
    lines.append("| --- |" + " --- |" * 5)
    for number, measured in enumerate(summary["rounds"]):
        chosen, test = measured["validation"], measured["test"]
        cells = [
            "start" if number == 0 else str(number),
            f"{chosen['gold']:.3f} ± {chosen['gold_stderr']:.3f}",
            f"{test['gold']:.3f} ± {test['gold_stderr']:.3f}",
            f"{chosen['kl']:.2f}",
            f"{chosen['tokens']:.1f}",
            f"{chosen['finished']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [f"{time.process_time() - began:,.0f} CPU-seconds.", "", *lines]


if __name__ == "__main__":
    measure(str(__doc__), run, "self-rewarding-real")
