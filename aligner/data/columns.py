"""Reshape rows as the recipe says: the user's `function`, and which column holds what.

The function sees each raw row as it was read and returns a row (a dict), several (a list of dicts),
or None to drop it. `columns` then names the parts: target first, and the source may reach into
nested values with dots (`rejected: model_b.solution`, `prompt: turns.0.content`). A column that is
moved is gone under its old name; columns that are not named stay.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aligner.config.recipe import Source
from aligner.data.checks import BadRow, kind
from aligner.data.formats import KNOWN_COLUMNS
from aligner.data.rows import Task
from aligner.errors import DataError

UserFunction = Callable[[dict[str, Any]], Any]

_ABSENT = object()


def load_function(spec: str) -> UserFunction:
    """The function named by `path/to/file.py:name`."""
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise DataError(
            f"function: {spec!r} does not name a function", "write it as `path/to/file.py:name`"
        )
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(
            f"function: there is no file {file}", "the path is taken from the working directory"
        )
    module = _run_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        names = [
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_")
        ]
        near = difflib.get_close_matches(name, names, n=1)
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise DataError(
            f"function: {file} has no function `{name}`; {known}",
            f"did you mean `{near[0]}`?" if near else "",
        )
    return function


def _run_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"aligner_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"function: {path} does not run: {_told(error, path)}",
            "run the file by itself to see more",
        ) from error
    return module


def apply_function(function: UserFunction, row: dict[str, Any], spec: str) -> list[dict[str, Any]]:
    """The rows that the user's function makes out of one; none where it drops the row."""
    file, _, name = spec.rpartition(":")
    try:
        result = function(row)
    except Exception as error:  # the user's code may raise anything
        raise BadRow(
            f"the function `{name}` raised {_told(error, Path(file).expanduser())}"
        ) from error
    if result is None:
        return []
    rows = result if isinstance(result, list) else [result]
    for made in rows:
        if not isinstance(made, dict):
            raise BadRow(
                f"the function `{name}` returned {kind(made)}; return a dict, a list of dicts, or "
                "None"
            )
    return rows


def _told(error: Exception, path: Path) -> str:
    """The error with the line of the user's file that it came from."""
    file = path.resolve()
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == file
    ]
    where = f" (line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def move_columns(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row under its target names."""
    if not columns:
        return row
    found = {target: _reach(row, source) for target, source in columns.items()}
    moved = {key: value for key, value in row.items() if key not in columns.values()}
    for target, value in found.items():
        moved.pop(target, None)
        if value is not _ABSENT:
            moved[target] = value
    return moved


def _reach(value: Any, path: str) -> Any:
    """The value of a column, or of a place inside one."""
    if isinstance(value, dict) and path in value:
        return value[path]
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _ABSENT
    return value


def check_columns(
    head: Sequence[dict[str, Any]], source: Source, task: Task, further: Sequence[str] = ()
) -> None:
    """Refuse targets that no form knows and nobody asked for (`further`), and sources that no row
    has."""
    known = [*KNOWN_COLUMNS, *further]
    for target, column in source.columns.items():
        if task != "prompts" and target not in known:
            near = difflib.get_close_matches(target, known, n=1)
            raise DataError(
                f"{source.path}: columns: {target!r} is not a name that a form uses (the target "
                "comes first)",
                f"did you mean `{near[0]}`?" if near else f"names in use: {', '.join(known)}",
            )
        if all(_reach(row, column) is _ABSENT for row in head):
            have = list(dict.fromkeys(name for row in head for name in _paths(row)))
            near = difflib.get_close_matches(column, have, n=1)
            message = f"{source.path}: columns: no row has a column `{column}` (for `{target}`)"
            hint = f"did you mean `{near[0]}`?" if near else ""
            raise DataError(f"{message}. Columns: {', '.join(have[:30])}", hint)


def _paths(row: dict[str, Any]) -> list[str]:
    """The row's columns, with the places inside objects."""
    paths = []
    for name, value in row.items():
        paths.append(str(name))
        if isinstance(value, dict):
            paths += [f"{name}.{inner}" for inner in value]
    return paths
