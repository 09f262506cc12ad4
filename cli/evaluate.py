"""`aligner eval`: what turns a model, or a reward model, into numbers, from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aligner.evaluation.tasks import Tasks, task_names

from .console import say_json
from .engine import BaseUrl, EngineOption, ServedModel, generation_section
from .evaluate_model import Asked, check_comparison, evaluate_model, sections_of, show
from .models import (
    AsJson,
    BatchSize,
    Column,
    DtypeOption,
    MaxNewTokens,
    MaxRows,
    NumSamples,
    OnBadRow,
    QuantizationOption,
    Seed,
    Split,
    Temperature,
    TrustRemoteCode,
    check_sampling,
    read_rows,
    source_section,
)
from .output import Output, Overwrite, Resume, checked_output

if TYPE_CHECKING:
    from aligner.config.recipe import Source
    from aligner.data.rows import Task


OF_MODELS = (
    "task",
    "scorer",
    "reference",
    "max_new_tokens",
    "temperature",
    "num_samples",
    "batch_size",
    "engine",
    "base_url",
    "served_model",
    "dtype",
    "quantization",
)
"""Parameters that mean nothing for a reward model, whose card says how it is loaded."""

OF_REWARD_MODELS = ("category", "plot")

OF_TASKS = ("task_dir", "limit", "num_fewshot", "chat_template")

OF_ROWS = (
    *("task", "scorer", "reference", "category", "plot", "reward_model", "column", "split"),
    *("max_rows", "on_bad_row", "max_new_tokens", "temperature", "num_samples"),
    *("engine", "base_url", "served_model"),
)
"""Parameters that mean nothing for tasks, which say what is asked and how."""


def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Run, folder (also an adapter) or hub id."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Rows to measure on: file, folder, glob or hub id."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", metavar="A,B", help="In place of --data: lm-eval's tasks."),
    ] = None,
    task_dir: Annotated[
        Path | None, typer.Option("--task-dir", help="Folder with task files of your own.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="So many questions of each task.")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option("--num-fewshot", min=0, help="Examples before each. None: as the task says."),
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask questions of tasks as turns of a chat.")
    ] = False,
    reward_model: Annotated[
        list[str] | None,
        typer.Option(
            "--reward-model", metavar="CARD", help="In place of MODEL; twice: compare two."
        ),
    ] = None,
    task: Annotated[
        Literal["auto", "sft", "preference", "prompts"],
        typer.Option("--task", help="What to measure; auto: see above."),
    ] = "auto",
    scorer: Annotated[
        str | None, typer.Option("--scorer", help="toy, verifier:exact, verifier:number, ...")
    ] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="Reference model, for preferences.")
    ] = None,
    category: Annotated[
        str | None,
        typer.Option(
            "--category", help="Reward model: column to divide by; else category, subset or source."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Reward model: draw everything into this HTML file."),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="OTHER", help="Test against another, or its --output, on the rows."
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=0, help="Draws for the intervals; 0: none.")
    ] = 1000,
    column: Column = None,
    split: Split = "train",
    max_rows: MaxRows = None,
    on_bad_row: Annotated[
        OnBadRow, typer.Option("--on-bad-row", help="Stop at broken rows, or leave them out.")
    ] = "error",
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    num_samples: NumSamples = 1,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    engine: EngineOption = "auto",
    base_url: BaseUrl = None,
    served_model: ServedModel = None,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    trust_remote_code: TrustRemoteCode = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write JSON to this file.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model (loss, answers, pairs, tasks) or a reward model.

    With --tasks a model is measured on tasks of lm-evaluation-harness, its own or those in
    --task-dir.

    The task is `prompts` with a scorer; otherwise the rows decide: pairs are compared
    (`preference`), rows with answers give loss and perplexity (`sft`), prompts alone are answered
    (`prompts`). Intervals are over resampled prompts; --compare tests the difference between two
    models on the same rows. The JSON of --output keeps what each row adds, so that it stands for
    its model in a later --compare.

    A reward model (a card, a run's folder, bradley_terry:FOLDER, ...) is measured on pairs:
    accuracy, also by category, by length and as RewardBench averages it, bias for length,
    calibration, and agreement with a second one. On rows with lists of right and wrong answers
    (RewardBench 2) it is measured by how often a right one has the highest score.

    Example: aligner eval runs/dpo/final --data heldout.jsonl --compare runs/sft/final
    """
    has_saved = compare is not None and Path(compare).suffix == ".json"
    if reward_model and compare is not None:
        _refuse_saved_rewards(compare, has_saved=has_saved)
        reward_model = [*reward_model, compare]
    _check_kind(context, model, reward_model)
    _check_source(context, data, tasks)
    saved = None
    if compare is not None and has_saved:
        from aligner.evaluation.saved import read_saved

        saved = read_saved(compare)
    written = checked_output(output, data, resume=resume, overwrite=overwrite, suffix=".json")
    if tasks is not None:
        assert model is not None
        from .evaluate_tasks import evaluate_tasks

        record = evaluate_tasks(
            [model, *([compare] if compare and not saved else [])],
            Tasks(
                names=task_names(tasks),
                folder=task_dir,
                limit=limit,
                num_fewshot=num_fewshot,
                chat_template=chat_template,
                batch_size=batch_size,
                trusted=trust_remote_code,
            ),
            dtype=dtype,
            quantization=quantization,
            resamples=resamples,
            seed=seed,
            output=written,
            saved=saved,
        )
        if as_json:
            say_json(_dumps(record))
        else:
            show(record)
        return
    assert data is not None
    if reward_model:
        source = source_section(data, column, split, max_rows)
        _evaluate_rewards(
            reward_model,
            source,
            category,
            on_bad_row,
            resamples,
            seed,
            plot,
            written,
            as_json,
            trust_remote_code,
        )
        return
    assert model is not None
    check_sampling(temperature, top_p=1.0)
    source = source_section(data, column, split, max_rows)
    from aligner.reward_models.catalogue import load_scorer, read_spec
    from aligner.reward_models.isolation import announce_walls

    judge = None if scorer is None else load_scorer(scorer)
    chosen = _task(source, scorer) if task == "auto" else task
    _check_task(chosen, scorer, reference, engine)
    rows = read_rows(source, chosen, seed, on_bad_row)
    named = [model, *([compare] if compare and not saved else [])]
    sections = sections_of(named, dtype, quantization, trust_remote_code)
    generation = generation_section(engine, base_url, served_model, sections[0])
    check_comparison(sections, engine, reference)

    from .render import Screen

    with Screen() as screen, written.resumable():
        isolation = announce_walls([] if scorer is None else [read_spec(scorer)], screen.on_event)
        from aligner.generation.sampling import Sampling

        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            num_samples=num_samples,
            seed=seed,
        )
        against = (
            None
            if reference is None
            else sections[0].model_copy(update={"name_or_path": reference})
        )
        record = {
            "model": model,
            "data": data,
            "task": chosen,
            "scorer": scorer,
            **({"isolation": isolation} if isolation else {}),
        }
        evaluate_model(
            sections,
            Asked(chosen, rows, judge, sampling, against, generation, batch_size),
            {"engine": engine, "base_url": base_url, "served_model": served_model},
            record,
            resamples=resamples,
            seed=seed,
            output=written,
            screen=screen,
            saved=saved,
        )
    if as_json:
        say_json(_dumps(record))
    else:
        show(record)


def _check_kind(context: typer.Context, model: str | None, reward_models: list[str] | None) -> None:
    """One of the two is measured, and an option that would do nothing is a mistake."""
    from aligner.errors import UsageError

    if (model is None) == (not reward_models):
        found = "nothing to measure" if model is None else "both MODEL and --reward-model"
        raise UsageError(f"{found}", "name a MODEL, or a reward model with --reward-model")
    idle, what = (OF_MODELS, "reward models") if reward_models else (OF_REWARD_MODELS, "models")
    _refuse_idle(context, idle, what)


def _refuse_saved_rewards(compare: str, *, has_saved: bool) -> None:
    from aligner.errors import UsageError

    if has_saved:
        raise UsageError(
            f"--compare {compare}: reward models are compared in one command",
            "name the other reward model",
        )


def _check_source(context: typer.Context, data: str | None, tasks: str | None) -> None:
    """Rows or tasks, and no option of the one for the other."""
    from aligner.errors import UsageError

    if (data is None) == (tasks is None):
        found = "nothing to measure on" if data is None else "both --data and --tasks"
        raise UsageError(found, "give rows with --data, or names of tasks with --tasks")
    if tasks is not None:
        from aligner.evaluation.tasks import check_installed

        _refuse_idle(context, OF_ROWS, "tasks")
        check_installed()
    else:
        _refuse_idle(context, OF_TASKS, "rows")


def _refuse_idle(context: typer.Context, names: Sequence[str], what: str) -> None:
    """Refuse options that were given and would do nothing."""
    from aligner.errors import UsageError

    sources = {name: context.get_parameter_source(name) for name in names}
    given = [
        name
        for name, source in sources.items()
        if source is not None and source.name == "COMMANDLINE"
    ]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"{flags} {'has' if len(given) == 1 else 'have'} no effect for {what}", "leave it out"
        )


def _evaluate_rewards(
    specs: list[str],
    source: Source,
    category: str | None,
    on_bad_row: OnBadRow,
    resamples: int,
    seed: int,
    plot: Path | None,
    output: Output,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    from aligner.evaluation.best_of import has_lists

    if has_lists(source):
        if plot is not None:
            from aligner.errors import UsageError

            raise UsageError("--plot draws pairs, and rows hold lists of answers", "leave it out")
        from . import evaluate_best_of

        record = evaluate_best_of.evaluate_best_of(
            specs,
            source,
            category=category,
            drops_bad=on_bad_row == "drop",
            resamples=resamples,
            seed=seed,
            output=output,
            trust_remote_code=trust_remote_code,
        )
        if as_json:
            say_json(_dumps(record))
        else:
            evaluate_best_of.show(record)
        return
    from .evaluate_rewards import evaluate_rewards
    from .evaluate_rewards import show as show_rewards

    record = evaluate_rewards(
        specs,
        source,
        category=category,
        on_bad_row=on_bad_row,
        resamples=resamples,
        seed=seed,
        plot=plot,
        output=output,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        say_json(_dumps(record))
    else:
        show_rewards(record)


def _dumps(record: dict[str, Any]) -> str:
    from aligner.runs.files import dumps

    return dumps(record, indent=2)


def _check_task(task: Task, scorer: str | None, reference: str | None, engine: str) -> None:
    """An option that would do nothing is a mistake."""
    from aligner.errors import UsageError

    if scorer is not None and task != "prompts":
        raise UsageError(
            f"--scorer judges answers to prompts, the task is {task}",
            "leave out --task or --scorer",
        )
    if reference is not None and task != "preference":
        raise UsageError(
            f"--reference is for preference pairs, the task is {task}", "leave out --reference"
        )
    if engine != "auto" and task != "prompts":
        raise UsageError(
            f"--engine writes answers to prompts, the task is {task}", "leave out --engine"
        )


def _task(source: Source, scorer: str | None) -> Task:
    """`prompts` with a scorer; otherwise the most that the columns of the first row allow."""
    if scorer is not None:
        return "prompts"
    from aligner.data.formats import FORMS_OF_TASK, REQUIRED
    from aligner.data.sources import open_source

    _, first = next(open_source(source), ("", {}))
    names = {*source.columns, *(first if isinstance(first, dict) else ())}
    tasks: tuple[Task, ...] = ("preference", "sft")
    for task in tasks:
        if any(names.issuperset(REQUIRED[form]) for form in FORMS_OF_TASK[task]):
            return task
    return "prompts"
