"""The exercises of the toy world: short, verifiable, with a gold score for any answer. Imports no
torch.

A prompt is one user turn such as `sort: dbca`, whose answer is `abcd`; or a chain such as `sort:
dbca; reverse; count`, where each further task works on the answer before it and the answer has one
line for each part:

    abcd
    dcba
    4

One part is right or wrong: the score is 1 or 0. An answer to a chain earns the share of its lines
that are right, over the number of lines asked for or given, whichever is larger, so text that runs
on costs as much as text that is missing. Blanks around a line do not count. The parts of a chain
are judged against the truth, not against the line before.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aligner.errors import DataError

LETTERS = "abcdefghij"
LENGTHS = (3, 4)
"""Shortest and longest string that is drawn; its letters are all different, which a small model
finds easier."""
CHAIN_SHARE = 0.5
"""Share of drawn exercises that are chains, of two or three parts."""

TASKS: dict[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "upper": str.upper,
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "rotate": lambda text: text[1:] + text[:1],
    "count": lambda text: str(len(text)),
    "add": lambda text: str(sum(int(number) for number in text.split("+"))),
}
"""Task name -> the right answer to its argument. `add` takes `17+25`, the others a string of
letters."""

CHAINABLE = ("upper", "reverse", "sort", "rotate")
"""Tasks that may stand anywhere in a chain; `count` may only end one."""

REFUSALS = ("no", "not sure", "ask me later")
OPENINGS = ("ok: ", "well, ", "here you go: ")
CLOSINGS = (" ok?", "\ndone", "\nwhat next")

_STRING = re.compile(r"[A-Za-z]+")
_SUM = re.compile(r"\d{1,9}(\+\d{1,9})+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Exercise:
    """A prompt and the lines of its right answer."""

    prompt: str
    parts: tuple[str, ...]

    @property
    def answer(self) -> str:
        return "\n".join(self.parts)


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """The text that holds the exercise: the prompt itself, or the last user turn of a
    conversation."""
    if isinstance(prompt, str):
        return prompt
    turns = [message["content"] for message in prompt if message.get("role") == "user"]
    if not turns or not isinstance(turns[-1], str):
        raise _no_exercise(prompt)
    return turns[-1]


def solve(prompt: str | list[dict[str, Any]]) -> Exercise:
    """Read a prompt and work out its right answer; DataError when it is no exercise of the toy
    world."""
    text = prompt_text(prompt).strip()
    first, *rest = text.split("; ")
    name, colon, argument = first.partition(": ")
    chain = [name, *rest]
    pattern = _SUM if name == "add" else _STRING
    known = name in TASKS and all(task in CHAINABLE or task == "count" for task in rest)
    ends_well = "count" not in chain[:-1] and (name != "add" or not rest)
    if not (colon and known and ends_well and pattern.fullmatch(argument)):
        raise _no_exercise(text)
    parts: list[str] = []
    for task in chain:
        argument = TASKS[task](argument)
        parts.append(argument)
    return Exercise(text, tuple(parts))


def gold_score(prompt: str | list[dict[str, Any]], answer: str) -> float:
    """How right an answer is, in [0, 1]. Any text may be an answer; only a prompt can be refused
    (DataError)."""
    parts = solve(prompt).parts
    if len(parts) == 1:
        return float(answer.strip() == parts[0])
    lines = [line.strip() for line in answer.strip().split("\n")]
    right = sum(line == part for line, part in zip(lines, parts))
    return right / max(len(lines), len(parts))


def draw(rng: random.Random) -> Exercise:
    """One random exercise."""
    if rng.random() < CHAIN_SHARE:
        inner = [rng.choice(CHAINABLE) for _ in range(rng.choice((1, 2)))]
        return solve(
            f"{inner[0]}: {_string(rng)}"
            + "".join(f"; {task}" for task in [*inner[1:], rng.choice((*CHAINABLE, "count"))])
        )
    name = rng.choice(tuple(TASKS))
    argument = f"{rng.randrange(10, 100)}+{rng.randrange(1, 10)}" if name == "add" else _string(rng)
    return solve(f"{name}: {argument}")


def corrupt(exercise: Exercise, rng: random.Random) -> str:
    """A plausible wrong answer: a refusal, chatter around the answer, a slip, another task's
    answer, a part left out."""
    while True:
        answer = rng.choice(_SLIPS)(exercise, rng)
        if gold_score(exercise.prompt, answer) < 1.0:
            return answer


def _string(rng: random.Random) -> str:
    return "".join(rng.sample(LETTERS, rng.randint(*LENGTHS)))


def _slip_in_part(exercise: Exercise, rng: random.Random) -> str:
    """Swap two neighbours, lose or repeat a character, or put a wrong one."""
    parts = list(exercise.parts)
    place = rng.randrange(len(parts))
    text = parts[place]
    at = rng.randrange(len(text))
    if text.isdigit():
        parts[place] = str(max(0, int(text) + rng.choice((-2, -1, 1, 2))))
    else:
        wrong = rng.choice(LETTERS.upper() if text.isupper() else LETTERS)
        swapped = text[:at] + text[at + 1 : at + 2] + text[at] + text[at + 2 :]
        lost, repeated = text[:at] + text[at + 1 :], text[:at] + text[at] + text[at:]
        parts[place] = rng.choice((swapped, lost, repeated, text[:at] + wrong + text[at + 1 :]))
    return "\n".join(parts)


def _other_task(exercise: Exercise, rng: random.Random) -> str:
    """The answer to another task on the same string."""
    name, _, rest = exercise.prompt.partition(": ")
    if name == "add":
        return _slip_in_part(exercise, rng)
    return solve(f"{rng.choice((*CHAINABLE, 'copy'))}: {rest}").answer


def _part_left_out(exercise: Exercise, rng: random.Random) -> str:
    if len(exercise.parts) == 1:
        return _slip_in_part(exercise, rng)
    gone = rng.randrange(len(exercise.parts))
    return "\n".join(part for place, part in enumerate(exercise.parts) if place != gone)


def _refuses(_: Exercise, rng: random.Random) -> str:
    return rng.choice(REFUSALS)


def _chats_before(exercise: Exercise, rng: random.Random) -> str:
    return rng.choice(OPENINGS) + exercise.answer


def _chats_after(exercise: Exercise, rng: random.Random) -> str:
    return exercise.answer + rng.choice(CLOSINGS)


_SLIPS = (_refuses, _chats_before, _chats_after, _slip_in_part, _other_task, _part_left_out)
"""Half of the wrong answers are bad manners, as with real base models; the others are mistakes."""


def _no_exercise(found: object) -> DataError:
    return DataError(
        f"this prompt is not an exercise of the toy world: {str(found)[:80]!r}",
        "a toy prompt reads `task: text` or `task: text; task; ...`, with the tasks "
        f"{', '.join(TASKS)}",
    )
