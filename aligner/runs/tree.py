"""The lineage of a run as a tree: its model, its reward models and its data, and the runs that
these came out of, as far as their directories are there. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligner.runs.digests import digest_of
from aligner.runs.files import read_json
from aligner.runs.lineage import merge_of, run_around


@dataclass(frozen=True)
class Node:
    """A run, a merged model, a model or a data file, and what it was made of."""

    kind: str
    path: str
    method: str | None = None
    finished: str | None = None
    is_changed: bool = False
    """Whether a data file is not what was read, any more."""
    is_repeated: bool = False
    """Whether it stands in the tree already; its parents are listed there alone."""
    parents: tuple[Node, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the tree below it for programs."""
        return {
            "kind": self.kind,
            "path": self.path,
            "method": self.method,
            "finished": self.finished,
            "is_changed": self.is_changed,
            "is_repeated": self.is_repeated,
            "parents": [parent.to_json() for parent in self.parents],
        }


def tree_of(run_dir: Path) -> Node:
    """Return the tree of a run."""
    return _run(run_dir, run_dir, set())


def _run(shown: Path, folder: Path, seen: set[Path]) -> Node:
    recipe = (read_json(folder, "resolved.json") or {}).get("recipe", {})
    manifest = read_json(folder, "manifest.json") or {}
    environment = read_json(folder, "environment.json") or {}
    is_repeated = folder.resolve() in seen
    seen.add(folder.resolve())
    start = Path(environment.get("working_directory") or ".")
    listed = manifest.get("parents") or _parents_so_far(folder, recipe)
    parents = () if is_repeated else tuple(_parent(one, start, seen) for one in listed)
    kind, method = "run", recipe.get("method")
    return Node(kind, str(shown), method, manifest.get("finished"), False, is_repeated, parents)


def _parents_so_far(folder: Path, recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run that is not finished has read."""
    model = (recipe.get("model") or {}).get("name_or_path")
    models = [{"kind": "model", "path": model}] if model else []
    sources = (read_json(folder, "inputs.json") or {}).get("sources", {})
    return models + [
        {"kind": "data", "path": path, "fingerprint": digest} for path, digest in sources.items()
    ]


def _parent(one: dict[str, Any], start: Path, seen: set[Path]) -> Node:
    """A parent that a manifest names: the run that it lies in, if it does."""
    path = str(one["path"])
    if (merged := merge_of(path, str(start))) is not None:
        adapter = {"kind": "model", "path": merged["adapter"]}
        is_repeated = (start / path).resolve() in seen
        seen.add((start / path).resolve())
        below = () if is_repeated else (_parent(adapter, start, seen),)
        return Node("merged model", path, is_repeated=is_repeated, parents=below)
    if (run := run_around(path, start)) is not None:
        node = _run(Path(path), run, seen)
        kind = "data" if one.get("kind") == "data" else "run"
        changed = kind == "data" and _is_changed(start / path, one)
        return Node(kind, path, node.method, node.finished, changed, node.is_repeated, node.parents)
    kind = str(one.get("kind", "model")).replace("_", " ")
    return Node(kind, path, is_changed=kind == "data" and _is_changed(start / path, one))


def _is_changed(path: Path, one: dict[str, Any]) -> bool:
    digest = one.get("fingerprint")
    return bool(digest) and path.is_file() and digest_of(path) != digest


def lines_of(node: Node) -> Iterator[str]:
    """Yield the tree as lines to read."""
    yield _label(node)
    yield from _below(node.parents, "")


def _below(nodes: Sequence[Node], margin: str) -> Iterator[str]:
    for place, node in enumerate(nodes):
        is_last = place == len(nodes) - 1
        yield f"{margin}{'└─ ' if is_last else '├─ '}{_label(node)}"
        yield from _below(node.parents, margin + ("   " if is_last else "│  "))


def _label(node: Node) -> str:
    notes = []
    if node.method is not None:
        state = f"finished {node.finished[:10]}" if node.finished else "not finished"
        notes.append(f"{node.method} run, {state}")
    if node.is_changed:
        notes.append("has other content now")
    if node.is_repeated:
        notes.append("see above")
    kind = "" if node.method is not None and node.kind == "run" else f"{node.kind}  "
    return f"{kind}{node.path}" + (f"  ({'; '.join(notes)})" if notes else "")
