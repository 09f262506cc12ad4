"""Who may import whom. Dependencies point one way, and what a quick command imports loads nothing
heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAPPED = ("cli", "recipes", "reward_models")

LEVELS = (
    ("aligner", "errors", "events"),
    ("sandbox", "recipes", "launch.world", "losses.dsl.language", "losses.dsl.parser"),
    ("config",),
    ("*.recipe",),
    ("methods.catalogue",),
    (
        "config.api",
        "config.defaults",
        "config.docs",
        "config.flag_table",
        "config.flags",
        "config.json_schema",
        "config.load",
        "config.migrate",
        "config.overrides",
        "config.rules",
        "config.shipped",
        "config.validate",
    ),
    ("data",),
    ("losses", "runs", "launch"),
    ("tokenization",),
    ("models", "reports"),
    ("generation",),
    ("memory",),
    ("training",),
    ("endpoints", "toy"),
    ("generation.endpoint",),
    ("generation.writers",),
    ("generation.shards",),
    ("generation.shard_ranks",),
    ("reward_models",),
    ("acquisition", "evaluation", "export"),
    ("arena",),
    ("builders",),
    ("methods",),
    ("doctor",),
    ("cli",),
    ("__main__",),
)
"""Rooms, and modules that stand apart from theirs, from the ground up: what is imported stands
lower, or in the same room. `*.recipe` is the recipe of each method and builder, and of battles;
those modules of config that ask the catalogue of methods stand above it."""

FOLDERS = ("methods", "builders", "arena")

CATALOGUE = "aligner.methods.catalogue"

LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

HEAVY = {
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "pyarrow",
    "pandas",
    "matplotlib",
}
HEAVY |= {"bitsandbytes", "tokenizers", "safetensors", "huggingface_hub", "numpy"}

LOADS_HEAVY: dict[str, tuple[str, ...]] = {
    "acquisition": ("embeddings", "ngrams", "picks", "selection", "win_probabilities"),
    "arena": (
        *("bradley_terry", "cells", "connectivity", "consistency", "covariates", "diagnosis"),
        *("figures", "judge_agreement", "judge_bias", "judgments", "leaderboard", "merging"),
        *("rating", "readers", "resampling", "transitivity", "votes", "win_rates"),
    ),
    "arena.testset": (
        *("build", "choosing", "clusters", "embedding", "layers", "verify", "word_vectors"),
    ),
    "arena.battle": ("adaptive", "bracket", "build", "merged", "outcome", "report", "win_rate"),
    "builders.mosaic": ("build", "costs", "engine", "epochs", "iterable", "paper_compat", "report"),
    "builders.select": ("build", "candidates", "report"),
    "doctor": ("numerics", "proofs", "quantized", "trainings"),
    "evaluation": (
        *(
            "answers",
            "bootstrap",
            "calibration",
            "comparing",
            "correlation",
            "figures",
            "groups",
            "length_bias",
            "likelihood",
        ),
        *("pair_scores", "preferences", "reward_accuracy", "reward_report", "rewardbench"),
        *("best_of", "rewardbench2", "saved", "segment_accuracy"),
    ),
    "export": ("probes",),
    "export.gguf": ("reading", "writing"),
    "generation": (
        *(
            "batchwise",
            "continuous",
            "conversation",
            "decode",
            "endpoint",
            "hf",
            "hf_cb",
            "mismatch",
            "outside",
        ),
        *("sampling", "slots", "vllm"),
    ),
    "losses": (
        "bandit",
        "catalogue",
        "discovered",
        "distillation",
        "policy",
        "published",
        "reward",
        "shape",
        "table",
        "trial",
        "types",
    ),
    "losses.dsl": ("checks", "interpreter"),
    "methods": ("win_rate",),
    "arena.selection": ("reading", "select"),
    "methods.dpo": ("encode", "reference_samples", "reward_distillation", "start_checks", "train"),
    "methods.flywheel": (*("battles", "pool", "ratings", "report", "rounds", "run", "selecting"),),
    "methods.online": (
        *("answering", "evaluation", "measures", "oracle_report", "preflight", "proxies"),
        *("query_stage", "read_rounds", "refresh_stage", "report", "rounds"),
    ),
    "methods.reward": ("collators", "encode", "segments", "train", "trainers"),
    "methods.rlhf": (
        *("advantages", "credit", "encode", "grpo", "metrics", "normalizer", "ppo", "rollout"),
        *("schedule", "segment_rewards", "train", "trainer"),
    ),
    "methods.sapo": ("encode", "replay_buffer", "train", "trainer", "writer"),
    "methods.sft": ("encode", "train"),
    "models": (
        "answers",
        "ema",
        "forward",
        "fused_head",
        "own_config",
        "quantized",
        "reward_head",
        "row_sharing",
        "shared_prefix",
        "value_head",
    ),
    "reward_models": ("heads", "pairwise", "segment"),
    "toy": ("muon", "pretrain", "tokenizer"),
    "training": (
        *("arguments", "callbacks", "checkpoint_code", "fit", "precision", "preference", "prefix"),
        *("reference", "rehearsal", "sampler"),
        "trainer",
    ),
}
"""Folder -> its modules that load a heavy library when they are imported, themselves or by what
they import; no others do."""


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name as installed, file) of everything that ships."""
    for top in ("aligner", *MAPPED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            yield ".".join(parts if top == "aligner" else ("aligner", *parts)), path


def imports(
    name: str, path: Path, nodes: Iterable[ast.AST] | None = None
) -> Iterator[tuple[str, int]]:
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


def place(dotted: str) -> str:
    """The entry of LEVELS for a module: its own, or that of its room; "" where there is none."""
    parts = dotted.split(".")[1:] or [dotted]
    if parts[0] in FOLDERS and parts[2:] == ["recipe"]:
        return "*.recipe"
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LEVEL), "")


def room(dotted: str) -> str:
    """`aligner.config.load` -> `config`; `aligner` itself -> `aligner`."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def module_of(dotted: str, known: Container[str]) -> str:
    """The longest part of a dotted name that is a module; "" for none."""
    while dotted and dotted not in known:
        dotted = dotted.rpartition(".")[0]
    return dotted


def for_types_alone(tree: ast.Module) -> set[ast.AST]:
    """Statements under `if TYPE_CHECKING`, which nothing runs."""
    tests = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    )
    return {inner for test in tests for node in test.body for inner in ast.walk(node)}


def imported(name: str, path: Path, known: Container[str]) -> set[str]:
    """Modules of this project that a module imports, lazily too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unused = for_types_alone(tree)
    nodes = [node for node in ast.walk(tree) if node not in unused]
    found = {module_of(target, known) for target, _ in imports(name, path, nodes)}
    if name == CATALOGUE:  # it imports the recipes by the names in its table
        found |= {other for other in known if place(other) == "*.recipe"}
    return found - {"", "aligner", name}


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
    homeless = {name for name, _ in modules() if not place(name)}
    assert not homeless, f"say in LEVELS where these stand: {sorted(homeless)}"


def test_dependencies_point_one_way() -> None:
    known = dict(modules())
    wrong = []
    for name, path in known.items():
        for target in sorted(imported(name, path, known)):
            apart = room(target) != room(name) or name == CATALOGUE
            if apart and LEVEL[place(target)] >= LEVEL[place(name)]:
                wrong.append(f"{path.relative_to(ROOT)} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = dict(modules())
    graph = {name: imported(name, path, known) for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" <- ".join(error.args[1])) from None


def loads_on_import(name: str, path: Path) -> Iterator[str]:
    nodes = list(top_level(ast.parse(path.read_text(encoding="utf-8")).body))
    yield from (target for target, _ in imports(name, path, nodes))


def test_only_what_is_listed_loads_something_heavy() -> None:
    known = dict(modules())
    targets = {name: set(loads_on_import(name, path)) for name, path in known.items()}
    heavy = {
        name
        for name, found in targets.items()
        if any(target.split(".")[0] in HEAVY for target in found)
    }
    inside = {
        name: {module_of(target, known) for target in found} for name, found in targets.items()
    }
    while more := {name for name, found in inside.items() if found & heavy} - heavy:
        heavy |= more
    listed = {f"aligner.{folder}.{name}" for folder, names in LOADS_HEAVY.items() for name in names}
    assert heavy == listed


def test_packages_hold_no_code_but_lazy_names() -> None:
    """An `__init__` that imports its modules would make every one of them as heavy as the
    heaviest."""
    for name, path in modules():
        if path.name == "__init__.py":
            inside = [
                target for target in loads_on_import(name, path) if target.startswith("aligner")
            ]
            assert not inside, f"{path.relative_to(ROOT)} imports {inside}"


def test_four_modules_stand_outside_the_rooms() -> None:
    loose = {path.stem for path in (ROOT / "aligner").glob("*.py")}
    assert loose == {"__init__", "__main__", "errors", "events"}


RUNS_WHAT_IT_READS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""Libraries whose files can run code when they are read."""


def can_run_code(name: str, path: Path) -> Iterator[str]:
    """Places of a module that read files which can run code: an import, or a call that allows
    it."""
    for target, line in imports(name, path):
        is_error = target == "pickle.UnpicklingError"
        if target.split(".")[0] in RUNS_WHAT_IT_READS and not is_error:
            yield f"{path}:{line} imports {target}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        given = {argument.arg: ast.unparse(argument.value) for argument in node.keywords}
        called = ast.unparse(node.func)
        if called == "torch.load" and given.get("weights_only") != "True":
            yield f"{path}:{node.lineno} calls torch.load without weights_only=True"
        if "allow_pickle" in given and given["allow_pickle"] != "False":
            yield f"{path}:{node.lineno} allows pickles"


def test_no_module_reads_files_that_can_run_code() -> None:
    found = []
    for name, path in modules():
        found += can_run_code(name, path)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import torch\ntorch.load('a')",
        "import torch\ntorch.load('a', weights_only=False)",
        "import numpy as np\nnp.load('a', allow_pickle=True)",
    ],
)
def test_a_module_that_reads_such_files_is_seen(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(text)
    assert len(list(can_run_code("aligner.x", tmp_path / "x.py"))) == 1


def test_rich_is_imported_by_the_renderer_alone() -> None:
    found = {
        name
        for name, path in modules()
        for target, _ in imports(name, path)
        if target.split(".")[0] == "rich"
    }
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
        wrong += [
            f"{path.name}: {line}"
            for line in lines
            if line.lstrip().startswith(f"from aligner.{folder}")
        ]
    assert not wrong, "\n".join(wrong)


def test_plain_training_loads_no_judge_and_no_client_of_endpoints() -> None:
    code = (
        "import sys\n"
        "FAR = ('aligner.endpoints', 'aligner.reward_models.judge')\n"
        "from aligner.methods import pipeline\n"
        "from aligner.config.method import TrainingMethod\n"
        "from aligner.methods.catalogue import trainings\n"
        "from aligner.methods.steps import steps_of\n"
        "for method, about in trainings().items():\n"
        "    if about.run != TrainingMethod.run:\n"
        "        continue\n"
        "    steps_of(method).load()\n"
        "    found = [name for name in sys.modules if name.startswith(FAR)]\n"
        "    assert not found, (method, found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
