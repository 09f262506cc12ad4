"""`aligner data show` at the front door: rows of recipes and files, folded, as JSON, as pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import BOS, EOS, save_model, write_jsonl
from runner import aligner

from aligner.cli import data_show

ODD = "ab\x1b[31m\u202e<b>c"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")
    write_jsonl(
        tmp_path / "rows.jsonl",
        [{"prompt": f"q{n}", "completion": f"a{n}" * (n + 1)} for n in range(6)],
    )
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": ODD, "rejected": "no"}])
    (tmp_path / "sft.yaml").write_text(
        "method: sft\nmodel: {name_or_path: model}\n"
        "data: {train: rows.jsonl, eval: 0.34, max_length: 60}\n"
    )
    (tmp_path / "reward.yaml").write_text(
        "method: reward\nmodel: {name_or_path: model}\ndata: {train: pairs.jsonl}\n"
        "reward: {kind: segment, segments: {rule: fixed, length: 2}}\n"
    )
    return tmp_path


def shown_as_json(*arguments: object) -> Any:
    done = aligner("data", "show", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_rows_of_a_file(folder: Path) -> None:
    done = aligner("data", "show", "rows.jsonl", "--model", "model", "--row", 2)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "row 2 of 6: rows.jsonl:2"
    assert "assistant  16      5" in lines
    # "q1" and its marks are read, the answer and the stop token are trained
    assert f"+ a1a1{EOS}" in lines
    assert f"  {BOS}<start>user\\n" in lines
    assert "\x1b" not in done.stdout, "no colours where no terminal is"


def test_a_long_file_is_read_as_far_as_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hash, no row behind those that are shown; how many there are is not known then."""
    monkeypatch.setattr(data_show, "READ_AT_LEAST", 4)
    monkeypatch.setattr("aligner.data.sources.file_record", lambda path: pytest.fail("was hashed"))
    rows = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(120)]
    write_jsonl(folder / "long.jsonl", rows)
    with (folder / "long.jsonl").open("a") as file:
        file.write("{broken\n")
    ask = ("data", "show", "long.jsonl", "--model", "model")
    first = aligner(*ask, "--row", 3)
    assert first.stdout.startswith("row 3 of more than 4: long.jsonl:3")
    assert "broken" not in first.output
    assert "row 8 of more than 8: long.jsonl:8" in aligner(*ask, "--row", 8).stdout
    last = aligner(*ask, "--row", 120)
    assert "row 120 of 120: long.jsonl:120" in last.stdout
    assert "1 broken row is left out" in last.stderr
    assert "there are 120 rows" in aligner(*ask, "--row", 121).stderr
    found = shown_as_json("long.jsonl", "--model", "model", "--row", 2)
    assert (found["rows"], found["shown"][0]["row"]) == (None, 2)
    page = aligner(*ask, "--row", 3, "--html", "row.html")
    assert page.exit_code == 0
    assert "more than 4" in (folder / "row.html").read_text()


def test_rows_of_a_long_file_are_drawn_from_all_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_show, "READ_AT_LEAST", 4)
    rows = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(200)]
    write_jsonl(folder / "long.jsonl", rows)
    (folder / "long.csv").write_text("prompt,completion\n" + "q,a\n" * 9)
    found = shown_as_json("long.jsonl", "--model", "model", "--random", "--rows", 30)["shown"]
    places = {int(one["origin"].removeprefix("row: long.jsonl:")) for one in found}
    assert len(places) == 30
    assert max(places) > 4
    assert {one["row"] for one in found} == {None}
    whole = shown_as_json("long.csv", "--model", "model", "--random", "--rows", 9)
    assert [one["row"] for one in whole["shown"]] == list(range(1, 10)), "read to its end"


def test_the_rows_of_a_recipe_are_those_that_it_trains_on(folder: Path) -> None:
    train = shown_as_json("sft.yaml", "--rows", 9)
    held_out = shown_as_json("sft.yaml", "--rows", 9, "--held-out")
    assert (train["rows"], held_out["rows"], train["max_length"]) == (4, 2, 60)
    origins = [one["origin"].split(": ")[1] for one in (*train["shown"], *held_out["shown"])]
    assert sorted(origins) == [f"rows.jsonl:{n}" for n in range(1, 7)]
    drawn = shown_as_json("sft.yaml", "--random", "--rows", 2)
    assert len({one["row"] for one in drawn["shown"]}) == 2


def test_settings_change_what_is_shown(folder: Path) -> None:
    (row,) = shown_as_json("sft.yaml", "sft.loss_on=all")["shown"]
    assert row["turns"][0]["trained"] > 0, "the question is trained, too"
    (long,) = shown_as_json("sft.yaml", "--row", 5, "data.eval=null", "data.max_length=30")["shown"]
    assert long["problem"].endswith("tokens, and data.max_length is 30")


def test_packed_sequences_say_which_row_begins_where(folder: Path) -> None:
    found = shown_as_json("sft.yaml", "data.eval=null", "--packed", "--rows", 9)
    sequences = [one["sequences"][0] for one in found["shown"]]
    begun = [name for one in sequences for name in one["marks"].values()]
    assert sorted(begun) == [f"rows.jsonl:{n}" for n in range(1, 7)]
    for one in sequences:
        places = list(map(int, one["marks"]))
        assert places[0] == 0
        assert all(one["tokens"][place]["text"] == BOS for place in places)
        assert len(one["tokens"]) <= 60
    refused = aligner("data", "show", "pairs.jsonl", "--model", "model", "--packed")
    assert refused.exit_code == 2
    pairs = aligner("data", "show", "reward.yaml", "--packed")
    assert (pairs.exit_code, "pairs are not packed" in pairs.output) == (2, True)


def test_segments_and_odd_characters_of_a_pair(folder: Path) -> None:
    done = aligner("data", "show", "reward.yaml")
    assert done.exit_code == 0, done.output
    assert "-- segment 1 --\n+ ab\n-- segment 2 --\n+ \\x1b[\n" in done.stdout
    assert "\\u202e" in done.stdout
    assert "\x1b" not in done.stdout
    by_entropy = aligner("data", "show", "reward.yaml", "reward.segments={rule: entropy}")
    assert "they need the reference model" in by_entropy.output
    assert "segment 1" not in by_entropy.stdout


def test_a_question_about_both_answers_has_no_turns_of_the_row(folder: Path) -> None:
    recipe = (folder / "reward.yaml").read_text().replace("kind: segment", "kind: pairwise")
    (folder / "pairwise.yaml").write_text(
        recipe.replace(", segments: {rule: fixed, length: 2}", "")
    )
    (pair,) = shown_as_json("pairwise.yaml")["shown"]
    assert pair["turns"] == []
    assert [one["name"] for one in pair["sequences"]] == ["row"]
    told = [note for note in pair["notes"] if note.startswith("trained to answer")]
    assert told in (["trained to answer 'A', and not 'B'"], ["trained to answer 'B', and not 'A'"])


def test_segments_by_entropy_are_those_that_a_run_has_found(folder: Path) -> None:
    """A run is made by hand: its tokenized pair, and the ends of its segments."""
    from datasets import Dataset

    from aligner.runs.files import write_checksums

    (pair,) = shown_as_json("reward.yaml")["shown"]
    ids = {one["name"]: [token["id"] for token in one["tokens"]] for one in pair["sequences"]}
    run = folder / "runs/segments"
    plan = aligner("plan", "reward.yaml", "reward.segments={rule: entropy}", "--json")
    run.mkdir(parents=True)
    (run / "resolved.json").write_text(plan.stdout)
    columns = {f"{name}_ids": [ids[name]] for name in ("prompt", "chosen", "rejected")}
    Dataset.from_dict(columns).save_to_disk(str(run / "prepared/train"))
    batching = {
        "packing": False,
        "grouped": False,
        "reason": "",
        "epoch_sizes": None,
        "steps": None,
    }
    (run / "prepared/batching.json").write_text(json.dumps(batching))
    write_checksums(run / "prepared")
    ends = {"chosen": [[1, len(ids["chosen"]) - 1]], "rejected": [[len(ids["rejected"]) - 1]]}
    (run / "prepared/segments-train.json").write_text(json.dumps(ends))
    (found,) = shown_as_json("runs/segments")["shown"]
    marks = {one["name"]: one["marks"] for one in found["sequences"]}
    assert marks["chosen"] == {"0": "segment 1", "2": "segment 2"}
    assert marks["rejected"] == {"0": "segment 1"}


def test_tokens_one_a_line_and_long_stretches_folded(folder: Path) -> None:
    write_jsonl(folder / "long.jsonl", [{"prompt": "x" * 300, "completion": "y" * 200}])
    whole = aligner("data", "show", "long.jsonl", "--model", "model", "--full")
    folded = aligner("data", "show", "long.jsonl", "--model", "model")
    assert "x" * 300 in whole.stdout
    assert "x" * 100 not in folded.stdout
    assert "+ ... 121 tokens ..." in folded.stdout.splitlines(), "201 trained ones, 80 are shown"
    lines = aligner("data", "show", "rows.jsonl", "--model", "model", "--tokens").stdout
    assert f"0      1    read     '{BOS}'" in lines.splitlines()


def test_a_page_holds_the_rows_and_runs_nothing_of_theirs(folder: Path) -> None:
    page = folder / "rows.html"
    done = aligner("data", "show", "pairs.jsonl", "--model", "model", "--html", page)
    assert (done.exit_code, done.stdout) == (0, f"wrote {page}\n"), done.output
    text = page.read_text("utf-8")
    assert "row 1 of 1: pairs.jsonl:1" in text
    assert "<b>c" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert 'class="tok on"' in text
    assert (
        aligner(*("data", "show", "pairs.jsonl", "--model", "model", "--html", page)).exit_code == 2
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rows.jsonl",), "none is named"),
        (("rows.jsonl", "--model", "model", "--row", "7"), "--row 7: there are 6 rows"),
        (("rows.jsonl", "--model", "model", "--random", "--row", "7"), "exclude each other"),
        (("rows.jsonl", "--model", "model", "data.max_length=3"), "DATA has none"),
        (("rows.jsonl", "--model", "model", "--held-out"), "--held-out is for a recipe"),
        (("sft.yaml", "--column", "prompt=question"), "are for DATA"),
        (("sft.yaml", "data.eval=null", "--held-out"), "holds no rows out"),
        (("sft.yaml", "data.trian=x"), "data.trian"),
        (("no.yaml",), "no.yaml"),
        (("tiny/mosaic",), "does not train on rows of its own"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    folder: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = aligner("data", "show", *arguments)
    assert done.exit_code == 2, done.output
    assert told in done.output
