"""Evaluation of reward models: each number worked out by hand or by a slow second way, and what is
not defined said."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from aligner.data.rows import PreferenceRow
from aligner.errors import DataError
from aligner.evaluation import pair_scores
from aligner.evaluation.bootstrap import intervals, shares
from aligner.evaluation.correlation import kappa, pearson, ranks, spearman
from aligner.evaluation.groups import buckets, by_column, category_column
from aligner.evaluation.length_bias import centred
from aligner.evaluation.pair_scores import Judged, answers_of, as_pairs, judge, numbered
from aligner.evaluation.reward_accuracy import agreement, measure
from aligner.evaluation.rewardbench import ROWS, aggregate
from aligner.reports.charts import Series, bar_chart, point_chart
from aligner.reward_models.base import (
    UNBOUNDED,
    Comparer,
    NoVerdict,
    Preferences,
    Scores,
    preferences,
)


class Table:
    """Scores answers as a table says, and counts what it was asked."""

    name, range = "table", UNBOUNDED

    def __init__(self, scores: dict[str, float], remarks: tuple[str, ...] = ()) -> None:
        self.scores, self.odd, self.calls = scores, remarks, []

    def score(self, prompts, completions, references=None):
        self.calls.append(list(zip(prompts, completions, references or [None] * len(prompts))))
        remarks = {row: f"odd: {text}" for row, text in enumerate(completions) if text in self.odd}
        return Scores([self.scores[text] for text in completions], remarks=remarks)

    def fingerprint(self):
        return "table"


class Longer(Table):
    """Prefers the longer of two answers, by their share of the characters; changes its mind about
    those with an x."""

    def prefer(self, prompts, first, second):
        values = [len(a) / (len(a) + len(b)) for a, b in zip(first, second)]
        return Preferences(values, flips=[row for row, text in enumerate(first) if "x" in text])

    def score(self, prompts, completions, references=None):
        raise AssertionError("a comparer is not asked for scores")


def rows(*pairs: tuple[str, str, str], **extra: list) -> list[PreferenceRow]:
    return [
        PreferenceRow(
            prompt,
            chosen,
            rejected,
            origin=f"x:{number}",
            extra={k: v[number - 1] for k, v in extra.items()},
        )
        for number, (prompt, chosen, rejected) in enumerate(pairs, 1)
    ]


def measured(scorer, given: list[PreferenceRow], column: str | None = None, **options) -> dict:
    pairs = as_pairs(given)
    answers = answers_of(pairs)
    return measure(judge(scorer, pairs, answers), pairs, answers, column, **options)


def with_margins(*margins: float) -> tuple[Judged, list]:
    """Judged pairs with given differences of scores, each of its own prompt."""
    pairs = as_pairs(rows(*((f"p{i}", f"c{i}", f"r{i}") for i in range(len(margins)))))
    scores = {f"c{i}": margin for i, margin in enumerate(margins)} | {
        f"r{i}": 0.0 for i in range(len(margins))
    }
    return judge(Table(scores), pairs, answers_of(pairs)), pairs


FOUR = rows(
    ("p", "a", "b"),
    ("q", "cc", "d"),
    ("r", "e", "ff"),
    ("s", "g", "h"),
    kind=["one", "two", "two", None],
)
SCORES = {"a": 2.0, "b": 1.0, "cc": 0.0, "d": 3.0, "e": 5.0, "ff": 4.0, "g": 1.0, "h": 1.0}


def test_accuracy_by_hand_with_a_tie_as_half() -> None:
    found = measured(Table(SCORES), FOUR, "kind")
    assert (found["pairs"], found["prompts"], found["ties"], found["kind"]) == (
        4,
        4,
        1,
        "pointwise",
    )
    assert found["accuracy"]["value"] == (1 + 0 + 1 + 0.5) / 4
    assert found["accuracy_without_ties"]["value"] == pytest.approx(2 / 3)
    assert [
        (row["name"], row["pairs"], row["ties"], row["accuracy"]["value"])
        for row in found["categories"]
    ] == [
        ("two", 2, 0, 0.5),
        ("one", 1, 0, 1.0),
        ("(none)", 1, 1, 0.5),
    ]
    assert found["order_flips"] is None
    assert found["rewardbench"] is None
    assert found["left_out"] == []


def test_the_choice_is_that_of_preferences_and_stays_where_the_sigmoid_is_full() -> None:
    scores = {
        "a": 50.0,
        "b": 10.0,
        "cc": 60.0,
        "d": 10.0,
        "e": 1e-18,
        "ff": 0.0,
        "g": 700.0,
        "h": -700.0,
    }
    pairs = as_pairs(FOUR)
    judged = judge(Table(scores), pairs, answers_of(pairs))
    asked = [p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs]
    assert judged.probabilities.tolist() == list(preferences(Table(scores), *asked))
    assert judged.wins.tolist() == [1, 1, 1, 1]  # though the third's sigmoid is exactly 0.5


def test_lengths_by_hand() -> None:
    found = measured(Table(SCORES), FOUR)["length"]
    assert [
        (row["name"], row["pairs"], row["accuracy"]["value"]) for row in found["chosen_is"]
    ] == [
        ("shorter", 1, 1.0),
        ("as long", 2, 0.75),
        ("longer", 1, 0.0),
    ]
    assert sum(row["pairs"] for row in found["buckets"]) == 4
    assert [(row["from"], row["to"]) for row in found["buckets"]] == [(-1, -1), (0, 0), (1, 1)]


class Segmented(Table):
    """Knows segments: as many as an answer has letters, and whether it has an a early or late."""

    def score(self, prompts, completions, references=None):
        early = [float(text.startswith("a")) for text in completions]
        late = [float(text.endswith("a")) for text in completions]
        counts = [float(len(text)) for text in completions]
        attributes = {"segments": counts, "early": early, "middle": early, "late": late}
        return Scores([self.scores[text] for text in completions], attributes)


def test_segments_by_hand() -> None:
    given = rows(("p", "ab", "b"), ("q", "ca", "bbb"), ("r", "ab", "aba"), ("s", "b", "ab"))
    scores = {"ab": 1.0, "b": 0.0, "ca": 2.0, "bbb": 3.0, "aba": 0.5}
    found = measured(Segmented(scores), given)["segments"]
    assert found["mean"] == pytest.approx((2 + 1 + 2 + 3 + 2 + 3 + 1 + 2) / 8)
    assert [
        (row["from"], row["to"], row["pairs"], row["accuracy"]["value"]) for row in found["buckets"]
    ] == [(1.5, 1.5, 2, 0.5), (2.5, 2.5, 2, 0.5)]
    thirds = {row["name"]: row["accuracy"]["value"] for row in found["thirds"]}
    assert thirds == {
        "early": (1 + 0.5 + 0.5 + 0) / 4,
        "middle": (1 + 0.5 + 0.5 + 0) / 4,
        "late": (0.5 + 1 + 0 + 0.5) / 4,
    }
    assert measured(Table(scores), given)["segments"] is None


def test_buckets_are_about_equal_parts_and_keep_equal_differences_together() -> None:
    even = buckets(np.arange(100))
    assert np.bincount(even.of).tolist() == [20] * 5
    assert (np.diff(even.of) >= 0).all()
    assert np.bincount(buckets(np.array([0] * 90 + [5] * 10)).of).tolist() == [90, 10]
    assert buckets(np.array([7, 7, 7])).names == ["1"]
    skewed = buckets(np.array([-900, *[0] * 3, 1, 1, 2, 2, 3, 50_000]))
    assert np.bincount(skewed.of).sum() == 10


def test_calibration_by_hand() -> None:
    """Two pairs at p = 0.88 (one wrong, so 0.12), one at 0.62, one tie: bins 7, 2 and 0 of ten."""
    judged, pairs = with_margins(2.0, -2.0, 0.5, 0.0)
    found = measure(judged, pairs, answers_of(pairs), None)["calibration"]
    sure, less = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-0.5))
    assert [(row["pairs"], row["accuracy"]) for row in found["curve"]] == [
        (1, 0.5),
        (1, 1.0),
        (2, 0.5),
    ]
    assert [row["confidence"] for row in found["curve"]] == pytest.approx([0.5, less, sure])
    assert [(row["from"], row["to"]) for row in found["curve"]] == [
        (0.5, 0.55),
        (0.6, 0.65),
        (0.85, 0.9),
    ]
    assert found["ece"]["value"] == pytest.approx((2 * abs(sure - 0.5) + (1 - less) + 0) / 4)


def test_a_calibrated_judge_has_nearly_no_calibration_error() -> None:
    random.seed(0)
    margins = []
    for _ in range(8000):
        margin = random.gauss(0, 2)
        right = random.random() < 1 / (1 + math.exp(-abs(margin)))
        margins.append(abs(margin) if right else -abs(margin))
    judged, pairs = with_margins(*margins)
    error = measure(judged, pairs, answers_of(pairs), None, resamples=0)["calibration"]["ece"][
        "value"
    ]
    assert error < 0.02
    tripled, _ = with_margins(*(3 * margin for margin in margins))
    assert (
        measure(tripled, pairs, answers_of(pairs), None, resamples=0)["calibration"]["ece"]["value"]
        > 0.05
    )


def test_correlations_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])
    assert pearson(a, b) == pytest.approx(0.8)
    assert ranks(np.array([10.0, 20.0, 20.0, 30.0])).tolist() == [1.0, 2.5, 2.5, 4.0]
    assert spearman(a, np.exp(10 * a)) == pytest.approx(1.0)
    assert pearson(a, np.exp(10 * a)) < 0.9
    assert spearman(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0])) == pytest.approx(
        math.sqrt(3) / 2
    )
    assert math.isnan(pearson(a, np.ones(4)))
    assert math.isnan(pearson(a[:1], b[:1]))
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    assert pearson(x, y) == pytest.approx(statistics.correlation(x.tolist(), y.tolist()))


def test_scores_follow_length_within_prompts_only() -> None:
    """Longer wins within each prompt, while the prompt with short answers scores higher: over all
    it looks reversed."""
    given = rows(
        ("p", "xxx", "x"),
        ("p", "xxx", "xx"),
        ("p", "xx", "x"),
        ("q", "y" * 30, "y" * 10),
        ("q", "y" * 20, "y" * 10),
    )
    scores = {"x": 101.0, "xx": 102.0, "xxx": 103.0, "y" * 10: 1.0, "y" * 20: 2.0, "y" * 30: 3.0}
    found = measured(Table(scores), given)["length"]["correlation"]
    assert found["within_prompts"] == {
        "pearson": pytest.approx(1.0),
        "spearman": pytest.approx(1.0),
        "prompts": 2,
    }
    assert found["centred"]["answers"] == 6
    assert found["centred"]["spearman"] > 0.9
    by_hand = statistics.correlation([-1, 0, 1, -1, 0, 1], [-1, 0, 1, -10, 0, 10])
    assert found["centred"]["pearson"] == pytest.approx(by_hand)


def test_two_answers_to_a_prompt_say_nothing_within_it() -> None:
    found = measured(Table(SCORES), FOUR)["length"]["correlation"]
    assert found["within_prompts"] == {"pearson": None, "spearman": None, "prompts": 0}
    # centred lengths: cc/d +-0.5, e/ff -+0.5; centred scores: -+1.5 and +-0.5, a/b +-0.5
    lengths, scores = [0, 0, 0.5, -0.5, -0.5, 0.5, 0, 0], [0.5, -0.5, -1.5, 1.5, 0.5, -0.5, 0, 0]
    assert found["centred"]["pearson"] == pytest.approx(statistics.correlation(lengths, scores))


def test_equal_scores_have_no_correlation_whatever_rounding_leaves() -> None:
    values = np.array([0.1] * 3 + [0.7] * 3)
    assert centred(values, np.array([0, 0, 0, 1, 1, 1])).tolist() == [0.0] * 6
    given = rows(("p", "a", "bb"), ("p", "a", "ccc"))
    found = measured(Table({"a": 0.1, "bb": 0.1, "ccc": 0.1}), given)
    assert found["length"]["correlation"]["centred"]["pearson"] is None
    assert found["accuracy"]["value"] == 0.5
    assert found["accuracy_without_ties"] == {"value": None, "low": None, "high": None}
    assert found["calibration"]["ece"]["value"] == 0.0


def test_every_different_answer_is_scored_once_prompt_by_prompt(monkeypatch) -> None:
    monkeypatch.setattr(pair_scores, "AT_ONCE", 2)
    given = rows(("p", "a", "b"), ("q", "cc", "d"), ("p", "a", "e"), ("q", "a", "d"))
    scorer, seen = Table(SCORES), []
    pairs = as_pairs(given)
    answers = answers_of(pairs)
    judged = judge(scorer, pairs, answers, on_progress=lambda *n: seen.append(n), at_once=2)
    assert [[(prompt, text) for prompt, text, _ in call] for call in scorer.calls] == [
        [("p", "a"), ("p", "b"), ("p", "e")],
        [("q", "cc"), ("q", "d"), ("q", "a")],
    ]
    assert seen == [(3, 6), (6, 6)]
    assert judged.margins.tolist() == [1.0, -3.0, -3.0, -1.0]
    whole = Table(SCORES)
    assert judge(whole, pairs, answers, at_once=None).margins.tolist() == judged.margins.tolist()
    assert len(whole.calls) == 1


def test_references_go_along_and_distinguish_answers() -> None:
    given = rows(("p", "a", "b"), ("p", "a", "b"), answer=[1, "two"])
    scorer = Table(SCORES)
    pairs = as_pairs(given)
    judge(scorer, pairs, answers_of(pairs))
    assert [(text, reference) for _, text, reference in scorer.calls[0]] == [
        ("a", "1"),
        ("b", "1"),
        ("a", "two"),
        ("b", "two"),
    ]


def test_remarks_are_counted_and_the_first_are_shown() -> None:
    given = rows(*((f"p{i}", f"c{i}", "r") for i in range(8)))
    scorer = Table(
        {f"c{i}": 1.0 for i in range(8)} | {"r": 0.0}, remarks=tuple(f"c{i}" for i in range(1, 8))
    )
    found = measured(scorer, given)["remarks"]
    assert found["count"] == 7
    assert found["first"][0] == {"row": "x:2", "said": "odd: c1"}
    assert len(found["first"]) == 5


def test_a_comparer_is_compared_and_what_needs_scores_is_left_out(monkeypatch) -> None:
    monkeypatch.setattr(pair_scores, "AT_ONCE", 2)
    given = rows(
        ("p", "xxx", "b"), ("q", "c", "ddd"), ("r", "ee", "ff"), ("s", "gx", "h"), ("t", "xxx", "i")
    )
    scorer = Longer({})
    assert isinstance(scorer, Comparer)
    pairs, seen = as_pairs(given), []
    answers = answers_of(pairs)
    judged = judge(scorer, pairs, answers, on_progress=lambda *n: seen.append(n), at_once=2)
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert judged.probabilities.tolist() == [0.75, 0.25, 0.5, 2 / 3, 0.75]
    found = measure(judged, pairs, answers, None)
    assert found["kind"] == "pairwise"
    assert found["accuracy"]["value"] == (1 + 0 + 0.5 + 1 + 1) / 5
    assert found["order_flips"] == {"pairs": 3, "share": 0.6}
    assert found["length"]["correlation"] is None
    assert any("Correlation" in text for text in found["left_out"])


def test_a_judge_without_a_verdict_is_asked_about_all_pairs_before_it_is_said() -> None:
    class Judge(Longer):
        def prefer(self, prompts, first, second):
            self.calls.append(list(prompts))
            if "r" not in prompts:
                return super().prefer(prompts, first, second)
            error = NoVerdict("no verdict")
            error.rows = {prompts.index("r"): "said nothing"}
            raise error

    scorer, pairs = Judge({}), as_pairs(FOUR)
    with pytest.raises(DataError, match="no verdict on 1 of 4 pairs") as caught:
        judge(scorer, pairs, answers_of(pairs), at_once=1)
    assert scorer.calls == [["p"], ["q"], ["r"], ["s"]]
    assert [str(problem) for problem in caught.value.problems] == ["x:3: said nothing"]


def test_a_comparer_says_how_sure_it_is() -> None:
    """0.75, and 0.25 where the chosen answer is the short one: both at 75%, one right, so off by
    0.25."""
    found = measured(Longer({}), rows(("p", "xxx", "b"), ("q", "c", "ddd")))
    assert found["calibration"]["ece"]["value"] == pytest.approx(0.25)


def test_the_bootstrap_is_that_of_means_and_keeps_prompts_together() -> None:
    wins = np.random.default_rng(1).integers(0, 2, 400).astype(float)
    alone = shares(wins, np.zeros(400, dtype=int), 1)
    low, high = intervals(alone, np.arange(400), resamples=2000, seed=0)
    error = wins.std() / math.sqrt(400)
    assert (low[0], high[0]) == pytest.approx(
        (wins.mean() - 1.96 * error, wins.mean() + 1.96 * error), abs=0.006
    )
    four_times = np.repeat(
        np.sort(wins[:100]), 4
    )  # each prompt has four equal pairs: as wide as from 100 pairs
    low, high = intervals(
        shares(four_times, np.zeros(400, dtype=int), 1), np.arange(400) // 4, resamples=2000, seed=0
    )
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * wins[:100].std() / 10, rel=0.1)


def test_a_draw_is_a_resampled_copy_of_the_rows() -> None:
    """Every weight vector that the statistic sees: whole prompts, as many as there are."""
    groups, seen = np.array([0, 0, 1, 2, 2, 2]), []

    def statistic(weights):
        seen.append(weights)
        return np.zeros(1)

    intervals(statistic, groups, resamples=50, seed=3)
    assert len(seen) == 50
    for weights in seen:
        assert weights[0] == weights[1]
        assert weights[3] == weights[4] == weights[5]
        assert weights[0] + weights[2] + weights[3] == 3


def test_the_interval_is_that_of_all_possible_draws() -> None:
    """Ten prompts, five of them lost: wins of a draw are binomial, with 2 and 8 of ten at the 2.5
    and 97.5 percent."""
    wins = np.array([1.0, 0.0] * 5)
    low, high = intervals(
        shares(wins, np.zeros(10, dtype=int), 1), np.arange(10), resamples=4000, seed=0
    )
    chances = np.cumsum([math.comb(10, k) / 1024 for k in range(11)])
    exact = [int(np.searchsorted(chances, tail)) / 10 for tail in (0.025, 0.975)]
    assert exact == [0.2, 0.8]
    assert (low[0], high[0]) == pytest.approx(tuple(exact))


def test_the_same_seed_gives_the_same_intervals() -> None:
    given = rows(*((f"p{i}", f"c{i}", f"r{i}") for i in range(30)))
    scores = {f"c{i}": float(i % 3) for i in range(30)} | {f"r{i}": 1.0 for i in range(30)}
    one, same = (measured(Table(scores), given, seed=4)["accuracy"] for _ in range(2))
    assert one == same
    assert one["low"] < one["value"] < one["high"]


def test_intervals_are_left_out_where_there_is_nothing_to_draw() -> None:
    given = rows(("p", "a", "b"), ("p", "a", "d"), ("p", "e", "d"))
    found = measured(Table(SCORES), given)
    assert found["accuracy"] == {"value": pytest.approx(2 / 3), "low": None, "high": None}
    assert any("Intervals" in text for text in found["left_out"])
    single = measured(Table(SCORES), FOUR, "kind")["categories"]
    assert [row["accuracy"]["low"] is None for row in single] == [False, True, True]
    assert measured(Table(SCORES), FOUR, resamples=0)["accuracy"]["low"] is None


def test_the_same_question_in_two_forms_is_one_prompt() -> None:
    turns = [{"role": "user", "content": "p"}]
    answer = [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]
    given = [*rows(("p", "a", "b")), PreferenceRow(turns, *answer, origin="x:2")]
    found = measured(Table(SCORES), given)
    assert (found["pairs"], found["prompts"], found["accuracy"]["value"]) == (2, 1, 1.0)


def test_answers_of_several_turns_are_refused() -> None:
    turns = [{"role": "assistant", "content": "a"}, {"role": "tool", "content": "b"}]
    turns.append({"role": "assistant", "content": "c"})
    with pytest.raises(DataError, match="x:7: an answer has 3 turns"):
        as_pairs(
            [PreferenceRow([{"role": "user", "content": "p"}], turns, turns[:1], origin="x:7")]
        )


def test_what_a_scorer_refuses_names_the_files_rows() -> None:
    from aligner.reward_models.catalogue import load_scorer

    given = rows(("sort: cba", "abc", "cba"), ("not a task", "x", "y"))
    with pytest.raises(DataError) as caught:
        measured(load_scorer("toy"), given)
    assert [problem.where for problem in caught.value.problems] == ["x:2", "x:2"]
    with pytest.raises(DataError, match="have none"):
        measured(load_scorer("verifier:number"), given)


def test_categories_are_found_and_named() -> None:
    pairs = as_pairs(
        rows(*[("p", "a", "b")] * 5, source=["s", "s", None, 3, " "], category=[None] * 5)
    )
    assert category_column(pairs) == "source"
    assert by_column(pairs, "source").names == ["s", "(none)", "3"]
    assert by_column(pairs, "source").of.tolist() == [0, 0, 1, 2, 1]
    assert category_column(as_pairs(rows(("p", "a", "b")))) is None


def test_thousands_of_categories_are_no_trouble() -> None:
    given = rows(
        *((f"p{i}", f"c{i}", f"r{i}") for i in range(6000)),
        category=[f"k{i % 3000}" for i in range(6000)],
    )
    scores = {f"c{i}": float(i % 7 > 1) for i in range(6000)} | {f"r{i}": 0.5 for i in range(6000)}
    found = measured(Table(scores), given, "category", resamples=200)
    assert len(found["categories"]) == 3000
    assert all(row["pairs"] == 2 for row in found["categories"])


def bench_rows() -> list[PreferenceRow]:
    subsets = [subset for subset, count in ROWS.items() for _ in range(count)]
    return rows(*((f"p{i}", f"c{i}", f"r{i}") for i in range(len(subsets))), subset=subsets)


def test_rewardbench_rows_get_the_benchmarks_average() -> None:
    given = bench_rows()
    scores = {f"c{i}": float((i * 7919) % 10 - 2) for i in range(2985)} | {
        f"r{i}": 0.0 for i in range(2985)
    }
    found = measured(Table(scores), given, "subset", resamples=300)
    wins = [
        1.0 if scores[f"c{i}"] > 0 else 0.5 if scores[f"c{i}"] == 0 else 0.0 for i in range(2985)
    ]
    expected = aggregate([row.extra["subset"] for row in given], wins)
    overall = found["rewardbench"]["overall"]
    assert overall["value"] == pytest.approx(expected.overall.accuracy)
    assert overall["stderr"] == pytest.approx(expected.overall.stderr)
    # The two ways to the uncertainty agree.
    assert overall["high"] - overall["low"] == pytest.approx(2 * 1.96 * overall["stderr"], rel=0.2)
    for name, share in expected.sections.items():
        assert found["rewardbench"]["sections"][name]["value"] == pytest.approx(share.accuracy)
    assert len(found["rewardbench"]["subsets"]) == len(found["categories"]) == 23
    assert found["left_out"] == []


def test_a_part_of_rewardbench_gets_no_average_and_says_why() -> None:
    given = bench_rows()[:-2]
    scores = {f"c{i}": 1.0 for i in range(2985)} | {f"r{i}": 0.0 for i in range(2985)}
    found = measured(Table(scores), given, resamples=0)
    assert found["rewardbench"] is None
    assert "`hep-rust` has 162 rows, the benchmark 164" in found["left_out"][0]


def test_agreement_by_hand() -> None:
    """Right, wrong and tied: RRWT against RWWR. Same in 2 of 4; expected 2*2/16 + 1*2/16 + 0 =
    6/16."""
    first, pairs = with_margins(1.0, 3.0, -1.0, 0.0)
    second, _ = with_margins(4.0, -1.0, -2.0, 0.5)
    found = agreement(first, second, pairs)
    assert found["same_choice"]["value"] == 0.5
    assert found["kappa"]["value"] == pytest.approx((0.5 - 6 / 16) / (1 - 6 / 16))
    assert found["accuracy_difference"]["value"] == (2.5 - 2) / 4
    assert found["spearman"] == pytest.approx(statistics.correlation([3, 4, 1, 2], [4, 2, 1, 3]))
    counts = [found[f"{who}_right"] for who in ("both", "only_first", "only_second", "neither")]
    assert counts == [1, 1, 1, 1]
    # by prompt the first is 0, +1, 0, -1/2 ahead: 8 of 16 exchanges part them by 1/2 or more,
    # and all of them by that at least
    assert found["tested"] == {
        "p_value": 1.0,
        "ahead": 1,
        "behind": 1,
        "equal": 2,
        "sign_test": 1.0,
    }


def test_agreement_with_itself_is_perfect_and_undefined_where_no_choice_varies() -> None:
    judged, pairs = with_margins(1.0, -1.0, 0.0, 2.0)
    found = agreement(judged, judged, pairs)
    assert (found["same_choice"]["value"], found["kappa"]["value"]) == (1.0, 1.0)
    assert (found["accuracy_difference"]["low"], found["accuracy_difference"]["high"]) == (0.0, 0.0)
    always, pairs = with_margins(1.0, 1.0)
    assert agreement(always, always, pairs)["kappa"]["value"] is None
    assert agreement(always, always, pairs)["spearman"] is None


def test_independent_judges_have_a_kappa_near_zero() -> None:
    random.seed(1)
    first, pairs = with_margins(*(1.0 if random.random() < 0.8 else -1.0 for _ in range(4000)))
    second, _ = with_margins(*(1.0 if random.random() < 0.7 else -1.0 for _ in range(4000)))
    found = agreement(first, second, pairs, resamples=200)
    assert found["same_choice"]["value"] == pytest.approx(0.8 * 0.7 + 0.2 * 0.3, abs=0.03)
    assert found["kappa"]["value"] == pytest.approx(0.0, abs=0.05)
    assert found["kappa"]["high"] - found["kappa"]["low"] == pytest.approx(
        4 / math.sqrt(4000), rel=0.3
    )
    assert found["accuracy_difference"]["low"] > 0.05


def test_kappa_counts_weights_as_copies() -> None:
    left, right, weights = (
        np.array([0, 1, 2, 1]),
        np.array([0, 1, 1, 1]),
        np.array([3.0, 1.0, 2.0, 0.0]),
    )
    copied = np.repeat(np.arange(4), weights.astype(int))
    assert kappa(left, right, weights, 3) == pytest.approx(
        kappa(left[copied], right[copied], np.ones(len(copied)), 3)
    )
    assert math.isnan(kappa(left, right, np.zeros(4), 3))


def test_equal_keys_have_equal_numbers() -> None:
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
    assert numbered([]).tolist() == []


def test_points_and_intervals_are_drawn_in_their_places() -> None:
    """The drawing is 440 wide with 50 and 10 of margin, 250 high with 12 above and 26 below."""
    chart = point_chart(
        "<b>",
        [Series("s", [(0.5, 0.0), (1.0, 1.0)])],
        x_bounds=(0.5, 1.0),
        bounds=(0.0, 1.0),
        diagonal=True,
    )
    assert 'cx="50.0" cy="224.0"' in chart
    assert 'cx="430.0" cy="12.0"' in chart
    assert 'class="ideal" d="M50.0,118.0L430.0,12.0"' in chart
    assert "&lt;b&gt;" in chart
    assert ">0.6</text>" in chart
    assert point_chart("x", [Series("s", [])]) == ""
    bars = bar_chart("t", [("a", 0.5), ("b", 0.25)], spans=[(0.4, 0.75), None])
    assert bars.count("<em") == 1
    assert 'style="left:40.00%;width:35.00%"' in bars
    assert "<em" not in bar_chart("t", [("a", 0.5)])
