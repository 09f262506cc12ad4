"""`aligner eval MODEL --tasks A,B`: the numbers of a model on tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligner.evaluation.tasks import Found, Tasks, questions_sha256

from .evaluate_model import OTHER_JOURNALS, sections_of
from .models import Dtype, Quantization, load_policy_of, say_dtype
from .output import Output, flags

if TYPE_CHECKING:
    from aligner.config.recipe import Model
    from aligner.evaluation.figures import Figures
    from aligner.evaluation.saved import Saved
    from aligner.runs.journal import Journal

    from .render import Screen

Record = dict[str, Any]

ASKED = "what the tasks asked"


def evaluate_tasks(
    models: Sequence[str],
    asked: Tasks,
    *,
    dtype: Dtype,
    quantization: Quantization,
    resamples: int,
    seed: int,
    output: Output,
    saved: Saved | None = None,
) -> Record:
    """Measure the first model on tasks, and a second one where there is one to compare it with,
    which may be `saved` from an earlier call. The record goes into `output`."""
    from aligner.errors import UsageError

    if asked.folder is not None and not asked.folder.is_dir():
        raise UsageError(f"--task-dir {asked.folder} is no folder", "name the folder of task files")
    sections = sections_of(models, dtype, quantization, asked.trusted)

    from importlib.metadata import version

    from aligner.evaluation.saved import text_of
    from aligner.evaluation.tasks import opened
    from aligner.models.fingerprint import model_fingerprint

    from .render import Screen

    same = {
        "the tasks": ",".join(asked.names),
        "lm-evaluation-harness": version("lm_eval"),
        **flags(
            {
                "limit": asked.limit,
                "num_fewshot": asked.num_fewshot,
                "chat_template": asked.chat_template,
            }
        ),
    }
    if saved is not None:
        saved.refuse_others(same | {ASKED: saved.asked.get(ASKED)})

    def header() -> Record:
        other = {"the evaluation to compare with": saved.sha256} if saved is not None else {}
        return {
            **other,
            "the models": [model_fingerprint(section) for section in sections],
            "the task files": _hashes(asked, output),
            "lm-evaluation-harness": version("lm_eval"),
            **flags(
                {
                    "tasks": ",".join(asked.names),
                    "limit": asked.limit,
                    "num_fewshot": asked.num_fewshot,
                    "chat_template": asked.chat_template,
                    "batch_size": asked.batch_size,
                }
            ),
        }

    with (
        Screen() as screen,
        output.resumable(),
        opened(asked, screen.on_event) as manager,
        output.parts(header) as part,
    ):
        found = []
        for number, section in enumerate(sections):
            journal = part.journal(f"{OTHER_JOURNALS if number else ''}tasks")
            found.append(_measured(section, asked, manager, journal, screen))
        screen.start("computing intervals")
        record = _record(found, models, asked, resamples, seed)
        record["lm_eval"] = version("lm_eval")
        same[ASKED] = questions_sha256(found[0])
        tables = {one.name: one.figures() for one in found[0] if one.has_rows()}
        if saved is not None:
            saved.refuse_others(same)
            record["compared"] = _compared_with(saved, tables, resamples, seed)
        part.finish([text_of(record, same, tables)])
    return record


def _compared_with(
    saved: Saved, tables: Mapping[str, Figures], resamples: int, seed: int
) -> Record:
    from aligner.evaluation.comparing import compare

    figures: Record = {}
    for name, mine in tables.items():
        figures |= compare(mine, saved.tables[name], resamples=resamples, seed=seed)
    return {"model": saved.model, "file": str(saved.path), "notes": [], "figures": figures}


def _measured(
    section: Model, asked: Tasks, manager: Any, journal: Journal, screen: Screen
) -> list[Found]:
    """What one model came to; it is gone from memory before the next is loaded."""
    from aligner.evaluation.tasks import run_tasks
    from aligner.models.tokenizers import load_tokenizer

    screen.start("loading the model")
    tokenizer = load_tokenizer(section)
    policy = load_policy_of(section, tokenizer)
    say_dtype(section, policy, screen.on_event)
    return run_tasks(policy, tokenizer, asked, manager, journal=journal, on_event=screen.on_event)


def _record(
    found: Sequence[list[Found]], models: Sequence[str], asked: Tasks, resamples: int, seed: int
) -> Record:
    metrics: Record = {}
    intervals: Record = {}
    for one in found[0]:
        metrics |= one.metrics()
        if one.has_rows():
            intervals |= one.figures().intervals(resamples=resamples, seed=seed)
    record: Record = {
        "model": models[0],
        "task": "tasks",
        "limit": asked.limit,
        "chat_template": asked.chat_template,
        "tasks": [
            {
                "name": one.name,
                "version": one.version,
                "num_fewshot": one.num_fewshot,
                "questions": len(one.asked),
            }
            for one in found[0]
        ],
        "metrics": metrics,
        "intervals": intervals,
        "bootstrap": {"resamples": resamples, "seed": seed, "interval": 0.95},
    }
    if len(found) > 1:
        figures = _compared(found[0], found[1], resamples, seed)
        record["compared"] = {"model": models[1], "notes": [], "figures": figures}
    return record


def _compared(mine: list[Found], yours: list[Found], resamples: int, seed: int) -> Record:
    from aligner.evaluation.comparing import compare
    from aligner.evaluation.tasks import check_same_questions

    figures: Record = {}
    for one, other in zip(mine, yours, strict=True):
        check_same_questions(one, other)
        if one.has_rows():
            figures |= compare(one.figures(), other.figures(), resamples=resamples, seed=seed)
    return figures


def _hashes(asked: Tasks, output: Output) -> dict[str, str]:
    """The files of the user's folder, since a changed task is another one; without what is written
    there."""
    from aligner.runs.digests import digests_of
    from aligner.runs.partial_output import part_folder

    if asked.folder is None:
        return {}
    own = () if output.path is None else (output.path, part_folder(output.path))
    written = [path.resolve() for path in own]
    files = [
        path
        for path in sorted(asked.folder.rglob("*"))
        if path.is_file() and not {path.resolve(), *path.resolve().parents} & set(written)
    ]
    found = digests_of(files)
    return {str(path.relative_to(asked.folder)): found[path] for path in files}
