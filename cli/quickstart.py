"""`aligner quickstart`: the whole path once, offline and on CPU: toy world, SFT, DPO, and what each
of them changed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import say

MODELS = {"base": "model", "SFT": "runs/sft/final", "DPO": "runs/dpo/final"}


def quickstart(
    directory: Annotated[Path, typer.Option("--dir", help="Folder to work in.")] = Path("toy"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue where an earlier one was stopped.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier one.")] = False,
) -> None:
    """See it work: a tiny model, SFT, DPO, before and after.

    Offline and on CPU, in about three minutes. The world, the recipes and the runs stay in DIR to
    be looked at.
    """
    _world(directory, resume, overwrite)
    with _working_in(directory):
        _train("sft", resume)
        run_dir = _train("dpo", resume).run_dir
        scores = _measure()
        _record(run_dir, scores)
    _show(scores, directory, directory / run_dir / "report.html")


def _world(directory: Path, resume: bool, overwrite: bool) -> None:
    from . import toy

    if resume and (directory / "manifest.json").is_file():
        from aligner.toy.world import read_world

        read_world(directory)
        return
    toy.write(directory, seed=0, overwrite=overwrite)


def _train(method: str, resume: bool) -> Any:
    from .recipe_command import run
    from .render import Screen
    from .resolve import resolve
    from .summary import headline

    resolved, *_ = resolve(method, [f"recipes/{method}.yaml"])
    with Screen() as screen:
        screen.summary(headline(resolved))
        return run(resolved, screen, resume=resume and Path(resolved.recipe.output_dir).exists())


def _measure() -> dict[str, dict[str, float]]:
    """Gold score of the answers of all three models to the held-out prompts, sampled at temperature
    1."""
    from aligner.evaluation.evaluate import evaluate
    from aligner.generation.sampling import Sampling
    from aligner.reward_models.catalogue import load_scorer

    from .models import load_model, model_section, read_rows, source_section
    from .render import Screen

    rows = read_rows(source_section("heldout.jsonl", None, "train", None), "prompts", 0)
    sampling = Sampling(max_new_tokens=32, temperature=1.0, seed=0)
    scores = {}
    with Screen() as screen:
        for name, path in MODELS.items():
            policy, tokenizer = load_model(model_section(path, "auto", "none", False))
            progress = screen.counter(f"asking the held-out prompts: {name}")
            numbers = evaluate(
                policy,
                tokenizer,
                rows,
                task="prompts",
                scorer=load_scorer("toy"),
                sampling=sampling,
                batch_size=100,
                on_progress=progress,
            )
            scores[name] = {
                "gold_score": numbers["score"],
                "standard_error": numbers["score_stderr"],
                "n": len(rows),
            }
    return scores


def _record(run_dir: Path, scores: dict[str, dict[str, float]]) -> None:
    """Into the DPO run's record, and its report again with the bars."""
    from aligner.reports.training import write_report
    from aligner.runs.files import dumps, write_atomically

    entries = [
        {"name": name, "metrics": {"gold_score": found["gold_score"]}}
        for name, found in scores.items()
    ]
    write_atomically(run_dir / "evaluation.json", dumps(entries, indent=2) + "\n")
    write_report(run_dir)


def _show(scores: dict[str, dict[str, float]], directory: Path, report: Path) -> None:
    from .render import columns

    rows = [
        (
            name,
            f"{found['gold_score']:.3f}",
            f"+/- {found['standard_error']:.3f}",
            f"{found['n']:,}",
        )
        for name, found in scores.items()
    ]
    say()
    columns(("model", "gold score", "std. error", "held-out prompts"), rows)
    say()
    say(f"report    {report}")
    say(f'try it    aligner generate {directory / MODELS["DPO"]} "sort: dbca"')


@contextmanager
def _working_in(directory: Path) -> Iterator[None]:
    """Relative paths of a recipe are taken from the working directory, so work there for a
    while."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)
