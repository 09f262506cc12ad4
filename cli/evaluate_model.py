"""`aligner eval MODEL`: the numbers of a model on rows, their intervals, and those of another model
on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .console import say
from .engine import EngineName
from .models import (
    Dtype,
    Quantization,
    check_paths,
    load_model,
    load_policy_of,
    model_section,
    remark_on_control_tokens,
    say_dtype,
)
from .output import Output, flags, rows_fingerprint

if TYPE_CHECKING:
    from aligner.config.recipe import Generation, Model
    from aligner.data.rows import Task
    from aligner.evaluation.figures import Figures
    from aligner.evaluation.saved import Saved
    from aligner.generation.sampling import Sampling
    from aligner.reward_models.base import Scorer
    from aligner.runs.partial_output import PartialOutput

    from .render import Screen

Record = dict[str, Any]

OTHER_JOURNALS = "other-"
"""What the journals of the model that is compared with begin with."""


@dataclass(frozen=True)
class Asked:
    """What is measured, of each model in the same way."""

    task: Task
    rows: Sequence[Any]
    scorer: Scorer | None
    sampling: Sampling
    reference: Model | None
    generation: Generation
    batch_size: int


def evaluate_model(
    sections: Sequence[Model],
    asked: Asked,
    written_by: dict[str, Any],
    record: Record,
    *,
    resamples: int,
    seed: int,
    output: Output,
    screen: Screen,
    saved: Saved | None = None,
) -> Record:
    """Measure the first model, and a second one where there is one to compare it with, which may
    be `saved` from an earlier call. `record` says what was asked for, and goes into `output` with
    the numbers."""
    from aligner.evaluation.evaluate import cut_alike, tokens_sha256
    from aligner.evaluation.saved import text_of
    from aligner.models.fingerprint import model_fingerprint, tokenizer_fingerprint
    from aligner.models.tokenizers import load_tokenizer

    tokenizers = [load_tokenizer(section) for section in sections]
    cut = [tokenizer_fingerprint(tokenizer) for tokenizer in tokenizers]
    data = rows_fingerprint(asked.rows)

    same = _what_decides(asked, data)
    if saved is not None:
        saved.refuse_others(same)

    def header() -> Record:
        reference = asked.reference
        drawn = {**asdict(asked.sampling), **written_by} if asked.task == "prompts" else {}
        other: Record = {}
        if len(sections) > 1:
            other = {"the model to compare with": [model_fingerprint(sections[1]), cut[1]]}
        if saved is not None:
            other = {"the evaluation to compare with": saved.sha256}
        return {
            "the model": model_fingerprint(sections[0]),
            "the tokenizer or its template": cut[0],
            **other,
            "the reference": None if reference is None else model_fingerprint(reference),
            "the data": data,
            **flags({"task": asked.task, "batch_size": asked.batch_size, **drawn}),
        }

    with output.parts(header) as part:
        found, ways = [], []
        for number, (section, tokenizer) in enumerate(zip(sections, tokenizers)):
            journals = _journals(part, OTHER_JOURNALS if number else "")
            figures, way = _measured(section, tokenizer, asked, journals, screen)
            found.append(figures)
            ways.append(way)
        screen.start("computing intervals")
        mine = found[0]
        tokens = None
        if saved is not None or output.path is not None:
            tokens = tokens_sha256(tokenizers[0], asked.rows, asked.task)
        record |= {
            "rows_sha256": data,
            "metrics": mine.metrics(),
            "intervals": mine.intervals(resamples=resamples, seed=seed),
            "bootstrap": {"resamples": resamples, "seed": seed, "interval": 0.95},
        }
        if len(found) > 1:
            alike = cut[0] == cut[1] or cut_alike(
                tokenizers[0], tokenizers[1], asked.rows, asked.task
            )
            name = sections[1].name_or_path
            record["compared"] = _compared(found, alike, name, resamples, seed)
        if saved is not None:
            both, alike = [mine, saved.tables["rows"]], tokens == saved.tokens_sha256
            compared = _compared(both, alike, saved.model, resamples, seed)
            compared["file"] = str(saved.path)
            if saved.loaded != ways[0]:
                text = f"{saved.model} was measured in {saved.loaded}, {record['model']} in"
                compared["notes"].append(f"{text} {ways[0]}")
            record["compared"] = compared
        text = text_of(record, same, {"rows": mine}, tokens_sha256=tokens, loaded=ways[0])
        part.finish([text])
    return record


def _what_decides(asked: Asked, data: str) -> Record:
    """What two evaluations must have in common to be compared, by the name in a message."""
    from aligner.models.fingerprint import model_fingerprint

    found: Record = {"the data": data, "the task": asked.task}
    if asked.reference is not None:
        found["the reference"] = model_fingerprint(asked.reference)
    if asked.task == "prompts":
        sampling = asdict(asked.sampling)
        if not sampling["temperature"]:
            del sampling["seed"]
        scorer = asked.scorer
        found["the scorer"] = None if scorer is None else scorer.name
        found["what the scorer says"] = None if scorer is None else scorer.fingerprint()
        found |= flags(sampling)
    return found


def _journals(part: PartialOutput, prefix: str) -> Callable[[str], Any]:
    return lambda name: part.journal(f"{prefix}{name}")


def _measured(
    section: Model,
    tokenizer: Any,
    asked: Asked,
    journals: Callable[[str], Any],
    screen: Screen,
) -> tuple[Figures, str]:
    """The numbers of one model, which is gone from memory before the next is loaded, and in which
    form it computes."""
    from aligner.evaluation.evaluate import measure
    from aligner.generation.engines import HELD
    from aligner.generation.writers import open_engine

    screen.start("loading the model")
    with ExitStack() as stack:
        policy, decodes = stack.enter_context(
            open_engine(
                asked.generation,
                section,
                tokenizer,
                load=lambda: load_policy_of(section, tokenizer),
                batch_size=asked.batch_size,
                on_event=screen.on_event,
            )
        )
        say_dtype(section, policy, screen.on_event)
        remark_on_control_tokens(tokenizer, asked.rows, screen.on_event)
        reference = None if asked.reference is None else load_model(asked.reference)[0]
        way = str(getattr(policy, "dtype", "")).removeprefix("torch.")
        if asked.generation.engine not in HELD:
            way = asked.generation.engine
        elif section.quantization != "none":
            way = f"{way}, {section.quantization}"
        figures = measure(
            policy,
            tokenizer,
            asked.rows,
            task=asked.task,
            scorer=asked.scorer,
            sampling=asked.sampling,
            reference=reference,
            engine=decodes,
            batch_size=asked.batch_size,
            on_progress=screen.counter("measuring"),
            journals=journals,
        )
        return figures, way


def _compared(
    found: Sequence[Figures], alike: bool, other: str, resamples: int, seed: int
) -> Record:
    """The comparison of the first with the second, for the record."""
    from aligner.evaluation.comparing import compare

    (mine, yours), notes = found, []
    per_token = [name for name, figure in mine.named.items() if figure.of_tokens]
    if per_token and not alike:
        mine = mine.without_tokens()
        left_out = " and ".join(per_token)
        notes = [f"the two cut these rows into different tokens, so {left_out} are not compared"]
    return {
        "model": other,
        "notes": notes,
        "figures": compare(mine, yours, resamples=resamples, seed=seed),
    }


def sections_of(
    names: Sequence[str], dtype: Dtype, quantization: Quantization, trust_remote_code: bool
) -> list[Model]:
    """Return what loads each model; a run directory stands for its `final/`.

    Raises: UsageError and RecipeError for what holds no model.
    """
    from aligner.export.found import find_model

    return [
        model_section(find_model(name).name, dtype, quantization, trust_remote_code)
        for name in names
    ]


def check_comparison(sections: Sequence[Model], engine: EngineName, reference: str | None) -> None:
    """Refuse folders that hold no model, and a comparison that cannot be made."""
    from aligner.errors import UsageError

    for section in sections:
        check_paths(section, reference)
    if len(sections) > 1 and engine == "endpoint":
        raise UsageError(
            "--compare loads another model, and --engine endpoint asks a server",
            "measure the other one with --output OTHER.json, and name that file",
        )


def show(record: Record) -> None:
    """The numbers as tables on stdout."""
    from .render import columns, number

    numbers, intervals = record["metrics"], record["intervals"]
    shown = {name: value for name, value in numbers.items() if not name.endswith("_stderr")}
    rows = [
        (name, number(value), ends_of(intervals.get(name), numbers.get(f"{name}_stderr")))
        for name, value in shown.items()
    ]
    columns((record["task"], "value", "95% interval"), rows)
    if "compared" in record:
        say()
        show_comparison(record["compared"], record["model"])


def show_comparison(compared: Record, model: str) -> None:
    """A table of what is compared, and what each line says in words."""
    from aligner.evaluation.comparing import in_words

    from .render import columns, number

    figures = compared["figures"]
    rows = [
        (
            name,
            number(found["value"]),
            number(found["other"]),
            f"{found['difference']:+.4g}",
            ends_of(found),
            f"{found['ahead']:,} / {found['behind']:,} / {found['equal']:,}",
        )
        for name, found in figures.items()
    ]
    head = ("compared", "model", "other", "difference", "95% interval", "higher / lower / equal")
    columns(head, rows)
    say(f"other: {compared['model']}")
    for name, found in figures.items():
        say(in_words(name, found, model, compared["model"]))
    for note in compared["notes"]:
        say(f"note: {note}")


def ends_of(found: Record | None, error: float | None = None) -> str:
    """An interval as text, with a standard error where there is one; empty where it is not
    defined."""
    from .render import number

    beside = "" if error is None else f" (+/- {number(error)})"
    if found is None or found["low"] is None:
        return beside.strip()
    return f"{number(found['low'])} to {number(found['high'])}{beside}"
