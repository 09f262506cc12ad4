"""Files of answers of two and more models, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_answers(folder: Path, models: Mapping[str, list[str]]) -> list[str]:
    """A file for each model, whose answers are to `question 0?` and so on; the paths."""
    paths = []
    for model, answers in models.items():
        rows = [
            {"prompt_id": f"p{number}", "prompt": f"question {number}?", "answer": answer}
            for number, answer in enumerate(answers)
        ]
        paths.append(str(write_rows(folder / f"{model}.jsonl", rows)))
    return paths
