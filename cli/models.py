"""What the commands that take a MODEL share: their options, and the way to the model and to the
rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .console import say

if TYPE_CHECKING:
    from aligner.config.recipe import Model, Source
    from aligner.data.ledger import Ledger
    from aligner.data.rows import Task
    from aligner.events import OnEvent

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "nf4", "fp4", "int8"]
OnBadRow = Literal["error", "drop"]

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run, a folder (also an adapter), a hub id.")
]
Column = Annotated[
    list[str] | None, typer.Option("--column", help="Which column holds what: prompt=question.")
]
Split = Annotated[str, typer.Option("--split", help="Split of a hub dataset or folder.")]
MaxRows = Annotated[
    int | None, typer.Option("--max-rows", min=1, help="A random sample of so many rows.")
]
NumSamples = Annotated[
    int, typer.Option("--num-samples", "-n", min=1, help="Answers to each prompt.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Rows computed at once.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Data type of the weights.")]
QuantizationOption = Annotated[
    Quantization, typer.Option("--quantization", help="Load in 4 or 8 bits.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that ships with the model.")
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")
]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same answers.")]


def source_section(path: str, column: list[str] | None, split: str, max_rows: int | None) -> Source:
    """The data section of a recipe, from options."""
    from aligner.config.recipe import Source
    from aligner.errors import UsageError

    pairs = [text.partition("=") for text in column or []]
    for target, equals, name in pairs:
        if not (target and equals and name):
            raise UsageError(
                f"--column {target}{equals}{name} does not say which column holds what",
                "prompt=question",
            )
    columns = {target: name for target, _, name in pairs}
    return Source(path=path, columns=columns, split=split, max_rows=max_rows)


def read_rows(source: Source, task: Task, seed: int, on_bad_row: OnBadRow = "error") -> list[Any]:
    from aligner.config.recipe import Data
    from aligner.data.loading import load_rows

    loaded = load_rows(Data(train=[source], on_bad_row=on_bad_row), task, seed)
    dropped_rows(loaded.ledger)
    warn_of(loaded.ledger.remarks())
    return list(loaded.train)


def warn_of(remarks: Iterable[str]) -> None:
    """Print each as a warning on stderr."""
    for remark in remarks:
        say(f"warning: {remark}", err=True)


def dropped_rows(ledger: Ledger) -> int:
    """How many broken rows were left out; if there are any, stderr gets the number and the first of
    them."""
    broken = [row for entry in ledger.sources for row in entry.bad_rows]
    count = sum(entry.bad for entry in ledger.sources)
    if count:
        rows = "row is" if count == 1 else "rows are"
        text = (
            f"warning: {count:,} broken {rows} left out, the first {broken[0].where}: "
            f"{broken[0].reason}"
        )
        say(text, err=True)
    return count


def check_sampling(temperature: float, top_p: float) -> None:
    """What bounds on the options cannot say."""
    from aligner.errors import UsageError

    if not math.isfinite(temperature):
        raise UsageError(
            f"--temperature {temperature} is not a number to divide by",
            "use 0 for greedy, 1 for as trained",
        )
    if not top_p > 0.0:
        raise UsageError(
            "--top-p 0 leaves no token to choose", "use --temperature 0 for the best token"
        )


def model_section(
    name: str, dtype: Dtype, quantization: Quantization, trust_remote_code: bool
) -> Model:
    from aligner.config.recipe import Model

    return Model(
        name_or_path=name,
        dtype=dtype,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )


def check_paths(model: Model, reference: str | None) -> None:
    """Refuse folders that hold no model before anything is loaded."""
    from aligner.models.files import check_model_path

    check_model_path(model)
    if reference is not None:
        check_model_path(model.model_copy(update={"name_or_path": reference}))


def load_model(model: Model) -> tuple[Any, Any]:
    """Policy and tokenizer, ready to answer."""
    from aligner.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(model)
    return load_policy_of(model, tokenizer), tokenizer


def load_policy_of(model: Model, tokenizer: Any) -> Any:
    """Policy, ready to answer."""
    from aligner.models.loading import load_policy

    return load_policy(model, tokenizer, trainable=False, answers=True)


LARGE_ENOUGH = 50_000_000
"""Weights from which a CPU that computes in bfloat16 writes in it: less to read for each token."""


def for_writing(model: Model, tokenizer: Any, on_event: OnEvent) -> Model:
    """Return the model as it is loaded to write alone: on a CPU that computes in bfloat16, in that,
    unless another type is asked for or the model is small; and say so."""
    import torch

    from aligner.events import Notice
    from aligner.launch.devices import native_bf16
    from aligner.models.loading import load_outline

    if (model.dtype, model.quantization) != ("auto", "none") or torch.cuda.is_available():
        return model
    outline = load_outline(model, tokenizer) if native_bf16("cpu") else None
    if outline is None or sum(weight.numel() for weight in outline.parameters()) < LARGE_ENOUGH:
        return model
    text = "weights in bfloat16, which this CPU computes in; --dtype float32 loads them in full"
    on_event(Notice(text))
    return model.model_copy(update={"dtype": "bfloat16"})


def say_dtype(model: Model, loaded: Any, on_event: OnEvent) -> None:
    """Say in what type weights were loaded, where nobody asked for it and they are saved in
    another."""
    import torch

    from aligner.events import Notice

    if model.dtype == "auto" and getattr(loaded, "dtype", None) == torch.bfloat16:
        text = "weights in bfloat16, which this GPU computes in; --dtype float32 loads them in full"
        on_event(Notice(text))


def remark_on_control_tokens(tokenizer: Any, rows: Sequence[Any], on_event: OnEvent) -> None:
    """Say it where texts of rows hold control tokens."""
    from aligner.events import Warned
    from aligner.tokenization.control_tokens import remark_on

    remark = remark_on(tokenizer, rows)
    if remark is not None:
        on_event(Warned(remark))
