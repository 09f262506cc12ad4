"""`aligner dpo --loss-table`: every objective as a row with a small curve, and all of them as a
picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aligner.config.loss_names import LOSSES, REWARD_LOSSES

from .console import say

if TYPE_CHECKING:
    from aligner.losses.table import Shape

LEVELS = "▁▂▃▄▅▆▇█"
WIDTH = 24


def show_losses(arguments: Sequence[str], plot: Path | None) -> None:
    """Print the table; draw the picture where a file is named."""
    beta, tau = _numbers(arguments)
    if plot is not None:
        from aligner.runs.places import make_room

        make_room(plot, "--loss-plot")
    from aligner.losses.table import loss_table
    from aligner.losses.types import Settings

    from .render import columns

    rows = loss_table(Settings(beta=beta, tau=tau))
    say(
        f"Losses over z = beta * rho from -6 to 6, at beta {beta:g} and tau {tau:g}; training "
        "starts at z = 0."
    )
    say()
    cells = []
    for row in rows:
        shape = row.shape
        slope = f"{shape.slope_at_start:+.3g}" + ("  wrong" if shape.slope_at_start > 0 else "")
        turns = ", ".join(f"{z:.3f} ({kind[:3]})" for z, _, kind in shape.turns)
        jumps = ", ".join(f"{round(jump.z, 2) + 0.0:g}" for jump in shape.jumps)
        reads = "reference" if row.reads_reference else "no reference"
        reads += ", batch" if row.reads_batch else ""
        cells.append((row.name, curve(shape), slope, turns or "-", jumps or "-", reads))
    columns(("loss", "shape", "slope at 0", "turns at z", "jumps at z", "reads"), cells)
    say()
    say(
        f"{', '.join(REWARD_LOSSES)}: drawn for a pair whose rewards differ by 1; the minimum "
        "is where they say."
    )
    say()
    width = max(map(len, LOSSES))
    for name, text in LOSSES.items():
        say(f"{name.ljust(width)}  {text}")
    if plot is not None:
        from aligner.reports.losses import write_picture

        write_picture(rows, beta, tau, plot)
        say()
        say(f"wrote {plot}")


def _numbers(arguments: Sequence[str]) -> tuple[float, float]:
    """The values of `dpo.beta` and `dpo.tau` on the command line, checked as those of a recipe
    are."""
    from .resolve import resolve

    others = ["dpo.loss=discopop", "model.name_or_path=unread", "data.train=unread"]
    # What a recipe says of rewards goes with another objective; the forward KL, with any.
    others += [
        "dpo.reward_models=[]",
        "dpo.reward_scale=1.0",
        "dpo.reward_combine=mean",
        "dpo.forward_kl=0.0",
    ]
    dpo = resolve("dpo", [*arguments, *others])[0].recipe.dpo
    return dpo.beta, dpo.tau


def curve(shape: Shape) -> str:
    """The loss as a line of blocks, its lowest value the lowest block."""
    values = [value for _, value in shape.curve]
    picked = [values[round(i * (len(values) - 1) / (WIDTH - 1))] for i in range(WIDTH)]
    low, high = min(picked), max(picked)
    return "".join(
        LEVELS[round((value - low) / ((high - low) or 1) * (len(LEVELS) - 1))] for value in picked
    )
