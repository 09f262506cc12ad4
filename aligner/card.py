"""The model card of a run's final model, written from the record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.record import write_atomically


def write_model_card(run_dir: Path, manifest: dict[str, Any]) -> None:
    write_atomically(Path(run_dir) / "final" / "README.md", f"# {manifest['method']} model\n")
