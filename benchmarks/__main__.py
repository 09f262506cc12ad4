"""Run every benchmark and write what it found into RESULTS.md: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = (
    "speed.compare",
    "speed.generation",
    "speed.sapo",
    "speed.endpoints",
    "speed.mosaic",
    "speed.tokenizing",
    "speed.scoring",
    "speed.arena",
    "speed.testset",
    "effects.quickstart",
    "effects.bf16",
    "effects.discopop",
    "effects.sapo",
    "effects.reward_models",
    "effects.reward_distill",
    "effects.mosaic",
    "effects.active_labels",
    "effects.rlhf",
    "effects.evolve",
    "effects.flywheel",
)

for script in SCRIPTS:
    subprocess.run([sys.executable, "-m", f"benchmarks.{script}", "--write"], check=True, cwd=ROOT)
