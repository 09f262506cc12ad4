"""Rounds whose judge is the policy that answered: who judges when, what its ratings become, and
what a change makes again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe

from aligner.config.load import Resolved
from aligner.config.recipe import Model
from aligner.endpoints.request import ChatRequest
from aligner.endpoints.scripted import ScriptedBackend
from aligner.errors import RecipeError
from aligner.methods.online.rounds import run_online
from aligner.reward_models import judge_session

SETTINGS = {
    "data.eval": 0.01,
    "online.rounds": 2,
    "online.prompts_per_round": 4,
    "online.num_samples": 4,
    "online.temperatures": [1.0],
    "online.max_new_tokens": 24,
    "online.shard_size": 2,
    "online.reward_models": [],
    "online.self_rewarding.samples": 2,
    "trainer.max_steps": 2,
}


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the toy world, which ends its answers, its prompts, and a score for them."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(toy_world / "model", folder / "model")
    shutil.copy(toy_world / "prompts.jsonl", folder)
    (folder / "gold.py").write_text("def gold(prompt, completion, reference):\n    return 0.5\n")
    return folder


class Judges:
    """In place of the models that judge: which were loaded, and what they were asked."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.asked: list[str] = []

    def load(self, model: Model, *, batch_size: int) -> ScriptedBackend:
        self.loaded.append(model.name_or_path)
        return ScriptedBackend(self.reply)

    def reply(self, request: ChatRequest) -> str:
        shown = request.messages[1]["content"]
        self.asked.append(shown)
        return f"So so.\nPoints: {len(shown) % 6}"


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Judges:
    found = Judges()
    monkeypatch.setattr(judge_session, "load_local", found.load)
    return found


def recipe(world: Path, run: Path, **changes: Any) -> Resolved:
    gold = f"verifier:{world / 'gold.py'}:gold"
    settings = {
        "data.train": str(world / "prompts.jsonl"),
        "online.evaluation.gold": gold,
        **SETTINGS,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return small_recipe("online", world, run, *overrides)


def record(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "rounds" / stage / "stage.json").read_text())
    return found


def made_at(run: Path) -> dict[str, int]:
    files = sorted((run / "rounds").rglob("done.json"))
    return {str(file.parent.relative_to(run / "rounds")): file.stat().st_mtime_ns for file in files}


def test_each_round_is_judged_by_the_policy_that_answered(
    world: Path, tmp_path: Path, judges: Judges
) -> None:
    run = tmp_path / "run"
    run_online(recipe(world, run))
    first, second = judges.loaded
    assert first == str(world / "model")
    assert second == str(run / "rounds/01/train/run/final")
    keys = [record(run, f"{number}/score")["made_of"]["scorers"] for number in ("01", "02")]
    assert keys[0] != keys[1], "the stage of scores is that of its judge"

    pairs = [
        json.loads(line) for line in (run / "rounds/01/pair/pairs.jsonl").read_text().splitlines()
    ]
    assert pairs, "ratings differ, so there are pairs"

    asked, before = len(judges.asked), made_at(run)
    run_online(recipe(world, run), resume=True)
    assert (len(judges.asked), made_at(run)) == (asked, before), "it is done"

    run_online(recipe(world, run, online__self_rewarding__samples=3), resume=True)
    after = made_at(run)
    kept = {stage for stage in after if before.get(stage) == after[stage]}
    assert {"00/eval", "01/sample"} <= kept
    assert "01/score" not in kept
    assert len(judges.asked) > asked


def test_what_rates_itself_wants_gold_and_no_other_reward(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(world, tmp_path / "run", online__evaluation__gold=None)
    assert "online.evaluation.gold" in str(caught.value.problems)
    with pytest.raises(RecipeError) as caught:
        recipe(world, tmp_path / "run", online__reward_models=["toy"])
    assert "both score" in str(caught.value.problems)
    with pytest.raises(RecipeError, match="cannot be read"):
        run_online(
            recipe(world, tmp_path / "run", online__self_rewarding__rubric="nowhere.txt"),
            dry_run=True,
        )


def test_a_dry_run_says_how_many_ratings_there_will_be(world: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    run_online(recipe(world, tmp_path / "run"), dry_run=True, on_event=told.append)
    (plan,) = (event for event in told if type(event).__name__ == "Plan")
    rows = {row[0]: row[1] for row in plan.rows}
    assert rows["ratings of a round"] == "32"
