"""The arms of `benchmarks.effects.rlhf`: which rewards, which algorithm, which settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

Shift = Callable[[float, float], float]
"""From a value and its location in (0, 1] to the value with a nuisance."""

RLHF = [
    "rlhf.max_new_tokens=48",
    "rlhf.beta=0.05",
    "rlhf.group_size=8",
    "trainer.per_device_train_batch_size=12",
    "trainer.learning_rate=4e-4",
    "trainer.max_steps=45",
]
FEW = [
    "rlhf.group_size=4",
    "trainer.per_device_train_batch_size=3",
    "trainer.max_steps=100",
]
SHORT = ["trainer.max_steps=20"]
SUM = ["rlhf.aggregate=sum"]
MIXED = ["rlhf.credit=mixed"]
LAMBDA = ["rlhf.gae_lambda=0.95"]
PPO = ["rlhf.algorithm=ppo", "rlhf.critic_learning_rate=2e-3"]

SCALED = ["rlhf.reward_weights=[4]"]
"""Gives the quality of the start's answers a standard deviation of about 1, as that of learned
rewards is: PPO takes rewards as they are, and weighs them against the KL."""


@dataclass(frozen=True)
class Cutting:
    """Credit by sampling on from the cuts of a response: how often from each, and how many places
    at which the model chooses lie between two of them."""

    samples: int
    every: int


@dataclass(frozen=True)
class Arm:
    """A way of training: what gets rewards, changes to the recipe, and what is done to values."""

    unit: str
    changes: list[str] = field(default_factory=list)
    is_oracle: bool = False
    shift: Shift | None = None
    is_normalized: bool = True
    cutting: Cutting | None = None

    @property
    def is_ppo(self) -> bool:
        """Whether a critic is trained."""
        return PPO[0] in self.changes

    @property
    def has_scorer(self) -> bool:
        """Whether whole responses are scored."""
        return self.unit == "sequence" or MIXED[0] in self.changes


def _offset(by: float) -> Shift:
    return lambda value, location: value + by


def _drift(value: float, location: float) -> float:
    return (1 + 1.5 * location) * value + 6 * math.log(location) + 4


def _batch(prompts: int, responses: int) -> list[str]:
    return [f"trainer.per_device_train_batch_size={prompts}", f"rlhf.group_size={responses}"]


PARTS: dict[str, dict[str, Arm]] = {
    "learned": {
        "sequence": Arm("sequence"),
        "segment, `location`": Arm("segment"),
        "segment, `location`, lambda .95": Arm("segment", LAMBDA),
        "segment, `process`": Arm("segment", ["rlhf.credit=process"]),
        "token, `location`": Arm("token"),
        "segment, `mixed`": Arm("segment", MIXED),
        "PPO, sequence": Arm("sequence", PPO),
        "PPO, segment": Arm("segment", PPO),
        "PPO, token": Arm("token", PPO),
        "sampled on": Arm("sequence", _batch(7, 2), cutting=Cutting(2, 2)),
    },
    "oracle": {
        "sequence": Arm("sequence", FEW, is_oracle=True),
        "segment, `location`": Arm("segment", FEW, is_oracle=True),
        "segment, `location`, lambda .95": Arm("segment", [*FEW, *LAMBDA], is_oracle=True),
        "segment, `mixed`": Arm("segment", [*FEW, *MIXED], is_oracle=True),
        "PPO, sequence": Arm("sequence", [*FEW, *PPO, *SCALED], is_oracle=True),
        "PPO, segment": Arm("segment", [*FEW, *PPO], is_oracle=True),
        "sampled on": Arm("sequence", [*FEW, *_batch(1, 3)], is_oracle=True, cutting=Cutting(1, 2)),
    },
    "planted": {
        f"{name}, `{aggregate}`, {'weighted' if is_normalized else 'none'}": Arm(
            "segment",
            [*SHORT, f"rlhf.aggregate={aggregate}"],
            shift=shift,
            is_normalized=is_normalized,
        )
        for name, shift in (("+3", _offset(3.0)), ("-3", _offset(-3.0)), ("drift", _drift))
        for aggregate in (("sum",) if name != "drift" else ("sum", "mean"))
        for is_normalized in (True, False)
    },
    "settings": {
        "`even`, `mean`": Arm("segment", SHORT),
        "`last`, `mean`": Arm("segment", [*SHORT, "rlhf.interpolation=last"]),
        "`repeat`, `mean`": Arm("segment", [*SHORT, "rlhf.interpolation=repeat"]),
        "`even`, `sum`": Arm("segment", [*SHORT, *SUM]),
    },
}
