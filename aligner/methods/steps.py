"""What the pipeline asks of a training method, in the order in which it asks.

A method's folder holds `recipe.py` (what it says of itself), `encode.py` (a row -> columns of token
ids), `train.py` (`train(job)` trains, saves, and returns a `TrainResult`) and `steps.py`, whose
`STEPS` is one of these. Here stands what most methods do; each changes what is different about it.
Imports nothing heavy: what needs torch is loaded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aligner.data.loading import Loaded
from aligner.data.rows import Row, Task
from aligner.events import OnEvent
from aligner.methods.catalogue import METHODS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aligner.config.segments import Segments
    from aligner.losses.types import Objective
    from aligner.memory.footprint import Footprint, Lengths
    from aligner.methods.job import Job
    from aligner.tokenization.dataset import EpochSource, RowEncoder, TokenizedData
    from aligner.training.fit import TrainResult


class TrainingSteps:
    """The steps of a training method. `recipe` is always one of its own class."""

    task: Task = "preference"
    """The kind of rows that it trains on."""

    answers: bool = True
    """Whether the report shows answers of the model, from before and after."""

    def check(self, recipe: Any, objective: Objective | None) -> None:
        """Check what needs no rows, before they are read. Raises: RecipeError."""

    def task_of(self, recipe: Any) -> Task:
        """Return the kind of rows that this recipe trains on."""
        return self.task

    def group_by(self, recipe: Any) -> str | None:
        """Return the column whose values are kept apart, if there is one."""
        return None

    def further_columns(self, recipe: Any) -> Sequence[str]:
        """Return the columns that are read beside prompts and answers."""
        return ()

    def check_rows(self, recipe: Any, loaded: Loaded) -> None:
        """Check the rows as a whole, before torch is loaded. Raises: DataError."""

    def load(self) -> None:
        """Import everything that the training needs."""
        self._part("train")

    def num_outputs(self, recipe: Any) -> int | None:
        """Return the outputs of the head that is trained; None where the model writes text."""
        return None

    def passes(self, recipe: Any) -> tuple[float, float]:
        """Return what a trained token and a held-out one cost, in forward passes over it: the
        backward pass counts as two, and as one where only adapters get gradients."""
        return (3.0 if recipe.model.lora is None else 2.0), 1.0

    def responses(self, recipe: Any) -> tuple[int, int]:
        """Return how many responses a row is given at each step, and their most tokens; none where
        the training samples none."""
        return 0, 0

    def memory(self, recipe: Any, lengths: Lengths) -> Footprint:
        """Return the passes that the training consists of, and what it holds beside the model: here
        updates and evaluations on its rows."""
        from aligner.memory.footprint import Footprint, answers_together, of_updates, single_rows

        batch = answers_together if self.task_of(recipe) == "preference" else single_rows
        passes = of_updates(recipe, lambda split: batch(recipe, lengths, split))
        return Footprint(passes)

    def check_model(self, recipe: Any, on_event: OnEvent | None) -> None:
        """Check what only the model can tell, before rows are tokenized. Raises: RecipeError."""

    def row_encoder(self, recipe: Any, tokenizer: PreTrainedTokenizerBase) -> RowEncoder:
        """Return what turns a row into columns."""
        encoder: RowEncoder = self._part("encode").encoder(recipe, tokenizer)
        return encoder

    def epoch_source(
        self,
        recipe: Any,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        on_event: OnEvent | None,
    ) -> EpochSource | None:
        """Return what makes new training rows for each epoch, where the recipe asks for that."""
        return None

    def facts(self, recipe: Any, prepared: TokenizedData) -> Sequence[tuple[str, str]]:
        """Return what the table of the data says of tokenized rows, beside how they are batched."""
        return ()

    def segments(self, recipe: Any) -> Segments | None:
        """Return how the training cuts the answers of its rows into segments, where it does."""
        return None

    def segments_of_run(self, run_dir: Path) -> Callable[[Sequence[int]], Sequence[int]] | None:
        """Return what finds the segments that a run has cut an answer into, from the ids of the
        answer; None where it has found none."""
        return None

    def before_ranks(self, job: Job) -> None:
        """Do in the launching process what several ranks could not, or would wait for."""

    def train(self, job: Job) -> TrainResult:
        """Train the model of the recipe on its tokenized rows, and save it."""
        fitted: TrainResult = self._part("train").train(job)
        return fitted

    def try_objective(self, recipe: Any, objective: Objective) -> None:
        """Try a loss that was given as a function; asked only where the method's `objective_key`
        says that it takes one. Raises: RecipeError."""

    def _part(self, name: str) -> ModuleType:
        return import_module(f"{type(self).__module__.rpartition('.')[0]}.{name}")


def has_steps(method: str) -> bool:
    """Say whether a method trains on rows by steps of its own, and not by trainings of others."""
    return find_spec(f"{METHODS[method].folder}.steps") is not None


def steps_of(method: str) -> TrainingSteps:
    """Return the steps of a method that trains."""
    steps: TrainingSteps = import_module(f"{METHODS[method].folder}.steps").STEPS
    return steps
