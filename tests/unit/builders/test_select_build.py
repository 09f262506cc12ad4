"""`aligner data select` as a run: files in and out, a kill at any moment, what is refused, labels
read back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import Answer, Continues, FakeEndpoint
from fakes import save_model, write_jsonl
from transformers import AutoModelForCausalLM, AutoTokenizer

from aligner import events
from aligner.builders.select.build import run_select
from aligner.builders.select.candidates import read_candidates, read_labelled
from aligner.builders.select.label_store import counts_of, known_labels
from aligner.builders.select.labels import ask_oracle, read_labels
from aligner.config.load import load_recipe
from aligner.config.recipe import Data, Source
from aligner.data.loading import load_rows
from aligner.errors import DataError, EndpointError, RecipeError, UsageError
from aligner.reward_models import batching
from aligner.runs import journal

SCORERS = """
def longer(prompt, completion, reference):
    return float(len(completion))

def shorter(prompt, completion, reference):
    return -float(len(completion))

def like_the_answer(prompt, completion, reference):
    return float(completion == reference)
"""
LONGER, SHORTER = "verifier:scorers.py:longer", "verifier:scorers.py:shorter"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a policy, prompts, candidates and two reward models that disagree about
    length."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "policy")
    (tmp_path / "scorers.py").write_text(SCORERS)
    write_jsonl(
        tmp_path / "prompts.jsonl",
        ({"prompt": f"word {number}", "answer": "x"} for number in range(10)),
    )
    rows = (
        {"prompt": f"word {n}", "responses": ["a" * (n + 1), "b", "cc" * n + "d"]}
        for n in range(20)
    )
    write_jsonl(tmp_path / "candidates.jsonl", rows)
    return tmp_path


def chosen(*overrides: str, output: str = "out", **options: Any) -> Path:
    """Choose among the candidates of the folder, and return the run directory."""
    given = {"select.candidates": "candidates.jsonl", "output_dir": output, "select.budget": 5}
    named = {one.split("=", 1)[0] for one in overrides}
    flags = {key: value for key, value in given.items() if key not in named}
    if not any(one.startswith(("select.reward_models", "select.strategy")) for one in overrides):
        flags["select.reward_models"] = [LONGER]
    return run_select(load_recipe("select", None, overrides, flags), **options).run_dir


def sampled(*overrides: str, output: str = "out", **options: Any) -> Path:
    """Let the policy of the folder answer its prompts, and choose."""
    flags = {
        "data.train": "prompts.jsonl",
        "select.policy.name_or_path": "policy",
        "select.reward_models": [LONGER, SHORTER],
        "select.max_new_tokens": 6,
        "select.keep_unfinished": True,
        "select.num_samples": 3,
        "select.batch_size": 2,
        "select.budget": 4,
        "output_dir": output,
    }
    named = {one.split("=", 1)[0] for one in overrides}
    left = {key: value for key, value in flags.items() if key not in named}
    return run_select(load_recipe("select", None, overrides, left), **options).run_dir


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def result(run: Path) -> list[bytes]:
    return [
        (run / name).read_bytes()
        for name in ("candidates.jsonl", "to_label.jsonl", "rest.jsonl", "picked.json")
    ]


# --- the run --------------------------------------------------------------------------------------


def test_a_run_holds_what_is_to_be_labelled_and_the_rest(folder: Path) -> None:
    run = chosen()
    picked, rest = lines(run / "to_label.jsonl"), lines(run / "rest.jsonl")
    assert [row["rank"] for row in picked] == [1, 2, 3, 4, 5]
    assert set(picked[0]) == {"id", "prompt", "a", "b", "uncertainty", "rank", "label"}
    assert {row["label"] for row in picked} == {None}
    assert len(picked) + len(rest) == 20
    assert not {row["id"] for row in picked} & {row["id"] for row in rest}
    told = json.loads((run / "picked.json").read_text())
    assert told["measure"] == "entropy"
    assert sum(row[2] for row in told["uncertainty"]["histogram"]) == 5
    assert sum(row[3] for row in told["uncertainty"]["histogram"]) == 15
    assert told["left_out"] == {"rows": 20} | {
        key: told["left_out"][key] for key in told["left_out"] if key != "rows"
    }
    assert not (run / "journal").exists()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["method"] == "select"
    assert {parent["kind"] for parent in manifest["parents"]} == {"reward model", "data"}


def test_the_report_shows_pairs_escaped(folder: Path) -> None:
    write_jsonl(
        folder / "candidates.jsonl",
        [{"prompt": "<script>p</script>", "responses": ["<b>", "&amp;"]}],
    )
    page = (chosen() / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;p&lt;/script&gt;" in page
    assert "<script>p" not in page
    assert "&amp;amp;" in page
    assert "The budget was 5 pairs, and there were 1." in page


def test_a_policy_answers_and_disagreement_decides(folder: Path) -> None:
    said: list[events.Event] = []
    run = sampled(on_event=said.append)
    candidates = lines(run / "candidates.jsonl")
    assert len(candidates) == 10
    assert all(1 <= len(row["responses"]) <= 3 and row["answer"] == "x" for row in candidates)
    told = json.loads((run / "picked.json").read_text())
    assert told["measure"] == "bald"
    assert told["models"] == [LONGER, SHORTER]
    names = {event.name for event in said if isinstance(event, events.StageProgress)}
    assert {
        "writing responses",
        "judging responses (1 of 2)",
        "judging responses (2 of 2)",
        "selecting pairs",
    } <= names
    parents = json.loads((run / "manifest.json").read_text())["parents"]
    assert [parent["path"] for parent in parents] == ["policy", LONGER, SHORTER, "prompts.jsonl"]


def test_an_answer_follows_from_seed_and_prompt_alone(folder: Path) -> None:
    whole = {row["prompt"]: row["responses"] for row in lines(sampled() / "candidates.jsonl")}
    write_jsonl(folder / "few.jsonl", ({"prompt": f"word {number}"} for number in (7, 3, 8)))
    few = lines(sampled("data.train=few.jsonl", output="few") / "candidates.jsonl")
    assert [row["prompt"] for row in few] == ["word 7", "word 3", "word 8"]
    assert all(row["responses"] == whole[row["prompt"]] for row in few)
    other = {
        row["prompt"]: row["responses"]
        for row in lines(sampled("seed=1", output="other") / "candidates.jsonl")
    }
    assert other != whole


def test_the_samples_of_one_selection_are_the_candidates_of_another(folder: Path) -> None:
    first = sampled()
    again = chosen(
        f"select.candidates={first / 'candidates.jsonl'}",
        f"select.reward_models=['{LONGER}', '{SHORTER}']",
        "select.budget=4",
        output="again",
    )
    assert (again / "to_label.jsonl").read_bytes() == (first / "to_label.jsonl").read_bytes()


def test_hidden_states_of_the_policy_can_tell_pairs_apart(folder: Path) -> None:
    run = sampled("select.embedding=policy", "select.strategy=diversity")
    assert len(lines(run / "to_label.jsonl")) == 4
    states = chosen(
        "select.policy=policy",
        "select.embedding=policy",
        "select.strategy=diversity",
        output="states",
    )
    assert len(lines(states / "to_label.jsonl")) == 5


def test_answers_that_were_cut_off_are_left_out(folder: Path) -> None:
    with pytest.raises(DataError, match=r"2\d responses cut off at the longest length"):
        sampled("select.max_new_tokens=1", "select.keep_unfinished=false")


def test_a_prompt_without_room_for_an_answer_is_told_before_any_is_written(folder: Path) -> None:
    rows = [{"prompt": "short"}, {"prompt": "long " * 200}, {"prompt": "also short"}]
    write_jsonl(folder / "prompts.jsonl", rows)
    with pytest.raises(
        DataError, match=r"1 of 3 prompts leave no room(.|\n)*prompts.jsonl:2: 1,?\d+ tokens"
    ):
        sampled()
    assert not (folder / "out" / "journal" / "responses.jsonl").exists()
    run = sampled("data.on_too_long=drop", output="dropped")
    assert (
        json.loads((run / "picked.json").read_text())["left_out"]["prompts too long to be answered"]
        == 1
    )


def test_an_ensemble_counts_as_its_members(folder: Path) -> None:
    (folder / "both.yaml").write_text(f"kind: ensemble\nmembers: ['{LONGER}', '{SHORTER}']\n")
    run = chosen("select.reward_models=both.yaml", "select.uncertainty=variance")
    assert json.loads((run / "picked.json").read_text())["models"] == [LONGER, SHORTER]
    with pytest.raises(RecipeError, match="there is one"):
        chosen("select.uncertainty=variance", output="one")


def test_a_reward_model_counts_once(folder: Path) -> None:
    with pytest.raises(RecipeError, match=rf"counts {LONGER} twice"):
        chosen(f"select.reward_models=['{LONGER}', '{LONGER}']")
    (folder / "both.yaml").write_text(f"kind: ensemble\nmembers: ['{LONGER}', '{SHORTER}']\n")
    with pytest.raises(RecipeError, match=rf"counts {LONGER} twice"):
        chosen(f"select.reward_models=['both.yaml', '{LONGER}']")
    (folder / "cards").mkdir()
    (folder / "cards" / "mine.yaml").write_text("kind: verifier\nverifier: 'scorers.py:longer'\n")
    with pytest.raises(RecipeError, match=rf"counts cards/mine.yaml twice, also as {LONGER}"):
        chosen(f"select.reward_models=['{LONGER}', 'cards/mine.yaml']")
    assert not (folder / "out").exists()


def test_an_ensemble_that_is_its_own_member_is_refused(folder: Path) -> None:
    (folder / "one.yaml").write_text("kind: ensemble\nmembers: [./two.yaml]\n")
    (folder / "two.yaml").write_text("kind: ensemble\nmembers: [./one.yaml]\n")
    with pytest.raises(RecipeError, match="is a member of itself: one -> two -> one"):
        chosen("select.reward_models=one.yaml")
    run = chosen()
    with pytest.raises(RecipeError, match="is a member of itself"):
        ask_oracle(run, "one.yaml")


def test_a_dry_run_reads_everything_and_writes_nothing(folder: Path) -> None:
    said: list[events.Event] = []
    assert not chosen(dry_run=True, on_event=said.append).exists()
    (plan,) = [event for event in said if isinstance(event, events.Plan)]
    assert ("to be labelled", "at most 5 pairs", "both") in plan.rows
    write_jsonl(folder / "candidates.jsonl", [{"prompt": "p"}])
    with pytest.raises(DataError, match=r"candidates\.jsonl:1"):
        chosen(dry_run=True)


def test_a_budget_larger_than_the_pool_warns_and_takes_all(folder: Path) -> None:
    said: list[events.Event] = []
    run = chosen("select.budget=999", on_event=said.append)
    assert len(lines(run / "to_label.jsonl")) == 20
    assert lines(run / "rest.jsonl") == []
    assert any("all are taken" in event.text for event in said if isinstance(event, events.Warned))


# --- candidates -----------------------------------------------------------------------------------


def test_candidates_are_read_from_three_forms_and_joined(folder: Path) -> None:
    turns = [{"role": "user", "content": "p"}]
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "answer": 3},
        {
            "prompt": turns,
            "completions": [
                {"text": "c", "finish_reason": "stop"},
                {"text": "d", "finish_reason": "length"},
            ],
        },
        {
            "prompt": turns,
            "chosen": [{"role": "assistant", "content": "e"}],
            "rejected": [{"role": "assistant", "content": "f"}],
        },
        {"prompt": "q", "chosen": "g", "rejected": "h"},
    ]
    write_jsonl(folder / "forms.jsonl", rows)
    read = read_candidates("forms.jsonl")
    assert [one.responses for one in read.candidates] == [["a", "b", "c", "e", "f"], ["g", "h"]]
    assert (read.candidates[0].answer, read.candidates[0].unfinished) == ("3", 1)
    assert read.counts["rows joined to one with the same prompt"] == 2
    assert read_candidates("forms.jsonl", keep_unfinished=True).candidates[0].responses[3] == "d"


def test_every_broken_row_is_reported_with_its_line(folder: Path) -> None:
    text = "\n".join(
        [
            '{"prompt": "p", "responses": ["a"]}',
            '{"responses": ["a", "b"]}',
            '{"prompt": "", "responses": ["a", "b"]}',
            '{"prompt": "p", "responses": "ab"}',
            '{"prompt": "p", "responses": ["a", 5]}',
            "{broken",
            '{"prompt": "p", "chosen": "a"}',
            '{"prompt": [{"role": "assistant", "content": "p"}], "responses": ["a", "b"]}',
        ]
    )
    (folder / "bad.jsonl").write_text(text)
    with pytest.raises(DataError) as caught:
        read_candidates("bad.jsonl")
    assert [problem.where for problem in caught.value.problems] == [
        f"bad.jsonl:{line}" for line in range(2, 9)
    ]
    (folder / "none.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_candidates("none.jsonl")


def test_candidates_without_two_answers_are_counted_and_an_empty_pool_is_an_error(
    folder: Path,
) -> None:
    rows = [{"prompt": "p", "responses": ["a", "a "]}, {"prompt": "q", "responses": ["", "x"]}]
    write_jsonl(folder / "candidates.jsonl", rows)
    with pytest.raises(
        DataError, match=r"no pair to be labelled among 2 prompts.*2 prompts with fewer than two"
    ):
        chosen()


def test_what_was_labelled_before_is_not_asked_again(folder: Path) -> None:
    first = chosen("select.strategy=diversity")
    ask_oracle(first, LONGER)
    second = chosen("select.strategy=diversity", f"select.labelled={first}", output="second")
    old, new = ({row["id"] for row in lines(run / "to_label.jsonl")} for run in (first, second))
    assert not old & new
    by_file = chosen(
        "select.strategy=diversity", f"select.labelled={first / 'to_label.jsonl'}", output="third"
    )
    assert (by_file / "to_label.jsonl").read_bytes() == (second / "to_label.jsonl").read_bytes()
    with pytest.raises(DataError, match="has no labels yet"):
        read_labelled([str(second)])


# --- kills ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing in between catches it."""


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    """Die at the n-th part that is written, before it or in the middle of its line."""
    passed = 0
    real: Callable[..., Any] = journal._append

    def deadly(path: Path, value: Any) -> str:
        nonlocal passed
        passed += 1
        if passed == moment:
            if cut:
                path.parent.mkdir(exist_ok=True)
                with path.open("ab") as file:
                    file.write(b'[["half of a li')
            raise Killed
        return real(path, value)

    monkeypatch.setattr(journal, "_append", deadly)


@pytest.mark.parametrize("cut", [False, True], ids=["between parts", "within a line"])
def test_killed_at_any_part_and_resumed_equals_uninterrupted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    settings = ("select.embedding=policy", "select.batch_size=3")
    expected = result(sampled(*settings, output="whole"))
    moments = 0
    while True:
        moments += 1
        with monkeypatch.context() as patch:
            killed_at(2, patch, cut)  # one part gets done in each attempt
            try:
                run = sampled(*settings, output="killed", resume=moments > 1)
            except Killed:
                continue
        break
    assert moments >= 6
    assert result(run) == expected


def test_a_resumed_run_says_where_it_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        killed_at(4, patch, cut=False)
        with pytest.raises(Killed):
            sampled()
    with pytest.raises(UsageError, match="an unfinished select run, parts of which are done"):
        sampled()
    said: list[events.Event] = []
    sampled(resume=True, on_event=said.append)
    assert any("3 of 5 parts" in event.text for event in said if isinstance(event, events.Notice))
    before = result(folder / "out")
    sampled(resume=True)
    assert result(folder / "out") == before


def test_another_policy_in_the_same_place_is_refused_on_resuming(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at(3, patch, cut=False)
        with pytest.raises(Killed):
            sampled()
    save_model(folder / "policy", seed=1)
    with pytest.raises(DataError, match=r"safetensors: select\.policy\.name_or_path: is not"):
        sampled(resume=True)


def test_other_data_are_refused_on_resuming(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        killed_at(1, patch, cut=False)
        with pytest.raises(Killed):
            chosen()
    write_jsonl(folder / "candidates.jsonl", [{"prompt": "p", "responses": ["a", "b"]}])
    with pytest.raises(DataError, match="the data changed"):
        chosen(resume=True)
    with pytest.raises(UsageError, match=r"select.budget"):
        chosen("select.budget=6", resume=True)


@pytest.mark.slow
def test_a_process_that_is_really_killed_loses_one_part(folder: Path) -> None:
    recipe = {
        "method": "select",
        "output_dir": "killed",
        "data": {"train": "prompts.jsonl"},
        "select": {
            "policy": "policy",
            "reward_models": [LONGER],
            "max_new_tokens": 6,
            "keep_unfinished": True,
            "num_samples": 3,
            "batch_size": 6,
            "budget": 4,
        },
    }
    (folder / "r.yaml").write_text(json.dumps(recipe))
    code = (
        "import os, signal\n"
        "from aligner.runs import journal\n"
        "from aligner.builders.select.build import run_select\n"
        "from aligner.config.load import load_recipe\n"
        "real, passed = journal._append, []\n"
        "def deadly(path, value):\n"
        "    passed.append(1)\n"
        "    if len(passed) == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(path, value)\n"
        "journal._append = deadly\n"
        "run_select(load_recipe('select', 'r.yaml'))\n"
    )
    died = subprocess.run([sys.executable, "-c", code], env=os.environ, check=False, timeout=300)
    assert died.returncode == -signal.SIGKILL
    assert len((folder / "killed" / "journal" / "responses.jsonl").read_bytes().splitlines()) == 3
    resumed = run_select(load_recipe("select", "r.yaml"), resume=True).run_dir
    whole = run_select(load_recipe("select", "r.yaml", ["output_dir=whole"])).run_dir
    assert result(resumed) == result(whole)


# --- labels ---------------------------------------------------------------------------------------


def asked(run: Path) -> list[dict[str, Any]]:
    return lines(run / "to_label.jsonl")


def test_labels_become_preference_rows_that_load(folder: Path) -> None:
    run = chosen()
    rows = asked(run)
    given = [("a", 2), ("b", None), ("tie", None), ("skip", None)]
    write_jsonl(
        folder / "labels.jsonl",
        ({"id": row["id"], "label": label, "strength": s} for row, (label, s) in zip(rows, given)),
    )
    outcome = read_labels(run, folder / "labels.jsonl")
    assert {
        key: outcome.results[key] for key in ("labelled", "ties", "skipped", "not labelled yet")
    } == {
        "labelled": 2.0,
        "ties": 1.0,
        "skipped": 1.0,
        "not labelled yet": 1.0,
    }
    first, second = lines(run / "labelled.jsonl")
    assert (first["chosen"], first["rejected"], first["strength"]) == (
        rows[0]["a"],
        rows[0]["b"],
        2,
    )
    assert (second["chosen"], second["rejected"]) == (rows[1]["b"], rows[1]["a"])
    assert "strength" not in second
    loaded = load_rows(
        Data(train=[Source(path=str(run / "labelled.jsonl"))]), "preference", 0
    ).train
    assert [row.chosen for row in loaded] == [first["chosen"], second["chosen"]]
    assert "None yet" not in (run / "report.html").read_text(encoding="utf-8")


def test_the_file_itself_can_be_filled_in_bit_by_bit(folder: Path) -> None:
    run = chosen()
    file = run / "to_label.jsonl"
    for count in (2, 5):
        rows = asked(run)
        for row in rows[:count]:
            row["label"] = "a"
        write_jsonl(file, rows)
        assert read_labels(run, file).results["labelled"] == count
    assert counts_of(run)["not labelled yet"] == 0


def test_line_ends_that_a_spreadsheet_mends_are_no_exchange(folder: Path) -> None:
    write_jsonl(folder / "candidates.jsonl", [{"prompt": "p", "responses": ["one\ntwo", "three"]}])
    run = chosen("select.strategy=random")
    (row,) = asked(run)
    rewritten = {key: row[key].replace("\n", "\r\n") for key in ("a", "b")}
    write_jsonl(folder / "labels.jsonl", [{**row, **rewritten, "label": "a"}])
    assert read_labels(run, folder / "labels.jsonl").results["labelled"] == 1


def test_labels_are_read_from_csv_too(folder: Path) -> None:
    run = chosen()
    one, two, three, *_ = (row["id"] for row in asked(run))
    (folder / "labels.csv").write_text(f"id,label,strength\n{one},a,3\n{two},b,\n{three},,\n")
    assert read_labels(run, folder / "labels.csv").results["labelled"] == 2
    assert known_labels(run)[one] == {"label": "a", "strength": 3}


def test_what_spreadsheets_make_of_labels_and_strengths_is_read(folder: Path) -> None:
    run = chosen()
    one, two, three, four, five = (row["id"] for row in asked(run))
    table = (
        f"id,label,strength\n{one},A,2.0\n{two},b,\n{three}, Tie ,\n{four},B,1.00\n{five},SKIP,\n"
    )
    (folder / "labels.csv").write_text(table)
    read_labels(run, folder / "labels.csv")
    assert known_labels(run) == {
        one: {"label": "a", "strength": 2},
        two: {"label": "b"},
        three: {"label": "tie"},
        four: {"label": "b", "strength": 1},
        five: {"label": "skip"},
    }
    for bad in ("2.5", "4.0", "1e0", "-1", "20", "nan"):
        (folder / "bad.csv").write_text(f"id,label,strength\n{one},a,{bad}\n")
        with pytest.raises(DataError, match=rf"the strength is '{bad}'"):
            read_labels(run, folder / "bad.csv")


def test_exchanged_answers_that_differ_in_blanks_alone_are_noticed(folder: Path) -> None:
    code = "if x:\n  y\nz"
    write_jsonl(
        folder / "candidates.jsonl",
        [{"prompt": "p", "responses": [code, code.replace("z", "  z")]}],
    )
    run = chosen("select.strategy=random")
    (row,) = asked(run)
    for one, other in (("a", "b"), ("b", "a")):
        exchanged = {"id": row["id"], "label": "a", one: row[other].replace("\n", "\r\n")}
        write_jsonl(folder / "labels.jsonl", [exchanged])
        with pytest.raises(DataError, match=f"`{one}` is not the response(.|\n)*exchanged"):
            read_labels(run, folder / "labels.jsonl")
    write_jsonl(
        folder / "labels.jsonl", [{**row, "a": row["a"].replace("\n", "\r\n") + " ", "label": "a"}]
    )
    assert read_labels(run, folder / "labels.jsonl").results["labelled"] == 1


def test_labels_of_several_files_are_joined(folder: Path) -> None:
    run = chosen()
    names = [row["id"] for row in asked(run)]
    write_jsonl(
        folder / "one.jsonl", [{"id": names[0], "label": "a"}, {"id": names[1], "label": "tie"}]
    )
    write_jsonl(
        folder / "two.jsonl",
        [{"id": names[2], "label": "b"}, {"id": names[0], "label": "a", "strength": 1}],
    )
    read_labels(run, folder / "one.jsonl")
    read_labels(run, folder / "two.jsonl")
    assert list(known_labels(run)) == names[:3]
    assert known_labels(run)[names[0]] == {"label": "a", "strength": 1}
    before = (run / "labels.jsonl").read_bytes()
    read_labels(run, folder / "one.jsonl")
    assert (run / "labels.jsonl").read_bytes() == before


def test_everything_wrong_with_a_file_is_told_at_once_and_nothing_is_taken(folder: Path) -> None:
    run = chosen()
    rows = asked(run)
    names = [row["id"] for row in rows]
    write_jsonl(folder / "good.jsonl", [{"id": names[0], "label": "a"}])
    read_labels(run, folder / "good.jsonl")
    kept = (run / "labels.jsonl").read_bytes(), (run / "labelled.jsonl").read_bytes()
    bad = [
        {"id": names[1], "label": "a"},
        {"id": "unknown", "label": "a"},
        {"id": names[2], "label": "first"},
        {"id": names[1], "label": "b"},
        {"label": "a"},
        {"id": names[3], "label": "a", "strength": 4},
        {"id": names[3], "label": "tie", "strength": 1},
        {"id": names[0], "label": "b"},
        {"id": names[4], "label": "a", "a": rows[4]["b"], "b": rows[4]["a"]},
        {"id": [names[4]], "label": "a"},
        {"id": names[4], "label": ["a"]},
        {"id": names[4], "label": "a", "strength": True},
    ]
    write_jsonl(folder / "bad.jsonl", bad)
    with (folder / "bad.jsonl").open("ab") as file:
        file.write(b'{"id": \n\n\xff\xfe\n[1]\n')
    with pytest.raises(DataError) as caught:
        read_labels(run, folder / "bad.jsonl")
    expected = [f"{folder / 'bad.jsonl'}:{line}" for line in [*range(2, 14), 15, 16]]
    assert [problem.where for problem in caught.value.problems] == expected
    text = str(caught.value)
    for part in (
        "'unknown'",
        "'first'",
        "bad.jsonl:1",
        "in labels.jsonl",
        "exchanged?",
        "strength is 4",
        "no preference",
    ):
        assert part in text
    assert ((run / "labels.jsonl").read_bytes(), (run / "labelled.jsonl").read_bytes()) == kept


def test_labels_survive_what_is_done_to_the_file_that_was_handed_out(folder: Path) -> None:
    run = chosen()
    names = [row["id"] for row in asked(run)]
    (run / "to_label.jsonl").write_text("overwritten by a spreadsheet")
    write_jsonl(folder / "labels.jsonl", ({"id": name, "label": "b"} for name in names))
    assert read_labels(run, folder / "labels.jsonl").results["labelled"] == 5


def test_a_line_of_labels_can_be_deleted_and_another_told(folder: Path) -> None:
    run = chosen()
    first, second, *_ = (row["id"] for row in asked(run))
    write_jsonl(folder / "one.jsonl", [{"id": first, "label": "a"}, {"id": second, "label": "a"}])
    write_jsonl(folder / "two.jsonl", [{"id": first, "label": "b"}])
    read_labels(run, folder / "one.jsonl")
    with pytest.raises(DataError, match=r"delete its line in labels\.jsonl"):
        read_labels(run, folder / "two.jsonl")
    kept = (run / "labels.jsonl").read_text().splitlines()[1]
    (run / "labels.jsonl").write_text(f"\n{kept}\n")
    read_labels(run, folder / "two.jsonl")
    assert known_labels(run) == {first: {"label": "b"}, second: {"label": "a"}}
    (run / "labels.jsonl").write_text(f"{kept}\n{{half\n")
    with pytest.raises(DataError, match=r"labels\.jsonl:2 is not a label"):
        read_labels(run, folder / "two.jsonl")


def test_overwriting_does_not_delete_labels(folder: Path) -> None:
    run = chosen()
    chosen(overwrite=True)
    ask_oracle(run, LONGER)
    with pytest.raises(UsageError, match="holds labels"):
        chosen(overwrite=True)
    assert (run / "labels.jsonl").exists()


def test_only_a_finished_selection_takes_labels(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(folder / "labels.jsonl", [{"id": "x", "label": "a"}])
    with pytest.raises(UsageError, match="not the run directory of a selection"):
        read_labels(folder, folder / "labels.jsonl")
    with monkeypatch.context() as patch:
        killed_at(1, patch, cut=False)
        with pytest.raises(Killed):
            chosen()
    with pytest.raises(UsageError, match="not finished"):
        read_labels(folder / "out", folder / "labels.jsonl")
    run = chosen(resume=True)
    with pytest.raises(UsageError, match="no file"):
        read_labels(run, folder / "nowhere.jsonl")


def test_an_oracle_labels_what_has_no_label_and_ties_are_ties(folder: Path) -> None:
    rows = [
        {"prompt": f"word {n}", "responses": ["one", "two" if n else "three"]} for n in range(3)
    ]
    write_jsonl(folder / "candidates.jsonl", rows)
    run = chosen("select.strategy=random")
    first = asked(run)[0]
    write_jsonl(folder / "mine.jsonl", [{"id": first["id"], "label": "skip"}])
    read_labels(run, folder / "mine.jsonl")
    ask_oracle(run, LONGER)
    labels = known_labels(run)
    assert labels[first["id"]] == {"label": "skip"}
    others = {row["prompt"]: row for row in asked(run) if row["id"] != first["id"]}
    for prompt, row in others.items():
        expected = "tie" if prompt != "word 0" else ("a" if row["a"] == "three" else "b")
        assert labels[row["id"]] == {"label": expected, "by": LONGER}


def test_an_oracle_that_compares_with_the_right_answer_gets_it(folder: Path) -> None:
    rows = [
        {"prompt": f"word {n}", "responses": [str(n), "wrong"], "answer": str(n)} for n in range(5)
    ]
    write_jsonl(folder / "candidates.jsonl", rows)
    run = chosen("select.strategy=random")
    ask_oracle(run, "verifier:scorers.py:like_the_answer")
    assert {row["rejected"] for row in lines(run / "labelled.jsonl")} == {"wrong"}
    assert len(lines(run / "labelled.jsonl")) == 5


def test_an_oracle_that_is_interrupted_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.builders.select import labels

    run = chosen()
    monkeypatch.setattr(labels, "ASKED_TOGETHER", 2)
    calls: list[int] = []
    real = batching.preferences

    def fails(scorer: Any, prompts: Any, *more: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise Killed
        return real(scorer, prompts, *more)

    monkeypatch.setattr(batching, "preferences", fails)
    with pytest.raises(Killed):
        ask_oracle(run, LONGER)
    assert len(known_labels(run)) == 2
    ask_oracle(run, LONGER)
    assert calls == [2, 2, 2, 1]
    assert counts_of(run)["not labelled yet"] == 0
    ask_oracle(run, LONGER)
    assert calls == [2, 2, 2, 1]


def test_an_oracle_s_labels_are_written_down_some_times_however_many_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.builders.select import labels

    monkeypatch.setattr(labels, "ASKED_TOGETHER", 1)
    monkeypatch.setattr(labels, "WRITES", 4)
    rows = [{"prompt": f"word {n}", "responses": ["a", "bbb"]} for n in range(40)]
    write_jsonl(folder / "candidates.jsonl", rows)
    run = chosen("select.strategy=random", "select.budget=40")
    sizes: list[int] = []
    real = labels._write_rows

    def counts(run_dir: Path, pairs: Any, known: Any) -> None:
        sizes.append(len(known))
        real(run_dir, pairs, known)

    monkeypatch.setattr(labels, "_write_rows", counts)
    ask_oracle(run, LONGER)
    assert sizes[:4] == [10, 20, 30, 40]
    assert len(sizes) <= 6


def test_the_reward_models_are_held_against_the_labels(folder: Path) -> None:
    run = chosen()
    ask_oracle(run, LONGER)
    assert counts_of(run)["ranked rightly by the reward models"] == 1.0
    other = chosen(output="other")
    ask_oracle(other, SHORTER)
    assert counts_of(other)["ranked rightly by the reward models"] == 0.0


def test_a_label_that_an_expert_gives_while_the_oracle_is_loaded_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.builders.select import labels

    run = chosen()
    first = asked(run)[0]
    shorter = "a" if len(first["a"]) < len(first["b"]) else "b"
    write_jsonl(folder / "mine.jsonl", [{"id": first["id"], "label": shorter}])
    real = labels.load_scorer

    def meanwhile(spec: str) -> Any:
        read_labels(run, folder / "mine.jsonl")
        return real(spec)

    monkeypatch.setattr(labels, "load_scorer", meanwhile)
    ask_oracle(run, LONGER)
    assert known_labels(run)[first["id"]] == {"label": shorter}
    assert counts_of(run)["not labelled yet"] == 0


def test_what_is_written_into_the_labels_while_the_oracle_works_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.builders.select import labels

    run = chosen()
    last = asked(run)[-1]["id"]
    monkeypatch.setattr(labels, "ASKED_TOGETHER", 3)
    real = batching.preferences

    def meanwhile(scorer: Any, prompts: Any, *more: Any) -> Any:
        with (run / "labels.jsonl").open("a") as file:
            if len(prompts) == 2:
                file.write(json.dumps({"id": last, "label": "skip"}) + "\n")
        return real(scorer, prompts, *more)

    monkeypatch.setattr(batching, "preferences", meanwhile)
    ask_oracle(run, LONGER)
    assert known_labels(run)[last] == {"label": "skip"}
    assert len(known_labels(run)) == 5


def test_an_ensemble_on_one_scale_labels_alike_however_the_work_is_cut(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.builders.select import labels

    bees = "\ndef bees(prompt, completion, reference):\n    return -1.9 * completion.count('b')\n"
    (folder / "scorers.py").write_text(SCORERS + bees)
    (folder / "scaled.yaml").write_text(
        f"kind: ensemble\nmembers: ['{LONGER}', 'verifier:scorers.py:bees']\nstandardize: true\n"
    )
    texts = ["".join("ab"[(n * k) % 7 % 2] for k in range(1, 3 + n * 5 % 11)) for n in range(1, 81)]
    rows = [{"prompt": f"word {n}", "responses": texts[2 * n : 2 * n + 2]} for n in range(40)]
    write_jsonl(folder / "candidates.jsonl", rows)
    run = chosen("select.strategy=random", "select.budget=40")
    monkeypatch.setattr(labels, "ASKED_TOGETHER", 4)
    ask_oracle(run, "scaled.yaml")
    whole = known_labels(run)
    kept = (run / "labels.jsonl").read_text().splitlines(keepends=True)[::3]
    (run / "labels.jsonl").write_text("".join(kept))
    ask_oracle(run, "scaled.yaml")
    assert known_labels(run) == whole
    monkeypatch.setattr(labels, "scored_together", lambda card: False)
    (run / "labels.jsonl").unlink()
    ask_oracle(run, "scaled.yaml")
    assert known_labels(run) != whole, "the data must be such that the parts matter"


# --- judges ---------------------------------------------------------------------------------------


@pytest.fixture
def judge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A judge whose card is `judge.yaml`; `mute` holds what it has no opinion about."""
    monkeypatch.setenv("ALIGNER_CACHE", str(folder / "cache"))
    mute: set[str] = set()

    def reply(body: dict[str, Any]) -> Answer:
        text = json.dumps(body["messages"])
        return Answer(text="no idea" if any(word in text for word in mute) else "Better: A")

    rows = ({"prompt": f"word {n}.", "responses": ["a" * (n + 1), "b"]} for n in range(20))
    write_jsonl(folder / "candidates.jsonl", rows)
    with FakeEndpoint(reply) as server:
        server.mute = mute  # type: ignore[attr-defined]
        yield server


def write_judge(server: FakeEndpoint, calls: int | None = None) -> None:
    budget = "" if calls is None else f", budget: {{calls: {calls}}}"
    endpoint = f"{{model: toy, base_url: '{server.base_url}', max_retries: 0{budget}}}"
    Path("judge.yaml").write_text(f"kind: judge\nendpoint: {endpoint}\n")


def test_a_pair_without_a_verdict_costs_no_other_one_its_label(judge: Any, folder: Path) -> None:
    write_judge(judge)
    run = chosen("select.strategy=random", "select.budget=20")
    judge.mute.update({"word 7.", "word 12."})
    silent = {row["id"] for row in asked(run) if row["prompt"] in judge.mute}
    with pytest.raises(DataError, match="no verdict on 2 of 20 pairs") as caught:
        ask_oracle(run, "judge.yaml")
    assert {problem.where for problem in caught.value.problems} == {
        f"pair {name}" for name in silent
    }
    assert {row["id"] for row in asked(run)} - set(known_labels(run)) == silent
    assert "None yet" not in (run / "report.html").read_text(encoding="utf-8")
    judge.mute.clear()
    count = len(judge.bodies)
    ask_oracle(run, "judge.yaml")
    assert counts_of(run)["not labelled yet"] == 0
    assert len(judge.bodies) - count == 4, "two pairs, in both orders"


def test_a_pair_without_a_verdict_is_left_out_of_a_selection(judge: Any, folder: Path) -> None:
    write_judge(judge)
    judge.mute.update({"word 7.", "ccc"})
    rows = [{"prompt": f"word {n}.", "responses": ["a", "b"]} for n in range(19)]
    write_jsonl(
        folder / "candidates.jsonl", [*rows, {"prompt": "three", "responses": ["a", "b", "ccc"]}]
    )
    said: list[events.Event] = []
    run = chosen("select.reward_models=judge.yaml", "select.budget=20", on_event=said.append)
    picked = {row["prompt"]: {row["a"], row["b"]} for row in asked(run)}
    assert len(picked) == 19
    assert "word 7." not in picked
    assert picked["three"] == {"a", "b"}
    left_out = json.loads((run / "picked.json").read_text())["left_out"]
    assert left_out["pairs without a verdict"] == 3
    assert left_out["prompts without a verdict on any pair"] == 1
    warned = [event.text for event in said if isinstance(event, events.Warned)]
    assert any(
        "no verdict on 3 pairs" in text and "candidates.jsonl:8: " in text for text in warned
    )
    assert "pairs without a verdict" in (run / "report.html").read_text(encoding="utf-8")


def test_the_budget_of_a_judge_goes_on_with_the_selection(
    judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aligner.builders.select import build

    monkeypatch.setattr(build, "JUDGED_TOGETHER", 5)
    write_judge(judge, calls=25)
    for attempt in range(3):
        with pytest.raises(EndpointError, match="the budget is spent"):
            chosen("select.reward_models=judge.yaml", resume=attempt > 0)
        assert len(judge.bodies) == 25
    write_judge(judge, calls=40)
    chosen("select.reward_models=judge.yaml", resume=True)
    assert len(judge.bodies) == 40


def test_the_budget_of_a_judge_goes_on_with_the_oracle_and_not_with_another_selection(
    judge: Any, folder: Path
) -> None:
    run = chosen("select.strategy=random", "select.budget=20")
    write_judge(judge, calls=36)
    for _ in range(3):
        with pytest.raises(EndpointError, match="the budget is spent"):
            ask_oracle(run, "judge.yaml")
        assert len(judge.bodies) == 36
    assert len(known_labels(run)) == 16
    other = chosen("select.strategy=random", "select.budget=20", output="other")
    ask_oracle(other, "judge.yaml")
    assert len(judge.bodies) == 40


def test_an_error_of_a_scorer_names_the_pair_or_the_row_of_the_file(folder: Path) -> None:
    rows = [
        {"prompt": f"word {n}", "responses": ["1", "2"], "answer": "1" if n != 17 else "x"}
        for n in range(20)
    ]
    write_jsonl(folder / "candidates.jsonl", rows)
    run = chosen("select.strategy=random", "select.budget=20")
    (broken,) = (row["id"] for row in asked(run) if row["prompt"] == "word 17")
    with pytest.raises(DataError, match=f"pair {broken}: verifier:number cannot find a number"):
        ask_oracle(run, "verifier:number")
    with pytest.raises(
        DataError, match=r"candidates\.jsonl:18: verifier:number cannot find a number"
    ):
        chosen("select.reward_models=verifier:number", output="other")


# --- engines --------------------------------------------------------------------------------------


def test_every_engine_that_loads_the_policy_writes_the_same_responses(folder: Path) -> None:
    plain = result(sampled(output="plain"))
    assert result(sampled("generation.engine=hf_cb", output="other")) == plain


def test_a_server_of_the_policy_writes(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("policy")
    continues = Continues(AutoModelForCausalLM.from_pretrained("policy").eval(), tokenizer)
    with FakeEndpoint(continues) as server:
        address = f"generation.endpoint.base_url={server.base_url}"
        run = sampled("generation.engine=endpoint", address)
    assert len(server.bodies) == 30
    assert {body["model"] for body in server.bodies} == {"policy"}
    responses = [row["responses"] for row in lines(run / "candidates.jsonl")]
    assert len(responses) == 10
    assert all(all(one) for one in responses)


def test_vllm_that_is_not_installed_is_said_before_the_policy_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aligner.models.loading.load_policy", None)
    with pytest.raises(UsageError, match="needs vLLM"):
        sampled("generation.engine=vllm")
    assert not (folder / "out").exists()
