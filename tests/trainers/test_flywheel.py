"""A round of the flywheel from end to end in a small world: what is fought, chosen, trained and
measured, what a change makes again, and when rounds end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flywheel_world import EXPERTS, TRAINER, flywheel_recipe, write_flywheel_world
from tracked import differences, in_tensorboard, logged
from transformers import AutoModelForCausalLM

from aligner.arena.records import read_battles
from aligner.errors import AlignerError, DataError, RecipeError, UsageError
from aligner.events import Notice, Plan, Warned
from aligner.methods.flywheel.run import run_flywheel
from aligner.methods.flywheel.status import status_of
from aligner.runs.files import read_metrics
from aligner.runs.result import RunResult


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flywheel_world(tmp_path_factory.mktemp("flywheel"), toy_world)


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end; read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    turn(world, folder)
    return folder


def turn(
    world: Path, folder: Path, *overrides: str, resume: bool = False, **flags: Any
) -> tuple[RunResult, list[str]]:
    """Run, and return the result and what was said."""
    told: list[Any] = []
    recipe = flywheel_recipe(world, folder, *overrides, **flags)
    result = run_flywheel(recipe, resume=resume, on_event=told.append)
    return result, [one.text for one in told if isinstance(one, Notice | Warned)]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def found(run: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run / "flywheel.json").read_text())
    return summary


def games(run: Path) -> list[str]:
    return [row["game_id"] for row in rows(run / "games.jsonl")]


def test_a_round_fights_chooses_trains_and_measures(whole: Path) -> None:
    summary = found(whole)
    assert list(summary["models"]) == [
        "start",
        "sft-1",
        "dpo-1",
        "rl-1",
        "strong",
        "middling",
        "weak",
    ]
    assert [stage["target"] for stage in summary["stages"]] == ["start", "sft-1", "dpo-1"]
    for strategy in ("sft", "dpo", "rl"):
        place = whole / "rounds/01" / strategy
        chosen = rows(place / "select/train.jsonl")
        battles = {one.battle_id: one for one in read_battles(place / "battle/battles.jsonl")}
        assert chosen
        for row in chosen:
            for name in row["battle_ids"]:
                battle = battles[name]
                assert {battle.model_a, battle.model_b} == {row["winner"], row["loser"]}
                assert battle.prompt_id == row["prompt_id"]
            assert row["margin"] is None or row["margin"] >= row["k"]
            assert row["round"] == 1
            assert row["strategy"] == strategy
        weights = place / "train/run/final"
        assert AutoModelForCausalLM.from_pretrained(weights).config.model_type == "llama"


def test_no_game_is_played_twice_and_no_prompt_fights_for_two_strategies(whole: Path) -> None:
    ids = games(whole)
    assert len(ids) == len(set(ids))
    prompts = [
        {
            one.prompt_id
            for one in read_battles(whole / f"rounds/01/{strategy}/battle/battles.jsonl")
        }
        for strategy in ("sft", "dpo", "rl")
    ]
    assert not prompts[0] & prompts[1]
    assert not (prompts[0] | prompts[1]) & prompts[2]
    tests = {row["prompt_id"] for row in rows(whole / "rounds/00/eval/answers/start/answers.jsonl")}
    assert not tests & set().union(*prompts)


def test_the_best_by_the_development_prompts_becomes_the_result(whole: Path) -> None:
    summary = found(whole)
    ours = {name: one for name, one in summary["models"].items() if one["is_ours"]}
    best = max(ours, key=lambda name: ours[name]["dev"]["rating"])
    assert summary["best"] == best
    if best != "start":
        strategy = best.split("-")[0]
        place = whole / f"rounds/01/{strategy}/train/run/final/model.safetensors"
        assert (whole / "final/model.safetensors").read_bytes() == place.read_bytes()
    assert "Ratings on the test prompts" in (whole / "report.html").read_text()


def test_ratings_are_logged_and_tracked(world: Path, whole: Path, tmp_path: Path) -> None:
    """All ratings move with every battle: each time, the whole record is written again."""
    pytest.importorskip("tensorboard")
    summary = found(whole)
    ours = [name for name, one in summary["models"].items() if one["is_ours"]]
    lines = [line for line in read_metrics(whole) if line["split"] == "eval"]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line["rating"] for line in lines] == [
        summary["models"][name]["dev"]["rating"] for name in ours
    ]
    turn(world, tmp_path / "run", "report_to=tensorboard", "flywheel.strategies=[sft]")
    assert not differences(in_tensorboard(tmp_path / "run"), logged(tmp_path / "run"))
    inner = tmp_path / "run" / "rounds" / "01" / "sft" / "train" / "run"
    assert not differences(in_tensorboard(inner), logged(inner))
    assert len(logged(inner)) > 4


def test_status_says_what_is_done(whole: Path) -> None:
    status = status_of(whole)
    assert [row[0] for row in status.rows] == ["start", "sft-1", "dpo-1", "rl-1"]
    assert status.rows[3][1] == "battle select noise reward train eval"
    assert status.remark.startswith("done; the best model is ")


def test_a_finished_run_resumed_does_nothing(world: Path, whole: Path) -> None:
    before = (whole / "manifest.json").read_bytes()
    report = world / "testset/decontamination/1234.json"  # on data of somebody else
    report.parent.mkdir(exist_ok=True)
    report.write_text("{}")
    turn(world, whole, resume=True)
    assert (whole / "manifest.json").read_bytes() == before


def test_opponents_answer_the_test_set_once_for_all_models(whole: Path) -> None:
    places = [path.parent for path in whole.glob("rounds/*/*/eval/answers/*/done.json")]
    assert sorted(path.name for path in places) == ["dpo-1", "rl-1", "sft-1"]
    first = [path.parent.name for path in whole.glob("rounds/00/eval/answers/*/done.json")]
    assert sorted(first) == ["middling", "start", "strong", "weak"]


def test_a_dry_run_counts_the_games_that_are_played(world: Path, whole: Path) -> None:
    recipe = flywheel_recipe(world, whole.parent / "planned")
    told: list[Any] = []
    run_flywheel(recipe, dry_run=True, on_event=told.append)
    plan = next(one for one in told if isinstance(one, Plan))
    said = {row[0]: row[1] for row in plan.rows}
    assert said["games"] == f"{len(games(whole))} at most"
    sampled = [*whole.glob("rounds/**/answers/*/answers.jsonl")]
    ours = [path for path in sampled if path.parent.name not in EXPERTS]
    assert said["answers"] == f"{sum(len(rows(path)) for path in ours)} at most"


def test_changed_answers_of_an_opponent_are_judged_again_where_they_fought(
    whole: Path, tmp_path: Path, toy_world: Path
) -> None:
    mine, run = write_flywheel_world(tmp_path / "mine", toy_world), tmp_path / "run"
    turn(mine, run, flywheel__strategies=["sft", "dpo"])
    before = times(run)
    asked = rows(run / "rounds/01/dpo/answers/strong/answers.jsonl")[0]["prompt"]
    path = mine / "experts-strong.jsonl"
    said = rows(path)
    next(row for row in said if row["prompt"] == asked)["response"] = "zzzzzz"
    path.write_text("".join(json.dumps(row) + "\n" for row in said))
    turn(mine, run, resume=True, flywheel__strategies=["sft", "dpo"])
    after = times(run)
    again = {place for place, at in after.items() if before[place] != at}
    assert "rounds/01/dpo/battle" in again
    assert {place for place in again if "/answers/" not in place} <= {
        *("rounds/01/dpo/battle", "rounds/01/dpo/noise", "rounds/01/dpo/select"),
        *("rounds/01/dpo/train", "rounds/01/dpo/eval/battle"),
    }
    ids = games(run)
    assert len(ids) == len(set(ids))


def times(run: Path) -> dict[str, int]:
    return {
        path.parent.relative_to(run).as_posix(): path.stat().st_mtime_ns
        for path in run.rglob("done.json")
        if "stale" not in path.parts
    }


def test_a_changed_training_makes_again_what_depends_on_it(world: Path, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", {"flywheel__strategies": ["sft", "dpo"]}
    turn(world, run, **flags)
    before, played = times(run), len(games(run))
    training = {"trainer": {"max_steps": 1, "learning_rate": 2e-3}}
    turn(world, run, resume=True, **flags, trainings__dpo=training)
    after = times(run)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        "rounds/01/dpo/train",
        "rounds/01/dpo/eval/answers/dpo-1",
        "rounds/01/dpo/eval/battle",
    }
    assert len(games(run)) > played


def test_rounds_go_on_from_the_best_and_add_up_what_was_chosen(world: Path, tmp_path: Path) -> None:
    flags: dict[str, Any] = {
        "flywheel__strategies": ["sft"],
        "flywheel__rounds": 2,
        "flywheel__initial": str(world / "sft.jsonl"),
        "flywheel__mode": "target",
        "flywheel__opponents_per_round": 2,
    }
    turn(world, tmp_path / "run", **flags)
    summary = found(tmp_path / "run")
    assert list(summary["models"])[:3] == ["sft-0", "sft-1", "sft-2"]
    assert [len(stage["opponents"]) for stage in summary["stages"]] == [2, 2]
    first, second = (tmp_path / f"run/rounds/{number:02d}/sft" for number in (1, 2))
    recipe = json.loads((second / "train/run/resolved.json").read_text())["recipe"]
    sources = [source["path"] for source in recipe["data"]["train"]]
    assert sources == [str(one / "select/train.jsonl") for one in (first, second)]
    assert recipe["model"]["name_or_path"] == str(first / "train/run/final")


def test_adapters_are_trained_further_by_each_strategy(world: Path, tmp_path: Path) -> None:
    turn(world, tmp_path / "run", model__lora={"r": 4})
    for strategy in ("sft", "dpo", "rl"):
        final = tmp_path / f"run/rounds/01/{strategy}/train/run/final"
        assert (final / "adapter_config.json").exists()
        assert not (final / "model.safetensors").exists()


# --- when rounds end ------------------------------------------------------------------------------


def test_too_few_rows_end_the_rounds_before_they_are_trained_on(
    world: Path, tmp_path: Path
) -> None:
    _, said = turn(world, tmp_path / "run", flywheel__stop__min_rows=100, flywheel__rounds=2)
    assert any("fewer than stop.min_rows (100)" in text for text in said)
    assert not (tmp_path / "run/rounds/01/sft/train").exists()
    assert found(tmp_path / "run")["best"] == "start"
    assert not (tmp_path / "run/final").exists()


def test_a_round_that_is_cut_short_is_said_even_when_it_is_the_last(
    world: Path, tmp_path: Path
) -> None:
    _, said = turn(world, tmp_path / "run", flywheel__stop__min_rows=100)
    assert any("the rounds end with 1: sft of round 1: " in text for text in said)


def test_rounds_that_are_all_done_did_not_end_early(world: Path, tmp_path: Path) -> None:
    idle = {"trainer": {**TRAINER, "learning_rate": 1e-12}}
    run, only = tmp_path / "run", {"flywheel__strategies": ["sft"], "flywheel__stop__gain": True}
    turn(world, run, trainings__sft=idle, **only)
    assert found(run)["gains"][0]["low"] <= 0
    assert found(run)["stopped"] == ""
    _, said = turn(world, tmp_path / "two", flywheel__rounds=2, trainings__sft=idle, **only)
    assert any("no further round after 1: " in text for text in said)
    assert found(tmp_path / "two")["stopped"].startswith("the round's best model is rated ")


def test_losses_by_chance_end_the_rounds(world: Path, tmp_path: Path) -> None:
    blind = [{"scorer": "toy", "name": "coin", "faults": {"noise": 3.0, "is_blind": True}}]
    turn(
        world,
        tmp_path / "run",
        flywheel__judges=blind,
        flywheel__stop__noise=True,
        flywheel__noise_prompts=8,
    )
    stopped = found(tmp_path / "run")["stopped"]
    assert "of those against a second sample of itself" in stopped
    assert not (tmp_path / "run/rounds/01/sft/train").exists()


def test_answers_that_are_too_long_are_dropped_and_counted(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    turn(world, run, flywheel__strategies=["sft"], data__max_length=16)
    ledger = json.loads((run / "rounds/01/sft/train/run/data.json").read_text())
    chosen = len(rows(run / "rounds/01/sft/select/train.jsonl"))
    assert 0 < ledger["splits"]["train"]["rows"] < chosen


# --- what is refused ------------------------------------------------------------------------------


def test_what_is_wrong_with_a_training_is_said_before_anybody_fights(
    world: Path, tmp_path: Path
) -> None:
    wrong = {"trainer": {"learnig_rate": 1e-3}, "model": {"name_or_path": "x"}}
    with pytest.raises(RecipeError) as caught:
        turn(world, tmp_path / "run", trainings__sft=wrong)
    assert "trainings.sft.model.name_or_path: is decided by the flywheel" in str(caught.value)
    with pytest.raises(RecipeError, match="learning_rate"):
        turn(world, tmp_path / "run", trainings__sft={"trainer": {"learnig_rate": 1e-3}})
    assert not (tmp_path / "run").exists()


def test_a_reward_model_does_not_start_from_an_adapter(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    adapter = tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(world / "model")
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM")).save_pretrained(adapter)
    with pytest.raises(RecipeError, match=r"trainings\.reward\.model\.name_or_path: cannot start"):
        turn(world, tmp_path / "run", model__name_or_path=str(adapter))


def test_prompts_without_an_experts_answer_are_named(world: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    lines = (world / "experts-weak.jsonl").read_text().splitlines(keepends=True)
    short.write_text("".join(lines[:20]))
    opponents = [{"name": "short", "answers": str(short)}]
    with pytest.raises(DataError, match=r"short\.jsonl"):
        turn(world, tmp_path / "run", flywheel__opponents=opponents)


def test_a_test_set_that_changed_is_refused(world: Path, toy_world: Path, tmp_path: Path) -> None:
    mine = write_flywheel_world(tmp_path / "mine", toy_world)
    with (mine / "testset/items.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(DataError, match="is not what was frozen"):
        turn(mine, tmp_path / "run")


def test_prompts_of_the_test_set_never_fight(world: Path, tmp_path: Path, toy_world: Path) -> None:
    mine = write_flywheel_world(tmp_path / "mine", toy_world)
    tests = rows(mine / "testset/items.jsonl")
    with (mine / "prompts.jsonl").open("a", encoding="utf-8") as file:
        for row in tests[:3]:
            file.write(json.dumps({"prompt": row["prompt"], "answer": row["answer"]}) + "\n")
    _, said = turn(mine, tmp_path / "run", flywheel__strategies=["sft"])
    assert any("3 overlaps with the test set" in text for text in said)


def test_initial_rows_of_the_test_set_are_refused(world: Path, tmp_path: Path) -> None:
    test = rows(world / "testset/items.jsonl")[3]
    told = {"role": "assistant", "content": test["answer"]}
    clean = (world / "sft.jsonl").read_text().splitlines(keepends=True)[:4]
    planted = json.dumps({"messages": [*test["prompt"], told]}) + "\n"
    (tmp_path / "initial.jsonl").write_text("".join([*clean, planted]))
    with pytest.raises(DataError, match=r"flywheel\.initial: 1 row overlaps") as caught:
        turn(world, tmp_path / "run", flywheel__initial=str(tmp_path / "initial.jsonl"))
    assert "initial.jsonl:5: overlaps with t3 (exact: the same prompt)" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_a_recipe_names_wrongly_is_named_by_its_key(world: Path, tmp_path: Path) -> None:
    opponents = [{"name": "nobody", "answers": str(tmp_path / "nobody.jsonl")}]
    with pytest.raises(DataError, match=r"flywheel\.opponents\[0\]: .* is not a file"):
        turn(world, tmp_path / "run", flywheel__opponents=opponents)
    with pytest.raises(RecipeError, match=r"flywheel\.judges\[0\]: a judge is an `endpoint` or"):
        turn(world, tmp_path / "run", flywheel__judges=[{"name": "nobody"}])
    both = [{"name": "both", "answers": "a.jsonl", "model": {"name_or_path": "b"}}]
    with pytest.raises(RecipeError, match=r"flywheel\.opponents\[0\]: has `model` and `answers`"):
        flywheel_recipe(world, tmp_path / "run", flywheel__opponents=both)
    with pytest.raises(AlignerError, match=r"flywheel\.dpo\.verifier: .*nope"):
        turn(world, tmp_path / "run", flywheel__dpo={"verifier": "nope"})
    with pytest.raises(DataError, match="no row has the column nope"):
        turn(world, tmp_path / "run", flywheel__category="nope")


@pytest.mark.parametrize("name", ["start", "sft-0", "rl-12", "x (again)"])
def test_an_opponent_is_not_called_what_a_model_of_the_run_is(
    world: Path, tmp_path: Path, name: str
) -> None:
    opponents = [{"name": name, "answers": str(world / "experts-weak.jsonl")}]
    with pytest.raises(RecipeError, match="as a model of the run is called"):
        flywheel_recipe(world, tmp_path / "run", flywheel__opponents=opponents)


def test_ratings_need_an_anchor_that_fights_and_a_verdict_for_a_battle(
    world: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="'sft-1' is none of those who fight from the start"):
        flywheel_recipe(world, tmp_path / "run", flywheel__rating__anchor="sft-1")
    with pytest.raises(RecipeError, match="`votes` has no verdict for a whole battle"):
        flywheel_recipe(world, tmp_path / "run", flywheel__rating__merge="votes")
    for anchor in ("start", "weak"):
        flywheel_recipe(world, tmp_path / "run", flywheel__rating__anchor=anchor)


def test_a_judge_without_points_needs_margins_in_its_unit(world: Path, tmp_path: Path) -> None:
    plain = {"flywheel__judges": [{"scorer": "toy"}], "flywheel__strategies": ["sft"]}
    with pytest.raises(RecipeError) as caught:
        turn(world, tmp_path / "run", **plain)
    assert "flywheel.sft.k: has no default: the scores of toy are no points" in str(caught.value)
    assert "flywheel.sft.min_winner_score" in str(caught.value)
    flywheel_recipe(
        world, tmp_path / "run", flywheel__sft={"k": 0.1, "min_winner_score": None}, **plain
    )


def test_rows_without_a_passing_report_are_not_trained_on(world: Path, tmp_path: Path) -> None:
    from aligner.arena.testset.frozen import read_testset
    from aligner.methods.flywheel.selecting import rows_file
    from aligner.runs.stages import Stages

    turn(world, tmp_path / "run", flywheel__strategies=["sft"])
    folder = tmp_path / "run/rounds/01/sft/select"
    made_of = json.loads((folder / "stage.json").read_text())["made_of"]
    stage = Stages(tmp_path / "run").open("rounds/01/sft/select", made_of)
    tests = read_testset(world / "testset")
    assert rows_file(stage, tests) == folder / "train.jsonl"
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "completion": "row"}\n')
    with pytest.raises(DataError, match="is no passing report"):
        rows_file(stage, tests)


def test_an_unfinished_run_says_how_many_stages_are_done(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    turn(world, run, flywheel__strategies=["sft"])
    (run / "manifest.json").unlink()
    done = len(times(run))
    with pytest.raises(UsageError, match=f"an unfinished flywheel run, {done} stages of which are"):
        turn(world, run, flywheel__strategies=["sft"])


def test_a_folder_of_another_recipe_is_refused(world: Path, whole: Path) -> None:
    with pytest.raises(UsageError):
        turn(world, whole)
