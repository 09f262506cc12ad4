"""Who fights in a round of the flywheel, and what makes a selection again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flywheel_world import flywheel_recipe, write_flywheel_world

from aligner.errors import RecipeError
from aligner.events import Notice, Warned
from aligner.methods.flywheel.ratings import Standing
from aligner.methods.flywheel.run import run_flywheel


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flywheel_world(tmp_path_factory.mktemp("flywheel"), toy_world)


def turn(world: Path, folder: Path, *, resume: bool = False, **flags: Any) -> list[str]:
    """Run with SFT alone, unless said otherwise; return what was said."""
    told: list[Any] = []
    recipe = flywheel_recipe(world, folder, **{"flywheel__strategies": ["sft"], **flags})
    run_flywheel(recipe, resume=resume, on_event=told.append)
    return [one.text for one in told if isinstance(one, Notice | Warned)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def opponents(run: Path) -> list[list[str]]:
    stages = json.loads((run / "flywheel.json").read_text())["stages"]
    return [stage["opponents"] for stage in stages]


def test_opponents_are_chosen_again_each_round_and_stay_for_all_of_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Standing.of

    def turning(self: Standing, name: str) -> dict[str, Any]:
        """The weak one is the best whenever the number of models is odd: at first there are four,
        and every training makes one more."""
        found = plain(self, name)
        best = "weak" if len(self.ratings.models) % 2 else "strong"
        return {**found, "rating": 5000.0} if name == best else found

    monkeypatch.setattr(Standing, "of", turning)
    alone = {"flywheel__opponents_per_round": 1}
    turn(world, tmp_path / "two", flywheel__rounds=2, **alone)
    assert opponents(tmp_path / "two") == [["strong"], ["weak"]]
    turn(world, tmp_path / "one", flywheel__strategies=["sft", "dpo"], **alone)
    assert opponents(tmp_path / "one") == [["strong"], ["strong"]]


def test_an_answer_that_turns_out_to_be_cut_is_no_longer_learned(
    toy_world: Path, tmp_path: Path
) -> None:
    """Its text is the same, and so are the verdicts."""
    mine, run = write_flywheel_world(tmp_path / "mine", toy_world), tmp_path / "run"
    turn(mine, run)
    select = run / "rounds/01/sft/select"
    first = rows(select / "train.jsonl")[0]
    path = mine / f"experts-{first['winner']}.jsonl"
    prompt = [{"role": "user", "content": first["messages"][0]["content"]}]
    said = rows(path)
    next(row for row in said if row["prompt"] == prompt)["is_cut"] = True
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    verdicts = (run / "rounds/01/sft/battle/battles.jsonl").read_bytes()
    turn(mine, run, resume=True)
    assert (run / "rounds/01/sft/battle/battles.jsonl").read_bytes() == verdicts
    (again,) = [
        row
        for name in ("train.jsonl", "dropped.jsonl")
        for row in rows(select / name)
        if row["prompt_id"] == first["prompt_id"]
    ]
    assert again.get("winner") != first["winner"]


def test_a_difficulty_that_is_said_later_is_reported(toy_world: Path, tmp_path: Path) -> None:
    mine, run = write_flywheel_world(tmp_path / "mine", toy_world), tmp_path / "run"
    prompts = [{**row, "hard": 1} for row in rows(mine / "prompts.jsonl")]
    for hard in (1, 3):
        lines = (json.dumps({**row, "hard": hard}) + "\n" for row in prompts)
        (mine / "prompts.jsonl").write_text("".join(lines))
        turn(mine, run, resume=hard == 3, flywheel__difficulty="hard")
        summary = json.loads((run / "rounds/01/sft/select/selection.json").read_text())
        assert summary["difficulty"]["prompts"] == float(hard)


def test_opponents_none_of_whom_teaches_are_refused_before_they_are_asked(
    world: Path, tmp_path: Path
) -> None:
    answers = str(world / "experts-weak.jsonl")
    barred = [{"name": "weak", "answers": answers, "may_be_trained_on": False}]
    with pytest.raises(RecipeError, match=r"flywheel\.opponents: no opponent's answers may be"):
        flywheel_recipe(world, tmp_path / "run", flywheel__opponents=barred)


def test_prompts_that_do_not_divide_are_counted(world: Path, tmp_path: Path) -> None:
    count = len(rows(world / "prompts.jsonl"))
    said = turn(world, tmp_path / "run", flywheel__prompts_per_battle=6)
    assert any(f"{count - 6:,} that no part takes" in text for text in said)


def test_battles_without_a_verdict_are_said(world: Path, tmp_path: Path) -> None:
    """Of a judge whom the order decides, and a rule that leaves such battles out."""
    said = turn(
        world,
        tmp_path / "run",
        flywheel__judges=[{"scorer": "toy", "name": "j", "faults": {"seat": 50.0}}],
        flywheel__rating={"merge": "drop_inconsistent", "resamples": 20},
    )
    ours = [text for text in said if text.startswith("rounds/01/sft/battle: ")]
    assert any("battles have no verdict" in text for text in ours)
