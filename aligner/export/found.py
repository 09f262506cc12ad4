"""What a command is to take away: the model of a run, a folder, or a hub id. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.config.recipe import Model
from aligner.errors import UsageError
from aligner.models.files import ADAPTER_FILE, check_model_path
from aligner.models.folder_kinds import CONFIG_FILE
from aligner.runs.files import read_json


@dataclass(frozen=True)
class Found:
    """A model: the folder or hub id to load it from, and the run that made it, if one did."""

    name: str
    run: Path | None = None

    def section(self, **settings: Any) -> Model:
        """Return the model section of a recipe that loads it."""
        return Model(name_or_path=self.name, **settings)

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of its run, as it was resolved; empty without a run."""
        if self.run is None:
            return {}
        recipe: dict[str, Any] = (read_json(self.run, "resolved.json") or {}).get("recipe", {})
        return recipe


def find_model(name: str) -> Found:
    """Return the model that a text means: a run directory stands for its `final/`. A folder that
    holds a model is that model, whatever records lie beside it.

    Raises: UsageError for a run that has not finished, or that made no model; RecipeError for a
    folder that cannot be loaded.
    """
    path = Path(name).expanduser()
    is_model = any((path / file).is_file() for file in (CONFIG_FILE, ADAPTER_FILE))
    run = path if not is_model and (path / "resolved.json").is_file() else None
    if run is not None:
        if not (run / "manifest.json").is_file():
            raise UsageError(f"the run {run} has not finished", "continue it with --resume")
        if not (run / "final").is_dir():
            raise UsageError(f"the run {run} made no model", "name a training run, or a model")
        path = run / "final"
    elif path.is_dir() and (path.absolute().parent / "resolved.json").is_file():
        run = path.parent
    found = Found(str(path) if path.exists() else name, run)
    check_model_path(found.section(), "MODEL")
    return found
