"""Tournaments: strengths worked out by hand and against the arena's own fit, who meets whom, and
what becomes of comparisons without a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_endpoint import Answer, FakeEndpoint
from fakes import save_reward_model, write_jsonl
from runner import aligner as invoke

from aligner.arena.bradley_terry import Design, newton
from aligner.errors import DataError, RecipeError
from aligner.methods.dpo.reward_distillation import only_compares as has_no_rewards
from aligner.reward_models.base import (
    Comparer,
    NoVerdict,
    Preferences,
    Prompt,
    Scorer,
    Scores,
    preferences,
)
from aligner.reward_models.catalogue import load_scorer, only_compares, read_spec
from aligner.reward_models.ensemble import leaves
from aligner.reward_models.judge import Judge
from aligner.reward_models.tournament import Tournament, schedule, strengths

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


class ByNumber:
    """Answers are numbers; the larger one is better, with the probability `sure`. None for `?`."""

    name, range = "numbers", (0.0, 1.0)

    def __init__(self, sure: float = 1.0) -> None:
        self.sure = sure
        self.asked: list[tuple[str, str]] = []

    def score(self, *_: Any) -> Scores:
        raise AssertionError("a tournament compares")

    def prefer(
        self, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str]
    ) -> Preferences:
        assert len(prompts) == len(first) == len(second)
        self.asked += zip(first, second)
        silent = {row: "no verdict" for row, pair in enumerate(zip(first, second)) if "?" in pair}
        if silent:
            error = NoVerdict("no usable verdict")
            error.rows = silent
            raise error
        chances = [self.sure if int(a) > int(b) else 1 - self.sure for a, b in zip(first, second)]
        return Preferences(chances, remarks={0: "the first row of the call"})

    def fingerprint(self) -> str:
        return f"numbers {self.sure}"


# --- the fit --------------------------------------------------------------------------------------


def test_two_answers_by_hand() -> None:
    # with u = exp(theta), 1 / (1 + u^2) = (u - 1) / (2 (u + 1)), so u^3 - u^2 - u - 3 = 0
    (root,) = (r.real for r in np.roots([1, -1, -1, -3]) if abs(r.imag) < 1e-12)
    found = strengths(2, {(0, 1): 1.0})
    assert found == pytest.approx([math.log(root), -math.log(root)], abs=1e-9)
    assert found[0] == pytest.approx(0.756, abs=1e-3)
    assert strengths(2, {(0, 1): 0.5}) == [0.0, 0.0]
    assert strengths(1, {}) == [0.0]
    # with next to no prior, the odds are those of the game
    assert np.subtract(*strengths(2, {(0, 1): 0.8}, prior=1e-9)) == pytest.approx(math.log(4), 1e-6)


@pytest.mark.parametrize("players", [2, 3, 8, 40])
@pytest.mark.parametrize("seed", range(3))
def test_strengths_are_those_of_the_arena(players: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = schedule(players, 4 if seed else None)
    chances = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0, 0.123], len(pairs))
    games = {pair: float(chance) for pair, chance in zip(pairs, chances)}
    first, second = (np.array(column) for column in zip(*pairs))
    design = Design.of(players, first, second, np.zeros((len(pairs), 0)))
    masses = np.stack([chances, 1 - chances], axis=1)[None]
    (oracle,) = newton(design, "half", masses, np.ones(1))
    assert strengths(players, games) == pytest.approx(list(oracle), abs=1e-6)


def test_a_winner_of_all_games_has_a_finite_strength_in_groups_of_any_size() -> None:
    games = dict.fromkeys(schedule(64, None), 1.0)
    found = strengths(64, games)
    assert all(map(math.isfinite, found))
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("players", range(2, 12))
@pytest.mark.parametrize("opponents", [1, 2, 4, 5, None])
def test_everybody_meets_about_as_many_as_asked(players: int, opponents: int | None) -> None:
    pairs = schedule(players, opponents)
    met = [sum(player in pair for pair in pairs) for player in range(players)]
    assert len(set(pairs)) == len(pairs)
    assert all(one < other for one, other in pairs)
    most = players - 1
    wanted = most if opponents is None else min(most, 2 * math.ceil(opponents / 2))
    assert set(met) == {wanted}


# --- scores ---------------------------------------------------------------------------------------


def test_the_answers_to_each_prompt_play_among_themselves() -> None:
    judge = ByNumber()
    prompts = ["p", "q", "p", "q", "p"]
    scorer = Tournament("t", judge)
    found = scorer.score(prompts, ["1", "7", "3", "9", "2"])
    of_three = strengths(3, {(0, 1): 0.0, (0, 2): 0.0, (1, 2): 0.0})  # 1, 2, 3
    of_two = strengths(2, {(0, 1): 0.0})
    assert found == pytest.approx([of_three[0], of_two[0], of_three[2], of_two[1], of_three[1]])
    assert found.attributes["wins"] == [0.0, 0.0, 1.0, 1.0, 0.5]
    assert found.attributes["games"] == [2.0, 1.0, 2.0, 1.0, 2.0]
    assert sum(found) == pytest.approx(0.0, abs=1e-9)
    assert len(judge.asked) == 4
    assert found.remarks == {0: "the first row of the call", 4: "the first row of the call"}
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, Comparer)
    assert scorer.range == (-math.inf, math.inf)


def test_scores_do_not_depend_on_the_order_of_the_rows() -> None:
    answers = ["5", "1", "4", "2", "3", "9", "7"]
    scorer = Tournament("t", ByNumber(0.9), opponents=2)
    forward = scorer.score(["p"] * 7, answers)
    backward = scorer.score(["p"] * 7, answers[::-1])
    assert forward == pytest.approx(backward[::-1], abs=1e-12)


def test_equal_answers_are_one_player() -> None:
    judge = ByNumber()
    found = Tournament("t", judge).score(["p"] * 4, ["3", "1", "3", "1"])
    assert found == pytest.approx([0.756, -0.756, 0.756, -0.756], abs=1e-3)
    assert len(judge.asked) == 1
    assert Tournament("t", judge).score(["p"] * 3, ["3"] * 3) == [0.0, 0.0, 0.0]
    assert Tournament("t", judge).score([], []) == []


def test_a_lone_answer_is_refused_and_named() -> None:
    with pytest.raises(
        DataError, match="compares the answers to a prompt, and 1 prompts"
    ) as caught:
        Tournament("t", ByNumber()).score(["p", "q", "p"], ["1", "2", "3"])
    assert [problem.where for problem in caught.value.problems] == ["row 2"]


def test_a_comparison_without_a_verdict_is_a_game_that_was_not_played() -> None:
    class Mute(ByNumber):
        def prefer(self, prompts: Any, first: Any, second: Any) -> Preferences:
            silent = {
                row: "it said hm"
                for row, pair in enumerate(zip(first, second))
                if set(pair) == {"1", "2"}
            }
            if silent:
                error = NoVerdict("no usable verdict")
                error.rows = silent
                raise error
            return super().prefer(prompts, first, second)

    found = Tournament("t", Mute()).score(["p"] * 3, ["1", "2", "3"])
    assert found == pytest.approx(strengths(3, {(0, 2): 0.0, (1, 2): 0.0}))
    assert found.attributes["games"] == [1.0, 1.0, 2.0]
    assert found.remarks[0] == "not compared: it said hm; the first row of the call"
    with pytest.raises(NoVerdict) as caught:
        Tournament("t", ByNumber()).score(["p"] * 3, ["1", "?", "3"])
    assert caught.value.rows == {1: "not compared: no verdict"}


def test_two_answers_are_compared_as_its_member_does() -> None:
    scorer = Tournament("t", ByNumber(0.8))
    assert preferences(scorer, ["p"], ["2"], ["1"]) == [0.8]


# --- cards ----------------------------------------------------------------------------------------


def card(folder: Path, name: str, **says: Any) -> str:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(says))
    return str(path)


def longer(body: dict[str, Any]) -> Answer:
    text = body["messages"][1]["content"]
    a, b = (text.split(f"[answer {x} ")[1].split("]\n")[1].split("\n[end")[0] for x in "AB")
    better = "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
    return Answer(text=f"Better: {better}")


def test_a_card_makes_a_tournament_of_a_judge(tmp_path: Path) -> None:
    with FakeEndpoint(longer) as server:
        endpoint = {"model": "m", "base_url": server.base_url, "max_retries": 0}
        judge = card(tmp_path, "judge", kind="judge", endpoint=endpoint)
        spec = card(tmp_path, "t", kind="tournament", members=["./judge.yaml"])
        scorer = load_scorer(spec)
        found = scorer.score(["p"] * 3, ["a", "ccc", "bb"])
        assert found.attributes["wins"] == [0.0, 1.0, 0.5]
        assert len(server.bodies) == 6  # three pairs in both orders
        assert [type(part) for part in leaves(scorer)] == [Judge]
        few = card(tmp_path, "few", kind="tournament", members=["./judge.yaml"], opponents=2)
        assert load_scorer(few).fingerprint() != scorer.fingerprint()
        rows = [{"prompt": "p", "responses": ["a", "ccc", "bb"]}]
        data = write_jsonl(tmp_path / "answers.jsonl", rows)
        out = tmp_path / "scored.jsonl"
        done = invoke("score", "--data", data, "--reward-model", spec, "--output", out, "--json")
        assert done.exit_code == 0, done.output
        assert len(server.bodies) == 6
    assert (only_compares(read_spec(judge)), only_compares(read_spec(spec))) == (True, False)
    assert has_no_rewards(spec)
    assert load_scorer("tournament").fingerprint() != scorer.fingerprint()  # the shipped card


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"members": ["toy"]}, "toy compares no answers"),
        ({"members": ["a", "b"]}, "has one member, which compares, found 2"),
        ({"members": []}, "members: is missing, and the kind `tournament` needs it"),
        ({"members": ["toy"], "opponents": 0}, "opponents"),
        (
            {"members": ["toy"], "combine": "min"},
            "combine: has no effect for the kind `tournament`",
        ),
        ({"members": ["./t.yaml"]}, "the tournament .* is a member of itself"),
    ],
)
def test_a_card_that_makes_no_tournament_is_refused(
    says: dict[str, Any], message: str, tmp_path: Path
) -> None:
    spec = card(tmp_path, "t", kind="tournament", **says)
    with pytest.raises(RecipeError, match=message):
        load_scorer(spec)


def test_a_tournament_above_itself_in_an_ensemble_is_refused(tmp_path: Path) -> None:
    card(tmp_path, "e", kind="ensemble", members=["./t.yaml"])
    spec = card(tmp_path, "t", kind="tournament", members=["./e.yaml"])
    with pytest.raises(RecipeError, match="t is a member of itself: t -> e -> t"):
        load_scorer(spec)


def test_a_reward_model_may_be_a_member_of_the_member(tmp_path: Path) -> None:
    with FakeEndpoint(longer) as server:
        endpoint = {"model": "m", "base_url": server.base_url, "max_retries": 0}
        card(tmp_path, "judge", kind="judge", endpoint=endpoint)
        model = str(save_reward_model(tmp_path / "rm"))
        card(tmp_path, "both", kind="ensemble", members=["./judge.yaml", f"bradley_terry:{model}"])
        spec = card(tmp_path, "t", kind="tournament", members=["./both.yaml"])
        found = load_scorer(spec).score(["p"] * 3, ["a", "ccc", "bb"])
    assert len(found) == 3
    assert all(map(math.isfinite, found))
    assert found.attributes["games"] == [2.0] * 3
