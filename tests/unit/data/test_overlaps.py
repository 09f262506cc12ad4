"""Words in a row that rows have in common with test sets."""

from __future__ import annotations

import random

import pytest

from aligner.data.overlaps import TestTexts

TEST = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. "
    "How many bolts in total does it take?"
)


def index_of(*questions: str, size: int = 13, answer: str = "") -> TestTexts:
    texts = TestTexts(size)
    for number, question in enumerate(questions, start=1):
        texts.add(f"test.jsonl:{number}", question, answer)
    return texts


def test_thirteen_words_in_a_row_are_an_overlap() -> None:
    thirteen = "a robe takes 2 bolts of blue fiber and half that much white"
    assert len(thirteen.split()) == 13
    found = index_of(TEST).overlap(f"Tell me: {thirteen.upper()}, please", "no")
    assert found is not None
    assert (found.test, found.words, found.is_long) == ("test.jsonl:1", thirteen, True)


def test_twelve_words_in_a_row_are_only_counted_and_seven_nothing() -> None:
    words = TEST.lower().rstrip("?").replace(".", "").split()
    twelve = index_of(TEST).overlap("so " + " ".join(words[:12]) + " so", "no")
    assert twelve is not None
    assert not twelve.is_long
    assert twelve.words == " ".join(words[:8])
    assert index_of(TEST).overlap("so " + " ".join(words[:7]) + " so", "no") is None


def test_the_answer_of_a_row_and_that_of_a_test_are_looked_at_too() -> None:
    answer = "first add the blue bolts and then add the white bolts to get three"
    tests = index_of("How many?", answer=answer)
    found = tests.overlap("Teach me to sew", f"Well, {answer}!")
    assert found is not None
    assert found.is_long


@pytest.mark.parametrize(
    ("question", "prompt", "answer", "is_found"),
    [
        # fewer than four words: the whole prompt alone
        ("Who are you?", "who are you", "", True),
        ("Who are you?", "Tell me who are you", "", False),
        ("2+3?", "2 + 3", "", True),
        ("2+3?", "2 - 3", "", False),
        ("What is 2+3?", "So what is 2-3, friend?", "", False),
        # fewer than eight: in the prompt, not in the answer
        ("What is the capital of Spain?", "So what is the capital of Spain, friend?", "", True),
        ("What is the capital of Spain?", "Hi", "what is the capital of Spain", False),
        # fewer than thirteen: in both
        ("Name all of the planets that have no moon", "Name all the planets", "", False),
        (
            "Name all of the planets that have no moon",
            "Hi",
            "They said: name all of the planets that have no moon.",
            True,
        ),
    ],
)
def test_a_short_question_is_found_whole(
    question: str, prompt: str, answer: str, is_found: bool
) -> None:
    found = index_of(question).overlap(prompt, answer)
    assert (found is not None and found.is_long) == is_found


def test_words_of_two_texts_are_no_run() -> None:
    words = TEST.rstrip("?").split()
    assert index_of(TEST).overlap(" ".join(words[:6]), " ".join(words[6:12])) is None


def test_a_smaller_size_is_looked_for_without_one_of_eight() -> None:
    found = index_of("one two three four five six", size=4).overlap("x two three four five x", "")
    assert found is not None
    assert (found.words, found.is_long) == ("two three four five", True)


def runs(text: str, size: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def test_the_index_finds_what_a_comparison_of_all_runs_finds() -> None:
    draw = random.Random(3)
    texts = [" ".join(draw.choices("abc", k=draw.randrange(14, 30))) for _ in range(60)]
    tests, rows = texts[:20], texts[20:]
    index = index_of(*tests)
    found = [index.overlap(row, "") for row in rows]
    for row, overlap in zip(rows, found):
        has = {size: any(runs(row, size) & runs(test, size) for test in tests) for size in (8, 13)}
        assert (overlap is not None) == has[8]
        assert (overlap is not None and overlap.is_long) == has[13]
    assert len({overlap and overlap.is_long for overlap in found}) > 1


def test_two_calculations_are_no_overlap() -> None:
    """Nine numbers, and with their signs 21 words."""
    sums = "2+3=5, 5+5=10, 10+10=20"
    tests = index_of(f"Is it {sums}?")
    assert tests.overlap("Count on", f"Well, {sums.replace('10=20', '11=21')}!") is None
    found = tests.overlap("Count on", f"Well, {sums}!")
    assert found is not None
    assert (found.is_long, found.words) == (False, "2 3 5 5 5 10 10 10")


SHORT = "Name all of the planets that have no moon"


@pytest.mark.parametrize(
    ("question", "asked", "told", "layers"),
    [
        (TEST, [f"Well: {TEST}"], [], {"ngram"}),
        (TEST, ["Recite"], [f"Well: {TEST}"], {"ngram"}),
        (TEST, ["Recite", TEST], [], {"ngram"}),
        (TEST, [" ".join(TEST.split()[:12])], [], set()),
        (SHORT, [f"Now, {SHORT}, quick!"], [], {"short"}),
        (SHORT, ["Hi"], [SHORT], {"short"}),
        (SHORT, ["Name all of the planets that have a moon"], [], set()),  # 7 words
        (SHORT, ["Say all of the planets that have no moon"], [], {"short"}),  # 8 of its 9
        ("Who are you?", ["Hello", "who are YOU"], ["I am"], {"short"}),
        ("Who are you?", ["Hello", "So who are you"], ["I am"], set()),
        ("What is the capital of Spain?", ["Hi", "What is the capital of Spain"], [], {"short"}),
    ],
)
def test_layers_look_at_every_turn(
    question: str, asked: list[str], told: list[str], layers: set[str]
) -> None:
    found = index_of(question).layers(asked, told)
    assert set(found) == layers
    assert all(overlap.test == "test.jsonl:1" for overlap in found.values())


def test_layers_are_found_beside_one_another() -> None:
    tests = index_of(TEST, SHORT)
    found = tests.layers([SHORT], [TEST])
    assert {name: overlap.test for name, overlap in found.items()} == {
        "ngram": "test.jsonl:1",
        "short": "test.jsonl:2",
    }


def test_a_smaller_size_finds_fewer_words_in_a_row() -> None:
    eight = " ".join(TEST.split()[:8])
    assert set(index_of(TEST, size=8).layers([f"So {eight}?"], [])) == {"ngram"}
    assert index_of(TEST).layers([f"So {eight}?"], []) == {}
