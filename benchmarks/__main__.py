"""Run every benchmark and write what it found into RESULTS.md: `python -m benchmarks`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    "speed/compare.py",
    "speed/sapo.py",
    "speed/endpoints.py",
    "speed/mosaic.py",
    "effects/quickstart.py",
    "effects/discopop.py",
    "effects/sapo.py",
    "effects/mosaic.py",
)

for script in SCRIPTS:
    subprocess.run([sys.executable, str(HERE / script), "--write"], check=True)
