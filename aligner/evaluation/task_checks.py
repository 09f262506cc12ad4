"""Two mistakes in task files of lm-evaluation-harness that it passes over, found before anything is
measured.

A right answer that is written by a template, and is a number, is read as the place of a choice: of
the choices 1, 2 and 3, the answer 1 makes 2 the right one. And where few-shot examples come from
the questions themselves, a question can stand among its own examples, answer and all; the harness
leaves it out only where `fewshot_split` and `test_split` are equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any


@dataclass(frozen=True, slots=True)
class TaskProblem:
    """What is wrong with a task, as a clause, and what to do."""

    text: str
    hint: str


def problems(task: Any, num_fewshot: int | None, limit: int | None) -> Iterator[TaskProblem]:
    """Yield what is wrong with a loaded task, when `limit` of its questions are asked after
    `num_fewshot` examples (None: as the task says)."""
    config = getattr(task, "config", None)
    if config is None or not hasattr(task, "eval_docs"):
        return
    yield from _digits(task, limit)
    shots = config.num_fewshot if num_fewshot is None else num_fewshot
    if shots:
        yield from _own_examples(task, limit)


def _digits(task: Any, limit: int | None) -> Iterator[TaskProblem]:
    """A number that is read as an index, and is not that of the choice with its text."""
    from lm_eval import utils

    config = task.config
    template = config.doc_to_target
    if config.doc_to_choice is None or not isinstance(template, str) or template in task.features:
        return
    for number, doc in enumerate(islice(task.eval_docs, limit), start=1):
        target = utils.apply_template(template, doc)
        if not target.isdigit():
            continue
        choices = [str(choice) for choice in task.doc_to_choice(doc)]
        index = int(target)
        if index < len(choices) and target not in choices:
            continue  # the place of a choice, as the harness reads it
        if index < len(choices) and choices[index] == target:
            continue
        meant = (
            f"choice {index + 1}, {choices[index]!r}"
            if index < len(choices)
            else "a choice that is not there"
        )
        yield TaskProblem(
            f"the right answer of question {number} is {target!r}, which lm-evaluation-harness "
            f"reads as {meant}: a number is the place of a choice, from 0 on",
            "let doc_to_target give the place, such as {{choices.index(answer)}}, or name a column "
            "that holds it",
        )
        return


def _own_examples(task: Any, limit: int | None) -> Iterator[TaskProblem]:
    """A question that may be drawn as an example for itself."""
    if task.fewshot_cfg.split == task.config.test_split:
        return  # the harness leaves a question out of its own examples
    pool = {_key(doc) for doc in task.fewshot_docs()}
    asked = [_key(doc) for doc in islice(task.eval_docs, limit)]
    shared = sum(key in pool for key in asked)
    if shared:
        yield TaskProblem(
            f"{shared:,} of {len(asked):,} questions are among the few-shot examples, so a prompt "
            "can hold its own answer",
            "name another split in fewshot_split, or measure with --num-fewshot 0",
        )


def _key(doc: Any) -> str:
    return json.dumps(doc, sort_keys=True, default=str)
