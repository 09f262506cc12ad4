"""Measure a model: loss on rows, preference accuracy on pairs, scores of its own responses.

    sft          loss, perplexity, bits_per_token, token_accuracy           `likelihood.py`
    preference   accuracy, accuracy_per_token; with a reference also        `preferences.py`
                 reward_accuracy, reward_margin
    prompts      score (with a scorer), stopped, mean_tokens, distinct      `answers.py`

Each has a function of its own; `measure` chooses among them and returns what each row adds
(`figures.py`), from which intervals and comparisons are made, and `evaluate` returns the numbers
alone. A share or a mean over rows comes with its standard error under `..._stderr`. Batches are
padded, and the numbers do not depend on their size but for rounding.

Reward models are measured on pairs by `reward_accuracy.py`, from what `pair_scores.py` has them
say; of benchmarks with names, `rewardbench.py` holds the one average.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from aligner.data.rows import Task
from aligner.errors import UsageError
from aligner.runs.journal import Journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.config.recipe import LossOn
    from aligner.evaluation.figures import Figures
    from aligner.generation.requests import Engine
    from aligner.generation.sampling import Sampling
    from aligner.models.forward import Progress
    from aligner.reward_models.base import Scorer
    from aligner.reward_models.functions import ScoreFunction


def _kept_nowhere(name: str) -> Journal:
    return Journal(None)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any],
    *,
    task: Task,
    scorer: Scorer | ScoreFunction | None = None,
    sampling: Sampling | None = None,
    reference: PreTrainedModel | Literal["adapter_off"] | None = None,
    loss_on: LossOn = "auto",
    engine: Engine | None = None,
    batch_size: int = 16,
    on_progress: Progress | None = None,
    journals: Callable[[str], Journal] = _kept_nowhere,
) -> dict[str, float]:
    """Return the numbers of a task, by name. See `measure`."""
    found = measure(
        model,
        tokenizer,
        rows,
        task=task,
        scorer=scorer,
        sampling=sampling,
        reference=reference,
        loss_on=loss_on,
        engine=engine,
        batch_size=batch_size,
        on_progress=on_progress,
        journals=journals,
    )
    return found.metrics()


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any],
    *,
    task: Task,
    scorer: Scorer | ScoreFunction | None = None,
    sampling: Sampling | None = None,
    reference: PreTrainedModel | Literal["adapter_off"] | None = None,
    loss_on: LossOn = "auto",
    engine: Engine | None = None,
    batch_size: int = 16,
    on_progress: Progress | None = None,
    journals: Callable[[str], Journal] = _kept_nowhere,
) -> Figures:
    """Return the numbers of a task as what each row adds to them, by name.

    `reference` is for preferences: another model, or `adapter_off` for the base under the adapter
    of `model`. `scorer`, `sampling` and `engine` are for prompts; answers are greedy where
    `sampling` is absent, and written by `model` itself without an engine. A function of (prompts,
    answers, right answers) that returns a number for each answer is a scorer too. `journals` opens
    the journal of a name, for the same call to resume after a kill
    (`aligner.runs.partial_output`); that it is the same call is for whoever opens it to say.

    Raises: UsageError when there are no rows; DataError naming a row that cannot be used.
    """
    if not rows:
        raise UsageError(
            "there are no rows to evaluate on",
            "check the file, the split and the filters of the source",
        )
    settings: dict[str, Any] = {"batch_size": batch_size, "on_progress": on_progress}
    if task == "sft":
        from aligner.evaluation.likelihood import measure_rows

        return measure_rows(
            model, tokenizer, rows, loss_on=loss_on, journal=journals("model"), **settings
        )
    if task == "preference":
        from aligner.evaluation.preferences import measure_pairs

        both = journals("model"), journals("reference")
        return measure_pairs(model, tokenizer, rows, reference=reference, journals=both, **settings)
    from aligner.evaluation.answers import measure_prompts
    from aligner.reward_models.functions import as_scorer

    journal = journals("answers")
    judge = None if scorer is None else as_scorer(scorer)
    return measure_prompts(
        model,
        tokenizer,
        rows,
        scorer=judge,
        sampling=sampling,
        journal=journal,
        engine=engine,
        **settings,
    )[0]


def cut_alike(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, rows: Sequence[Any], task: Task
) -> bool:
    """Say whether two tokenizers, with their chat templates, make the same tokens of rows, so that
    numbers per token of two models mean the same."""
    return all(_ids(one, row, task) == _ids(other, row, task) for row in rows)


def tokens_sha256(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any], task: Task) -> str:
    """Return a hash of the tokens that a tokenizer makes of rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(_ids(tokenizer, row, task)).encode())
    return digest.hexdigest()


def _ids(tokenizer: PreTrainedTokenizerBase, row: Any, task: Task) -> list[list[int]]:
    """What is read of a row."""
    from aligner.tokenization.encode import encode_pair, encode_prompt, encode_sft

    if task == "sft":
        encoded = encode_sft(tokenizer, row)
        return [encoded.input_ids, encoded.labels]
    if task == "preference":
        pair = encode_pair(tokenizer, row)
        return [pair.prompt_ids, pair.chosen_ids, pair.rejected_ids]
    return [encode_prompt(tokenizer, row.prompt, row.tools)]
