"""`aligner arena testset` as it is typed: build, freeze, verify, drop, resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes import save_model, write_jsonl
from runner import aligner

BUILD, VERIFY = ("arena", "testset", "build"), ("arena", "testset", "verify")
TOPICS = {
    "sheep": "farm sheep meadow wool shepherd grass goats",
    "stars": "galaxy star telescope orbit planet comet nebula",
    "bread": "flour yeast oven dough loaf crust baker",
}
GRADER = """
def length(prompt, completion, reference):
    assert "hard to follow" in prompt
    open(__file__ + ".log", "a").write("x")
    return float(len(completion))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool of 90 prompts in three topics, in `pool.jsonl`."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(90):
        topic = [*TOPICS][number % 3]
        words = TOPICS[topic].split()
        said = " ".join(words[(number // 3 + step * step) % 7] for step in range(9))
        rows.append(
            {
                "uid": f"q{number:02}",
                "prompt": f"Prompt {number} of {number * 7}: {said} and {number % 11} more?",
                "category": topic,
                "level": number % 10,
            }
        )
    write_jsonl(tmp_path / "pool.jsonl", rows)
    return tmp_path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def build(*arguments: object) -> dict[str, Any]:
    """What a build that succeeds prints."""
    done = aligner(*BUILD, "pool.jsonl", "-o", "set", "--clusters", 3, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_test_set_is_built_and_frozen(folder: Path) -> None:
    done = aligner(*BUILD, "pool.jsonl", "-o", "set", "--clusters", 3, "--difficulty", "level")
    assert done.exit_code == 0, done.output
    assert "diverse" in done.stdout
    assert "warning: prompts are embedded by their words (TF-IDF)" in done.stderr
    rows = lines(folder / "set/items.jsonl")
    assert [row["subset"] for row in rows] == ["diverse"] * 6 + ["hard"] * 6
    assert {row["prompt_id"] for row in rows} <= {f"q{number:02}" for number in range(90)}
    assert len({row["cluster"] for row in rows if row["subset"] == "diverse"}) == 3
    assert {row["difficulty"] for row in rows if row["subset"] == "hard"} <= {8, 9}
    manifest = json.loads((folder / "set/manifest.json").read_text())
    assert manifest["pool"]["files"][0]["path"] == "pool.jsonl"
    assert sum(manifest["clusters"]["sizes"]) == 90
    labels = json.loads((folder / "set/clusters.json").read_text())
    topics = {row["uid"]: row["category"] for row in lines(folder / "pool.jsonl")}
    assert len({(labels[name], topics[name]) for name in topics}) == 3
    split = [*lines(folder / "set/dev.jsonl"), *lines(folder / "set/test.jsonl")]
    assert sorted(row["prompt_id"] for row in split) == sorted(row["prompt_id"] for row in rows)
    checked = aligner(*VERIFY, "set")
    assert checked.exit_code == 0
    assert "is what was frozen: 12 items" in checked.stdout


def test_the_same_seed_builds_the_same_and_another_does_not(folder: Path) -> None:
    first = build()
    digest = json.loads((folder / "set/manifest.json").read_text())["sha256"]
    build("--overwrite")
    assert json.loads((folder / "set/manifest.json").read_text())["sha256"] == digest
    build("--overwrite", "--seed", 1)
    assert json.loads((folder / "set/manifest.json").read_text())["sha256"] != digest
    assert first["items"] == 6


def test_a_changed_item_is_noticed(folder: Path) -> None:
    build()
    path = folder / "set/test.jsonl"
    path.write_text(path.read_text().replace("Prompt", "prompt"))
    done = aligner(*VERIFY, "set")
    assert done.exit_code == 3
    assert "test.jsonl is not what was frozen" in done.output


def test_a_rater_says_how_hard_prompts_are(folder: Path) -> None:
    (folder / "grader.py").write_text(GRADER)
    record = build("--rater", "verifier:grader.py:length", "--hard-per-cluster", 4, "--hard", 3)
    assert record["rater"]["name"] == "verifier:grader.py:length"
    hard = [row for row in lines(folder / "set/items.jsonl") if row["subset"] == "hard"]
    assert [row["difficulty"] for row in hard] == [len(row["prompt"]) for row in hard]
    assert len(hard) == 3


def test_a_model_in_a_folder_embeds(folder: Path) -> None:
    save_model(folder / "model")
    record = build("--embedding", "model")
    assert record["embedding"]["name"] == "model"
    assert record["items"] == 6


def test_what_was_embedded_before_a_stop_is_not_embedded_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.arena.testset import embedding
    from aligner.models.encoders import Encoder

    save_model(folder / "model")
    monkeypatch.setattr(embedding, "AT_ONCE", 30)
    whole, calls = Encoder.vectors, []

    def stopped(encoder: Encoder, texts: list[str]) -> Any:
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(encoder, texts)

    monkeypatch.setattr(Encoder, "vectors", stopped)
    arguments = (*BUILD, "pool.jsonl", "-o", "set", "--clusters", 3, "--embedding", "model")
    assert aligner(*arguments).exit_code != 0
    assert "was started and not finished" in aligner(*arguments).output
    assert aligner(*arguments, "--seed", 4, "--resume").exit_code == 2
    done = aligner(*arguments, "--resume")
    assert done.exit_code == 0, done.output
    assert calls == [30, 30, 30, 30]
    assert not (folder / "set/items.jsonl.part").exists()


def test_a_build_that_stops_before_any_of_its_files_is_resumed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the header, dev, test, clusters, manifest and items are in their place."""
    arguments = (*BUILD, "pool.jsonl", "--clusters", 3, "--difficulty", "level", "-o")
    assert aligner(*arguments, "whole").exit_code == 0
    replace = os.replace
    for place in range(1, 7):
        calls = []

        def stopped(source: Any, target: Any, place: int = place, calls: Any = calls) -> None:
            calls.append(target)
            if len(calls) == place:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopped)
            assert aligner(*arguments, f"set{place}").exit_code != 0
        assert not (folder / f"set{place}/items.jsonl").exists()
        assert aligner(*VERIFY, f"set{place}").exit_code == 3
        done = aligner(*arguments, f"set{place}", "--resume")
        assert done.exit_code == 0, done.output
        for name in ("items.jsonl", "dev.jsonl", "test.jsonl", "clusters.json", "manifest.json"):
            assert (folder / f"set{place}" / name).read_bytes() == (
                folder / "whole" / name
            ).read_bytes()


def write_data(folder: Path) -> None:
    """Training rows of which the third and the last hold test prompts."""
    items = lines(folder / "set/items.jsonl")
    rows = [{"prompt": f"Question {number}", "completion": "yes"} for number in range(5)]
    rows[2]["completion"] = f"As they say: {items[0]['prompt']}"
    rows.append({"prompt": items[1]["prompt"].upper(), "completion": "no"})
    write_jsonl(folder / "train.jsonl", rows)


def test_data_that_overlap_are_refused_until_the_rows_are_dropped(folder: Path) -> None:
    build()
    write_data(folder)
    done = aligner(*VERIFY, "set", "--against", "train.jsonl")
    assert done.exit_code == 3
    assert "2 rows overlap with the test set" in done.stderr
    assert "ngram: train.jsonl:3 and q" in done.stdout
    dropped = aligner(*VERIFY, "set", "--against", "train.jsonl", "--drop-to", "clean.jsonl")
    assert dropped.exit_code == 0, dropped.output
    assert len(lines(folder / "clean.jsonl")) == 4
    again = aligner(*VERIFY, "set", "--against", "clean.jsonl", "--json")
    assert again.exit_code == 0
    record = json.loads(again.stdout)
    assert record["passes"]
    assert record["rows"] == 4
    assert len([*(folder / "set/decontamination").iterdir()]) == 2


def test_vectors_of_a_model_that_were_compared_before_a_stop_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.arena.testset import verify
    from aligner.models.encoders import Encoder

    build()
    write_data(folder)
    save_model(folder / "model")
    arguments = (*VERIFY, "set", "--against", "train.jsonl", "--embedding", "model")
    arguments = (*arguments, "--nearest", 1, "--drop-to", "clean.jsonl")
    whole = json.loads(aligner(*arguments, "--json").stdout)
    (folder / "clean.jsonl").unlink()
    monkeypatch.setattr(verify, "AT_ONCE", 2)
    vectors, calls = Encoder.vectors, []

    def stopped(encoder: Encoder, texts: list[str]) -> Any:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return vectors(encoder, texts)

    monkeypatch.setattr(Encoder, "vectors", stopped)
    ended = aligner(*arguments)
    assert ended.exit_code != 0
    assert "the same command continues" in ended.output
    done = json.loads(aligner(*arguments, "--json").stdout)
    assert calls == [6, 2, 2, 6, 2, 2]  # items, then rows by two; the first two are known
    assert done == whole
    assert not [*(folder / "set/decontamination").glob("*.part")]


def test_benchmarks_are_held_against_the_data_too(folder: Path) -> None:
    build()
    question = "How many of the twelve apples that Ann bought on Monday are left today, and why?"
    write_jsonl(folder / "bench.jsonl", [{"question": question, "answer": "3"}])
    write_jsonl(folder / "train.jsonl", [{"prompt": question, "completion": "x"}])
    more = ("--benchmark", "bench.jsonl", "--benchmark-column", "prompt=question")
    done = aligner(*VERIFY, "set", "--against", "train.jsonl", *more, "--json")
    assert done.exit_code == 3
    record = json.loads(done.stdout)
    assert record["layers"]["exact"]["examples"][0]["item"] == "bench.jsonl:1"
    assert record["benchmarks"][0]["path"] == "bench.jsonl"
    assert aligner(*VERIFY, "set", "--against", "train.jsonl").exit_code == 0


def test_a_folder_of_something_else_is_left_alone(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run/manifest.json").write_text('{"finished": "now", "files": {}}')
    for more in ((), ("--overwrite",)):
        done = aligner(*BUILD, "pool.jsonl", "-o", "run", *more)
        assert done.exit_code == 2
        assert "run holds manifest.json, which is not of a test set" in done.output
    assert "finished" in (folder / "run/manifest.json").read_text()


def test_columns_can_be_named(folder: Path) -> None:
    build()
    prompt = lines(folder / "set/items.jsonl")[0]["prompt"]
    write_jsonl(folder / "qa.jsonl", [{"question": prompt, "answer": "x"}])
    columns = ("--column", "prompt=question", "--column", "completion=answer")
    done = aligner(*VERIFY, "set", "--against", "qa.jsonl", *columns, "--json")
    assert done.exit_code == 3
    assert json.loads(done.stdout)["layers"]["exact"]["rows"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((*BUILD, "none.jsonl", "-o", "x"), 3, "there is no file or folder none.jsonl"),
        ((*BUILD, "pool.jsonl", "-o", "x", "--hard", "5"), 2, "nothing says how hard"),
        ((*BUILD, "pool.jsonl", "-o", "x", "--difficulty", "a", "--rater", "toy"), 2, "exclude"),
        ((*BUILD, "pool.jsonl", "-o", "x", "--difficulty", "mood"), 3, "mood is missing"),
        ((*BUILD, "pool.jsonl", "-o", "x", "--rater", "nobody"), 2, "there is no scorer 'nobody'"),
        ((*BUILD, "pool.jsonl", "-o", "x", "--embedding", "a/b"), 2, "there is no folder a/b"),
        ((*BUILD, "pool.jsonl", "-o", "set"), 2, "items.jsonl exists"),
        ((*VERIFY, "x"), 3, "x holds no test set"),
        ((*VERIFY, "set", "--drop-to", "y.jsonl"), 2, "add --against"),
        ((*VERIFY, "set", "--overwrite"), 2, "add --drop-to"),
        ((*VERIFY, "set", "--benchmark", "pool.jsonl"), 2, "add --against"),
        (
            (*VERIFY, "set", "--against", "train.jsonl", "--drop-to", "set/x.jsonl"),
            2,
            "in the folder of the data",
        ),
        ((*VERIFY, "set", "--against", "train.jsonl", "--drop-to", "train.jsonl"), 2, "the data"),
        ((*VERIFY, "set", "--against", "gone.jsonl"), 3, "there is no file or folder gone.jsonl"),
        ((*VERIFY, "set", "--against", "pool.jsonl", "--embedding", "q"), 2, "no folder q"),
    ],
)
def test_what_is_wrong_is_said(
    folder: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    build()
    write_data(folder)
    done = aligner(*arguments)
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.split())


def test_a_training_refuses_rows_that_were_not_held_against_its_test_set(
    folder: Path, toy_world: Path
) -> None:
    build()
    item = lines(folder / "set/items.jsonl")[0]["prompt"]
    clean = [{"prompt": f"What is {word}?", "completion": word} for word in ("wool", "dough")]
    write_jsonl(folder / "one.jsonl", [*clean, {"prompt": item, "completion": "x"}])
    write_jsonl(folder / "two.jsonl", clean)

    def train(*data: str) -> tuple[int, str]:
        model = f"model.name_or_path={toy_world / 'model'}"
        sources = f"data.train={json.dumps(data)}"
        done = aligner("sft", model, sources, "data.test_set=set", "output_dir=run", "--dry-run")
        return done.exit_code, done.output

    code, said = train("two.jsonl")
    assert code == 3
    assert "nothing says that two.jsonl does not overlap with set" in said
    assert "aligner arena testset verify set --against two.jsonl" in said
    assert aligner(*VERIFY, "set", "--against", "two.jsonl").exit_code == 0
    assert train("two.jsonl")[0] == 0
    code, said = train("two.jsonl", "one.jsonl")
    assert (code, "nothing says that one.jsonl does not" in said) == (3, True)
    assert aligner(*VERIFY, "set", "--against", "one.jsonl").exit_code == 3
    code, said = train("one.jsonl")
    assert (code, "1 row of one.jsonl overlaps with set" in said) == (3, True)
    dropped = ("--against", "one.jsonl", "--drop-to", "rest.jsonl")
    assert aligner(*VERIFY, "set", *dropped).exit_code == 0
    assert train("two.jsonl", "rest.jsonl")[0] == 0


def test_one_report_on_all_sources_is_enough(folder: Path, toy_world: Path) -> None:
    build()
    for name in ("one", "two"):
        write_jsonl(folder / f"{name}.jsonl", [{"prompt": f"Say {name}.", "completion": name}])
    both = ("--against", "one.jsonl", "--against", "two.jsonl")
    assert aligner(*VERIFY, "set", *both).exit_code == 0
    given = (f"model.name_or_path={toy_world / 'model'}", "data.train=[two.jsonl, one.jsonl]")
    done = aligner("sft", *given, "data.test_set=set", "output_dir=run", "--dry-run")
    assert done.exit_code == 0, done.output


def test_only_trainings_take_a_test_set(folder: Path) -> None:
    build()
    given = ("data.train=pool.jsonl", "data.test_set=set", "output_dir=mosaics")
    done = aligner("mosaic", *given)
    assert done.exit_code == 2
    assert "data.test_set" in done.output
    assert "aligner arena testset verify" in done.output
