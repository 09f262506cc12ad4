"""The judges of battles: their names, what is refused before a model is loaded, and scorers that
judge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_endpoint import Answer as Said
from fake_endpoint import FakeEndpoint
from fakes import save_reward_model

from aligner.arena.battle.judges import check_judges, names_of, open_judges
from aligner.arena.battle.sheets import Answer, BattleJudge, Item, Judging, Sheet
from aligner.config.battles import Judge
from aligner.config.recipe import Endpoint
from aligner.errors import AlignerError, DataError, RecipeError

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


def sheet(prompt: str, first: str, second: str, reference: str | None = None) -> Sheet:
    item = Item(prompt, prompt, reference=reference, origin=f"p.jsonl:{prompt}")
    return Sheet(item, Answer("one", first), Answer("two", second))


def both_orders(*sheets: Sheet) -> list[Sheet]:
    turned = [Sheet(one.item, one.second, one.first) for one in sheets]
    return [game for pair in zip(sheets, turned) for game in pair]


def open_one(folder: Path, scorer: str, name: str = "") -> BattleJudge:
    (judge,) = open_judges([Judge(name=name, scorer=scorer)], folder / "replies.sqlite")
    return judge


def scores(judging: Judging) -> list[tuple[float | None, float | None]]:
    return [(one.score_first, one.score_second) for one in judging.judged if one is not None]


def card(folder: Path, **says: Any) -> str:
    path = folder / f"{says['kind']}.yaml"
    path.write_text(yaml.safe_dump(says))
    return str(path)


def asking(server: FakeEndpoint, **more: Any) -> dict[str, Any]:
    return {"model": "m", "base_url": server.base_url, "max_retries": 0, **more}


# --- names and checks -----------------------------------------------------------------------------


def test_a_judge_is_called_by_its_name_its_model_or_its_scorer() -> None:
    judges = [
        Judge(name="strict", scorer="toy"),
        Judge(endpoint=Endpoint(model="big")),
        Judge(scorer="verifier:number"),
        Judge(endpoint=Endpoint(backend="scripted", script="s.jsonl")),
    ]
    assert names_of(judges) == ["strict", "big", "verifier:number", "scripted"]


def test_two_judges_of_one_name_are_refused_with_their_keys() -> None:
    judges = [Judge(scorer="toy"), Judge(name="other", scorer="toy"), Judge(scorer="toy")]
    with pytest.raises(RecipeError, match="2 judges are called 'toy'") as caught:
        names_of(judges)
    assert "arena.judges[0].name and arena.judges[2].name" in caught.value.hint


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (Judge(), r"judges\[1\]: a judge is an `endpoint` or a `scorer`, and neither is given"),
        (Judge(endpoint=Endpoint(model="m"), scorer="toy"), "and both are given"),
        (Judge(scorer="tyo"), r"arena.judges\[1\]: there is no scorer 'tyo'; did you mean 'toy'"),
        (Judge(name="a", scorer="toy", criteria="be kind"), r"judges\[1\].criteria: a scorer has"),
        (Judge(scorer="bradley_terry:./nowhere"), r"judges\[1\].scorer"),
        (Judge(endpoint=Endpoint(backend="scripted")), r"judges\[1\]: endpoint: backend `scripte"),
        (Judge(endpoint=Endpoint(backend="scripted", script="no.jsonl")), r"judges\[1\].*no.jsonl"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_with_its_key(judge: Judge, said: str) -> None:
    with pytest.raises(AlignerError, match=said):
        check_judges([Judge(scorer="verifier:number"), judge])


def test_an_ensemble_that_brings_the_rows_of_a_call_to_one_scale_is_refused(tmp_path: Path) -> None:
    spec = card(tmp_path, kind="ensemble", members=["toy", "verifier:number"], standardize=True)
    with pytest.raises(RecipeError, match="brings the scores of one call to one scale"):
        check_judges([Judge(scorer=spec)])


def test_prompts_that_a_scorer_cannot_judge_are_named_before_anything_is_asked(
    tmp_path: Path,
) -> None:
    items = [Item("a", "1 + 1?", reference="2"), Item("b", "2 + 2?", origin="p.jsonl:2")]
    check_judges([Judge(scorer="verifier:number")], items[:1])
    members = ["verifier:number", f"bradley_terry:{save_reward_model(tmp_path / 'rm')}"]
    beside_a_model = card(tmp_path, kind="ensemble", members=members)
    for spec in ("verifier:number", beside_a_model):
        with pytest.raises(DataError, match="1 of 2 prompts have none") as caught:
            check_judges([Judge(scorer=spec)], items)
        assert [problem.where for problem in caught.value.problems] == ["p.jsonl:2"]
    wrong = Item("c", "3 + 3?", reference="six", origin="p.jsonl:3")
    with pytest.raises(DataError, match=r"p\.jsonl:3"):
        check_judges([Judge(scorer="verifier:number")], [items[0], wrong])
    with pytest.raises(DataError, match="the toy gold score knows the toy world"):
        check_judges([Judge(scorer="toy")], items)


# --- scorers --------------------------------------------------------------------------------------


def test_a_rule_scores_both_answers(tmp_path: Path) -> None:
    judge = open_one(tmp_path, "verifier:number", "right")
    found = judge.judge([sheet("1 + 1?", "It is 2", "It is 3", "2"), sheet("q", "4", "4", "5")])
    assert found.stopped is None
    assert scores(found) == [(1.0, 0.0), (0.0, 0.0)]
    assert [one.parse_status for one in found.judged if one] == ["ok", "ok"]
    assert (judge.id, judge.template_sha, judge.usage()) == ("right", "", {})
    assert len(judge.rev) == 16


def by_length(body: dict[str, Any]) -> Said:
    """A point for each letter of the answer, no verdict on `mute`."""
    text = body["messages"][1]["content"]
    answer = text.split("[the answer to be rated ")[1].split("]\n")[1].split("\n[end of")[0]
    return Said(text="Hm." if answer == "mute" else f"Fine.\nPoints: {len(answer)}")


def test_each_answer_is_asked_about_once_in_all_games_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    games = both_orders(sheet("p", "a", "bb"), sheet("p", "bb", "ccc"), sheet("q", "a", "bb"))
    wanted = [(1, 2), (2, 1), (2, 3), (3, 2), (1, 2), (2, 1)]
    with FakeEndpoint(by_length) as server:
        spec = card(tmp_path, kind="rating", endpoint=asking(server))
        judge = open_one(tmp_path, spec)
        found = judge.judge(games)
        assert scores(found) == wanted
        assert not any(one.cache_hit for one in found.judged if one)
        assert len(server.bodies) == 5
        assert judge.usage()["rating"]["calls"] == 5
        judge.close()
        monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path / "elsewhere"))
        again = open_one(tmp_path, spec).judge(games)
        assert scores(again) == wanted
        assert all(one.cache_hit for one in again.judged if one)
        assert len(server.bodies) == 5


def test_another_reference_model_or_criteria_is_another_question(tmp_path: Path) -> None:
    with FakeEndpoint(by_length) as server:
        for count, (model, reference) in enumerate((("m", None), ("m", "r"), ("n", "r")), start=1):
            endpoint = asking(server) | {"model": model}
            spec = card(tmp_path, kind="rating", endpoint=endpoint)
            open_one(tmp_path, spec).judge([sheet("p", "a", "bb", reference)])
            assert len(server.bodies) == 2 * count
        rubric = tmp_path / "rubric.txt"
        for count, text in enumerate(("Be kind.", "Be brief."), start=4):
            rubric.write_text(text)
            spec = card(tmp_path, kind="rating", endpoint=endpoint, rubric=str(rubric))
            open_one(tmp_path, spec).judge([sheet("p", "a", "bb", "r")])
            assert len(server.bodies) == 2 * count


def test_an_answer_without_a_verdict_is_a_game_that_failed_and_never_a_tie(tmp_path: Path) -> None:
    with FakeEndpoint(by_length) as server:
        spec = card(tmp_path, kind="rating", endpoint=asking(server))
        judge = open_one(tmp_path, spec)
        found = judge.judge([sheet("p", "a", "mute"), sheet("p", "a", "bb")]).judged
    assert [one.parse_status for one in found if one] == ["failed", "ok"]
    assert found[0] is not None
    assert (found[0].score_first, found[0].score_second) == (None, None)
    assert "not in points" in found[0].raw_text


def test_a_spent_budget_stops_and_keeps_what_was_judged(tmp_path: Path) -> None:
    games = [sheet("p", "a", "bb"), sheet("p", "ccc", "dddd")]
    with FakeEndpoint(by_length) as server:
        spec = card(tmp_path, kind="rating", endpoint=asking(server, budget={"calls": 3}))
        judge = open_one(tmp_path, spec)
        assert scores(judge.judge(games[:1])) == [(1, 2)]
        found = judge.judge(games)
        assert found.stopped is not None
        assert "the budget is spent" in found.stopped.message
        assert [one is None for one in found.judged] == [False, True]
        judge.close()
        resumed = open_one(tmp_path, spec).judge(games)  # the accounts go on
        assert resumed.stopped is not None
        spec = card(tmp_path, kind="rating", endpoint=asking(server, budget={"calls": 9}))
        whole = open_one(tmp_path, spec).judge(games)
        assert (whole.stopped, scores(whole)) == (None, [(1, 2), (3, 4)])
        assert len(server.bodies) == 4


def prefers(body: dict[str, Any]) -> Said:
    """The longer answer; of `left` and `side`, the one that is shown first."""
    text = body["messages"][1]["content"]
    a, b = (text.split(f"[answer {x} ")[1].split("]\n")[1].split("\n[end")[0] for x in "AB")
    return Said(text=f"Better: {'A' if len(a) >= len(b) else 'B'}")


def test_what_compares_is_asked_about_a_pair_once_and_says_that_the_order_decided(
    tmp_path: Path,
) -> None:
    games = both_orders(sheet("p", "long one", "short"), sheet("p", "left", "side"))
    with FakeEndpoint(prefers) as server:
        spec = card(tmp_path, kind="judge", endpoint=asking(server))
        found = open_one(tmp_path, spec).judge(games)
        assert scores(found) == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.5, 0.5)]
        assert [one.decoding for one in found.judged if one] == [{}, {}, *[{"flips": True}] * 2]
        again = open_one(tmp_path, spec).judge(games)
        assert scores(again) == scores(found)
        assert [one.decoding for one in again.judged if one][2:] == [{"flips": True}] * 2
        assert len(server.bodies) == 4


def test_other_weights_behind_the_same_path_are_another_judge(tmp_path: Path) -> None:
    spec = f"bradley_terry:{save_reward_model(tmp_path / 'rm')}"
    games = both_orders(sheet("p", "yes", "no"), sheet("q", "no", "yes"))
    judge = open_one(tmp_path, spec)
    found = scores(judge.judge(games))
    assert found[1] == (found[0][1], found[0][0])
    assert found[0][0] != found[0][1]
    assert scores(open_one(tmp_path, spec).judge(games)) == found
    save_reward_model(tmp_path / "rm", seed=1)
    other = open_one(tmp_path, spec)
    assert other.rev != judge.rev
    assert scores(other.judge(games)) != found


def test_prompts_of_another_world_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_one(tmp_path, "toy").judge([sheet("what?", "a", "b")])
    assert caught.value.problems[0].where == "p.jsonl:what?"
