"""Rounds with an oracle: its labels train the proxy, the new proxy scores, and a change makes again
what depends on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import small_recipe, write_rounds_world
from runner import aligner
from safetensors.torch import load_file

from aligner.errors import RecipeError
from aligner.events import Event, TableRow
from aligner.methods.online import query_stage
from aligner.methods.online.rounds import run_online
from aligner.reward_models.base import Scores
from aligner.runs.journal import Journal
from aligner.runs.result import RunResult

ORACLE = {
    "online__oracle__scorer": "toy",
    "online__oracle__budget": 12,
    "online__oracle__queries_per_round": 8,
    "online__oracle__refresh__learning_rate": 1e-3,
    "online__oracle__refresh__held_out": 0.25,
    "online__oracle__refresh__num_train_epochs": 4,
    "trainer__learning_rate": 1e-6,  # or the second round would say little that ends by itself
}


class Long:
    """An oracle that likes long responses, and counts what it is asked."""

    name, range = "long", (-1e9, 1e9)

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def score(self, prompts: Any, completions: Sequence[str], references: Any = None) -> Scores:
        self.asked.append((str(prompts[0]), *completions))
        return Scores([float(len(text)) for text in completions])

    def fingerprint(self) -> str:
        return "long"


@pytest.fixture(autouse=True)
def cache(own_cache: Path) -> Path:
    return own_cache


@pytest.fixture(autouse=True)
def oracle(monkeypatch: pytest.MonkeyPatch) -> Long:
    found = Long()
    monkeypatch.setattr(query_stage, "load_scorer", lambda spec: found)
    return found


@pytest.fixture(scope="module")
def world(toy_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounds_world(tmp_path_factory.mktemp("rounds"), toy_world)


def run(world: Path, folder: Path, *overrides: str, **options: Any) -> RunResult:
    flags = {**ORACLE, "online__rounds": 2, **options.pop("flags", {})}
    return run_online(small_recipe("online", world, folder, *overrides, **flags), **options)


@pytest.fixture(scope="module")
def finished(
    world: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Long, list[Event]]:
    """Two rounds: where they are, whom they asked, and what was told."""
    folder, found, told = tmp_path_factory.mktemp("finished"), Long(), list[Event]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNER_CACHE", str(folder / "cache"))
        patch.setattr(query_stage, "load_scorer", lambda spec: found)
        run(world, folder / "run", on_event=told.append)
    return folder / "run", found, told


def stage(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "rounds" / name / "done.json").read_text())
    return found


def made_of(folder: Path, name: str) -> dict[str, Any]:
    record = json.loads((folder / "rounds" / name / "stage.json").read_text())
    return dict(record["made_of"])


def made_at(folder: Path) -> dict[str, int]:
    files = sorted((folder / "rounds").glob("*/*/done.json"))
    return {
        str(file.parent.relative_to(folder / "rounds")): file.stat().st_mtime_ns for file in files
    }


def test_the_labels_train_the_proxy_that_scores_from_then_on(
    world: Path, finished: tuple[Path, Long, list[Event]]
) -> None:
    folder, oracle, told = finished
    first, second = (stage(folder, f"0{n}/query")["facts"] for n in (1, 2))
    assert (first["queries"], second["queries"]) == (8, 4), "eight a round, while the budget lasts"
    assert second["spent"] == len(oracle.asked) == len(set(oracle.asked)) == 12

    labels = json.loads((folder / "rounds/01/query/labels.json").read_text())
    for row in labels:
        longer = "a" if len(row["a"]) > len(row["b"]) else "b"
        assert row["label"] == ("tie" if len(row["a"]) == len(row["b"]) else longer)
    trained = (folder / "rounds/01/refresh/pairs.jsonl").read_text().splitlines()
    refresh = [stage(folder, f"0{n}/refresh")["facts"] for n in (1, 2)]
    assert refresh[0]["trained on"] == len(trained) == first["labels"] - refresh[0]["held out"]
    assert refresh[1]["trained on"] > refresh[0]["trained on"], "the labels of both rounds"
    for line in map(json.loads, trained):
        assert len(line["chosen"][0]["content"]) > len(line["rejected"][0]["content"])

    weights = [
        load_file(place / "model.safetensors")
        for place in (world / "rm", *(folder / f"rounds/0{n}/refresh/run/final" for n in (1, 2)))
    ]
    assert all((weights[0]["score.weight"] != other["score.weight"]).any() for other in weights[1:])
    names = [made_of(folder, name)["scorers"] for name in ("01/score", "01/rescore", "02/score")]
    assert names[0] != names[1] == names[2], "the proxy of round 1 scores until round 2's is there"
    assert stage(folder, "01/score")["files"] != stage(folder, "01/rescore")["files"]
    paired = made_of(folder, "01/pair")["responses and scores"]
    assert len(paired[0]) == 2

    rows = [event for event in told if isinstance(event, TableRow)]
    assert [row.cells["queries"] for row in rows] == ["", "8 of 12", "12 of 12"]


def test_held_out_responses_are_measured_with_the_original_proxy(
    finished: tuple[Path, Long, list[Event]],
) -> None:
    folder, *_ = finished
    scorers = [made_of(folder, f"0{n}/eval")["scorers"] for n in (0, 1, 2)]
    assert scorers[0] == scorers[1] == scorers[2]
    known = stage(folder, "02/refresh")["facts"]["accuracy"]
    assert set(known) == {"original", "before", "after"}
    assert all(0.0 <= value <= 1.0 for value in known.values())


def test_status_report_and_card_show_what_was_asked(
    finished: tuple[Path, Long, list[Event]],
) -> None:
    folder, *_ = finished
    header, _, one, two, *_ = aligner("online", "status", folder).stdout.splitlines()
    assert "queries" in header
    assert "oracle disagrees" in header
    assert "sample score query refresh rescore pair train eval" in one
    assert "12 of 12" in two
    report = (folder / "report.html").read_text()
    assert "Held-out labels that a proxy orders as the oracle does" in report
    assert 'href="rounds/01/refresh/run/report.html"' in report
    assert "labels of `toy`, of 12 queries" in (folder / "final/README.md").read_text()


def test_a_changed_selector_makes_again_what_is_asked_and_nothing_before(
    world: Path, tmp_path: Path, oracle: Long
) -> None:
    folder, flags = tmp_path / "run", {"online__rounds": 1, "online__oracle__queries_per_round": 4}
    run(world, folder, flags=flags)
    before = made_at(folder)
    change = {**flags, "online__oracle__selector": "uncertainty"}
    run(world, folder, flags=change, resume=True)
    after = made_at(folder)
    kept = {name for name in before if before[name] == after[name]}
    assert kept == {"00/eval", "01/sample", "01/score"}
    asked = len(oracle.asked)
    assert 4 < asked == len(set(oracle.asked)), "what both choose is asked once"
    run(world, folder, flags=flags, resume=True)
    assert len(oracle.asked) == asked, "the old choice is taken back"


def test_another_run_with_the_same_responses_asks_nothing(
    world: Path, tmp_path: Path, oracle: Long
) -> None:
    run(world, tmp_path / "one", flags={"online__rounds": 1})
    asked = len(oracle.asked)
    run(world, tmp_path / "two", flags={"online__rounds": 1})
    assert len(oracle.asked) == asked > 0
    pairs = [
        (tmp_path / name / "rounds/01/pair/pairs.jsonl").read_bytes() for name in ("one", "two")
    ]
    assert pairs[0] == pairs[1]
    assert stage(tmp_path / "two", "01/query")["facts"]["from the ledger"] == asked


def test_a_round_that_the_budget_does_not_reach_goes_on_with_the_last_proxy(
    world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(world, folder, flags={"online__oracle__budget": 8, "online__keep": "best"})
    assert not (folder / "rounds/02/query").exists()
    scorers = [made_of(folder, name)["scorers"] for name in ("01/rescore", "02/score")]
    assert scorers[0] == scorers[1]
    said = aligner("online", "status", folder).stdout.splitlines()
    assert said[-1].startswith("done")


@pytest.mark.slow
def test_proxies_that_are_not_kept_are_trained_again_where_they_are_needed(
    world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(world, folder, flags={"online__keep": "best"})
    weights = [folder / f"rounds/0{n}/refresh/run/final/model.safetensors" for n in (1, 2)]
    assert [file.exists() for file in weights] == [False, True]
    scores = folder / "rounds/02/score/scores-0.jsonl"
    known, last = scores.read_bytes(), Journal(scores)[2]
    scores.write_bytes(known[:-20])
    (folder / "manifest.json").unlink()
    run(world, folder, flags={"online__keep": "best"}, resume=True)
    assert Journal(scores)[2] == last


def test_without_a_label_the_proxy_stays(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Long, "score", lambda self, prompts, texts, _=None: Scores([1.0] * len(texts))
    )
    folder = tmp_path / "run"
    run(world, folder, flags={"online__rounds": 1})
    facts = stage(folder, "01/query")["facts"]
    assert (facts["labels"], facts["ties"], facts["disagree"]) == (0, 8, None)
    assert not (folder / "rounds/01/refresh/run").exists()
    scorers = [made_of(folder, name)["scorers"] for name in ("01/score", "01/rescore")]
    assert scorers[0] == scorers[1]


@pytest.mark.parametrize("selector", ["coreset_prompt", "random"])
def test_embeddings_and_selectors_run_on_the_policy_of_the_round(
    world: Path, tmp_path: Path, oracle: Long, selector: str
) -> None:
    flags = {"online__rounds": 1, "online__oracle__selector": selector}
    if selector.startswith("coreset"):
        flags["online__oracle__embedding"] = "policy"
    flags["online__oracle__refresh__start"] = "previous"
    run(world, tmp_path / "run", flags=flags)
    assert len(oracle.asked) == 8


def test_a_proxy_that_cannot_be_trained_is_refused_at_once(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="of the kind verifier"):
        run(world, tmp_path / "run", "online.reward_models=[verifier:number]")
    with pytest.raises(RecipeError, match=r"online\.oracle\.scorer: there is no scorer"):
        run(world, tmp_path / "run", "online.oracle.scorer=nobody")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_how_many_queries_there_are(world: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    run(world, tmp_path / "run", dry_run=True, on_event=told.append)
    assert any("('queries', '12', 'of toy, 8 in a round at most')" in str(event) for event in told)
