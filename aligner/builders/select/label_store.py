"""The labels of a selection as they are kept in its run directory, and their totals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from aligner.data.files import BLANK, Unreadable, read_file
from aligner.errors import DataError, UsageError
from aligner.runs.files import read_json

LABELS = "labels.jsonl"


PICKED = "picked.json"


CHOICES = ("a", "b", "tie", "skip")


Label = dict[str, Any]
"""`label`, and `strength` and `by` where they are known."""


def asked_pairs(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the picked pairs of a finished selection by id, in the order of picking.

    They come from `picked.json`, so that nothing that happens to `to_label.jsonl` at an expert's
    desk can change them.

    Raises: UsageError when there is no finished selection.
    """
    resolved, summary = read_json(run_dir, "resolved.json"), read_json(run_dir, PICKED)
    if resolved is None or resolved["recipe"]["method"] != "select":
        raise UsageError(
            f"{run_dir} is not the run directory of a selection", "give the output_dir of one"
        )
    if summary is None or not (run_dir / "manifest.json").exists():
        raise UsageError(f"the selection in {run_dir} is not finished", "continue it with --resume")
    return {pair["id"]: pair for pair in summary["pairs"]}


def known_labels(run_dir: Path) -> dict[str, Label]:
    """Return the labels that were read so far, by id.

    Raises: DataError when the file, in which a user may delete lines, holds something else.
    """
    path = run_dir / LABELS
    labels: dict[str, Label] = {}
    for line, row in read_file(path) if path.exists() else ():
        if row is BLANK:
            continue
        if (
            isinstance(row, Unreadable)
            or not isinstance(row.get("id"), str)
            or row.get("label") not in CHOICES
        ):
            raise DataError(
                f"{path}:{line} is not a label", "delete that line; the others can be used"
            )
        labels[row["id"]] = {key: value for key, value in row.items() if key != "id"}
    return labels


def counts_of(run_dir: Path) -> dict[str, float]:
    """Return how many pairs have which label, and how often the reward models were right where
    there were some."""
    summary, labels = read_json(run_dir, PICKED), known_labels(run_dir)
    by_choice = Counter(label["label"] for label in labels.values())
    counts = {
        "labelled": float(by_choice["a"] + by_choice["b"]),
        "ties": float(by_choice["tie"]),
        "skipped": float(by_choice["skip"]),
        "not labelled yet": float(len(summary["pairs"]) - len(labels)),
    }
    judged = [
        pair for pair in summary["pairs"] if labels.get(pair["id"], {}).get("label") in ("a", "b")
    ]
    if judged and judged[0]["probability"] is not None:
        right = []
        for pair in judged:
            probability, is_a = pair["probability"], labels[pair["id"]]["label"] == "a"
            right.append(0.5 if probability == 0.5 else float((probability > 0.5) == is_a))
        counts["ranked rightly by the reward models"] = round(sum(right) / len(right), 4)
    return counts
