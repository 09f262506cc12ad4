"""`aligner generate MODEL` and `aligner eval MODEL`: use a model, and measure one."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from aligner.config.schema import Model
    from aligner.data.rows import PromptRow
    from aligner.generation import Completion

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "nf4", "fp4", "int8"]

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Folder (a run's final/, also an adapter) or hub id.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file as well.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows computed at once.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Data type of the weights.")]
QuantizationOption = Annotated[Quantization, typer.Option("--quantization", help="Load in 4 or 8 bits.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that ships with the model.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same answers.")]


def generate(
    model: ModelName,
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts. None: one a line from stdin.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Take the prompts from a data file.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus; 1 is off.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="Best k tokens; 0 is off.")] = 0,
    min_p: Annotated[float, typer.Option("--min-p", min=0.0, max=0.999, help="Share of the best; 0 is off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", min=0.01, help="1 is off.")] = 1.0,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", min=1, help="Answers to each prompt.")] = 1,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    trust_remote_code: TrustRemoteCode = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write JSON lines to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer prompts with a model, in batches."""
    rows = _prompt_rows(prompts or [], data)
    _check_sampling(temperature, top_p)
    model_section = _model_section(model, dtype, quantization, trust_remote_code)

    from .render import Screen

    with Screen() as screen:
        screen.start("loading the model")
        policy, tokenizer = _load(model_section)
        from aligner.generation import Sampling, generate

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
        texts = [row.prompt for row in rows]
        progress = screen.counter("answering")
        answers = generate(policy, tokenizer, texts, sampling, batch_size=batch_size, on_progress=progress)
    records = [_record(row, completions) for row, completions in zip(rows, answers)]
    if output is not None:
        _write(output, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    if as_json:
        typer.echo(json.dumps(records, indent=2))
    elif output is None:
        _print_answers(records)
    else:
        typer.echo(f"wrote {len(records)} prompts with {num_samples} answer(s) each to {output}")


def _prompt_rows(prompts: list[str], data: str | None) -> list[PromptRow]:
    """Prompts from the arguments, a data file or standard input; exactly one of them."""
    from aligner.data.rows import PromptRow
    from aligner.errors import UsageError

    if prompts and data:
        raise UsageError("prompts are given both as arguments and with --data", "give one of them")
    if data:
        return _read_prompts(data)
    if not prompts and not sys.stdin.isatty():
        prompts = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise UsageError("there is no prompt", 'give one as an argument: aligner generate MODEL "Sort: c a b"')
    return [PromptRow(prompt=text, origin=f"prompt {number}") for number, text in enumerate(prompts, 1)]


def _read_prompts(path: str) -> list[PromptRow]:
    from aligner.config.schema import Data
    from aligner.data import load_rows

    return list(load_rows(Data(train=[{"path": path}]), "prompts", seed=0).train)


def _check_sampling(temperature: float, top_p: float) -> None:
    """What bounds on the options cannot say."""
    from aligner.errors import UsageError

    if not math.isfinite(temperature):
        raise UsageError(
            f"--temperature {temperature} is not a number to divide by", "use 0 for greedy, 1 for as trained"
        )
    if not top_p > 0.0:
        raise UsageError("--top-p 0 leaves no token to choose", "use --temperature 0 for the best token")


def _model_section(name: str, dtype: Dtype, quantization: Quantization, trust_remote_code: bool) -> Model:
    from aligner.config.schema import Model

    return Model(name_or_path=name, dtype=dtype, quantization=quantization, trust_remote_code=trust_remote_code)


def _load(model: Model) -> tuple[Any, Any]:
    """Policy and tokenizer, ready to answer. A folder that is not there is refused before torch is loaded."""
    from aligner.models import check_model_path, load_policy, load_tokenizer

    check_model_path(model)
    tokenizer = load_tokenizer(model)
    return load_policy(model, tokenizer, trainable=False), tokenizer


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
        typer.echo(texts[0])
        return
    for record in records:
        typer.echo(typer.style(f"> {_as_text(record['prompt'])}", bold=True))
        for answer in record["completions"]:
            typer.echo(answer["text"])
        typer.echo("")


def _as_text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def evaluate(
    model: ModelName,
    data: Annotated[str, typer.Option("--data", help="Rows to measure on.")],
    task: Annotated[
        Literal["auto", "sft", "preference", "prompts"], typer.Option("--task", help="auto: from the rows.")
    ] = "auto",
    scorer: Annotated[str | None, typer.Option("--scorer", help="toy, verifier:exact, verifier:number, ...")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="Reference model for preferences.")] = None,
    max_rows: Annotated[int | None, typer.Option("--max-rows", min=1, help="A random sample of so many.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    dtype: DtypeOption = "auto",
    quantization: QuantizationOption = "none",
    trust_remote_code: TrustRemoteCode = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model: loss, answers, preferences."""
    raise NotImplementedError
