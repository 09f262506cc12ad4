"""What device, model and data decide before the first step where the recipe does not: the precision
on a CPU, and how often the training is evaluated and saved. Imports no torch.

It is decided once, by the process that prepares the run, and written to `decided.json`. Every rank
and a resumed run read it there and decide nothing again, so that a killed run ends with the same
bytes, also where a trial would come out otherwise this time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from aligner.runs.run import Run
from aligner.training.cadence import FREE_S, Cadence

FILE = "decided.json"

PlanRows = list[tuple[str, str, str]]


@dataclass(frozen=True)
class Decided:
    """What was decided; each part None where the recipe, or another device, decides."""

    bf16: bool | None = None
    """Whether a CPU computes in bfloat16."""
    precision: str = ""
    why: str = ""
    cadence: Cadence | None = None
    steps: int = 0
    """Of the training, as they were expected."""
    all_held_out: int = 0
    """Held-out rows, evaluated or not."""

    def rows(self) -> PlanRows:
        """Return it as rows of a plan: what, value, why."""
        first = [("precision", self.precision, self.why)] if self.bf16 is not None else []
        return [*first, *self._cadence_rows()]

    def _cadence_rows(self) -> Iterator[tuple[str, str, str]]:
        cadence = self.cadence
        if cadence is None:
            return
        if cadence.eval_steps:
            often = self._often(cadence.eval_steps)
            yield "held-out evaluation", often, _about(cadence.evaluation_share, cadence.training_s)
            if cadence.held_out_rows < self.all_held_out:
                rows = f"{cadence.held_out_rows:,} of {self.all_held_out:,}, drawn with the seed"
                yield "held-out rows", rows, "all of them would take too long"
        if cadence.save_steps:
            often = self._often(cadence.save_steps)
            yield "checkpoints", often, _about(cadence.checkpoint_share, cadence.training_s)
        elif cadence.save_steps == 0:
            yield "checkpoints", "none", "one would take longer than a fifth of the training"
        if cadence.prompts:
            answers = f"{cadence.prompts} prompts, {cadence.max_new_tokens} tokens each"
            yield (
                "answers",
                f"{answers}, before and after",
                _about(cadence.answer_share, cadence.training_s),
            )
        elif cadence.answer_share is not None:
            yield "answers", "none", "they would take too long; report.num_prompts asks for them"

    def _often(self, every: int) -> str:
        times = -(-self.steps // every)
        if times == 1:
            return "once, at the end"
        return f"{'every step' if every == 1 else f'every {every:,} steps'}, {times} times"


def _about(share: float | None, training_s: float | None) -> str:
    """A share of the training's time, in words; of a tiny training it may be a multiple, so seconds
    are shown instead."""
    if share is None:
        return ""
    if training_s is not None and share >= 0.005 and share * training_s <= FREE_S:
        return "a second or less"
    return "hardly any time" if share < 0.005 else f"about {share:.0%} of the training's time"


def write_decided(run: Run, decided: Decided) -> None:
    """Keep what was decided; nothing in a run decides it again."""
    run.write_json(FILE, asdict(decided))


def read_decided(run: Run) -> Decided | None:
    """Return what was decided before the first step of a run; None where nothing is known, as
    before the run is prepared, or of one that an older version started."""
    record: dict[str, Any] | None = run.read_json(FILE)
    if record is None:
        return None
    cadence = record.pop("cadence")
    return Decided(**record, cadence=None if cadence is None else Cadence(**cadence))
