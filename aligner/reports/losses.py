"""The catalogue of objectives as one HTML file: a curve for each, with what is known of its
shape."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from aligner.config.loss_names import LOSSES
from aligner.reports.charts import Series, line_chart, number
from aligner.reports.training import page
from aligner.runs.files import write_atomically

if TYPE_CHECKING:
    from aligner.losses.table import Row


def write_picture(rows: Sequence[Row], beta: float, tau: float, path: Path) -> None:
    """Write the picture. Raises: OSError when the place cannot be written."""
    facts = [("beta", f"{beta:g}"), ("tau", f"{tau:g}"), ("objectives", str(len(rows)))]
    figures = "".join(f"<div>{_figure(row)}</div>" for row in rows)
    note = (
        "Horizontal axis: z = beta · rho, the scaled margin between chosen and rejected; training "
        "starts at 0. "
        "Objectives that read more than z are cut along margins won half by each answer, in a "
        "batch of equal pairs."
    )
    body = f'<section><div class="grid">{figures}</div><p class="soft small">{note}</p></section>'
    write_atomically(path, page("Preference objectives", "catalogue", facts, body))


def _figure(row: Row) -> str:
    turns = "; ".join(
        f"{kind} {number(loss)} at z = {number(z)}" for z, loss, kind in row.shape.turns
    )
    facts = [
        f"slope at 0: {number(row.shape.slope_at_start)}",
        turns,
        "reads the batch" if row.reads_batch else "",
    ]
    warning = (
        '<p class="warning small">Starts on a wrong slope.</p>'
        if row.shape.slope_at_start > 0
        else ""
    )
    text = " · ".join(fact for fact in facts if fact)
    chart = line_chart(row.name, [Series("loss", row.shape.curve, smooth=False)])
    return f'{chart}<p class="soft small">{escape(LOSSES[row.name])}<br>{escape(text)}</p>{warning}'
