"""Who may import whom. Dependencies point one way, and what a quick command imports loads nothing heavy."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAPPED = ("cli", "recipes", "reward_models")

LEVELS = (
    ("aligner", "errors", "events"),
    ("objective_language",),
    ("objective_source",),
    (
        "cache",
        "causes",
        "config",
        "data",
        "environment",
        "journal",
        "lock",
        "places",
        "record",
        "recipes",
        "isolation",
        "isolated_child",
        "unfinished",
    ),
    ("launch", "resumable", "run", "report", "report_parts", "plots", "card"),
    (
        "call_arguments",
        "chat",
        "control_tokens",
        "template",
        "models",
        "quantized",
        "model_files",
        "folder_kinds",
        "gguf_files",
        "shards",
        "positions",
        "loading",
        "vision",
        "adapter_kinds",
        "architectures",
        "template_child",
        "template_probe",
        "endpoints",
        "generation",
        "objectives",
        "prepare",
        "row_sharing",
        "twin",
        "sampling_order",
        "comparison",
        "heads",
        "lora_targets",
        "own_config",
        "trained",
        "router_loss",
        "padded",
        "reward_losses",
        "reward_rows",
        "row_notes",
        "segments",
        "unread",
        "adapters",
        "special_tokens",
        "saved_tokenizer",
    ),
    ("rewrites", "shadows"),
    ("training", "rehearsal", "reference", "preference", "guards", "loss_picture", "reward_trainer"),
    ("toy", "numerics", "doctor"),
    ("reward_models",),
    ("distillation", "samples"),
    ("builders", "arena", "methods", "evaluation", "stages"),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "pyarrow", "pandas", "matplotlib"}
HEAVY |= {"bitsandbytes", "tokenizers", "safetensors", "huggingface_hub", "numpy"}
LIGHT = (
    "aligner",
    "errors",
    "events",
    "objective_language",
    "objective_source",
    "cache",
    "causes",
    "config",
    "data",
    "environment",
    "journal",
    "lock",
    "places",
    "unfinished",
    "isolation",
    "isolated_child",
    "launch",
    "run",
    "recipes",
    "cli",
)


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name as installed, file) of everything that ships."""
    for top in ("aligner", *MAPPED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            yield ".".join(parts if top == "aligner" else ("aligner", *parts)), path


def imports(name: str, path: Path, nodes: list[ast.stmt] | None = None) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import in the file, or among `nodes`; relative ones resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)


def room(dotted: str) -> str:
    """`aligner.config.load` -> `config`; `aligner` itself -> `aligner`."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import: also inside `if` and `try`, but not under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from top_level(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from top_level([*node.body, *getattr(node, "orelse", [])])
        else:
            yield node


def test_every_module_has_its_place() -> None:
    homeless = {room(name) for name, _ in modules()} - set(LEVEL)
    assert not homeless, f"say in LEVELS where these stand: {sorted(homeless)}"


def test_dependencies_point_one_way() -> None:
    wrong = []
    for name, path in modules():
        for target, line in imports(name, path):
            if not target.startswith("aligner.") or room(target) not in LEVEL:
                continue  # `from aligner import __version__` and the like
            if LEVEL[room(target)] > LEVEL[room(name)]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_what_a_quick_command_imports_loads_nothing_heavy() -> None:
    wrong = []
    for name, path in modules():
        if room(name) not in LIGHT:
            continue
        nodes = list(top_level(ast.parse(path.read_text(encoding="utf-8")).body))
        for target, line in imports(name, path, nodes):
            if target.split(".")[0] in HEAVY:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_rich_is_imported_by_the_renderer_alone() -> None:
    found = {name for name, path in modules() for target, _ in imports(name, path) if target.split(".")[0] == "rich"}
    assert found <= {"aligner.cli.render", "aligner.cli.live_table"}


def test_only_main_imports_the_command_line() -> None:
    found = {
        name
        for name, path in modules()
        for target, _ in imports(name, path)
        if target.startswith("aligner.cli") and room(name) != "cli"
    }
    assert found <= {"aligner.__main__"}


@pytest.mark.parametrize("folder", ["aligner", *MAPPED, "tests", "examples", "benchmarks"])
def test_nobody_imports_the_bare_names_of_the_mapped_folders(folder: str) -> None:
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for target, line in imports("x", path):
            if target.split(".")[0] in MAPPED and not _is_relative(path, line):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


def _is_relative(path: Path, line: int) -> bool:
    return path.read_text(encoding="utf-8").splitlines()[line - 1].lstrip().startswith("from .")


@pytest.mark.parametrize("folder", MAPPED)
def test_siblings_in_a_mapped_folder_are_imported_relatively(folder: str) -> None:
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        wrong += [f"{path.name}: {line}" for line in lines if line.lstrip().startswith(f"from aligner.{folder}")]
    assert not wrong, "\n".join(wrong)
