"""The toy world's exercises: right answers, and the gold score of any answer."""

from __future__ import annotations

import random

import pytest

from aligner.errors import DataError
from aligner.toy.tasks import TASKS, corrupt, draw, gold_score, prompt_text, solve

RIGHT = [
    ("copy: dbca", "dbca"),
    ("upper: dbca", "DBCA"),
    ("reverse: dbca", "acbd"),
    ("sort: dbca", "abcd"),
    ("rotate: dbca", "bcad"),
    ("count: dbca", "4"),
    ("add: 17+25", "42"),
    ("add: 1+2+3", "6"),
    ("sort: dbca; reverse; count", "abcd\ndcba\n4"),
    ("rotate: abc; upper", "bca\nBCA"),
]


@pytest.mark.parametrize(("prompt", "answer"), RIGHT)
def test_the_right_answer_is_known_and_scores_one(prompt: str, answer: str) -> None:
    assert solve(prompt).answer == answer
    assert gold_score(prompt, answer) == 1.0
    assert gold_score([{"role": "user", "content": prompt}], answer) == 1.0


def test_every_task_has_a_hand_made_example() -> None:
    assert {prompt.partition(":")[0] for prompt, _ in RIGHT} >= set(TASKS)


@pytest.mark.parametrize(
    ("prompt", "answer", "score"),
    [
        ("sort: dbca", " abcd\n", 1.0),
        ("sort: dbca", "abdc", 0.0),
        ("sort: dbca", "ABCD", 0.0),
        ("sort: dbca", "abcd\nabcd", 0.0),
        ("sort: dbca", "abcd and more", 0.0),
        ("sort: dbca", "", 0.0),
        ("count: dbca", "4.0", 0.0),
        ("sort: dbca; reverse; count", "abcd\ndcba", 2 / 3),
        ("sort: dbca; reverse; count", "abcd\nxxxx\n4", 2 / 3),
        ("sort: dbca; reverse; count", "abcd", 1 / 3),
        ("sort: dbca; reverse; count", "dcba\n4", 0.0),
        ("sort: dbca; reverse", "abcd\ndcba\nmore\nand more", 1 / 2),
        ("sort: dbca; reverse", "abcd \n  dcba", 1.0),
        ("sort: dbca; reverse", "\ud800 \x00 garbage \N{SNOWMAN}", 0.0),
        ("sort: dbca; reverse", "abcd; dcba", 0.0),
    ],
)
def test_an_answer_earns_the_share_of_its_lines_that_are_right(
    prompt: str, answer: str, score: float
) -> None:
    assert gold_score(prompt, answer) == pytest.approx(score)


def test_the_last_user_turn_is_the_exercise() -> None:
    turns = [
        {"role": "system", "content": "answer briefly"},
        {"role": "user", "content": "count: abc"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "copy: abc"},
    ]
    assert prompt_text(turns) == "copy: abc"
    assert gold_score(turns, "abc") == 1.0


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "What is 2 + 2?",
        "sort:dbca",
        "sort: ",
        "srot: dbca",
        "sort: dbca; shout",
        "sort: dbca;reverse",
        "count: dbca; reverse",
        "add: 1+2; reverse",
        "sort: abc; copy",
        "add: 17",
        "add: 17+x",
        "sort: a b",
        [],
        [{"role": "assistant", "content": "sort: dbca"}],
        [{"role": "user", "content": [{"type": "text", "text": "sort: dbca"}]}],
    ],
)
def test_a_prompt_that_is_no_exercise_is_refused(prompt: str | list) -> None:
    with pytest.raises(DataError, match="not an exercise"):
        gold_score(prompt, "abcd")


def test_drawn_exercises_are_solvable_varied_and_repeatable() -> None:
    drawn = [draw(random.Random(seed)) for seed in range(400)]
    assert drawn == [draw(random.Random(seed)) for seed in range(400)]
    assert all(gold_score(exercise.prompt, exercise.answer) == 1.0 for exercise in drawn)
    assert {len(exercise.parts) for exercise in drawn} == {1, 2, 3}
    assert {exercise.prompt.partition(":")[0] for exercise in drawn} == set(TASKS)


def test_a_corrupted_answer_is_wrong_and_not_always_worthless() -> None:
    rng = random.Random(0)
    exercises = [draw(rng) for _ in range(400)]
    scores = [gold_score(exercise.prompt, corrupt(exercise, rng)) for exercise in exercises]
    assert max(scores) < 1.0
    assert any(score > 0.0 for score in scores)
