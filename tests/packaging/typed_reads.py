"""Which attributes of which class the package reads, by mypy's types: printed as JSON.

A program of its own, since mypy's trees of the whole package take half a gigabyte. What comes from
other packages is left out, and is `Any`.
"""

from __future__ import annotations

import ast
import json
import sys
from collections import defaultdict
from pathlib import Path

from mypy import build
from mypy.modulefinder import BuildSource
from mypy.nodes import MemberExpr
from mypy.options import Options
from mypy.types import Instance, Type, UnionType, get_proper_type

ROOT = Path(__file__).parents[2]
FOLDERS = {"aligner": "aligner", "cli": "aligner.cli", "reward_models": "aligner.reward_models"}


def modules() -> dict[str, Path]:
    """Return the package's modules and their files."""
    found = {}
    for folder, package in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = file
    return found


def options() -> Options:
    """Return what makes mypy keep every expression's type, and report nothing."""
    wanted = Options()
    wanted.export_types = wanted.preserve_asts = True
    wanted.incremental = False
    wanted.ignore_errors = wanted.ignore_missing_imports = True
    wanted.follow_imports = "skip"
    wanted.python_version = sys.version_info[:2]
    return wanted


def places(files: dict[str, Path]) -> dict[tuple[object, ...], list[str]]:
    """Return the modules in which an attribute stands at a position: mypy does not tell."""
    found = defaultdict(list)
    for module, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                span = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
                found[(*span, node.attr)].append(module)
    return found


def classes(kind: Type | None) -> list[str]:
    """Return the classes that a value of this type may have."""
    kind = None if kind is None else get_proper_type(kind)
    if isinstance(kind, UnionType):
        return [name for item in kind.items for name in classes(item)]
    return [kind.type.fullname] if isinstance(kind, Instance) else []


def main() -> None:
    """Print class -> attribute -> the modules that read it."""
    files = modules()
    sources = [BuildSource(str(file), module, None) for module, file in files.items()]
    types = build.build(sources, options()).types
    where = places(files)
    reads: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for node in types:
        if isinstance(node, MemberExpr):
            span = (node.line, node.column, node.end_line, node.end_column)
            for name in classes(types.get(node.expr)):
                reads[name][node.name].update(where.get((*span, node.name), ()))
    print(json.dumps(reads, default=sorted))


if __name__ == "__main__":
    main()
