"""`aligner data select` at the front door: what it prints, where it points, and labels read
back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Answer, FakeEndpoint
from fakes import save_model, write_jsonl
from runner import aligner


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = (
        {"prompt": f"sort: {word}", "responses": ["".join(sorted(word)), "no"]}
        for word in ("ba", "dcb", "fed")
    )
    write_jsonl(tmp_path / "candidates.jsonl", rows)
    return tmp_path


SELECT = (
    "data",
    "select",
    "--candidates",
    "candidates.jsonl",
    "--output",
    "out",
    "select.budget=2",
)


def test_the_group_names_its_command() -> None:
    shown = " ".join(aligner("data", "--help").output.split())
    assert "select Choose pairs for an expert to label, and read the labels back." in shown
    help_text = aligner("data", "select", "--help").output
    assert "Usage: aligner data select [RECIPE] [KEY=VALUE ...] [OPTIONS]" in " ".join(
        help_text.split("\n")[:2]
    )
    assert "aligner data select tiny/select" in help_text


def test_what_was_chosen_is_printed_with_what_comes_next(folder: Path) -> None:
    done = aligner(*SELECT, "--reward_models", "toy")
    assert done.exit_code == 0, done.output
    assert "to be labelled" in done.output
    assert "aligner data select out --labels FILE" in done.output
    assert len((folder / "out" / "to_label.jsonl").read_text().splitlines()) == 2
    shown = aligner("runs", "show", "out", "--json")
    assert json.loads(shown.output)["method"] == "select"
    (folder / "out" / "report.html").unlink()
    assert aligner("runs", "report", "out").exit_code == 0
    assert (folder / "out" / "report.html").exists()


def test_the_loop_runs_without_a_human(folder: Path) -> None:
    assert aligner(*SELECT, "select.strategy=diversity").exit_code == 0
    done = aligner("data", "select", "out", "--oracle", "toy")
    assert done.exit_code == 0, done.output
    assert "aligner reward RECIPE data.train=out/labelled.jsonl" in done.output
    rows = [
        json.loads(line) for line in (folder / "out" / "labelled.jsonl").read_text().splitlines()
    ]
    assert {row["rejected"] for row in rows} == {"no"}
    again = aligner("data", "select", "out", "--oracle", "toy", "--json")
    assert json.loads(again.stdout)["results"]["labelled"] == 2.0


def test_labels_are_read_for_a_recipe_as_for_its_run_directory(folder: Path) -> None:
    (folder / "r.yaml").write_text(
        "method: select\noutput_dir: out\nselect: {candidates: candidates.jsonl, strategy: "
        "random, budget: 2}\n"
    )
    assert aligner("data", "select", "r.yaml").exit_code == 0
    rows = [
        json.loads(line) for line in (folder / "out" / "to_label.jsonl").read_text().splitlines()
    ]
    write_jsonl(folder / "labels.jsonl", [{"id": rows[0]["id"], "label": "tie"}])
    done = aligner("data", "select", "r.yaml", "--labels", "labels.jsonl", "--json")
    assert json.loads(done.stdout)["results"]["ties"] == 1.0
    write_jsonl(folder / "labels.jsonl", [{"id": rows[0]["id"], "label": "better"}])
    done = aligner("data", "select", "out", "--labels", "labels.jsonl")
    assert done.exit_code == 3
    assert "labels.jsonl:1" in done.output
    assert "'better'" in done.output


def test_options_of_a_selection_make_no_sense_for_labels(folder: Path) -> None:
    assert aligner(*SELECT, "select.strategy=random").exit_code == 0
    done = aligner("data", "select", "out", "--oracle", "toy", "--overwrite")
    assert done.exit_code == 2
    assert "--overwrite" in done.output


def test_flags_of_models_are_those_of_the_policy(folder: Path) -> None:
    save_model(folder / "policy")
    write_jsonl(
        folder / "prompts.jsonl", [{"prompt": f"sort: {word}"} for word in ("ba", "cb", "dc")]
    )
    done = aligner(
        *(
            "data",
            "select",
            "--data",
            "prompts.jsonl",
            "--model",
            "policy",
            "--dtype",
            "float32",
            "--output",
            "on-policy",
        ),
        *(
            "select.strategy=random",
            "select.max_new_tokens=5",
            "select.keep_unfinished=true",
            "select.budget=2",
        ),
    )
    assert done.exit_code == 0, done.output
    recipe = json.loads((folder / "on-policy" / "resolved.json").read_text())["recipe"]
    assert recipe["select"]["policy"]["dtype"] == "float32"
    assert recipe["select"]["policy"]["name_or_path"] == "policy"


def test_a_section_of_another_method_names_the_command_in_full(folder: Path) -> None:
    (folder / "r.yaml").write_text("method: select\n")
    done = aligner("dpo", "r.yaml")
    assert "run `aligner data select` with it" in done.output


def test_an_ensemble_of_itself_and_a_model_named_twice_are_mistakes_of_the_recipe(
    folder: Path,
) -> None:
    (folder / "round.yaml").write_text("kind: ensemble\nmembers: [./round.yaml]\n")
    done = aligner(*SELECT, "--reward_models", "round.yaml")
    assert done.exit_code == 2
    assert "is a member of itself: round -> round" in done.output
    done = aligner(*SELECT, "select.reward_models=[toy, toy]")
    assert done.exit_code == 2
    assert "counts toy twice" in done.output
    assert not (folder / "out").exists()


def test_pairs_without_a_verdict_are_named_on_the_screen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNER_CACHE", str(folder / "cache"))

    def reply(body: dict[str, Any]) -> Answer:
        return Answer(text="no idea" if "dcb" in json.dumps(body) else "Better: A")

    with FakeEndpoint(reply) as server:
        endpoint = f"{{model: toy, base_url: '{server.base_url}', max_retries: 0}}"
        (folder / "judge.yaml").write_text(f"kind: judge\nendpoint: {endpoint}\n")
        done = aligner(*SELECT, "--reward_models", "judge.yaml")
        assert done.exit_code == 0, done.output
        shown = " ".join(done.output.split())
        assert (
            "judge.yaml gave no verdict on 1 pairs, which are left out. candidates.jsonl:2:"
            in shown
        )
        assert (
            aligner(
                *SELECT[:-1], "select.strategy=random", "select.budget=3", "--output", "all"
            ).exit_code
            == 0
        )
        done = aligner("data", "select", "all", "--oracle", "judge.yaml")
    assert done.exit_code == 3
    assert "no verdict on 1 of 3 pairs" in " ".join(done.output.split())
    (lost,) = (
        row["id"]
        for row in map(json.loads, (folder / "all" / "to_label.jsonl").read_text().splitlines())
        if "dcb" in row["prompt"]
    )
    assert lost in done.output
    assert len((folder / "all" / "labels.jsonl").read_text().splitlines()) == 2
