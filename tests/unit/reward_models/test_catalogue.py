"""Scorers: what each verifier accepts, and what a wrong name or a missing reference is answered
with."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path

import pytest

from aligner.errors import DataError, RecipeError
from aligner.reward_models.base import Scorer
from aligner.reward_models.card import NEEDED
from aligner.reward_models.catalogue import KINDS, load_scorer
from aligner.reward_models.verifier import number_in


def score(spec: str, completion: str, reference: str | None) -> float:
    (value,) = load_scorer(spec).score(["a prompt"], [completion], [reference])
    return value


@pytest.mark.parametrize(
    ("spec", "completion", "reference", "expected"),
    [
        ("verifier:exact", "Paris", "Paris", 1.0),
        ("verifier:exact", "  the   answer\n", "the answer", 1.0),
        ("verifier:exact", "paris", "Paris", 0.0),
        ("verifier:exact", "Paris.", "Paris", 0.0),
        ("verifier:exact", "", "", 1.0),
        ("verifier:number", "She has 3 left, so 42", "42", 1.0),
        ("verifier:number", "so 6 * 7 = 42.\n#### 42", "#### 42", 1.0),
        ("verifier:number", "#### 42\nIs there anything else in these 2 minutes?", "42", 1.0),
        ("verifier:number", "A: 42 (which is 6 times 7)", "42", 1.0),
        ("verifier:number", "it costs $1,234.50", "1234.5", 1.0),
        ("verifier:number", "70,000 dollars", "#### 70000", 1.0),
        ("verifier:number", "-5 degrees", "-5", 1.0),
        ("verifier:number", "5", "-5", 0.0),
        ("verifier:number", "7-2", "2", 1.0),
        ("verifier:number", "50%", "50", 1.0),
        ("verifier:number", "12.0 km", "12", 1.0),
        ("verifier:number", "0.3333333", "0.33333333", 1.0),
        ("verifier:number", "0.3333", "0.33333333", 0.0),
        ("verifier:number", "1000000.5", "1000000", 1.0),
        ("verifier:number", "101", "100", 0.0),
        ("verifier:number", "no idea", "42", 0.0),
        ("verifier:number", "", "42", 0.0),
        ("verifier:number", "1e3", "1,000", 1.0),
        (r"verifier:regex=\bcat\b", "a cat sat", None, 1.0),
        (r"verifier:regex=\bcat\b", "concatenate", None, 0.0),
        (r"verifier:regex=answer: (\w+)", "answer: no, wait, answer: yes", "yes", 1.0),
        (r"verifier:regex=answer: (\w+)", "answer: yes, or answer: no", "yes", 0.0),
        (r"verifier:regex=answer: (\w+)", "I will not say", "yes", 0.0),
        (r"verifier:regex=a=(.+):b", "a= x  y :b", "x y", 1.0),
        (r"verifier:regex=(yes)?$", "maybe", "yes", 0.0),
    ],
)
def test_a_verifier_gives_one_to_the_right_answer_and_zero_to_others(
    spec: str, completion: str, reference: str | None, expected: float
) -> None:
    assert score(spec, completion, reference) == expected


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("-$3", "-3"),
        ("$-3.50", "-3.50"),
        (".5", "0.5"),
        ("x=-.5", "-0.5"),
        ("5\N{MINUS SIGN}7 is \N{MINUS SIGN}2", "-2"),
        ("10-15 km", "15"),
        ("1,234,567 people", "1234567"),
        ("between 2,3", "3"),
        ("The answer is **17**, not 18", "17"),
        ("#### **$ 1,000**, or 12", "1000"),
        ("1,234,567,", "567"),
        (r"\boxed{8} of 9", "8"),
        ("1.5e-3 m", "0.0015"),
        ("one half", None),
        (r"\boxed{ - 3 }", "-3"),
        ("Answer: - $1,000.50 in all, after 2 weeks", "-1000.50"),
        ("**Answer:** \N{MINUS SIGN} 3", "-3"),
        ("the answer is - .5", "-0.5"),
        ("#### + 5", "5"),
        ("- 5", "-5"),
        ("\n  - 5 degrees", "-5"),
        ("7 - 2", "2"),
        ("- 7 - 2", "2"),
        ("Answer: 7 - 2", "7"),
        ("x - 5", "5"),
        ("so it is\n- 5", "5"),
        ("Answer:\n- 5 apples", "5"),
        ("Answer:\n-5", "-5"),
    ],
)
def test_the_number_of_a_text(text: str, number: str | None) -> None:
    assert number_in(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "#### " + " " * 200_000,
            "A: " + "* " * 100_000,
            "#### " * 40_000,
            "1" + ",234" * 50_000 + ",",
        ),
        *(
            "1." * 100_000,
            "-" * 200_000,
            "1 " * 100_000,
            "-$" * 100_000,
            "\\boxed{" * 30_000,
            "\ud800" * 100_000,
        ),
        *("A: - " * 50_000, "A: -" + " " * 200_000, "\n" * 200_000 + "- x"),
    ],
)
def test_no_answer_keeps_the_search_for_a_number_busy(answer: str) -> None:
    begun = time.process_time()
    assert score("verifier:number", answer, "12345") == 0.0
    assert score("verifier:exact", answer, "12345") == 0.0
    assert (
        time.process_time() - begun < 5.0
    )  # a search that looks at each place twice would take minutes


def test_numbers_of_any_length_are_compared() -> None:
    long = "1" * 1_500_000
    assert score("verifier:number", long, long) == 1.0
    assert score("verifier:number", long, "1") == 0.0
    assert score("verifier:number", "1e999", "1e-999") == 0.0


def test_the_toy_scorer_needs_no_reference_and_names_prompts_that_are_no_exercise() -> None:
    scorer = load_scorer("toy")
    assert scorer.score(["sort: cba", "sort: ba; reverse"], ["abc", "ab\nab"]) == [1.0, 0.5]
    with pytest.raises(DataError, match=r"1 of 2 rows(.|\n)*row 2"):
        scorer.score(["sort: cba", "Hello"], ["abc", "Hi"])


@pytest.mark.parametrize("spec", ["verifier:exact", "verifier:number", "verifier:regex=(.*)"])
def test_missing_references_are_named_by_row(spec: str) -> None:
    with pytest.raises(DataError, match="2 of 3 rows have none: row 1, 3"):
        load_scorer(spec).score(["p"] * 3, ["1"] * 3, [None, "1", None])
    with pytest.raises(DataError, match="row 1, 2"):
        load_scorer(spec).score(["p"] * 2, ["1"] * 2)


def test_a_reference_without_a_number_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match=r"row 2.*'yes'"):
        load_scorer("verifier:number").score(["p", "p"], ["1", "2"], ["1", "yes"])


FUNCTIONS = """
def right(prompt, completion, reference):
    return float(completion == reference) + (0.5 if isinstance(prompt, list) else 0)

def fails(prompt, completion, reference):
    return len(completion) / (len(completion) - 2)

def says_nothing(prompt, completion, reference=None):
    pass

def endless(*values):
    return float("inf")

def two(prompt, completion):
    return 1.0
"""


@pytest.fixture
def functions(tmp_path: Path) -> str:
    path = tmp_path / "my_rewards.py"
    path.write_text(FUNCTIONS)
    return f"verifier:{path}"


def test_a_function_of_the_user_is_called_for_each_row(functions: str) -> None:
    scorer = load_scorer(f"{functions}:right")
    assert scorer.score(["p", [{"role": "user", "content": "p"}]], ["a", "a"], ["a", "a"]) == [
        1.0,
        1.5,
    ]
    assert scorer.score(["p"], ["a"]) == [0.0]
    assert scorer.name == f"{functions}:right"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "row 2: .*my_rewards.py:fails raised ZeroDivisionError"),
        ("says_nothing", "row 1: .*says_nothing returned None"),
        ("endless", "row 1: .*endless returned inf"),
    ],
)
def test_what_goes_wrong_in_a_function_names_the_function_and_the_row(
    functions: str, name: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_scorer(f"{functions}:{name}").score(["p", "p"], ["abc", "ab"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("toi", "did you mean 'toy'"),
        ("", "no scorer ''"),
        ("verifer:exact", "did you mean 'verifier'"),
        ("toy:hard", "takes no argument"),
        ("verifier", "no verifier ''"),
        ("verifier:exakt", "did you mean 'exact'"),
        ("verifier:regex=", "at most one group"),
        ("verifier:regex=(a", "not a regular expression"),
        ("verifier:regex=(a)(b)", "found 2 groups"),
        ("verifier:nowhere.py:right", "no file nowhere.py"),
    ],
)
def test_a_wrong_name_is_answered_with_the_cure(spec: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_scorer(spec)


def test_a_function_that_is_missing_or_takes_other_values_is_refused(
    functions: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="did you mean 'right'"):
        load_scorer(f"{functions}:rigth")
    with pytest.raises(RecipeError, match="cannot be called with three values"):
        load_scorer(f"{functions}:two")
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    with pytest.raises(RecipeError, match="ModuleNotFoundError"):
        load_scorer(f"verifier:{broken}:right")


def test_every_kind_has_a_module_and_stands_in_the_catalogue() -> None:
    catalogue = (Path(__file__).parents[3] / "reward_models" / "README.md").read_text()
    assert set(KINDS) == set(NEEDED)
    for kind in KINDS:
        assert f"`{kind}" in catalogue
    for spec in ("toy", "verifier:exact"):
        assert isinstance(load_scorer(spec), Scorer)
