"""`aligner eval`: what turns a model, or a reward model, into numbers, from the command line."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .console import say_json
from .engine import BaseUrl, EngineOption, ServedModel, generation_section
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
    check_paths,
    check_sampling,
    load_model,
    load_policy_of,
    model_section,
    read_rows,
    remark_on_control_tokens,
    say_dtype,
    source_section,
)
from .output import Output, Overwrite, Resume, checked_output, flags, rows_fingerprint

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

OF_REWARD_MODELS = ("category", "plot", "resamples")


def evaluate(
    context: typer.Context,
    data: Annotated[
        str, typer.Option("--data", help="Rows to measure on: file, folder, glob or hub id.")
    ],
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Folder (a run's final/, also an adapter) or hub id."),
    ] = None,
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
    resamples: Annotated[
        int,
        typer.Option("--resamples", min=0, help="Reward model: draws for the intervals; 0: none."),
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
    """Measure a model (loss, answers, preferences) or a reward model.

    The task is `prompts` with a scorer; otherwise the rows decide: pairs are compared
    (`preference`), rows with answers give loss and perplexity (`sft`), prompts alone are answered
    (`prompts`).

    A reward model (a card, a run's folder, bradley_terry:FOLDER, ...) is measured on pairs:
    accuracy, also by category, by length and as RewardBench averages it, bias for length,
    calibration, and agreement with a second one.
    """
    _check_kind(context, model, reward_model)
    written = checked_output(output, data, resume=resume, overwrite=overwrite, suffix=".json")
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
    section = model_section(model, dtype, quantization, trust_remote_code)
    generation = generation_section(engine, base_url, served_model, section)
    check_paths(section, reference)

    from .render import Screen, columns, number

    with Screen() as screen, written.resumable(), ExitStack() as stack:
        isolation = announce_walls([] if scorer is None else [read_spec(scorer)], screen.on_event)
        screen.start("loading the model")
        from aligner.evaluation.evaluate import evaluate as measure
        from aligner.generation.sampling import Sampling
        from aligner.generation.writers import open_engine
        from aligner.models.fingerprint import model_fingerprint, tokenizer_fingerprint
        from aligner.models.tokenizers import load_tokenizer

        tokenizer = load_tokenizer(section)
        policy, decodes = stack.enter_context(
            open_engine(
                generation,
                section,
                tokenizer,
                load=lambda: load_policy_of(section, tokenizer),
                batch_size=batch_size,
                on_event=screen.on_event,
            )
        )
        say_dtype(section, policy, screen.on_event)
        remark_on_control_tokens(tokenizer, rows, screen.on_event)
        against = (
            None if reference is None else section.model_copy(update={"name_or_path": reference})
        )
        other = None if against is None else load_model(against)[0]
        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            num_samples=num_samples,
            seed=seed,
        )

        written_by = {"engine": engine, "base_url": base_url, "served_model": served_model}

        def header() -> dict[str, Any]:
            return {
                "the model": model_fingerprint(section),
                "the tokenizer or its template": tokenizer_fingerprint(tokenizer),
                "the reference": None if against is None else model_fingerprint(against),
                "the data": rows_fingerprint(rows),
                **flags(
                    {
                        "task": chosen,
                        "batch_size": batch_size,
                        **({**asdict(sampling), **written_by} if chosen == "prompts" else {}),
                    }
                ),
            }

        with written.parts(header) as part:
            numbers = measure(
                policy,
                tokenizer,
                rows,
                task=chosen,
                scorer=judge,
                sampling=sampling,
                reference=other,
                engine=decodes,
                batch_size=batch_size,
                on_progress=screen.counter("measuring"),
                journals=part.journal,
            )
            record = {
                "model": model,
                "data": data,
                "task": chosen,
                "scorer": scorer,
                "metrics": numbers,
                **({"isolation": isolation} if isolation else {}),
            }
            part.finish([_dumps(record) + "\n"])
    if as_json:
        say_json(_dumps(record))
        return
    shown = {name: value for name, value in numbers.items() if not name.endswith("_stderr")}
    errors = {
        name: f"+/- {number(numbers[f'{name}_stderr'])}" if f"{name}_stderr" in numbers else ""
        for name in shown
    }
    columns(
        (chosen, "value", ""),
        [(name, number(value), errors[name]) for name, value in shown.items()],
    )


def _check_kind(context: typer.Context, model: str | None, reward_models: list[str] | None) -> None:
    """One of the two is measured, and an option that would do nothing is a mistake."""
    from aligner.errors import UsageError

    if (model is None) == (not reward_models):
        found = "nothing to measure" if model is None else "both MODEL and --reward-model"
        raise UsageError(f"{found}", "name a MODEL, or a reward model with --reward-model")
    idle, what = (OF_MODELS, "reward models") if reward_models else (OF_REWARD_MODELS, "models")
    sources = {name: context.get_parameter_source(name) for name in idle}
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
    from .evaluate_rewards import evaluate_rewards, show

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
        show(record)


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

    _, first = next(open_source(source, []), ("", {}))
    names = {*source.columns, *(first if isinstance(first, dict) else ())}
    tasks: tuple[Task, ...] = ("preference", "sft")
    for task in tasks:
        if any(names.issuperset(REQUIRED[form]) for form in FORMS_OF_TASK[task]):
            return task
    return "prompts"
