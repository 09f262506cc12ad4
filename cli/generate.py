"""`aligner generate MODEL`: answers to prompts."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, say_content, say_json
from .engine import BaseUrl, EngineOption, ServedModel, generation_section
from .models import (
    AsJson,
    BatchSize,
    Column,
    DtypeOption,
    MaxNewTokens,
    MaxRows,
    ModelName,
    NumSamples,
    QuantizationOption,
    Seed,
    Split,
    Temperature,
    TrustRemoteCode,
    check_paths,
    check_sampling,
    for_writing,
    load_policy_of,
    model_section,
    read_rows,
    remark_on_control_tokens,
    say_dtype,
    source_section,
)
from .output import Overwrite, Resume, checked_output, flags, rows_fingerprint

if TYPE_CHECKING:
    from aligner.config.recipe import Source
    from aligner.data.rows import PromptRow
    from aligner.generation.decode import Completion


def generate(
    model: ModelName,
    prompts: Annotated[
        list[str] | None, typer.Argument(help="Prompts. None: one a line from stdin.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Take the prompts from a file, folder or hub id.")
    ] = None,
    column: Column = None,
    split: Split = "train",
    max_rows: MaxRows = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus; 1 is off.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Best k tokens; 0 is off.")] = 0,
    min_p: Annotated[
        float, typer.Option("--min-p", min=0.0, max=0.999, help="Share of the best; 0 is off.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", min=0.01, help="1 is off.")
    ] = 1.0,
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
        Path | None, typer.Option("--output", "-o", help="Write JSON lines to this file.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Answer prompts with a model, in batches."""
    written = checked_output(output, data, resume=resume, overwrite=overwrite)
    check_sampling(temperature, top_p)
    from aligner.export.found import find_model

    name = find_model(model).name
    section = model_section(name, dtype, quantization, trust_remote_code)
    generation = generation_section(engine, base_url, served_model, section)
    rows = _prompt_rows(
        prompts or [], None if data is None else source_section(data, column, split, max_rows), seed
    )
    check_paths(section, None)

    from .render import Screen

    with Screen() as screen, written.resumable(), ExitStack() as stack:
        screen.start("loading the model")
        from aligner.generation.decode import generate
        from aligner.generation.sampling import Sampling
        from aligner.generation.writers import open_engine
        from aligner.models.fingerprint import model_fingerprint, tokenizer_fingerprint
        from aligner.models.tokenizers import load_tokenizer
        from aligner.runs.files import json_line

        tokenizer = load_tokenizer(section)
        if engine in ("auto", "hf", "hf_cb"):
            section = for_writing(section, tokenizer, screen.on_event)
        writer, decodes = stack.enter_context(
            open_engine(
                generation,
                section,
                tokenizer,
                load=lambda: load_policy_of(section, tokenizer),
                batch_size=batch_size,
                on_event=screen.on_event,
            )
        )
        say_dtype(section, writer, screen.on_event)
        remark_on_control_tokens(tokenizer, rows, screen.on_event)
        sampling = Sampling(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            num_samples=num_samples,
            seed=seed,
        )

        written_by = {"engine": engine, "base_url": base_url, "served_model": served_model}

        def header() -> dict[str, Any]:
            return {
                "the model": model_fingerprint(section),
                "the tokenizer or its template": tokenizer_fingerprint(tokenizer),
                "the prompts": rows_fingerprint(rows),
                **flags({**asdict(sampling), "batch_size": batch_size, **written_by}),
            }

        with written.parts(header) as part:
            answers = generate(
                writer,
                tokenizer,
                [row.prompt for row in rows],
                sampling,
                tools=[row.tools for row in rows],
                batch_size=batch_size,
                on_progress=screen.counter("answering"),
                journal=part.journal("answers"),
                engine=decodes,
            )
            records = [_record(row, completions) for row, completions in zip(rows, answers)]
            part.finish(map(json_line, records))
    if as_json:
        say_json(json.dumps(records, indent=2))
    elif output is None:
        _print_answers(records)
    else:
        say(f"wrote {len(records)} prompts with {num_samples} answer(s) each to {output}")


def _prompt_rows(prompts: list[str], source: Source | None, seed: int) -> list[Any]:
    """Prompts from the arguments, a data source or standard input; exactly one of them."""
    from aligner.data.rows import PromptRow
    from aligner.errors import UsageError

    if prompts and source:
        raise UsageError("prompts are given both as arguments and with --data", "give one of them")
    if source:
        return read_rows(source, "prompts", seed)
    if not prompts and not sys.stdin.isatty():
        prompts = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise UsageError(
            "there is no prompt", 'give one as an argument: aligner generate MODEL "Sort: c a b"'
        )
    return [
        PromptRow(prompt=text, origin=f"prompt {number}") for number, text in enumerate(prompts, 1)
    ]


def _record(row: PromptRow, completions: list[Completion]) -> dict[str, Any]:
    answers = [
        {"text": item.text, "finish_reason": item.finish_reason, "num_tokens": len(item.token_ids)}
        for item in completions
    ]
    expected = {} if row.answer is None else {"answer": row.answer}
    return {"prompt": row.prompt, "completions": answers, **expected}


def _print_answers(records: list[dict[str, Any]]) -> None:
    """The answer alone where there is one; each below its prompt where there are more."""
    texts = [answer["text"] for record in records for answer in record["completions"]]
    if len(texts) == 1:
        say_content(texts[0])
        return
    for record in records:
        prompt = record["prompt"]
        text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
        say_content(f"> {text}", bold=True)
        for answer in record["completions"]:
            say_content(answer["text"])
        say()
