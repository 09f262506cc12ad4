"""Scripted experts of the toy world: others who answer, each good at some tasks, for battles.

An expert has a task right with the probability of its skill, and a chain if it has each of its
parts right; else it gives one of the plausible wrong answers (`corrupt`). No training sees who was
right. Imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from aligner.toy.tasks import Exercise, corrupt

Skills = Mapping[str, float]

EXPERTS: dict[str, Skills] = {
    "strong": {
        "copy": 1.0,
        "upper": 0.98,
        "reverse": 0.97,
        "sort": 0.95,
        "rotate": 0.85,
        "count": 0.97,
        "add": 0.9,
    },
    "middling": {
        "copy": 1.0,
        "upper": 0.9,
        "reverse": 0.7,
        "sort": 0.75,
        "rotate": 0.95,
        "count": 0.9,
        "add": 0.6,
    },
    "weak": {
        "copy": 0.9,
        "upper": 0.7,
        "reverse": 0.45,
        "sort": 0.4,
        "rotate": 0.5,
        "count": 0.6,
        "add": 0.3,
    },
}
"""Expert -> probability that it has each task right."""


def answers(name: str, exercises: Iterable[Exercise], seed: int) -> list[str]:
    """What an expert says to exercises, the same for the same seed and exercise."""
    return [_answer(EXPERTS[name], exercise, f"{name} {seed}") for exercise in exercises]


def _answer(skills: Skills, exercise: Exercise, stream: str) -> str:
    rng = random.Random(f"{stream} {exercise.prompt}")
    first, *rest = exercise.prompt.split("; ")
    tasks = [first.partition(": ")[0], *rest]
    is_right = all(rng.random() < skills[task] for task in tasks)
    return exercise.answer if is_right else corrupt(exercise, rng)
