"""A dry run: everything up to the first step, in a temporary folder, and what would be trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

from aligner.data.loading import Loaded
from aligner.events import DataReady, tell
from aligner.methods.decisions import decide
from aligner.methods.job import questions_from
from aligner.methods.plan import plan_rows
from aligner.methods.preparation import (
    data_table,
    load_checked_tokenizer,
    look_ahead,
    tokenize_rows,
    try_out,
)
from aligner.runs.result import RunResult
from aligner.runs.session import Session


def run_dry(session: Session, loaded: Loaded) -> RunResult:
    """Tokenize into a temporary folder, count, and say what would run."""
    resolved, on_event = session.resolved, session.on_event
    recipe, decided = try_out(resolved.recipe, loaded, resolved.origins, on_event)
    tokenizer = load_checked_tokenizer(recipe, on_event)
    trained = look_ahead(recipe, tokenizer, on_event)
    with tempfile.TemporaryDirectory(prefix="aligner-dry-run-") as folder:
        prepared = tokenize_rows(recipe, loaded, tokenizer, Path(folder) / "prepared", on_event)
        questions = questions_from(loaded.eval or loaded.train, recipe.report.num_prompts)
        books = loaded.ledger.to_json()["splits"]
        chosen = decide(recipe, prepared, books, len(questions), trained).rows()
        batching, sequences = prepared.batching, len(prepared.train)
        table = data_table(recipe, loaded, prepared)
        del prepared
    tell(on_event, DataReady(table))
    rows = plan_rows(recipe, sequences, batching.epoch_sizes, batching.steps)
    found = {what for what, *_ in chosen}
    return session.plan([*(row for row in decided if row[0] not in found), *chosen, *rows])
