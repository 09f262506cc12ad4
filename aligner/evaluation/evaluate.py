"""Measure a model: loss on rows, preference accuracy on pairs, scores of its own responses.

    sft          loss, perplexity, bits_per_token, token_accuracy           `likelihood.py`
    preference   accuracy, accuracy_per_token; with a reference also        `preferences.py`
                 reward_accuracy, reward_margin
    prompts      score (with a scorer), stopped, mean_tokens, distinct      `answers.py`

Each has a function of its own, for a program that wants the rows' numbers; `evaluate` chooses among
them. A share or a mean over rows comes with its standard error under `..._stderr`. Batches are
padded, and the numbers do not depend on their size but for rounding. Benchmarks with names (MMLU,
IFEval, ...) are the business of other tools.

Reward models are measured on pairs by `reward_accuracy.py`, from what `pair_scores.py` has them
say; of benchmarks with names, `rewardbench.py` holds the one average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from aligner.data.rows import Task
from aligner.errors import UsageError
from aligner.runs.journal import Journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from aligner.config.recipe import LossOn
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
    """Return the numbers of a task, by name.

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
        from aligner.evaluation.likelihood import evaluate_rows

        return evaluate_rows(
            model, tokenizer, rows, loss_on=loss_on, journal=journals("model"), **settings
        )
    if task == "preference":
        from aligner.evaluation.preferences import evaluate_pairs

        both = journals("model"), journals("reference")
        return evaluate_pairs(
            model, tokenizer, rows, reference=reference, journals=both, **settings
        )
    from aligner.evaluation.answers import evaluate_prompts
    from aligner.reward_models.functions import as_scorer

    journal = journals("answers")
    judge = None if scorer is None else as_scorer(scorer)
    return evaluate_prompts(
        model,
        tokenizer,
        rows,
        scorer=judge,
        sampling=sampling,
        journal=journal,
        engine=engine,
        **settings,
    )[0]
