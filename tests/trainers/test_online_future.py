"""Rounds with a temporary policy, from end to end: what it changes, and what is kept of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import SMALL, save_reward_model

from aligner.config.load import load_recipe
from aligner.methods.online.read_rounds import read_rounds
from aligner.methods.online.rounds import run_online
from aligner.methods.online.status import status_of

CARD = "kind: bradley_terry\nmodel: .\ndtype: float32\n"


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that ends its answers, and a random reward model that tells them apart."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(toy_world / "model", folder / "model")
    shutil.copy(toy_world / "prompts.jsonl", folder)
    save_reward_model(folder / "rm", card=CARD)
    return folder


def rounds(world: Path, run: Path, *, resume: bool = False, **changes: Any) -> None:
    settings = {
        **SMALL,
        "trainer.max_steps": 2,
        "model.name_or_path": str(world / "model"),
        "data.train": str(world / "prompts.jsonl"),
        "data.eval": 0.1,
        "output_dir": str(run),
        "online.rounds": 2,
        "online.prompts_per_round": 10,
        "online.num_samples": 4,
        "online.max_new_tokens": 12,
        "online.reward_models": [str(world / "rm")],
        "online.pairing": {"rule": "anchored"},
        "online.future": True,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    run_online(load_recipe("online", None, [], settings), resume=resume)


def pairs(run: Path, stage: str) -> list[dict[str, Any]]:
    text = (run / "rounds" / stage / "pairs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def start_of(run: Path, stage: str) -> str:
    resolved = json.loads((run / "rounds" / stage / "run" / "resolved.json").read_text())
    name: str = resolved["recipe"]["model"]["name_or_path"]
    return name


def weights_of(run: Path, stage: str) -> bool:
    return (run / "rounds" / stage / "run/final/model.safetensors").exists()


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end; read only."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    rounds(world, folder)
    return folder


def test_better_answers_of_the_temporary_policy_are_chosen_and_nothing_else_changes(
    whole: Path,
) -> None:
    from_future = 0
    for number in ("01", "02"):
        before, after = pairs(whole, f"{number}/pair"), pairs(whole, f"{number}/pair-future")
        assert len(before) == len(after) > 0
        for old, new in zip(before, after):
            assert new["rejected"] == old["rejected"]
            if new["written_by"][0] == "future":
                assert new["scores"][0] > old["scores"][0]
                from_future += 1
            else:
                assert new == old
    assert from_future, "no answer of a temporary policy was better: the test shows nothing"


def test_the_round_starts_where_the_temporary_policy_did(whole: Path, world: Path) -> None:
    assert start_of(whole, "01/train") == start_of(whole, "01/train-future")
    first = str(whole / "rounds/01/train/run/final")
    assert start_of(whole, "02/train") == start_of(whole, "02/train-future") == first


def test_status_lists_its_stages(whole: Path) -> None:
    rows = status_of(whole).rows
    assert "train-future sample-future score-future pair-future train" in rows[1][1]


def test_a_run_that_was_stopped_after_its_training_makes_the_same(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for stage in ("01/sample-future", "01/score-future", "01/pair-future", "01/train"):
        shutil.rmtree(run / "rounds" / stage)
    shutil.rmtree(run / "rounds/02")
    (run / "manifest.json").unlink()
    text = (run / "rounds/01/train-future/done.json").read_bytes()
    rounds(world, run, resume=True)
    assert (run / "rounds/01/train-future/done.json").read_bytes() == text
    for stage in ("01/pair-future", "02/pair-future"):
        assert pairs(run, stage) == pairs(whole, stage)


def test_weights_of_temporary_policies_go_with_those_of_rounds_and_come_back_where_needed(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert weights_of(run, "01/train-future"), "`keep: all`"
    (run / "manifest.json").unlink()
    rounds(world, run, resume=True, online__keep="last2")
    assert not weights_of(run, "01/train-future")
    assert weights_of(run, "01/train")
    # its answers are lost: it is trained again, and says the same
    shutil.rmtree(run / "rounds/01/sample-future")
    shutil.rmtree(run / "rounds/01/score-future")
    (run / "manifest.json").unlink()
    rounds(world, run, resume=True, online__keep="last2")
    assert pairs(run, "01/pair-future") == pairs(whole, "01/pair-future")


def test_without_it_the_pairs_of_before_are_trained_on(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    text = (run / "rounds/01/pair/done.json").read_bytes()
    (run / "manifest.json").unlink()
    rounds(world, run, resume=True, online__future=False)
    assert (run / "rounds/01/pair/done.json").read_bytes() == text, "nothing before is made again"
    data = json.loads((run / "rounds/01/train/run/data.json").read_text())
    assert data["sources"][0]["path"].endswith("rounds/01/pair/pairs.jsonl")


def test_scores_that_depend_on_their_call_are_refused(world: Path, tmp_path: Path) -> None:
    from aligner.errors import RecipeError

    card = tmp_path / "both.yaml"
    members = [str(world / "rm"), "verifier:regex=[a-m]"]
    card.write_text(f"kind: ensemble\nmembers: {json.dumps(members)}\nstandardize: true\n")
    with pytest.raises(RecipeError, match="brings the scores of one call to one scale"):
        rounds(world, tmp_path / "run", online__reward_models=[str(card)])


def test_the_report_shows_the_pairs_that_were_trained_on(whole: Path) -> None:
    assert ">from the future</th>" in (whole / "report.html").read_text(encoding="utf-8")
    first = read_rounds(whole).rounds[1]
    assert first.pairs(1) == pairs(whole, "01/pair-future")[:1]
    assert first.facts(first.pairing)["chosen from the future"] > 0.0
