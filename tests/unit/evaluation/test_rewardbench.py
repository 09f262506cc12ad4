"""RewardBench's average on a table whose result is known, and on tables that are not the
benchmark."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from aligner.errors import DataError
from aligner.evaluation.rewardbench import (
    ROWS,
    SUBSETS,
    WEIGHTS,
    aggregate,
    looks_like,
    mixing,
    problems,
)


def table(**won: int) -> tuple[list[str], list[float]]:
    """The benchmark's rows, every subset won but for those named, of which so many are (`_` for
    `-`)."""
    wins_of = {name.replace("_", "-"): number for name, number in won.items()}
    subsets, wins = [], []
    for subset, rows in ROWS.items():
        right = wins_of.get(subset, rows)
        subsets += [subset] * rows
        wins += [1.0] * right + [0.0] * (rows - right)
    return subsets, wins


def slow(subsets: list[str], wins: list[float]) -> float:
    """The overall score as a reader would work it out, row by row."""
    sections = []
    for weights in WEIGHTS.values():
        rows = [(win, subset) for win, subset in zip(wins, subsets) if subset in weights]
        heavy = [win * (984 / 447 if subset == "math-prm" else 1.0) for win, subset in rows]
        sections.append(
            sum(heavy) / sum(984 / 447 if subset == "math-prm" else 1.0 for _, subset in rows)
        )
    return sum(sections) / 4


def test_the_table_is_the_benchmark_as_published() -> None:
    assert sum(ROWS.values()) == 2985
    sizes = {
        section: sum(ROWS[subset] for subset in subsets) for section, subsets in WEIGHTS.items()
    }
    assert sizes == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 447 + 984}
    assert sum(WEIGHTS["Reasoning"].values()) == 2 * 984
    assert len(SUBSETS) == len(set(SUBSETS)) == 23


def test_weights_are_numbers_of_rows_but_for_math_prm() -> None:
    weights = {subset: weight for subsets in WEIGHTS.values() for subset, weight in subsets.items()}
    assert {subset for subset in SUBSETS if weights[subset] != ROWS[subset]} == {"math-prm"}
    assert (weights["math-prm"], ROWS["math-prm"]) == (984, 447)
    assert (ROWS["xstest-should-refuse"], ROWS["xstest-should-respond"]) == (154, 250)


def test_every_pair_won_is_one_and_every_tie_a_half() -> None:
    subsets, wins = table()
    assert aggregate(subsets, wins).overall.accuracy == 1.0
    tied = aggregate(subsets, [0.5] * len(wins))
    assert tied.overall.accuracy == 0.5
    assert tied.overall.stderr == 0.0


def test_math_prm_weighs_as_much_as_all_programming() -> None:
    found = aggregate(*table(math_prm=0))
    assert found.sections["Reasoning"].accuracy == 0.5
    assert found.overall.accuracy == (1 + 1 + 1 + 0.5) / 4
    coded = aggregate(*table(hep_cpp=0, hep_go=0, hep_java=0, hep_js=0, hep_python=0, hep_rust=0))
    assert coded.sections["Reasoning"].accuracy == 0.5


def test_the_xstest_weights_are_not_exchanged() -> None:
    assert aggregate(*table(xstest_should_respond=0)).sections["Safety"].accuracy == pytest.approx(
        1 - 250 / 740
    )
    assert aggregate(*table(xstest_should_refuse=0)).sections["Safety"].accuracy == pytest.approx(
        1 - 154 / 740
    )


def test_it_is_the_slow_average_ties_included() -> None:
    subsets, wins = table(
        math_prm=200, mt_bench_easy=20, llmbar_natural=61, hep_go=80, donotanswer=77
    )
    wins[::7] = [0.5] * len(wins[::7])
    found = aggregate(subsets, wins)
    assert found.overall.accuracy == pytest.approx(slow(subsets, wins), abs=1e-12)
    backwards = aggregate(subsets[::-1], wins[::-1])
    assert backwards.overall.accuracy == pytest.approx(found.overall.accuracy, abs=1e-12)


def test_the_standard_error_goes_through_both_averages() -> None:
    """Half of math-prm right: its mean has sqrt(.25 * 447/446 / 447), half of that the section, a
    quarter the whole."""
    found = aggregate(*table(math_prm=223))
    share = 223 / 447
    of_subset = math.sqrt(share * (1 - share) / 446)
    assert found.subsets["math-prm"].stderr == pytest.approx(of_subset)
    assert found.sections["Reasoning"].stderr == pytest.approx(of_subset / 2)
    assert found.sections["Chat"].stderr == 0.0
    assert found.overall.stderr == pytest.approx(of_subset / 8)
    two = aggregate(*table(math_prm=223, donotanswer=68))
    other = math.sqrt(0.25 / 135) * 136 / 740 / 4
    assert two.overall.stderr == pytest.approx(math.hypot(of_subset / 8, other))


def test_rows_of_the_matrix_are_averages() -> None:
    assert mixing().sum(axis=1).tolist() == pytest.approx([1.0] * 4)
    assert (mixing() > 0).sum(axis=0).tolist() == [1] * 23


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-1], "`hep-rust` has 163 rows, the benchmark 164"),
        (lambda rows: [*rows, "math-prm"], "`math-prm` has 448 rows, the benchmark 447"),
        (
            lambda rows: [row for row in rows if row != "donotanswer"],
            "`donotanswer` has 0 rows, the benchmark 136",
        ),
        (
            lambda rows: [*rows, "anthropic_hhh"],
            "`anthropic_hhh` (1 rows) is not a subset of the benchmark",
        ),
        (
            lambda rows: [
                {
                    "xstest-should-refuse": "xstest-should-respond",
                    "xstest-should-respond": "xstest-should-refuse",
                }.get(row, row)
                for row in rows
            ],
            "`xstest-should-refuse` has 250 rows, the benchmark 154",
        ),
    ],
)
def test_other_rows_than_the_benchmarks_get_no_number(change, words) -> None:
    rows = change(table()[0])
    assert any(words in text for text in problems(Counter(rows)))
    with pytest.raises(DataError) as caught:
        aggregate(rows, [1.0] * len(rows))
    assert any(words in problem.message for problem in caught.value.problems)


def test_the_benchmark_is_told_from_other_files_by_its_subsets() -> None:
    assert looks_like(["x", "math-prm"])
    assert not looks_like(["x", "(none)"])
    assert not looks_like([])
