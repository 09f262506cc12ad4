"""What a log of games says of its judges: numbers worked out by hand, planted preferences that are
found, and logs that lack what a number needs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from simulated_games import Games, played, simulate_games

from aligner.arena.diagnosis import ALL_FAILED, Limits, Settings, diagnose, unknown_liking
from aligner.arena.judge_agreement import alpha
from aligner.arena.judgments import judgments_of, mean_by_prompt
from aligner.errors import DataError

MODELS = ("acme-1", "birch-1", "cedar-1", "dune-1")
MIXED = (0.4, 0.0, 0.4, 0.8)
"""Quality of the models; that of acme is in the middle, so that noise is not taken for liking."""


def diagnosed(games: Games, tie_margin: float = 0.0, **how: Any) -> dict[str, Any]:
    return diagnose(judgments_of(games, tie_margin), Settings(**{"resamples": 200, **how}))


def judge(games: Games, **how: Any) -> dict[str, Any]:
    return next(iter(diagnosed(games, **how)["judges"].values()))


FOUR = [
    *(played("x", "y", "p1", 8, 6), played("y", "x", "p1", 5, 7)),  # x both times
    *(played("x", "y", "p2", 7, 4), played("y", "x", "p2", 6, 5)),  # the first both times
    *(played("x", "y", "p3", 5, 5), played("y", "x", "p3", 4, 6)),  # a tie, then x
    *(played("x", "y", "p4", 3, 9), played("y", "x", "p4", 8, 2)),  # y both times
]


def test_flips_first_seat_and_shift_by_hand() -> None:
    """Margins first - second: 2 -2 | 3 1 | 0 -2 | -6 6."""
    row = judge(FOUR)
    assert row["flip_rate"]["value"] == 2 / 4
    assert row["reversed"]["value"] == 1 / 4
    assert row["first_seat"]["value"] == 4 / 7
    assert row["cases"]["first_seat"] == 7
    assert row["score_shift"]["value"] == pytest.approx((0 + 2 - 1 + 0) / 4)
    assert row["failed"] == ["the flip rate is 50.0%, above 40.0%"]


def test_a_tie_margin_makes_ties() -> None:
    """Of p2, 3 and 1 become 3 and 0; all others keep their sign."""
    row = judge(FOUR, tie_margin=1.0)
    assert row["first_seat"]["value"] == 3 / 6
    assert row["reversed"]["value"] == 0


def test_failures_count_by_model_and_seat_and_take_their_battle_away() -> None:
    failed = [played("x", "z", "p5", None, None), played("z", "x", "p5", 9, 1)]
    row = judge([*FOUR, *failed])
    assert row["parse_failures"]["share"] == 1 / 10
    assert row["parse_failures"]["by_model"] == {
        "x": {"first": {"games": 5, "failed": 1}, "second": {"games": 5, "failed": 0}},
        "y": {"first": {"games": 4, "failed": 0}, "second": {"games": 4, "failed": 0}},
        "z": {"first": {"games": 1, "failed": 0}, "second": {"games": 1, "failed": 1}},
    }
    assert row["first_seat"]["value"] == 4 / 7
    assert "could not be read is 10.0%, above 5.0%" in row["failed"][0]


def test_longer_wins_by_hand() -> None:
    """x wins when longer, twice, and once when shorter; y wins once when longer, once when shorter.
    Longer (x's view): + + - - +, won: 1 1 1 0 0; means 1/5 and 3/5, covariance 1/5 - 3/25."""
    cases = ((9, 1, 1), (9, 1, 1), (1, 9, 1), (1, 9, 0), (9, 1, 0))
    games = []
    for number, (one, two, won) in enumerate(cases):
        styles = {"style_first": {"length": one}, "style_second": {"length": two}}
        games.append(played("x", "y", f"p{number}", won, 1 - won, **styles))
    row = judge(games)
    assert row["longer_wins"]["value"] == 3 / 5
    assert row["length_lead"]["value"] == pytest.approx(1 / 5 - 3 / 25)


def test_a_model_that_always_writes_more_tells_nothing_of_length() -> None:
    styles = {"style_first": {"length": 9}, "style_second": {"length": 3}}
    row = judge([played("x", "y", f"p{n}", 5 + n % 2, 5.5, **styles) for n in range(4)])
    assert row["longer_wins"]["value"] == 0.5
    assert row["missing"]["length_lead"] == "of each two models always the same one writes more"


def test_repeats_are_compared_within_one_order() -> None:
    games = [*FOUR, played("x", "y", "p1", 9, 2), played("y", "x", "p2", 3, 5)]
    row = judge(games)
    assert row["repeat_agreement"]["value"] == 1 / 2
    assert row["cases"]["repeat_agreement"] == 2
    assert row["flip_rate"]["value"] == 2 / 4


def test_self_preference_is_what_other_judges_do_not_give() -> None:
    """The judge gives x 1 of 1, 1 of 1 and 0 of 1; the other one 1, 0 and 0."""
    games = []
    for name, wins in (("x-judge", (1, 1, 0)), ("other", (1, 0, 0))):
        for prompt, won in enumerate(wins):
            games.append(played("x-1", "y-1", f"p{prompt}", won, 1 - won, judge=name))
    found = diagnosed(games)
    assert found["judges"]["x-judge"]["self_preference"]["value"] == pytest.approx(1 / 3)
    assert found["families"]["x-judge"] == {"family": "x", "from": "name"}
    missing = found["judges"]["other"]["missing"]["self_preference"]
    assert missing == "no model is of the judge's family (other)"


def test_a_judge_of_its_own_family_is_named_where_nobody_else_judges() -> None:
    games = [played("x-1", "y-1", "p", 1, 0, judge="x-judge")]
    said = unknown_liking("x-judge", judge(games))
    assert said.startswith("the judge x-judge is of the family of x-1, by its name; ")
    assert "whether it likes them: no judge of another family saw these battles" in said
    assert unknown_liking("z", judge(games, families={"x-judge": "z"})) == ""
    games.append(played("x-1", "y-1", "p", 1, 0, judge="other"))
    both = diagnosed(games)["judges"]
    assert [unknown_liking(name, row) for name, row in both.items()] == ["", ""]


def test_a_family_is_given_or_the_name_up_to_the_first_mark() -> None:
    games = [played("Org/x-1", "y_2", "p", 1, 0, judge="z-7")]
    found = diagnosed(games, families={"z-7": "org"})["families"]
    assert found["Org/x-1"] == {"family": "org", "from": "name"}
    assert found["y_2"] == {"family": "y_2", "from": "name"}
    assert found["z-7"] == {"family": "org", "from": "option"}
    with pytest.raises(DataError, match="no judge and no model is named 'q'"):
        diagnosed(games, families={"q": "org"})


def test_judges_of_the_opponents_family_are_no_measure() -> None:
    games = [
        played("x-1", "y-1", f"p{n}", 1, 0, judge=name) for n in (1, 2) for name in ("x-j", "y-j")
    ]
    missing = diagnosed(games)["judges"]["x-j"]["missing"]["self_preference"]
    assert missing.startswith("no judge of another family saw these battles")


def test_kappa_of_two_judges_by_hand() -> None:
    """Same on 3 of 4; the one says x 3 times, the other twice: 0.5 expected, (.75 - .5) / .5."""
    games = []
    for name, wins in (("one", (1, 1, 1, 0)), ("two", (1, 1, 0, 0))):
        for prompt, won in enumerate(wins):
            games.append(played("x", "y", f"p{prompt}", won, 1 - won, judge=name))
    found = diagnosed(games)["agreement"]
    assert found["pairs"] == [{"judges": ["one", "two"], "battles": 4, "same": 0.75, "kappa": 0.5}]
    assert found["alpha"] == pytest.approx(1 - (2 / 8) / (30 / 56))


def test_alpha_is_krippendorffs() -> None:
    """Four judges, twelve items with gaps: the nominal example of Krippendorff (2011), 0.743."""
    told = (
        *((1, 1, 1), (2, 2, 3, 2), (3, 3, 3, 3), (3, 3, 3, 3), (2, 2, 2, 2), (1, 2, 3, 4)),
        *((4, 4, 4, 4), (1, 1, 2, 1), (2, 2, 2, 2), (5, 5, 5), (1, 1), (3,)),
    )
    units = np.repeat(np.arange(len(told)), [len(item) for item in told])
    assert alpha(units, np.concatenate(told)) == pytest.approx(0.743, abs=5e-4)
    assert math.isnan(alpha(np.array([0, 0]), np.array([1, 1])))
    assert math.isnan(alpha(np.array([0, 1]), np.array([1, 2])))


def test_a_mean_is_drawn_by_prompt() -> None:
    """Ten games on each of two prompts that all agree: a draw is 0, 1/2 or 1."""
    found = mean_by_prompt(np.repeat([0.0, 1.0], 10), np.repeat([0, 1], 10), 400, 0)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert mean_by_prompt(np.ones(3), np.zeros(3, int), 400, 0).low is None


def test_cycles_need_significant_edges() -> None:
    circle = (("acme-1", "birch-1"), ("birch-1", "cedar-1"), ("cedar-1", "acme-1"))
    row = judge(simulate_games(MODELS[:3], 40, beats=circle))
    assert row["cycles"]["count"] == 1
    assert row["cycles"]["first"] == [["acme-1", "birch-1", "cedar-1"]]
    assert row["fit"]["misfit"] == 3
    assert row["fit"]["mean_gap"] > 0.3
    few = judge(simulate_games(MODELS[:3], 4, beats=circle))
    assert few["cycles"]["count"] == 0
    ladder = judge(simulate_games(MODELS, 150, quality=(0, 0.5, 1, 1.5)))
    assert ladder["cycles"]["count"] == 0
    assert ladder["cycles"]["significant_edges"] > 0
    assert ladder["fit"]["misfit"] == 0


def test_fit_by_hand() -> None:
    """x, y, z each win 3 of 4 against the next: ratings are equal, so 1/2 is predicted of each."""
    games = []
    for one, two in (("x", "y"), ("y", "z"), ("z", "x")):
        games += [played(one, two, f"p{n}", n > 0, n == 0) for n in range(4)]
    fit = judge(games)["fit"]
    assert [pair["predicted"] for pair in fit["pairs"]] == pytest.approx([0.5] * 3)
    assert sorted(pair["observed"] for pair in fit["pairs"]) == [0.25, 0.75, 0.75]
    assert fit["mean_gap"] == pytest.approx(0.25)
    assert fit["misfit"] == 0


QUIET = simulate_games(MODELS, 150, quality=MIXED, judge="acme-judge", seed=1)
OTHER = simulate_games(MODELS, 150, quality=MIXED, judge="other", seed=2)


def test_in_a_log_without_preferences_none_is_reported() -> None:
    found = diagnosed([*QUIET, *OTHER])
    assert [row["findings"] for row in found["judges"].values()] == [[], []]
    assert found["passed"]
    assert 0.3 < found["agreement"]["alpha"] < 1


@pytest.mark.parametrize(
    ("planted", "finding", "failed"),
    [
        ({"seat": 1.2}, "prefers the first answer", "the first seat's share"),
        ({"seat": -1.2}, "prefers the second answer", "the first seat's share"),
        ({"length": 1.5}, "prefers longer answers", "what longer answers win"),
        ({"own": "acme", "liking": 1.5}, "prefers its own family", "what its own family wins"),
    ],
)
def test_what_was_planted_is_found_and_nothing_else(
    planted: dict[str, Any], finding: str, failed: str
) -> None:
    swayed = simulate_games(MODELS, 150, quality=MIXED, judge="acme-judge", seed=3, **planted)
    found = diagnosed([*swayed, *OTHER])
    row = found["judges"]["acme-judge"]
    about_scores = [text for text in row["findings"] if text.startswith("scores the")]
    others = [text for text in row["findings"] if text not in about_scores]
    assert len(others) == 1
    assert others[0].startswith(finding)
    assert bool(about_scores) == ("seat" in planted)
    assert [text.startswith(failed) for text in row["failed"] if "flip" not in text] == [True]
    assert not found["passed"]
    assert found["judges"]["other"]["findings"] == []


def test_limits_are_moved() -> None:
    swayed = simulate_games(MODELS, 100, seat=1.2)
    assert diagnosed(swayed, limits=Limits(seat=0.9, flip_rate=0.9))["passed"]
    assert not diagnosed(QUIET, limits=Limits(flip_rate=0.05))["passed"]


def test_one_judge_without_order_lengths_or_repeats_says_so() -> None:
    found = diagnosed([played("x", "y", f"p{n}", n % 2, 0.5) for n in range(6)])
    row = found["judges"]["j"]
    assert found["missing"] == {"agreement": "there is one judge alone"}
    assert found["agreement"] is None
    assert row["missing"] == {
        "flip_rate": "no battle was judged in both orders",
        "reversed": "no battle was judged in both orders",
        "first_seat": "no battle was judged in both orders",
        "score_shift": "no battle was judged in both orders",
        "longer_wins": "no answer's length is in the log",
        "length_lead": "no answer's length is in the log",
        "repeat_agreement": "no game was judged twice",
        "self_preference": "no model is of the judge's family (j)",
        "cycles": "there are no three models",
        "fit": "no pair is left over to check: as few pairs as ratings",
    }
    assert found["passed"]


def test_a_log_of_failures_alone_fails_and_has_no_other_number() -> None:
    found = diagnosed([played("x", "y", f"p{n}", None, None) for n in range(3)])
    row = found["judges"]["j"]
    assert row["parse_failures"]["share"] == 1.0
    assert len(row["failed"]) == 1
    assert set(row["missing"].values()) == {ALL_FAILED}
    assert len(row["missing"]) == 10


def test_a_log_of_ties_has_no_decisive_game() -> None:
    row = judge([played(*pair, "p", 5, 5) for pair in (("x", "y"), ("y", "x"))])
    assert row["missing"]["first_seat"] == "no battle was judged in both orders with a winner"
    assert row["flip_rate"]["value"] == 0


def test_no_game_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="there is no game in these files"):
        diagnosed([])


def test_the_order_of_games_and_names_of_models_change_nothing() -> None:
    games = simulate_games(MODELS, 20, seat=0.4, length=0.5)
    before = judge(games)
    again = judge(games[::-1])
    renamed = {name: f"{chr(122 - number)}-1" for number, name in enumerate(MODELS)}
    other: Games = []
    for battle, game in games:
        fields = (game.score_first, game.score_second, "", game.style_first, game.style_second)
        names = renamed[game.first], renamed[game.second]
        other.append((battle, type(game)(*names, game.prompt, *fields, judge="judge")))
    for after in (again, judge(other)):
        for name in ("flip_rate", "first_seat", "score_shift", "longer_wins", "length_lead"):
            assert after[name]["value"] == pytest.approx(before[name]["value"])
            assert after[name]["low"] == pytest.approx(before[name]["low"])
        assert after["fit"]["mean_gap"] == pytest.approx(before["fit"]["mean_gap"], abs=1e-6)
