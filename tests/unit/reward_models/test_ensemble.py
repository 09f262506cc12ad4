"""Ensembles: what becomes of several opinions, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aligner.errors import DataError, RecipeError
from aligner.reward_models.base import (
    UNBOUNDED,
    Comparer,
    Preferences,
    Prompt,
    Range,
    Scorer,
    Scores,
    preferences,
    sigmoid,
)
from aligner.reward_models.card import Card, read_card
from aligner.reward_models.catalogue import load_scorer
from aligner.reward_models.ensemble import (
    ComparingEnsemble,
    Ensemble,
    leaves,
    make,
    refuse_cycles,
    restore_budget,
    scored_together,
)
from aligner.reward_models.judge import Judge


class Table:
    """A scorer with a number for each answer."""

    def __init__(self, name: str, numbers: dict[str, float], bounds: Range = UNBOUNDED) -> None:
        self.name, self.numbers, self.range = name, numbers, bounds

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        remarks = {row: "odd" for row, text in enumerate(completions) if text == "odd"}
        return Scores([self.numbers[text] for text in completions], remarks=remarks)

    def fingerprint(self) -> str:
        return f"table:{self.name}:{self.numbers}"


class Chooser(Table):
    """One that compares: the numbers are chances."""

    def prefer(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Preferences:
        return Preferences([self.numbers[text] for text in first], flips=[0], remarks={0: "turned"})


def ensemble(*members: Scorer, **settings: Any) -> Ensemble:
    card = Card(
        kind="ensemble", name="all", members=[member.name for member in members], **settings
    )
    comparing = any(isinstance(member, Comparer) for member in members)
    return (ComparingEnsemble if comparing else Ensemble)(card, members)


ONE = Table("one", {"a": 1.0, "b": 2.0, "odd": 0.0})
TWO = Table("two", {"a": 3.0, "b": 2.0, "odd": 6.0})
THREE = Table("three", {"a": 2.0, "b": 5.0, "odd": 0.0})
ROWS = (["p", "p", "p"], ["a", "b", "odd"])


def test_the_mean_the_worst_and_the_lower_bound() -> None:
    # a: 1, 3, 2: mean 2, variance 2/3. b: 2, 2, 5: mean 3, variance 2. odd: 0, 6, 0: mean 2,
    # variance 8.
    deviations = [math.sqrt(2 / 3), math.sqrt(2.0), math.sqrt(8.0)]
    means = [2.0, 3.0, 2.0]
    assert ensemble(ONE, TWO, THREE).score(*ROWS) == pytest.approx(means)
    assert ensemble(ONE, TWO, THREE, combine="min").score(*ROWS) == [1.0, 2.0, 0.0]
    bound = ensemble(ONE, TWO, THREE, combine="lower_bound", spread_weight=2.0).score(*ROWS)
    assert bound == pytest.approx([mean - 2.0 * size for mean, size in zip(means, deviations)])
    assert bound.attributes["spread"] == pytest.approx(deviations)


def test_attributes_and_remarks_say_which_member_it_was() -> None:
    scores = ensemble(ONE, TWO).score(*ROWS)
    assert scores.attributes["one"] == [1.0, 2.0, 0.0]
    assert scores.attributes["two"] == [3.0, 2.0, 6.0]
    assert scores.remarks == {2: "one: odd; two: odd"}


def test_standardized_members_weigh_the_same_wherever_their_scores_lie() -> None:
    # over the rows: one has 1, 2, 0 (mean 1, variance 2/3), and ten times that and 100 more counts
    # the same
    tenfold = Table("tenfold", {"a": 110.0, "b": 120.0, "odd": 100.0})
    scores = ensemble(ONE, tenfold, standardize=True).score(*ROWS)
    assert scores == pytest.approx([0.0, math.sqrt(1.5), -math.sqrt(1.5)])
    assert scores.attributes["tenfold"] == [110.0, 120.0, 100.0]
    assert scores.attributes["spread"] == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)
    assert ensemble(ONE, tenfold, standardize=True).score(["p", "p"], ["a", "b"]) == pytest.approx(
        [-1.0, 1.0]
    )


@pytest.mark.parametrize("combine", ["mean", "min", "lower_bound"])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_better_score_of_one_of_two_members_never_lowers_the_ensembles(
    combine: str, standardize: bool
) -> None:
    """Of the rows `a` and `b`, the second member likes `a` more and more, and lies far above the
    first one."""
    gaps = []
    for better in (0.0, 1.0, 2.0, 5.0):
        far = Table("far", {"a": 100.0 + better, "b": 100.0, "odd": 97.0})
        found = ensemble(ONE, far, combine=combine, standardize=standardize).score(*ROWS)
        gaps.append(found[0] - found[1])
    assert gaps == sorted(gaps)


def test_a_member_that_cannot_tell_the_rows_apart_has_no_scale() -> None:
    constant = Table("constant", {"a": 3.0, "b": 3.0})
    with pytest.raises(DataError, match="constant gives all 2 rows the same score, 3"):
        ensemble(ONE, constant, standardize=True).score(["p", "p"], ["a", "b"])
    both = ensemble(ONE, TWO, standardize=True)
    with pytest.raises(DataError, match="the only row"):
        both.score(["p"], ["a"])
    assert both.score([], []) == []


def test_small_scores_have_a_scale_too() -> None:
    tiny = Table("tiny", {"a": 1e-12, "b": 3e-12})
    found = ensemble(ONE, tiny, standardize=True).score(["p", "p"], ["a", "b"])
    assert found == pytest.approx([-1.0, 1.0])
    with pytest.raises(DataError, match="zero gives all 2 rows the same score, 0"):
        ensemble(ONE, Table("zero", {"a": 0.0, "b": 0.0}), standardize=True).score(
            ["p", "p"], ["a", "b"]
        )


def test_a_member_that_differs_by_rounding_only_has_no_scale_either() -> None:
    noise = Table("noise", {"a": 1e6, "b": 1e6 + 1e-7})
    with pytest.raises(DataError, match="noise gives"):
        ensemble(ONE, noise, standardize=True).score(["p", "p"], ["a", "b"])


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("mean", (0.5, 1.5)), ("min", (0.0, 1.0)), ("lower_bound", (0.5 - 2.0 * 1.0, 1.5))],
)
def test_the_range_follows_from_the_members(combine: str, expected: Range) -> None:
    members = Table("x", {}, (0.0, 1.0)), Table("y", {}, (1.0, 2.0))
    assert ensemble(*members, combine=combine, spread_weight=2.0).range == pytest.approx(expected)


def test_no_score_leaves_the_range() -> None:
    corners = (
        [Table("x", {"a": x}, (0.0, 1.0)) for x in (0.0, 1.0)],
        [Table("y", {"a": y}, (-1.0, 3.0)) for y in (-1.0, 3.0)],
    )
    for combine in ("mean", "min", "lower_bound"):
        for first in corners[0]:
            for second in corners[1]:
                scorer = ensemble(first, second, combine=combine, spread_weight=1.5)
                (score,) = scorer.score(["p"], ["a"])
                assert scorer.range[0] <= score <= scorer.range[1]


def test_members_without_bounds_have_none_together() -> None:
    bounded = Table("x", {}, (0.0, 1.0))
    assert ensemble(ONE, bounded).range == UNBOUNDED
    assert ensemble(ONE, bounded, combine="min").range == (-math.inf, 1.0)
    assert ensemble(ONE, bounded, combine="lower_bound").range == UNBOUNDED
    assert ensemble(bounded, Table("y", {}, (0.0, 1.0)), standardize=True).range == UNBOUNDED


def chooser(name: str, chance: float) -> Chooser:
    return Chooser(name, {"a": chance, "b": 1.0 - chance})


@pytest.mark.parametrize(
    ("combine", "chances", "expected"),
    [
        ("mean", (0.9, 0.6), 0.75),
        ("min", (0.9, 0.6), 0.6),
        ("min", (0.1, 0.4), 0.4),
        ("min", (0.9, 0.4), 0.5),
        ("min", (0.9, 0.5), 0.5),
        ("lower_bound", (0.9, 0.7), 0.7),  # mean 0.8, deviation 0.1
        ("lower_bound", (0.9, 0.3), 0.5),
    ],
)
def test_comparisons_are_combined_alike_for_both_orders(
    combine: str, chances: tuple[float, float], expected: float
) -> None:
    scorer = ensemble(chooser("x", chances[0]), chooser("y", chances[1]), combine=combine)
    found = scorer.prefer(["p", "p"], ["a", "b"], ["b", "a"])
    assert found == pytest.approx([expected, 1.0 - expected])
    assert (found.flips, found.remarks) == ([0], {0: "x: turned; y: turned"})


def test_scorers_of_single_answers_take_part_by_the_sigmoid_of_their_difference() -> None:
    scorer = ensemble(chooser("x", 0.8), ONE)
    assert isinstance(scorer, Comparer)
    assert scorer.prefer(["p"], ["a"], ["b"]) == pytest.approx([(0.8 + sigmoid(-1.0)) / 2])
    assert preferences(scorer, ["p"], ["a"], ["b"]) == scorer.prefer(["p"], ["a"], ["b"])
    scaled = ensemble(chooser("x", 0.8), ONE, standardize=True)
    assert scaled.prefer(["p"], ["a"], ["b"]) == pytest.approx([(0.8 + sigmoid(-1.0 / 0.5)) / 2])


class Exact(Table):
    """One that needs a right answer."""

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        references: Sequence[str | None] | None = None,
    ) -> Scores:
        return Scores([float(text == known) for text, known in zip(completions, references or [])])


def test_right_answers_reach_members_that_score_also_in_an_ensemble_that_compares() -> None:
    inner = ensemble(chooser("x", 0.5), Exact("exact", {}))
    for scorer in (inner, ensemble(inner, chooser("y", 0.5))):
        found = preferences(scorer, ["p"] * 3, ["a", "b", "a"], ["b", "a", "b"], ["a", "a", None])
        weight = 2 if scorer is inner else 4
        assert found == pytest.approx(
            [0.5 + (sigmoid(side) - 0.5) / weight for side in (1.0, -1.0, 0.0)]
        )


def test_without_a_member_that_compares_scores_are_compared() -> None:
    scorer = ensemble(ONE, TWO)
    assert not isinstance(scorer, Comparer)
    assert preferences(scorer, ["p"], ["odd"], ["b"]) == pytest.approx([sigmoid(3.0 - 2.0)])


def test_the_fingerprint_follows_members_and_settings() -> None:
    prints = {
        ensemble(ONE, TWO).fingerprint(),
        ensemble(ONE, THREE).fingerprint(),
        ensemble(ONE, TWO, combine="min").fingerprint(),
        ensemble(ONE, TWO, combine="lower_bound").fingerprint(),
        ensemble(ONE, TWO, combine="lower_bound", spread_weight=2.0).fingerprint(),
        ensemble(ONE, TWO, standardize=True).fingerprint(),
    }
    assert len(prints) == 6
    assert ensemble(ONE, TWO).fingerprint() == ensemble(ONE, TWO).fingerprint()


def test_members_of_one_name_are_told_apart() -> None:
    card = Card(kind="ensemble", name="all", members=["first/rm", "second/rm"])
    scores = Ensemble(card, [Table("rm", {"a": 1.0}), Table("rm", {"a": 3.0})]).score(["p"], ["a"])
    assert scores.attributes == {"first/rm": [1.0], "second/rm": [3.0], "spread": [1.0]}


def write(folder: Path, name: str, **values: Any) -> Path:
    lines = [f"{key}: {value}" for key, value in {"kind": "ensemble", **values}.items()]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_card_brings_its_members_along(tmp_path: Path) -> None:
    write(tmp_path, "inner.yaml", members="[toy]")
    card = write(tmp_path, "outer.yaml", members="[./inner.yaml, 'verifier:exact']", combine="min")
    scorer = load_scorer(str(card))
    assert isinstance(scorer, Scorer)
    assert (scorer.name, scorer.range) == ("outer", (0.0, 1.0))
    scores = scorer.score(["sort: cba"] * 2, ["abc", "abc"], ["abc", "cba"])
    assert scores == [1.0, 0.0]
    assert [leaf.name for leaf in leaves(scorer)] == ["toy", "verifier:exact"]
    with pytest.raises(DataError, match="verifier:exact compares with a right answer"):
        scorer.score(["sort: cba"], ["abc"])


def test_an_ensemble_that_holds_itself_is_refused(tmp_path: Path) -> None:
    alone = write(tmp_path, "alone.yaml", members="[toy, ./alone.yaml]")
    with pytest.raises(RecipeError, match="alone is a member of itself: alone -> alone"):
        load_scorer(str(alone))
    write(tmp_path, "sub/b.yaml", members="[toy, ../a.yaml]")
    first = write(tmp_path, "a.yaml", members="[toy, ./sub/b.yaml]")
    with pytest.raises(RecipeError, match="a is a member of itself: a -> b -> a"):
        load_scorer(str(first))


def test_a_card_is_looked_through_for_cycles_without_loading_anything(tmp_path: Path) -> None:
    write(tmp_path, "b.yaml", members="[./a.yaml]")
    cyclic = write(tmp_path, "a.yaml", members="[toy, ./b.yaml]")
    with pytest.raises(RecipeError, match="a -> b -> a"):
        refuse_cycles(read_card(cyclic))
    refuse_cycles(
        read_card(write(tmp_path, "c.yaml", members="[toy, 'bradley_terry:no/such/weights']"))
    )
    refuse_cycles(Card(kind="toy", name="toy"))


def test_the_budgets_of_judges_go_on_under_the_name_of_what_is_written(tmp_path: Path) -> None:
    judge = "kind: judge\nendpoint: {model: m, base_url: 'http://127.0.0.1:9'}"
    (tmp_path / "judge.yaml").write_text(judge)
    write(tmp_path, "inner.yaml", members="[./judge.yaml, toy]")
    outer = write(tmp_path, "outer.yaml", members="[./inner.yaml, toy]")

    def account(path: Path, what: str = "", card: Path = outer) -> str:
        scorer = load_scorer(str(card))
        restore_budget(scorer, path, what)
        (found,) = [leaf.account for leaf in leaves(scorer) if isinstance(leaf, Judge)]
        assert found
        return found

    here = account(tmp_path / "out.jsonl", "data")
    assert here == account(tmp_path / "sub" / ".." / "out.jsonl", "data")
    others = [account(tmp_path / "out.jsonl"), account(tmp_path / "b.jsonl", "data")]
    others.append(account(tmp_path / "out.jsonl", "data", tmp_path / "judge.yaml"))
    assert len({here, *others}) == 4


def test_the_same_member_may_stand_in_two_branches(tmp_path: Path) -> None:
    write(tmp_path, "x.yaml", members="[toy]")
    write(tmp_path, "y.yaml", members="[toy, ./x.yaml]")
    top = write(tmp_path, "top.yaml", members="[./x.yaml, ./y.yaml]")
    assert load_scorer(str(top)).score(["sort: ba"], ["ab"]) == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": ["toy"], "combine": "lower_bound"}, "needs two members or more, found 1"),
        ({"members": ["toy", "verifier:exact", "toy"]}, "names the member toy twice"),
        ({"members": ["toy", "toi"]}, "did you mean 'toy'"),
    ],
)
def test_a_card_that_cannot_be_combined_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(Card(kind="ensemble", name="all", **settings))


def test_one_member_is_itself() -> None:
    scores = make(Card(kind="ensemble", name="all", members=["toy"])).score(["sort: ba"], ["ab"])
    assert (scores, scores.attributes) == ([1.0], {"toy": [1.0]})


def test_it_is_known_which_ensembles_need_all_rows_at_once(tmp_path: Path) -> None:
    write(tmp_path, "inner.yaml", members="[toy, 'verifier:exact']", standardize="true")
    outer = write(tmp_path, "outer.yaml", members="[toy, ./inner.yaml]")
    assert scored_together(read_card(outer))
    assert not scored_together(Card(kind="ensemble", name="all", members=["toy", "verifier:exact"]))
