"""The moving average of policies, as the reference of a round (`online.reference: ema`).

The average behind round t is d times the one behind round t - 1 and 1 - d times policy t, weight by
weight in float32, d being `online.ema_decay`; that of the start is the start. It lies in
`rounds/NN/average`, a model like any other. Weights are averaged as they lie in their files, which
policies of one start share; adapters are refused by a rule.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from aligner.errors import DataError
from aligner.runs.files import share_weights, write_atomically

KEY = "average.key"


def is_averaged(folder: Path, key: str) -> bool:
    """Say whether a folder holds the average of this key."""
    return (folder / KEY).exists() and (folder / KEY).read_text(encoding="utf-8") == key


def write_average(before: Path, policy: Path, decay: float, folder: Path, key: str) -> None:
    """Write the average of two models into a folder, whole or not at all; what is not weights is
    the policy's.

    Raises: DataError where they have not the same weights.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    for stale in (unfinished, folder):
        shutil.rmtree(stale, ignore_errors=True)
    shutil.copytree(policy, unfinished, ignore=shutil.ignore_patterns("*.safetensors"))
    _average(before, policy, decay, unfinished)
    write_atomically(unfinished / KEY, key)
    unfinished.rename(folder)


def _average(before: Path, policy: Path, decay: float, target: Path) -> None:
    """Average the weights of two folders into a third, a file of the policy at a time."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    places: dict[str, Path] = {}
    for file in sorted(before.glob("*.safetensors")):
        with safe_open(str(file), "pt") as known:
            places |= dict.fromkeys(known.keys(), file)
    for file in sorted(policy.glob("*.safetensors")):
        made = {}
        with safe_open(str(file), "pt") as now:
            for name in now.keys():  # noqa: SIM118 - no mapping
                if name not in places:
                    raise DataError(
                        f"{before} has no weight {name}, which {file} has",
                        "use online.reference=initial or previous",
                    )
                with safe_open(str(places[name]), "pt") as old:
                    earlier = old.get_tensor(name)
                weight = now.get_tensor(name)
                mixed = decay * earlier.float() + (1.0 - decay) * weight.float()
                made[name] = mixed.to(weight.dtype)
            metadata = now.metadata() or {"format": "pt"}
        save_file(made, str(target / file.name), metadata)
    share_weights(target)
