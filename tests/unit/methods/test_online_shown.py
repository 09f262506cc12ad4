"""What is shown of a run of `aligner online`: lines and rows, status, report, card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from online_run import ROUNDS, online_run
from runner import aligner

from aligner.events import TableRow
from aligner.methods.online.words import measured_cells, round_line

PART = {"reward": 0.61, "gold": 0.55, "kl": 3.14, "tokens": 45.04, "finished": 0.98}
FACTS = {
    "validation": PART,
    "test": {**PART, "gold": None},
    "wins": {"start": {"value": 0.61, "low": 0.549, "high": 0.67, "prompts": 9}},
}


@pytest.fixture(scope="module")
def finished(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("online") / "run"
    found = online_run(toy_world, folder)
    assert found.exit_code == 0, found.output
    lines = [line for line in found.stderr.splitlines() if ": reward " in line]
    assert [line.split(":")[0] for line in lines] == ["start", "round 1", "round 2"]
    assert "against the start" in lines[2]
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def half_done(run: Path) -> Path:
    """Take away what comes after the pairs of round 2."""
    for name in ("manifest.json", "rounds.json", "rounds/02/train/done.json"):
        (run / name).unlink()
    for name in ("final", "rounds/02/eval"):
        shutil.rmtree(run / name)
    return run


def test_a_round_in_one_line() -> None:
    assert round_line(2, FACTS) == (
        "round 2: reward 0.610, gold 0.550, KL 3.14, 45.0 tokens, 98% finished, "
        "wins 61% (55% to 67%) against the start"
    )
    start = {"validation": {**PART, "gold": None}, "test": None, "wins": {}}
    assert round_line(0, start) == "start: reward 0.610, 45.0 tokens, 98% finished"


def test_what_was_not_measured_is_left_empty() -> None:
    assert measured_cells(FACTS, "test")["gold"] == ""
    assert set(measured_cells({}).values()) == {""}


def test_status_of_a_finished_run(finished: Path) -> None:
    found = aligner("online", "status", finished)
    header, *rows = found.stdout.splitlines()
    assert header.split()[:6] == ["round", "stages", "pairs", "reward", "gold", "KL"]
    assert [row.split()[0] for row in rows[:3]] == ["start", "1", "2"]
    assert rows[2].split()[1:6] == ["sample", "score", "pair", "train", "eval"]
    assert rows[-1].startswith("done; the best round is ")


def test_status_for_programs_has_numbers(finished: Path) -> None:
    found = json.loads(aligner("online", "status", finished, "--json").stdout)
    assert [one["round"] for one in found["rounds"]] == [0, 1, 2]
    stages = found["rounds"][2]["stages"]
    assert list(stages) == ["sample", "score", "pair", "train", "eval"]
    measured = json.loads((finished / "rounds.json").read_text())["rounds"][2]
    assert stages["eval"]["validation"]["gold"] == measured["validation"]["gold"]
    assert found["remark"].startswith("done")


def test_status_of_a_half_done_run(run: Path) -> None:
    half_done(run)
    said = aligner("online", "status", run).stdout.splitlines()
    assert said[3].split()[:4] == ["2", "sample", "score", "pair"]
    steps = len((run / "rounds/02/train/run/metrics.jsonl").read_text().splitlines())
    assert steps > 1
    assert said[-1].startswith(
        "stopped; the same command with --resume continues; next: train of round 2 of 2, at step "
    )
    facts = json.loads(aligner("online", "status", run, "--json").stdout)["rounds"][2]["stages"]
    assert facts["train"] is None
    assert facts["eval"] is None


def test_status_of_a_run_that_was_killed_in_the_middle_of_a_stage(run: Path) -> None:
    shutil.rmtree(run / "rounds" / "02")
    (run / "manifest.json").unlink()
    stage = run / "rounds" / "02" / "sample"
    shutil.copytree(run / "rounds" / "01" / "sample", stage)
    (stage / "done.json").unlink()
    said = aligner("online", "status", run).stdout.splitlines()
    assert said[-1].endswith("next: sample of round 2 of 2, 1 shard done")


def test_a_run_that_is_being_worked_on_is_running(run: Path) -> None:
    from aligner.runs.lock import acquire_lock, release_lock

    half_done(run)
    acquire_lock(run)
    try:
        said = aligner("online", "status", run).stdout.splitlines()
    finally:
        release_lock(run)
    assert said[-1].startswith("running; next: train of round 2 of 2")
    assert aligner("online", "status", run).stdout.splitlines()[-1].startswith("stopped")


def test_status_of_what_is_no_such_run(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "empty").mkdir()
    inner = finished / "rounds" / "01" / "train" / "run"
    for place, reason in (
        (tmp_path / "nowhere", "it is not there"),
        (tmp_path / "empty", "it has no resolved.json"),
        (inner, "is a run of `aligner dpo`"),
    ):
        found = aligner("online", "status", place)
        assert found.exit_code == 2, found.output
        assert reason in found.stderr
        assert str(place) in found.stderr


@pytest.mark.parametrize("arguments", [(), ("a", "b")])
def test_status_wants_one_run(arguments: tuple[str, ...]) -> None:
    found = aligner("online", "status", *arguments)
    assert found.exit_code == 2
    assert f"{len(arguments)} were given" in found.stderr
    assert "./status" in found.stderr


@pytest.mark.parametrize("option", ["--resume", "--dry-run", "--overwrite"])
def test_options_of_runs_do_not_go_with_status(option: str, finished: Path) -> None:
    found = aligner("online", "status", finished, option)
    assert found.exit_code == 2
    assert f"{option} has no effect on `online status`" in found.stderr


def test_a_recipe_called_status_is_still_a_recipe(
    tmp_path: Path, toy_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "method: online\nonline:\n  reward_models: [toy]\ndata:\n  eval: 0.25\n"
    text += f"  train: {toy_world}/prompts.jsonl\nmodel:\n  name_or_path: {toy_world}/model\n"
    Path("status").write_text(text)
    found = aligner("online", "./status", "--dry-run", *ROUNDS, "output_dir=run")
    assert found.exit_code == 0, found.output
    Path("run.yaml").write_text(text)
    Path("status").unlink()
    Path("status").mkdir()
    found = aligner("online", "run.yaml", "--dry-run", *ROUNDS, "output_dir=status")
    assert found.exit_code == 0, found.output


def test_help_says_that_there_is_a_status() -> None:
    assert "aligner online status RUN" in aligner("online", "--help").stdout
    assert "status RUN" not in aligner("dpo", "--help").stdout


def test_the_report_shows_rounds_pairs_and_answers(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    for anchor in ("rounds", "curves", "pairs", "lengths", "samples", "recipe", "lineage"):
        assert f'<section id="{anchor}">' in text, anchor
    assert "rounds/02/train/run/report.html" in text
    assert (finished / "rounds/02/train/run/report.html").exists()
    row = json.loads((finished / "rounds/01/pair/pairs.jsonl").read_text().splitlines()[0])
    for side in ("chosen", "rejected"):
        from html import escape

        said = str(escape(row[side][-1]["content"])).replace("&#x27;", "&#39;")
        assert said.strip() in text or "(empty answer)" in text
    lost = json.loads((finished / "rounds/01/pair/done.json").read_text())["facts"]["lost"]
    assert all(why in text for why in lost)


def test_what_comes_from_outside_is_escaped_in_the_report(run: Path) -> None:
    place = run / "rounds/01/pair/pairs.jsonl"
    row = json.loads(place.read_text().splitlines()[0])
    row["chosen"][-1]["content"] = "<script>alert(1)</script>"
    row["prompt"][-1]["content"] = "<b>bold</b>"
    place.write_text(json.dumps(row) + "\n")
    assert aligner("runs", "report", run).exit_code == 0
    text = (run / "report.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<b>bold" not in text


def test_the_report_of_an_unfinished_run_says_how_far_it_is(run: Path) -> None:
    half_done(run)
    assert aligner("runs", "report", run).exit_code == 0
    text = (run / "report.html").read_text()
    assert "after 1 of 2 rounds" in text
    assert "next: train of round 2 of 2" in text
    assert "not measured yet" in text


def test_a_run_that_has_just_started_has_a_report(run: Path) -> None:
    shutil.rmtree(run / "rounds")
    (run / "manifest.json").unlink()
    (run / "rounds.json").unlink()
    assert aligner("runs", "report", run).exit_code == 0
    assert "Nothing was measured yet" in (run / "report.html").read_text()


def test_the_report_says_why_rounds_ended_early(run: Path) -> None:
    known = json.loads((run / "rounds.json").read_text())
    known["stopped"] = "the KL is <too> large"
    (run / "rounds.json").write_text(json.dumps(known))
    assert aligner("runs", "report", run).exit_code == 0
    assert "ended early: the KL is &lt;too&gt; large" in (run / "report.html").read_text()
    assert aligner("online", "status", run).stdout.rstrip().endswith("the KL is <too> large")


def test_the_card_says_which_round_it_is_and_how_it_was_chosen(finished: Path) -> None:
    best = json.loads((finished / "rounds.json").read_text())["best"]
    card = (finished / "final" / "README.md").read_text()
    assert f"| {best} (this model) | validation |" in card
    assert "The best round is the one with the highest gold on 5 validation prompts" in card
    assert "5 test prompts have no say in it" in card


def test_rounds_are_told_as_rows(toy_world: Path, tmp_path: Path) -> None:
    import aligner as library

    events: list[object] = []
    scorer = tmp_path / "variety.py"
    scorer.write_text("def score(prompt, response, answer):\n    return len(set(response))\n")
    settings = {
        "model.name_or_path": str(toy_world / "model"),
        "data.train": str(toy_world / "prompts.jsonl"),
        "data.eval": 0.25,
        "data.max_length": 64,
        "output_dir": str(tmp_path / "run"),
        "online.rounds": 1,
        "online.num_samples": 2,
        "online.max_new_tokens": 6,
        "online.reward_models": [f"verifier:{scorer}:score"],
        "trainer.max_steps": 1,
    }
    library.train("online", overrides=settings, on_event=events.append)
    rows = [event for event in events if isinstance(event, TableRow)]
    assert [row.cells["round"] for row in rows] == ["start", "1"]
    assert [row.is_best for row in rows] == [False, True]
    assert rows[1].title.endswith(f"best so far: 1, reward {rows[1].cells['reward']}")
    assert rows[1].line.startswith("round 1: reward ")
