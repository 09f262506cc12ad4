"""A dry run: everything up to the first step, in a temporary folder, and what would be trained."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.load import Resolved
from aligner.config.recipe import TrainRecipe
from aligner.data.loading import Loaded
from aligner.events import DataReady, OnEvent, tell
from aligner.methods.decisions import decide
from aligner.methods.job import questions_from
from aligner.methods.plan import PlanRows, plan_rows
from aligner.methods.preparation import (
    data_table,
    load_checked_tokenizer,
    look_ahead,
    tokenize_rows,
    try_out,
)
from aligner.runs.result import RunResult
from aligner.runs.session import Session

if TYPE_CHECKING:
    from aligner.tokenization.batching import Batching
    from aligner.tokenization.dataset import TokenizedData, WatchRow


@dataclass(frozen=True)
class Foreseen:
    """What is known before the first step. `recipe`: within the sizes of its model; `table`: of the
    data; `decided`: by device, model and data, and `bf16` of it, None where the device alone says;
    `books`: the `splits` of the ledger."""

    recipe: TrainRecipe
    table: list[tuple[str, str]]
    decided: PlanRows
    bf16: bool | None
    books: dict[str, Any]
    batching: Batching
    sequences: int


def run_dry(session: Session, loaded: Loaded) -> RunResult:
    """Tokenize into a temporary folder, count, and say what would run."""
    found = foresee(session.resolved, loaded, session.on_event)
    tell(session.on_event, DataReady(found.table))
    batching = found.batching
    rows = plan_rows(found.recipe, found.sequences, batching.epoch_sizes, batching.steps)
    return session.plan([*found.decided, *rows])


def foresee(
    resolved: Resolved,
    loaded: Loaded,
    on_event: OnEvent | None,
    watch: WatchRow | None = None,
    measure: Callable[[TokenizedData], None] | None = None,
) -> Foreseen:
    """Try the settings on this device, tokenize into a temporary folder, and decide what data and
    model decide. `watch` sees each row as it is encoded, `measure` what became of all of them."""
    recipe, of_device = try_out(resolved.recipe, loaded, resolved.origins, on_event)
    tokenizer = load_checked_tokenizer(recipe, on_event)
    trained = look_ahead(recipe, tokenizer, on_event)
    with tempfile.TemporaryDirectory(prefix="aligner-dry-run-") as folder:
        place = Path(folder) / "prepared"
        prepared = tokenize_rows(recipe, loaded, tokenizer, place, on_event, watch)
        questions = questions_from(loaded.eval or loaded.train, recipe.report.num_prompts)
        books = loaded.ledger.to_json()["splits"]
        choice = decide(recipe, prepared, books, len(questions), trained)
        batching, sequences = prepared.batching, len(prepared.train)
        table = data_table(recipe, loaded, prepared)
        if measure is not None:
            measure(prepared)
        del prepared
    chosen = choice.rows()
    found = {what for what, *_ in chosen}
    decided = [*(row for row in of_device if row[0] not in found), *chosen]
    return Foreseen(recipe, table, decided, choice.bf16, books, batching, sequences)
