"""Generate a model's responses to prompts, and score them.

`score` is the mean over prompts of the mean over a prompt's samples; its standard error counts
prompts, not samples, since samples of one prompt are not independent. `stopped` is the share of
answers that ended by themselves: a low one means that the token limit, and not the model, decided
what was scored. `distinct` is the share of different texts among all answers; with several samples,
`distinct_per_prompt` is the same within a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from aligner.data.rows import PromptRow, prompt_text
from aligner.evaluation.figures import Figure, Figures, grouped, mean
from aligner.generation.decode import Completion, generate
from aligner.generation.requests import Engine
from aligner.generation.sampling import Sampling
from aligner.models.forward import Progress
from aligner.reward_models.batching import Answers, ask, chunks, refuse_silent
from aligner.runs.journal import Journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.reward_models.base import Scorer

GREEDY = Sampling(temperature=0.0)


def measure_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[PromptRow],
    *,
    scorer: Scorer | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 16,
    on_progress: Progress | None = None,
    journal: Journal | None = None,
    engine: Engine | None = None,
) -> tuple[Figures, list[list[Completion]]]:
    """Return the numbers, and the answers they are about, in the order of the rows. `journal` keeps
    the answers, and `engine` writes them: the model itself by default."""
    answers = generate(
        model,
        tokenizer,
        [row.prompt for row in rows],
        sampling or GREEDY,
        tools=[row.tools for row in rows],
        batch_size=batch_size,
        on_progress=on_progress,
        journal=journal,
        engine=engine,
    )
    scores = {} if scorer is None else {"score": _scores(scorer, rows, answers)}
    named, others = _described(answers)
    groups = grouped([prompt_text(row) for row in rows])
    return Figures({**scores, **named}, groups, others), answers


def _scores(
    scorer: Scorer, rows: Sequence[PromptRow], answers: Sequence[Sequence[Completion]]
) -> Figure:
    asked = [row for row, samples in zip(rows, answers) for _ in samples]
    texts = [completion.text for samples in answers for completion in samples]
    columns = Answers(
        [row.prompt for row in asked],
        texts,
        [row.answer for row in asked],
        [row.origin or f"prompt {number}" for number, row in enumerate(asked, start=1)],
    )
    verdicts = ask(lambda: scorer, columns, chunks(len(texts), None))
    refuse_silent(
        scorer.name,
        columns,
        verdicts.silent,
        len(verdicts),
        "their mean would not be that of all prompts",
    )
    scores = iter(verdicts.values)
    means = [sum(islice(scores, len(samples))) / len(samples) for samples in answers]
    return mean(means, 1)


def _distinct(samples: Sequence[Completion]) -> float:
    return len({completion.text for completion in samples}) / len(samples)


def _stopped(samples: Sequence[Completion]) -> int:
    return sum(completion.finish_reason == "stop" for completion in samples)


def _tokens(samples: Sequence[Completion]) -> int:
    return sum(len(completion.token_ids) for completion in samples)


def describe(answers: Sequence[Sequence[Completion]]) -> dict[str, float]:
    """Return what can be said of answers without judging them."""
    named, others = _described(answers)
    return {**{name: figure.value for name, figure in named.items()}, **others}


def _described(
    answers: Sequence[Sequence[Completion]],
) -> tuple[dict[str, Figure], dict[str, float]]:
    """What each prompt adds, and what is of all answers together."""
    flat = [completion for samples in answers for completion in samples]
    written = np.array([len(samples) for samples in answers], dtype=np.float64)
    ended = [_stopped(samples) for samples in answers]
    tokens = [_tokens(samples) for samples in answers]
    named = {
        "stopped": Figure(np.array(ended, dtype=np.float64), written),
        "mean_tokens": Figure(np.array(tokens, dtype=np.float64), written, of_tokens=True),
    }
    if len(flat) > len(answers):
        named["distinct_per_prompt"] = mean([_distinct(samples) for samples in answers])
    counts = {"prompts": float(len(answers)), "answers": float(len(flat))}
    return named, {"distinct": _distinct(flat), **counts}
