"""A judge that errs on purpose errs as it was told to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from aligner.arena.battle.faulty_judge import FaultyJudge
from aligner.arena.battle.judges import check_judges, open_judges
from aligner.arena.battle.sheets import Answer, Item, Judged, Judging, Sheet
from aligner.config.battles import Faults, Judge
from aligner.config.recipe import Endpoint
from aligner.errors import DataError, RecipeError


class Counting:
    """A judge whose score is the number in the answer, from 0 to 2."""

    id, rev, template_sha = "counting", "1", ""

    def __init__(self) -> None:
        self.asked = 0

    def judge(self, sheets: Sequence[Sheet]) -> Judging:
        self.asked += len(sheets)
        found: list[Judged | None] = []
        for sheet in sheets:
            found.append(Judged("ok", *(float(one.text.split()[0]) for one in _both(sheet))))
        return Judging(found)

    def usage(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


def _both(sheet: Sheet) -> tuple[Answer, Answer]:
    return sheet.first, sheet.second


def scores(faults: Faults, one: str, other: str, prompt: str = "p") -> tuple[float, float]:
    sheet = Sheet(Item(prompt, "a question"), Answer("x-1", one), Answer("y-1", other))
    (judged,) = FaultyJudge(Counting(), faults, (0.0, 2.0)).judge([sheet]).judged
    assert judged is not None
    assert judged.score_first is not None
    assert judged.score_second is not None
    return judged.score_first, judged.score_second


def test_without_faults_scores_are_stretched_to_one_to_ten() -> None:
    assert scores(Faults(), "0", "2") == (1.0, 10.0)
    assert scores(Faults(), "1", "2") == (5.5, 10.0)


@pytest.mark.parametrize(
    ("faults", "texts", "first", "second"),
    [
        (Faults(seat=0.7), ("1", "1"), 6.2, 5.5),
        (Faults(length=2.0), ("1 abcdef", "1 ab"), 7.5, 3.5),
        (Faults(family="y", liking=1.5), ("1", "1"), 5.5, 7.0),
    ],
)
def test_each_fault_adds_its_points(
    faults: Faults, texts: tuple[str, str], first: float, second: float
) -> None:
    assert scores(faults, *texts) == pytest.approx((first, second))


def test_noise_is_that_of_the_game_and_has_its_size() -> None:
    faults = Faults(noise=2.0)
    assert scores(faults, "1", "1", "p7") == scores(faults, "1", "1", "p7")
    found = [score for p in range(2000) for score in scores(faults, "1", "1", f"p{p}")]
    assert fmean(found) == pytest.approx(5.5, abs=0.15)
    assert stdev(found) == pytest.approx(2.0, rel=0.05)


def test_a_blind_judge_asks_nobody() -> None:
    inner = Counting()
    sheet = Sheet(Item("p", "a question"), Answer("x", "0"), Answer("y", "2"))
    judging = FaultyJudge(inner, Faults(is_blind=True), (0.0, 2.0)).judge([sheet])
    assert judging.judged == [Judged("ok", 5.5, 5.5)]
    assert inner.asked == 0


def test_other_faults_are_another_judge() -> None:
    one, other = (FaultyJudge(Counting(), Faults(seat=seat), (0.0, 2.0)) for seat in (0.1, 0.2))
    assert one.rev != other.rev


def test_a_recipe_makes_a_judge_err(tmp_path: Path) -> None:
    section = Judge(scorer="toy", faults=Faults(seat=0.7))
    check_judges([section])
    (judge,) = open_judges([section], tmp_path / "replies.sqlite")
    sheet = Sheet(Item("p", "reverse: abc"), Answer("x", "cba"), Answer("y", "abc"))
    (judged,) = judge.judge([sheet]).judged
    assert judged is not None
    assert (judged.score_first, judged.score_second) == pytest.approx((10.7, 1.0))


def test_a_blind_judge_takes_any_prompt() -> None:
    section = Judge(scorer="toy", faults=Faults(is_blind=True))
    check_judges([section], [Item("p", "no exercise of the toy world")])
    with pytest.raises(DataError):
        check_judges([Judge(scorer="toy")], [Item("p", "no exercise of the toy world")])


def test_faults_need_a_scale_and_a_scorer(tmp_path: Path) -> None:
    scorer = tmp_path / "any.py"
    scorer.write_text("def score(prompt, response, answer):\n    return float(len(response))\n")
    endless = Judge(scorer=f"verifier:{scorer}:score", faults=Faults(noise=1.0))
    with pytest.raises(RecipeError, match=r"arena.judges\[0\].faults: .* have no ends"):
        check_judges([endless])
    check_judges([endless.model_copy(update={"faults": Faults(is_blind=True)})])
    script = tmp_path / "replies.jsonl"
    script.write_text('{"reply": "x"}\n')
    asked = Judge(endpoint=Endpoint(backend="scripted", script=str(script)), faults=Faults())
    with pytest.raises(RecipeError, match=r"arena.judges\[0\]: faults belong to a `scorer`"):
        check_judges([asked])
