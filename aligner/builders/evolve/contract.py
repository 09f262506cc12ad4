"""An evolving method, how it is put around an instruction, and how the reply is read.

Two contracts. Under `owned`, ours, a method is its steps alone: the role, the tags around the
instruction and the last section that a reply must end in are added here, so no rewritten method can
break the reading of replies. Under `free`, the paper's, a method is the whole prompt; a reply is
read below the last heading of a list of names, and a method that stops asking for one is found out
by its replies.

Where the server takes schemas (`structured.py`), an `owned` reply is a JSON object. Reading is
strict in both forms: no part of a reply is guessed to be the instruction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from aligner.builders.evolve.prompts import (
    CONTINUED,
    FINAL_LABEL,
    FREE_CONTRACT,
    FREE_LABELS,
    FULL_START,
    GIVEN,
    OWNED_CONTRACT,
    ROLE,
    STRUCTURED_CONTRACT,
    WEAK_START,
)
from aligner.builders.evolve.sections import enclosed, free_label, last_section
from aligner.builders.evolve.structured import TEXT, read_object
from aligner.data.reasoning import without_reasoning
from aligner.errors import DataError

Contract = Literal["owned", "free"]
Message = Mapping[str, str]

LONGEST_METHOD = 12_000
"""Characters of the longest method that is taken: it is sent again with every row."""

INSTRUCTION_SCHEMA = {"work": TEXT, "instruction": TEXT}


@dataclass(frozen=True)
class EvolvingMethod:
    """A way of making instructions harder, as text. `parent`: the id of the one that it was
    rewritten from; `step`: of the optimization, 0 for the first; `note`: what was changed."""

    steps: str
    contract: Contract = "owned"
    parent: str | None = None
    step: int = 0
    note: str = ""

    @property
    def id(self) -> str:
        """The SHA-256 of what decides its prompts."""
        return hashlib.sha256(f"{self.contract}\n{self.steps}".encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, with its id."""
        return {"id": self.id, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EvolvingMethod:
        """The method that `to_json` wrote."""
        return cls(**{key: values[key] for key in values if key != "id"})


def first_method(start: Literal["full", "weak"], contract: Contract) -> EvolvingMethod:
    """Return the method that an optimization begins with."""
    steps = FULL_START if start == "full" else WEAK_START
    if contract == "free":
        steps = f"{ROLE}\n\n{steps}\n\n{FREE_CONTRACT.format(label=FINAL_LABEL)}"
    return EvolvingMethod(steps, contract)


def read_method(path: Path) -> EvolvingMethod:
    """Read a `method.json`. Raises: DataError naming what is wrong with the file."""
    hint = "name the method.json of a finished run, or leave evolve.method out"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        method = EvolvingMethod.from_json(dict(values))
        is_usable = method.contract in ("owned", "free") and bool(method.steps.strip())
        was_changed = values.get("id", method.id) != method.id
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}", hint) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} holds no evolving method: {error}", hint) from error
    if not is_usable:
        raise DataError(
            f"{path} holds no evolving method: its steps are empty, or its contract is unknown",
            hint,
        )
    if was_changed:
        raise DataError(
            f"{path} was changed: its id is not that of its steps",
            "restore the file, or delete the line of its id to use it as it is",
        )
    return method


def messages(
    method: EvolvingMethod,
    instruction: str,
    structured: bool = False,
    history: Sequence[Message] = (),
) -> tuple[Message, ...]:
    """Return what a model reads to evolve an instruction, with the conversation that it continues.
    The instruction is put in, never formatted: it may hold braces."""
    begin, end = enclosed(instruction)
    given = f"{GIVEN.format(open=begin, close=end)}\n\n{begin}\n{instruction}\n{end}"
    if history:
        given = f"{_conversation(history)}\n\n{given}"
    if method.contract == "free":
        return ({"role": "user", "content": f"{method.steps}\n\n{given}"},)
    label = free_label(FINAL_LABEL, instruction)
    contract = STRUCTURED_CONTRACT if structured else OWNED_CONTRACT.format(label=label)
    return ({"role": "user", "content": "\n\n".join((ROLE, method.steps, contract, given))},)


def _conversation(history: Sequence[Message]) -> str:
    said = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in history)
    begin, end = enclosed(said, "conversation")
    return f"{CONTINUED.format(open=begin, close=end)}\n\n{begin}\n{said}\n{end}"


def read_evolved(
    method: EvolvingMethod, reply: str, instruction: str, structured: bool = False
) -> str | None:
    """Return the evolved instruction in a reply, which may be empty; None where the reply does not
    keep to the contract."""
    text = without_reasoning(reply)
    if method.contract == "free":
        return last_section(text, FREE_LABELS)
    if not structured:
        return last_section(text, [free_label(FINAL_LABEL, instruction)])
    values = read_object(text, INSTRUCTION_SCHEMA)
    return None if values is None else str(values["instruction"]).strip()


def takes_structure(method: EvolvingMethod) -> bool:
    """Say whether replies to it may be asked for as JSON: a `free` method says itself what its
    replies look like."""
    return method.contract == "owned"
