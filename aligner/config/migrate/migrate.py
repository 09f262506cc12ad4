"""`migrate`: read a recipe of another tool, place its keys, and check that ours can be loaded.

What is not known to be the same is said: renamed, changed in meaning, a default that differs, left
out. What has no counterpart is an error that names every such key, unless losing it is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aligner.config.hints import did_you_mean
from aligner.config.load import Unsettled, settle
from aligner.config.migrate import axolotl, llama_factory, torchtune, trl
from aligner.config.migrate.methods import KINDS, kind_of_trl, tool_of
from aligner.config.migrate.migration import FILE, Migration, Note, short
from aligner.config.migrate.text import recipe_text
from aligner.config.overrides import Draft
from aligner.config.yaml_lines import dotted, read_document, text_of
from aligner.errors import Problem, RecipeError, UsageError

OF_MACHINE = ("trainer.report_to", "trainer.use_liger_kernel", "trainer.push_to_hub")
"""Keys that the machine decides about, and the result of a training does not depend on."""


class Reader(NamedTuple):
    """How a tool's recipes are read: what one is for, and where its keys go."""

    kind: Callable[[dict[str, Any]], str]
    place: Callable[[Migration], None]


READERS = {
    axolotl.TOOL: Reader(axolotl.kind, axolotl.place),
    llama_factory.TOOL: Reader(llama_factory.kind, llama_factory.place),
    torchtune.TOOL: Reader(torchtune.kind, torchtune.place),
}
"""Tools whose recipes say themselves what they are for."""


@dataclass(frozen=True)
class Migrated:
    """A recipe of ours: its text with comments, its values, what was said of each key, and files
    that stand beside it by the ending of their names."""

    tool: str
    method: str
    text: str
    values: dict[str, Any]
    notes: list[Note]
    files: dict[str, str] = field(default_factory=dict)


def migrate(
    path: Path, *, tool: str = "auto", kind: str = "", lossy: bool = False, output: Path | None
) -> Migrated:
    """Make a recipe of another tool into one of ours.

    `kind` is one of `KINDS`, where keys and names do not tell. `output` is where the recipe will
    be written: files beside it are named after it.

    Raises: RecipeError with every key that has no counterpart, unless `lossy`; or with what keeps
    the result from being loaded.
    """
    if kind and kind not in KINDS:
        hint = did_you_mean(kind, KINDS) or f"name one of {', '.join(KINDS)}"
        raise UsageError(f"nothing is called `{kind}`", hint)
    name = str(path)
    if not path.is_file():
        raise RecipeError(f"there is no file `{path}`", "name a recipe of another tool")
    document = read_document(text_of(path, name), name)
    if document.problems:
        raise RecipeError(f"{name} cannot be read", problems=document.problems)
    found = tool_of(document.values, tool, name)
    migration = _placed(document.values, found, kind, name)
    if migration.lost and not lossy:
        places = {dotted(key): f"{name}:{line}" for key, line in document.lines.items() if key}
        raise _lost(migration, name, places)
    files = _files(migration, output)
    _check(migration, name)
    text = recipe_text(migration, found, path.name)
    return Migrated(found, migration.method, text, migration.values, migration.notes, files)


def _placed(old: dict[str, Any], tool: str, kind: str, name: str) -> Migration:
    reader = READERS.get(tool)
    if not kind:
        kind = reader.kind(old) if reader else kind_of_trl(old, tool, name)
    objective = kind if kind in ("orpo", "simpo") else ""
    method = "dpo" if objective else kind
    migration = Migration(method, copy.deepcopy(old), objective=objective)
    migration.put("method", migration.method)
    if reader:
        reader.place(migration)
    else:
        trl.place(migration, tool)
    if kind in ("orpo", "simpo"):
        migration.put("dpo.loss", kind)
        text = f"{kind} trains on pairs: an objective of `aligner dpo`"
        migration.notes.append(Note("filled", "", f"dpo.loss: {kind}", text))
    if kind == "orpo" and tool != llama_factory.TOOL:
        text = "TRL's next-token loss counts the prompt's tokens, too; here the answer's alone"
        migration.notes.append(Note("changed", "orpo", "dpo.loss: orpo", text))
    return migration


def _lost(migration: Migration, name: str, places: dict[str, str]) -> RecipeError:
    problems = []
    for note in migration.lost:
        key, _, value = note.old.partition(": ")
        where = _place_of(key, places)
        problems.append(Problem(f"has no counterpart, found {value}", where, key, note.text))
    count = "a key" if len(problems) == 1 else f"{len(problems)} keys"
    hint = "--lossy migrates the rest, and writes these as comments"
    return RecipeError(f"{count} of {name} would be lost", hint, problems)


def _place_of(key: str, places: dict[str, str]) -> str:
    """Return where a key stands: itself, its section, or a section's key that was read alone."""
    inner = next((places[name] for name in places if name.endswith(f".{key}")), "")
    return places.get(key) or places.get(key.split(".")[0]) or inner


def _files(migration: Migration, output: Path | None) -> dict[str, str]:
    """Name the files beside the recipe, and put their names into it."""
    texts = {}
    for ending, (key, text) in migration.files.items():
        if output is None:
            hint = "give --output: it is written beside the recipe"
            raise RecipeError(f"`{key.rsplit('.', 1)[-1]}` is a text that becomes a file", hint)
        file = str(output.with_suffix(ending))
        value = migration.get(key)
        named = [one.replace(FILE, file) for one in value] if isinstance(value, list) else file
        migration.put(key, named)
        texts[file] = text
    return texts


def _check(migration: Migration, name: str) -> None:
    """Load the result; what only this machine refuses is left out of it.

    Raises: RecipeError with everything else that is refused.
    """
    for _ in range(len(OF_MACHINE) + 1):
        try:
            draft = Draft(copy.deepcopy(migration.values))
            settle(Unsettled(migration.method, f"what {name} became", draft))
            return
        except RecipeError as error:
            refused = [problem for problem in error.problems if problem.key in OF_MACHINE]
            if not refused:
                raise
            for key in dict.fromkeys(problem.key for problem in refused):
                why = "; ".join(problem.message for problem in refused if problem.key == key)
                migration.notes.append(Note("not here", _left_out(migration, key, why), "", why))


def _left_out(migration: Migration, key: str, why: str) -> str:
    """Leave a value out, or what of a list is refused, and return it."""
    value = migration.get(key)
    names = [name for name in value if f"`{name}`" in why] if isinstance(value, list) else []
    kept = [name for name in value if name not in names] if names else []
    if kept:
        migration.put(key, kept)
    else:
        migration.drop(key)
    return f"{key}: {short(names if kept else value)}"
