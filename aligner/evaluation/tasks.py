"""Measure a model on tasks of lm-evaluation-harness: benchmarks with names, and task files of one's
own.

The harness builds prompts and reads answers; the model is ours, loaded as for any other number, so
an adapter is measured as it was trained. What it finds for each question is kept, and from that
come intervals and comparisons (`figures.py`). A metric that is not the mean over questions has the
harness's own standard error, and no interval.

Task files are checked for what the harness (0.4.13) passes over (`task_checks.py`), and run no code
unless that is allowed (`task_guard.py`). Its own seed draws few-shot examples, so that numbers are
those that others publish.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from aligner.errors import DataError, UsageError
from aligner.events import OnEvent, StageProgress, StageStarted, Warned, tell
from aligner.runs.journal import Journal

if TYPE_CHECKING:
    from aligner.evaluation.figures import Figures

INSTALL = 'run: pip install "aligner-toolkit[eval]"'
BOOTSTRAP_ITERS = 1000
"""Draws for the standard error of a metric that is not a mean, such as a corpus's BLEU."""

ROUNDING = 1e-6

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tasks:
    """Which tasks, and how. `folder` holds task files; `limit`: the first so many questions of each
    task; `num_fewshot`: examples before each question, None for what the task says."""

    names: tuple[str, ...]
    folder: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    batch_size: int = 16
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric of a task: its value, its standard error, and what each question adds, where the
    value is the mean of that."""

    value: float
    stderr: float | None
    better: int
    of_rows: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What a task came to. `asked`: hashes of its questions, in their order."""

    name: str
    version: Any
    num_fewshot: int | None
    measures: dict[str, Measure]
    asked: list[str] = field(default_factory=list)

    def has_rows(self) -> bool:
        """Say whether some metric is a mean over questions."""
        return any(one.of_rows for one in self.measures.values())

    def metrics(self) -> dict[str, float]:
        """Return every metric as `task/metric`, its standard error under `..._stderr`."""
        found = {}
        for name, one in self.measures.items():
            found[f"{self.name}/{name}"] = one.value
            if one.stderr is not None:
                found[f"{self.name}/{name}_stderr"] = one.stderr
        return found

    def figures(self) -> Figures:
        """Return the metrics that are means over questions. Equal questions are of one group."""
        import numpy as np

        from aligner.evaluation.figures import Figure, Figures, grouped

        named = {
            f"{self.name}/{name}": Figure(
                np.array(one.of_rows), np.ones(len(one.of_rows)), one.better
            )
            for name, one in self.measures.items()
            if one.of_rows
        }
        return Figures(named, grouped(self.asked))


def task_names(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas. Raises: UsageError for an empty one, and for one that
    is named twice."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(
            f"--tasks {text} has an empty name, or one twice", "name each task once: a,b,c"
        )
    return names


def check_installed() -> None:
    """Raises: UsageError when the harness is not installed; imports nothing."""
    if find_spec("lm_eval") is None:
        raise UsageError("--tasks needs lm-evaluation-harness, which is not installed", INSTALL)


def check_same_questions(one: Found, other: Found) -> None:
    """Raises: DataError where two models were asked different questions."""
    if (one.name, one.asked) != (other.name, other.asked):
        raise DataError(
            f"task {one.name}: the two models were asked different questions",
            "its file draws questions at random; let it ask the same",
        )


def questions_sha256(found: Sequence[Found]) -> str:
    """Return a hash of what was asked in all tasks, and of the versions of their files."""
    asked = [[one.name, str(one.version), one.num_fewshot, one.asked] for one in found]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


@contextmanager
def opened(asked: Tasks, on_event: OnEvent | None = None) -> Iterator[Any]:
    """Read and check the tasks, before any model is loaded, and lend the harness's index of them to
    `run_tasks`.

    Raises: UsageError for a name that is no task; DataError for a task that cannot be loaded, and
    for one of the two mistakes in task files.
    """
    from aligner.evaluation.task_guard import contained

    with contained(trusted=asked.trusted), _quiet(on_event):
        from lm_eval.tasks import TaskManager

        tell(on_event, StageStarted("reading the tasks"))
        manager = _manager(TaskManager, asked)
        for name in asked.names:
            _check(manager, name, asked, on_event)
        yield manager


def run_tasks(
    model: Any,
    tokenizer: Any,
    asked: Tasks,
    manager: Any,
    *,
    journal: Journal | None = None,
    on_event: OnEvent | None = None,
) -> list[Found]:
    """Measure a model on each task, in turn, inside `opened`; groups of tasks bring their members.

    `journal` keeps each task that is done.
    """
    from lm_eval.models.huggingface import HFLM

    journal = journal or Journal(None)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=asked.batch_size)
    found: list[Found] = []
    for number, name in enumerate(asked.names):
        if number in journal:
            done = journal[number]
        else:
            tell(on_event, StageStarted(f"task {name}"))
            done = journal.add(number, [asdict(one) for one in _run(lm, name, manager, asked)])
        found += [_read(one) for one in done]
    return found


def _read(entry: Record) -> Found:
    """What a journal holds of a task; NaN is text there."""
    measures = {
        name: Measure(**{**one, "value": float(one["value"])})
        for name, one in entry["measures"].items()
    }
    return Found(**{**entry, "measures": measures})


def _manager(manager: Any, asked: Tasks) -> Any:
    """The harness's index: of the folder alone where that has every name, which is read at once."""
    if asked.folder is not None:
        own = manager(include_path=str(asked.folder), include_defaults=False)
        if set(asked.names) <= set(own.all_tasks):
            return own
    where = None if asked.folder is None else str(asked.folder)
    every = manager(include_path=where)
    known = list(every.all_tasks)
    for name in asked.names:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "see `lm_eval ls tasks`"
            raise UsageError(f"--tasks: there is no task {name!r}", hint)
    return every


def _check(manager: Any, name: str, asked: Tasks, on_event: OnEvent | None) -> None:
    """Load a task, and look for what the harness would pass over. Of its own tasks that is said, of
    a file of the user's it is an error."""
    from aligner.evaluation.task_checks import problems

    try:
        loaded = manager.load([name])["tasks"]
    except UsageError:
        raise
    except Exception as error:  # whatever a task file or its data make the harness raise
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "check its file, and that its data is a local file or in the cache of datasets"
        if isinstance(error, IndexError):
            hint = "a right answer that is a number is read as the place of a choice, from 0 on"
        raise DataError(f"task {name} cannot be loaded: {text}", hint) from error
    for task in loaded.values():
        for problem in problems(task, asked.num_fewshot, asked.limit):
            if _is_of_user(task, asked.folder):
                raise DataError(f"task {task.config.task}: {problem.text}", problem.hint)
            tell(on_event, Warned(f"task {task.config.task}: {problem.text}"))


def _is_of_user(task: Any, folder: Path | None) -> bool:
    """Whether a task's file lies in the user's folder."""
    source = (task.config.metadata or {}).get("config_source")
    return folder is not None and source is not None and _inside(Path(source), folder)


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _run(lm: Any, name: str, manager: Any, asked: Tasks) -> list[Found]:
    """One name: a task, or the members of a group and the group."""
    import lm_eval

    out = lm_eval.simple_evaluate(
        model=lm,
        tasks=[name],
        num_fewshot=asked.num_fewshot,
        limit=asked.limit,
        apply_chat_template=asked.chat_template,
        task_manager=manager,
        bootstrap_iters=BOOTSTRAP_ITERS,
    )
    assert out is not None, "one process"
    results = {**out["results"], **out.get("groups", {})}
    return [_found(task, results[task], out) for task in results]


def _found(name: str, numbers: Mapping[str, Any], out: Mapping[str, Any]) -> Found:
    samples = out["samples"].get(name, [])
    higher = out["higher_is_better"].get(name, {})
    first = samples[0]["filter"] if samples else None
    asked = [sample["doc_hash"] for sample in samples if sample["filter"] == first]
    measures = {}
    for key, value in numbers.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        shown = metric if kind == "none" else key
        rows = _of_rows(samples, metric, kind, value)
        error = numbers.get(f"{metric}_stderr,{kind}")
        better = {True: 1, False: -1, None: 0}[higher.get(metric)]
        stderr = float(error) if isinstance(error, int | float) else None
        measures[shown] = Measure(float(value), stderr, better, rows)
    return Found(name, out["versions"].get(name), out.get("n-shot", {}).get(name), measures, asked)


def _of_rows(
    samples: Sequence[Mapping[str, Any]], metric: str, kind: str, value: float
) -> list[float] | None:
    """What each question adds to a metric; None where the metric is not the mean of that."""
    found = [sample.get(metric) for sample in samples if sample["filter"] == kind]
    if not found or not all(isinstance(one, int | float) for one in found):
        return None
    rows = [float(one) for one in found if one is not None]
    is_mean = math.isclose(math.fsum(rows) / len(rows), value, rel_tol=ROUNDING, abs_tol=ROUNDING)
    return rows if is_mean else None


class _Bar:
    """What stands in for the harness's bars: answers are counted, the rest is quiet."""

    def __init__(
        self,
        on_event: OnEvent | None,
        iterable: Iterable[Any] = (),
        *,
        total: int = 0,
        desc: str = "",
        **_: Any,
    ) -> None:
        self.iterable, self.total, self.done = iterable, total, 0
        self.on_event = on_event if desc.startswith("Running ") else None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable)

    def update(self, count: int = 1) -> None:
        self.done += count
        tell(self.on_event, StageProgress("answering", self.done, self.total))

    def close(self) -> None:
        """Nothing is open."""


class _Told(logging.Handler):
    """Hands on what the harness warns of, each kind once, but for what we ask of it ourselves."""

    OURS = (
        "`pretrained` model kwarg",
        "Passed an already-initialized model",
        "Overwriting default",
    )

    def __init__(self, on_event: OnEvent | None) -> None:
        super().__init__(logging.WARNING)
        self.on_event = on_event
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        kind, text = str(record.msg)[:40], record.getMessage().strip()
        if kind not in self.seen and not text.startswith(self.OURS):
            self.seen.add(kind)
            tell(self.on_event, Warned(f"lm-evaluation-harness: {text}"))


@contextmanager
def _quiet(on_event: OnEvent | None) -> Iterator[None]:
    """Keep the harness from bars and logs of its own, and from starting git, pip and processes for
    a bootstrap."""
    from lm_eval import evaluator
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    logger, handler = logging.getLogger("lm_eval"), _Told(on_event)
    kept = logger.handlers, logger.propagate
    with ExitStack() as stack:
        for module in (model, task, huggingface):
            stack.enter_context(patch.object(module, "tqdm", partial(_Bar, on_event)))
        for name in ("get_git_commit_hash", "add_env_info", "add_tokenizer_info"):
            stack.enter_context(patch.object(evaluator, name, lambda *_: None))
        stack.enter_context(patch.dict(os.environ, {"DISABLE_MULTIPROC": "1"}))
        logger.handlers, logger.propagate = [handler], False
        try:
            yield
        finally:
            logger.handlers, logger.propagate = kept
