"""The final result of an answer, and the result that most answers have."""

from __future__ import annotations

import pytest

from aligner.builders.evolve.majority import Majority, final_result, majority


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("3 and 4 make 7.", "7"),
        ("It is 7.0 m", "7"),
        ("#### 1,200", "1200"),
        ("so \\boxed{42}. Check: 6 * 7", "42"),
        ("so \\boxed{x^{2} + 1}", "x ^ 2 + 1"),
        ("**Answer:** $5.00", "5"),
        ("The final answer is: 12 apples", "12"),
        ("Answer:\n\n**Paris**\nbecause it is", "paris"),
        ("Answer: 1/2", "1 / 2"),
        ("Answer: x = 5", "5"),
        ("Answer: -3", "-3"),
        ("Answer: (B)", "b"),
        ("First, answer: 4. Then\nAnswer: 5", "5"),
        ("no result at all", None),
        ("Answer:", None),
    ],
)
def test_a_final_result(answer: str, result: str | None) -> None:
    found = final_result(answer)
    assert found == (None if result is None else final_result(f"Answer: {result}"))
    if result is not None and not result.lstrip("-").isdigit():
        assert found == result


def test_forms_of_one_number_are_one_result() -> None:
    forms = ["1200", "Answer: 1,200.00", "\\boxed{1200}", "that makes $1200 a year"]
    assert len({final_result(form) for form in forms}) == 1


def test_most_answers_decide_and_the_first_of_them_is_named() -> None:
    answers = ["it is 3", "it is 7", "none", "7 it is", "Answer: 7"]
    assert majority(answers) == Majority(result="7", votes=3, voters=4, first=1)


@pytest.mark.parametrize("answers", [["3", "4"], ["3", "3", "4", "4"], ["a", "b"], ["3"], []])
def test_a_tie_and_a_single_vote_are_no_majority(answers: list[str]) -> None:
    assert majority(answers) is None
