"""Write what commands print into the README: `python docs/write_outputs.py FOLDER`.

FOLDER is the toy world of `aligner quickstart`. Each command of `COMMANDS` runs there, one after
another, as a shell would run it, which takes about a quarter of an hour; its stdout is what is
shown, with the middle of a long one left out. A command that fails ends the writing, and the next
call continues with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- outputs: begin -->\n", "\n<!-- outputs: end -->"

MAIN = "launch.main_process_ip=10.0.0.1"
TESTSET = "aligner arena testset build heldout.jsonl -o testset"

COMMANDS: tuple[tuple[str, int, int], ...] = (
    ("aligner recipes list", 5, 0),
    ("aligner plan tiny/sft --gpu 24GB", 8, 24),
    (f"aligner launch tiny/sft --nodes 2 --gpus-per-node 4 {MAIN}", 6, 0),
    ("aligner doctor --numerics", 0, 22),
    ("aligner data check sft.jsonl --held-out heldout.jsonl", 12, 0),
    ("aligner data show tiny/dpo --row 3", 20, 0),
    ("aligner data convert sft.jsonl --to sharegpt -o sharegpt.jsonl", 8, 0),
    ("aligner mosaic tiny/mosaic", 0, 12),
    ("aligner evolve tiny/evolve", 0, 12),
    ("aligner sft tiny/sft model.lora='{r: 8}' trainer.max_steps=60 output_dir=runs/lora", 0, 12),
    ("aligner reward tiny/reward", 0, 10),
    ("aligner data select tiny/select", 0, 10),
    ("aligner sapo tiny/sapo trainer.max_steps=40", 0, 8),
    ("aligner rlhf tiny/rlhf-verifier trainer.max_steps=20", 0, 8),
    ("aligner online tiny/online online.rounds=1", 0, 8),
    (f"{TESTSET} --clusters 20 --per-cluster 10 --hard 0 --dev 0.5", 10, 0),
    ("aligner flywheel tiny/flywheel flywheel.rounds=1", 0, 10),
    ("aligner discover tiny/discover", 0, 10),
    ('aligner generate runs/dpo/final "sort: dbca"', 4, 0),
    ('echo "sort: dbca" | aligner chat runs/dpo --compare runs/sft --temperature 0', 6, 0),
    ("aligner eval runs/dpo --compare runs/sft --data heldout-pairs.jsonl", 16, 0),
    ("aligner eval --reward-model runs/reward --data heldout-pairs.jsonl", 14, 0),
    ("aligner score --data rated.jsonl --reward-model runs/reward", 10, 0),
    ("aligner arena battle tiny/arena", 0, 10),
    ("aligner arena diagnose runs/arena/games.jsonl", 12, 0),
    ("aligner runs list", 12, 0),
    ("aligner runs compare runs/sft runs/dpo", 14, 0),
    ("aligner runs tree runs/dpo", 10, 0),
    ("aligner runs reproduce runs/dpo", 10, 0),
    ("aligner merge runs/lora -o merged", 14, 0),
    ("aligner export merged -o merged.gguf", 14, 0),
    ("aligner push merged --to me/my-model --dry-run", 14, 0),
)
"""A command, and how many lines of its output are shown: the first ones, the last ones."""


def main(folder: Path) -> None:
    """Run the commands in the folder, and write the README."""
    kept = folder / "outputs.json"
    printed = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    for line, *_ in COMMANDS:
        if line not in printed:
            printed[line] = output_of(line, folder)
            kept.write_text(json.dumps(printed), "utf-8")
    blocks = [
        "\n".join(["```", f"$ {line}", *few_of(printed[line], first, last), "```"])
        for line, first, last in COMMANDS
    ]
    text = README.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    README.write_text(f"{head}{BEGIN}{chr(10).join(blocks)}{END}{rest.split(END)[1]}", "utf-8")


def output_of(line: str, folder: Path) -> list[str]:
    """The lines that a command prints."""
    environment = dict(os.environ, COLUMNS="100", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)
    if done.returncode:
        sys.exit(f"{line}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.replace(str(folder.resolve()), "toy").strip("\n").split("\n")


def few_of(lines: list[str], first: int, last: int) -> Iterator[str]:
    """The first and the last lines, and a mark for those between them."""
    if len(lines) <= first + last + 1:
        yield from lines
        return
    yield from lines[:first]
    yield "..."
    yield from lines[len(lines) - last :] if last else ()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
