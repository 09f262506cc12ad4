"""A row that was made: the turns of its prompt, the answer, and where both come from.

Everything after the answer works on these: checks, the output files, the report. Nothing here asks
a model or looks at settings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Turn = Mapping[str, str]
"""`{"role": ..., "content": ...}`."""

ID_DIGITS = 20


@dataclass(frozen=True, slots=True)
class Made:
    """A prompt and its answer. `prompt` ends with a user's turn; before it may stand a system turn
    and the turns of a conversation.

    `seed_id`: the row it began with, or the number of the row where there are no seeds.
    `parent_id`: the row of the round before, None in the first. `round` counts from 1.
    `reference`: the right answer that the seed came with, for verifiers; it may no longer be right
    once the instruction was changed. `provenance`: models, method, usage and what checks found out.
    """

    id: str
    seed_id: str
    prompt: tuple[Turn, ...]
    completion: str
    round: int = 1
    parent_id: str | None = None
    finish_reason: str = "stop"
    reference: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.prompt, "a prompt has a turn"
        assert self.prompt[-1]["role"] == "user", "a prompt ends with a user's turn"

    @property
    def instruction(self) -> str:
        """The last turn of the prompt: what is answered."""
        return self.prompt[-1]["content"]

    @property
    def truncated(self) -> bool:
        """Whether the answer ends because there was no more room."""
        return self.finish_reason == "length"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, which `from_json` reads."""
        return {**asdict(self), "prompt": [dict(turn) for turn in self.prompt]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Made:
        """The row that `to_json` wrote."""
        return cls(**{**values, "prompt": tuple(values["prompt"])})

    def row(self) -> dict[str, Any]:
        """In the conversational prompt-completion form that trainings read."""
        completion = [{"role": "assistant", "content": self.completion}]
        return {
            "id": self.id,
            "prompt": [dict(turn) for turn in self.prompt],
            "completion": completion,
        }


def row_id(seed_id: str, round_: int, prompt: Sequence[Turn]) -> str:
    """The id of a row: a digest of where it comes from and what it asks. The answer does not count,
    so that a check may choose another one."""
    parts = [seed_id, round_, [[turn["role"], turn["content"]] for turn in prompt]]
    text = json.dumps(parts, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:ID_DIGITS]
