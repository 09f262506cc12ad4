"""Does this commit give the same bytes as that one? For refactorings, where no number should move.

    python -m benchmarks.same_bytes [COMMIT]

Runs the same small work with the code of COMMIT (default: HEAD~1) and with that of the working
tree, what is not committed yet included: a toy world with a hardly trained base, ten steps of
`tiny/sft`, `tiny/dpo`, `tiny/sapo` and `tiny/reward` in it, and `tiny/mosaic`. Then it compares
what came out, by SHA-256: the world's model and rows, `final/` and the metrics of every run, the
answers and pairs written on the way, and the mosaics. Ends with 1 if anything differs.

Each side makes a world of its own, and everything is made from what came before it. So read the
table from the top: where the first difference stands, there it began. A change of a shipped
recipe, or of a key's default, is a difference too.

Both sides run in the same way, in two temporary folders: the package is put together as a wheel
has it, since an editable install leaves no other way to have two of them, and the run makes sure
that it is the one imported. Both use the libraries that are installed now, one thread, the CPU
and the seeds of the recipes. Nothing in the repository changes. About four minutes.

What it does not look at: adapters, quantized models, several processes, checkpoints and resuming,
commands that only measure, and everything that is said on the terminal. The tests do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

MAPPED = ("cli", "recipes", "reward_models")
"""Folders that are installed below `aligner`; `pyproject.toml` says so too."""

WORLD = "from aligner.toy.world import write_world; write_world('world', steps=100)"
"""A sixth of the pretraining: enough for answers that are sometimes right."""

STEPS = [
    "trainer.max_steps=10",
    "trainer.logging_steps=1",
    "trainer.eval_strategy=steps",
    "trainer.eval_steps=5",
    "trainer.save_strategy=no",
]
TRAINED = ("final/*.safetensors", "final/*", "metrics.jsonl")

# name, of the command too -> (changes to the recipe tiny/NAME, files to compare)
WORK: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "sft": (STEPS, (*TRAINED, "samples.json")),
    "dpo": (STEPS, (*TRAINED, "samples.json")),
    "sapo": (STEPS, (*TRAINED, "samples.json", "pairs.json")),
    "reward": (STEPS, (*TRAINED, "scored.json")),
    "mosaic": ([], ("data/*.jsonl", "mosaics.jsonl", "mosaic.json")),
}

# what is compared, as paths in a world
PATTERNS = (
    *("model/*", "*.jsonl"),
    *(f"runs/{name}/{pattern}" for name, (_, patterns) in WORK.items() for pattern in patterns),
)

# The model's card: it names versions, and the hash of a recipe that may have got a new key. The
# world's manifest and a run's environment.json, which do the same, match no pattern.
LEFT_OUT = ("runs/*/final/README.md",)

TIMES = ("time_s", "runtime", "_per_second", "sapo/generation_share")
"""Endings of the metrics that a clock wrote."""

IMPORTED = """\
import sys
import aligner.cli.app, aligner.methods, aligner.recipes, aligner.reward_models
for name, module in sys.modules.items():
    if name.split(".")[0] == "aligner":
        print(module.__file__)
"""

Digests = dict[str, str]


# --- two trees ------------------------------------------------------------------------------------


def name_of(commit: str) -> str:
    """The short hash and the subject of a commit."""
    command = ["git", "log", "-1", "--format=%h %s", commit, "--"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        raise SystemExit(f"{commit} is no commit here: {found.stderr.strip()}")
    return found.stdout.strip()


def unpack(commit: str, tree: Path) -> Path:
    """Write the files of a commit into a new folder; git itself keeps no note of it."""
    tree.mkdir(parents=True)
    archive = ["git", "archive", "--format=tar", commit]
    packed = subprocess.run(archive, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=packed, check=True)
    return tree


def assemble(tree: Path, site: Path) -> None:
    """Copy the package out of a tree, with the mapped folders where an installed one has them."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(tree / "aligner", site / "aligner", ignore=ignore)
    for name in MAPPED:
        shutil.copytree(tree / name, site / "aligner" / name, ignore=ignore)


# --- the same work with each ----------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """Everything that a result may depend on beside the code; no cache is shared."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ALIGNER_"))}
    return kept | {
        "PYTHONPATH": str(folder / "site"),
        "PYTHONHASHSEED": "0",
        "ALIGNER_CACHE": str(folder / "cache"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }


def python(arguments: list[str], folder: Path, cwd: Path) -> str:
    """Run Python with the package of a folder; what it printed. Stops everything if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise SystemExit(f"{folder.name}: python {' '.join(arguments)} failed:\n{said}")
    return done.stdout


def check_import(folder: Path) -> None:
    """Make sure that the folder's package is what runs, and no module of an installed one."""
    site = folder / "site"
    for file in python(["-c", IMPORTED], folder, folder).splitlines():
        assert Path(file).is_relative_to(site), f"{file} was imported, which is not in {site}"


def work(tree: Path, folder: Path) -> Digests:
    """Do all the work with the code of a tree; path in the world -> SHA-256."""
    assemble(tree, folder / "site")
    check_import(folder)
    _tell(folder, "toy world")
    python(["-c", WORLD], folder, folder)
    for name, (changes, _) in WORK.items():
        _tell(folder, f"tiny/{name}")
        command = ["-m", "aligner", name, f"tiny/{name}", f"output_dir=runs/{name}", *changes]
        python(command, folder, folder / "world")
    return dict(digests(folder / "world"))


def _tell(folder: Path, what: str) -> None:
    print(f"{folder.name}: {what} ...", file=sys.stderr, flush=True)


# --- what came out --------------------------------------------------------------------------------


def digests(world: Path) -> Iterator[tuple[str, str]]:
    """The SHA-256 of every file that is compared, in the order of the work."""
    for path in dict.fromkeys(path for p in PATTERNS for path in sorted(world.glob(p))):
        name = path.relative_to(world).as_posix()
        if path.is_file() and not any(fnmatch(name, pattern) for pattern in LEFT_OUT):
            yield name, hashlib.sha256(content(path)).hexdigest()


def content(path: Path) -> bytes:
    """The bytes of a file; of metrics those of each line without what a clock wrote."""
    if path.name != "metrics.jsonl":
        return path.read_bytes()
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return "\n".join(json.dumps(_timeless(record)) for record in records).encode()


def _timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.endswith(TIMES)}


def table(before: Digests, after: Digests) -> tuple[list[str], int]:
    """One line for each file, and how many differ; a file that one side lacks does."""
    names = list(dict.fromkeys([*before, *after]))
    for pattern in PATTERNS:
        assert any(fnmatch(name, pattern) for name in names), f"neither side wrote {pattern}"
    wide = max(map(len, names))
    lines = [_line("what", "before", "after", "", wide), _line("---", "---", "---", "---", wide)]
    for name in names:
        pair = before.get(name, "none"), after.get(name, "none")
        lines.append(_line(name, *pair, "same" if pair[0] == pair[1] else "DIFFERS", wide))
    return lines, sum(before.get(name) != after.get(name) for name in names)


def _line(what: str, before: str, after: str, verdict: str, wide: int) -> str:
    return f"| {what:{wide}} | {before[:12]:12} | {after[:12]:12} | {verdict:7} |"


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("commit", nargs="?", default="HEAD~1", help="what to compare with")
    commit = parser.parse_args().commit
    print(f"before: {name_of(commit)}")
    print(f"after:  the working tree, on {name_of('HEAD')}\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        before = work(unpack(commit, folder / "before" / "tree"), folder / "before")
        (folder / "after").mkdir()
        after = work(ROOT, folder / "after")
    lines, differing = table(before, after)
    print("\n".join(lines))
    print(f"\n{differing} of {len(lines) - 2} differ" if differing else "\nall the same")
    raise SystemExit(1 if differing else 0)


if __name__ == "__main__":
    main()
