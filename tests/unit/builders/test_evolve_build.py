"""`aligner evolve` from seeds to files, with scripted models: what comes out, what is counted, what
is asked again and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.build import run_evolve
from aligner.config.load import load_recipe
from aligner.errors import DataError, EndpointError
from aligner.events import Notice, StageProgress, Warned
from aligner.runs.result import RunResult

EVOLVE = {
    "match": r"<instruction>\n(?P<text>.*)\n</instruction>",
    "reply": "Thought.\n\n### Finished instruction\n\\g<text> Give a reason for each.",
}
ANSWER = {"match": r"\A(?P<asked>(?s:.*))\Z", "reply": "This is how: \\g<asked>"}
UNIQUE = ("salt", "vinegar", "soap", "flour", "chalk", "rope", "cork", "wool", "iron", "glass")
SEEDS = [f"Name {number} uses of {word}." for number, word in enumerate(UNIQUE, 2)]


def write_lines(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class World:
    """A folder with seeds and a script, and runs in it."""

    def __init__(self, folder: Path, rules: list[Any], seeds: list[Any] | None = None) -> None:
        self.folder, self.run = folder, folder / "run"
        self.told: list[Any] = []
        rows = [{"prompt": text} for text in SEEDS] if seeds is None else seeds
        write_lines(folder / "seeds.jsonl", rows)
        self.script(rules)

    def script(self, rules: list[Any]) -> None:
        write_lines(self.folder / "script.jsonl", rules)

    def evolve(self, *settings: str, resume: bool = False, **options: Any) -> RunResult:
        """Run with these settings; what was told is in `told`."""
        self.told = []
        given = [
            f"output_dir={self.run}",
            f"data.train={self.folder / 'seeds.jsonl'}",
            "endpoint.backend=scripted",
            f"endpoint.script={self.folder / 'script.jsonl'}",
            "evolve.mode=classic",
            *settings,
        ]
        resolved = load_recipe("evolve", None, given)
        return run_evolve(resolved, resume=resume, on_event=self.told.append, **options)

    def lines(self, name: str) -> list[Any]:
        return read_lines(self.run / name)

    def summary(self) -> dict[str, Any]:
        return json.loads((self.run / "evolve.json").read_text())

    def said(self, kind: type = Warned) -> str:
        return "\n".join(event.text for event in self.told if isinstance(event, kind))

    def asked(self, purpose: str) -> int:
        """How often the script was asked for something, in all sessions."""
        usage = json.loads((self.run / "usage.json").read_text())
        counts = [client["purposes"].get(purpose, {"calls": 0}) for client in usage.values()]
        return sum(count["calls"] for count in counts)


def files_of(run: Path) -> dict[str, bytes]:
    names = ("data/train.jsonl", "dropped.jsonl", "provenance.jsonl", "evolve.json")
    return {name: (run / name).read_bytes() for name in names}


def test_every_seed_becomes_a_row_in_its_place(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    outcome = world.evolve()
    asked = [f"{seed} Give a reason for each." for seed in SEEDS]
    assert [row["prompt"] for row in world.lines("data/train.jsonl")] == [
        [{"role": "user", "content": text}] for text in asked
    ]
    assert [row["completion"][0]["content"] for row in world.lines("data/train.jsonl")] == [
        f"This is how: {text}" for text in asked
    ]
    assert outcome.results == {"seeds": 10.0, "rows": 10.0}
    assert (world.asked("evolve"), world.asked("answer")) == (10, 10)


def test_where_a_row_comes_from_stands_beside_it(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    world.evolve()
    rows, beside = world.lines("data/train.jsonl"), world.lines("provenance.jsonl")
    assert [row["id"] for row in rows] == [line["id"] for line in beside]
    assert len({line["seed_id"] for line in beside}) == len(SEEDS)
    assert set(rows[0]) == {"id", "prompt", "completion"}
    first = beside[0]
    assert (first["parent_id"], first["round"], first["evol_model"]) == (None, 1, "scripted")
    assert len(first["method_id"]) == 64
    assert first["usage"]["calls"] == 2


@pytest.mark.parametrize("most", [1, 64])
def test_the_bytes_do_not_depend_on_how_many_rows_are_under_way(tmp_path: Path, most: int) -> None:
    bad = {"match": "uses of soap", "reply": "Sure, which soap?"}
    (tmp_path / "other").mkdir()
    worlds = [World(folder, [bad, EVOLVE, ANSWER]) for folder in (tmp_path, tmp_path / "other")]
    worlds[0].evolve()
    worlds[1].evolve(f"evolve.rows_in_flight={most}", f"endpoint.max_in_flight={most}")
    assert json.dumps(worlds[0].summary()) == json.dumps(worlds[1].summary()).replace("other/", "")
    for name in ("data/train.jsonl", "provenance.jsonl"):
        assert worlds[0].lines(name) == worlds[1].lines(name)


def test_a_row_that_fails_is_tried_once_more_and_then_dropped_with_its_reason(
    tmp_path: Path,
) -> None:
    asks_back = {"match": r"\A.*rope(?s:.*)", "reply": "Sure, what kind of rope?"}
    no_section = {"match": r"<instruction>\n.*wool", "reply": "I would rather not."}
    world = World(tmp_path, [no_section, EVOLVE, asks_back, ANSWER])
    outcome = world.evolve()
    assert outcome.results == {
        "seeds": 10.0,
        "rows": 8.0,
        "dropped: unqualified": 1.0,
        "dropped: parse": 1.0,
    }
    by_reason = {line["reason"]: line for line in world.lines("dropped.jsonl")}
    assert by_reason["unqualified"]["answer"] == "Sure, what kind of rope?"
    assert by_reason["unqualified"]["instruction"].endswith("Give a reason for each.")
    assert by_reason["parse"]["from"] == "Name 9 uses of wool."
    assert world.asked("evolve") == 12


def test_a_failed_row_may_keep_its_instruction_with_a_new_answer(tmp_path: Path) -> None:
    no_section = {"match": r"<instruction>\n.*wool", "reply": "I would rather not."}
    world = World(tmp_path, [no_section, EVOLVE, ANSWER])
    world.evolve("evolve.failures.on_fail=keep_seed")
    rows, beside = world.lines("data/train.jsonl"), world.lines("provenance.jsonl")
    assert len(rows) == 10
    assert rows[7]["prompt"][0]["content"] == "Name 9 uses of wool."
    assert rows[7]["completion"][0]["content"] == "This is how: Name 9 uses of wool."
    assert beside[7]["kept_seed"] is True
    assert beside[7]["retried_for"] == ["parse"]
    assert world.asked("evolve") == 10


def test_a_check_that_is_off_keeps_what_it_would_drop(tmp_path: Path) -> None:
    cut = {"match": r"\A.*rope(?s:.*)", "reply": "This is", "finish_reason": "length"}
    world = World(tmp_path, [EVOLVE, cut, ANSWER])
    assert world.evolve().results["rows"] == 9
    assert world.evolve("evolve.checks.truncated=false", overwrite=True).results["rows"] == 10


def test_rounds_go_on_from_the_row_before_and_all_are_kept(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER], [{"prompt": SEEDS[0]}])
    world.evolve("evolve.rounds=3")
    asked = [row["prompt"][0]["content"] for row in world.lines("data/train.jsonl")]
    more = " Give a reason for each."
    assert asked == [SEEDS[0] + more * rounds for rounds in (1, 2, 3)]
    beside = world.lines("provenance.jsonl")
    assert [line["parent_id"] for line in beside] == [None, beside[0]["id"], beside[1]["id"]]
    assert len({line["seed_id"] for line in beside}) == 1


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a tree."},
    {"role": "assistant", "content": "OLD ANSWER"},
    {"role": "user", "content": "Why that one?"},
    {"role": "assistant", "content": "OLD REASON"},
]


def test_of_a_conversation_the_first_turn_is_evolved_and_answered_anew(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER], [{"messages": TALK}])
    world.evolve()
    (row,) = world.lines("data/train.jsonl")
    asked = "Name a tree. Give a reason for each."
    assert row["prompt"] == [TALK[0], {"role": "user", "content": asked}]
    assert row["completion"][0]["content"] == f"This is how: Be brief.\n{asked}"


def test_a_conversation_is_evolved_turn_by_turn_after_its_own_new_turns(tmp_path: Path) -> None:
    """The script answers from what it is shown: nothing of the old answers may be there, and the
    second turn is evolved after the first one as it is now."""
    old = {"match": "OLD", "reply": "an old answer was shown"}
    second = {
        "match": r"user: (?P<first>.*)\n\nassistant: (?P<said>.*)\n</conversation>(?s:.*)Why that",
        "reply": "### Finished instruction\nWhy, after [\\g<first>] and [\\g<said>]?",
    }
    answer = {"match": r"(?P<last>.*)\Z", "reply": "Thus: \\g<last>"}
    world = World(tmp_path, [old, second, EVOLVE, answer], [{"messages": TALK}])
    world.evolve("evolve.multiturn=sequential")
    (row,) = world.lines("data/train.jsonl")
    first = "Name a tree. Give a reason for each."
    why = f"Why, after [{first}] and [Thus: {first}]?"
    assert [turn["content"] for turn in row["messages"]] == [
        *("Be brief.", first, f"Thus: {first}"),
        *(why, f"Thus: {why}"),
    ]
    assert set(row) == {"messages"}


def test_a_conversation_ends_before_the_turn_that_fails(tmp_path: Path) -> None:
    fails = {"match": r"<instruction>\nWhy that", "reply": "no section"}
    world = World(tmp_path, [fails, EVOLVE, ANSWER], [{"messages": TALK}])
    world.evolve("evolve.multiturn=sequential")
    (row,) = world.lines("data/train.jsonl")
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    assert world.lines("provenance.jsonl")[0]["ended_by"] == "parse"
    assert world.summary()["counts"]["conversations that ended early"] == 1


def test_duplicates_are_found_in_all_rows_together(tmp_path: Path) -> None:
    seeds = [{"prompt": text} for text in (SEEDS[0], SEEDS[1], SEEDS[0].upper())]
    same = {
        "match": r"<instruction>\nNAME",
        "reply": EVOLVE["reply"].replace("\\g<text>", SEEDS[0]),
    }
    world = World(tmp_path, [same, EVOLVE, ANSWER], seeds)
    assert world.evolve().results == {"seeds": 3.0, "rows": 2.0, "dropped: duplicate": 1.0}
    (line,) = world.lines("dropped.jsonl")
    assert line["from"] == SEEDS[0].upper()
    assert line["detail"].endswith("(100% the same)")


def test_seeds_that_are_the_same_have_ids_of_their_own(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER], [{"prompt": SEEDS[0]}] * 3)
    world.evolve("evolve.checks.duplicates=false", "evolve.checks.near_duplicates=null")
    assert len({line["id"] for line in world.lines("provenance.jsonl")}) == 3


# --- poor evolvers, and nothing left --------------------------------------------------------------


def test_a_poor_evolver_is_said_to_be_one(tmp_path: Path) -> None:
    parrot = {"match": r"uses of (salt|soap|cork)", "reply": "Thank you, and which one?"}
    words = {"match": r"uses of (wool|iron|glass)", "reply": "no section"}
    world = World(tmp_path, [parrot, words, EVOLVE, ANSWER])
    world.evolve()
    said = world.said()
    assert "only 4 of 10 rows could be kept" in said
    assert "a poor one" in said
    assert "6 dropped: the reply that evolves holds no instruction where it should" in said
    assert "'Name 2 uses of salt.'" in said
    assert "only 4 of 10 rows" in (world.run / "report.html").read_text()


def test_nothing_left_is_an_error_that_says_where_to_look(tmp_path: Path) -> None:
    world = World(tmp_path, [{"match": "", "reply": "no"}])
    with pytest.raises(DataError, match="no row is left of 10"):
        world.evolve()
    assert len(world.lines("dropped.jsonl")) == 10
    assert not (world.run / "manifest.json").exists()
    world.script([EVOLVE, ANSWER])
    assert world.evolve(resume=True).results["rows"] == 10


# --- budgets, resuming ----------------------------------------------------------------------------


def test_a_spent_budget_ends_with_what_is_finished_and_more_of_it_goes_on(tmp_path: Path) -> None:
    world, whole = World(tmp_path, [EVOLVE, ANSWER]), tmp_path / "whole"
    world.evolve(f"output_dir={whole}")
    one = ("endpoint.max_in_flight=1", "evolve.rows_in_flight=1")
    outcome = world.evolve(*one, "endpoint.budget.calls=7")
    assert outcome.results == {"seeds": 10.0, "rows": 3.0, "not finished": 7.0}
    assert "7 of 10 rows are not finished: the budget is spent (calls: 7 of 7)" in world.said()
    assert len(world.lines("data/train.jsonl")) == 3
    assert not (world.run / "manifest.json").exists()
    outcome = world.evolve(*one, "endpoint.budget.calls=100", resume=True)
    assert "3 of 10 rows are there already" in world.said(Notice)
    assert outcome.results == {"seeds": 10.0, "rows": 10.0}
    assert (world.asked("evolve"), world.asked("answer")) == (10, 10)
    assert files_of(world.run) == files_of(whole)


@pytest.mark.parametrize("dry_run", [False, True])
def test_too_few_seeds_for_an_optimization_are_told_before_anything_is_made(
    dry_run: bool, tmp_path: Path
) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    with pytest.raises(DataError, match=r"10 different instructions .* need 60"):
        world.evolve("evolve.mode=auto", dry_run=dry_run)
    assert not world.run.exists()
    assert len(world.evolve("evolve.mode=auto", "evolve.optimization.steps=0").results) > 0


def test_a_budget_that_is_spent_before_any_row_is_an_error(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    with pytest.raises(EndpointError, match="0 of 10 rows are finished and kept") as caught:
        world.evolve("endpoint.budget.calls=1")
    assert "resume" in caught.value.hint
    assert world.evolve("endpoint.budget.calls=50", resume=True).results["rows"] == 10


def test_a_changed_check_asks_nothing_again(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    world.evolve()
    world.evolve("evolve.checks.near_duplicates=null", resume=True)
    assert "checks is made again, since checks.near_duplicates changed" in world.said(Notice)
    assert (world.asked("evolve"), world.asked("answer")) == (10, 10)


def test_a_changed_answer_setting_keeps_the_evolved_instructions(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    world.evolve()
    world.evolve("evolve.answer_system='Be brief.'", resume=True)
    assert (world.asked("evolve"), world.asked("answer")) == (10, 20)
    assert "Be brief." in world.lines("data/train.jsonl")[0]["completion"][0]["content"]


def test_a_finished_run_that_is_resumed_as_it_was_does_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    first = world.evolve()
    before = files_of(world.run)
    assert world.evolve(resume=True).results == first.results
    assert "finished already" in world.said(Notice)
    assert files_of(world.run) == before


def test_a_finished_run_that_is_resumed_sees_other_seeds_another_script_and_other_test_sets(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    tests = tmp_path / "tests.jsonl"
    write_lines(tests, [{"prompt": "no such words stand in any of the rows of this test set here"}])
    settings = (f"evolve.checks.test_sets={tests}", "evolve.checks.ngram=4")
    assert world.evolve(*settings).results["rows"] == 10
    write_lines(tests, [{"prompt": "a reason for each."}])
    with pytest.raises(DataError, match="no row is left"):
        world.evolve(*settings, resume=True)
    assert world.summary()["dropped"] == {"overlap": 10}
    assert world.asked("evolve") == 10
    says_why = EVOLVE["reply"].replace("Give a reason for each.", "Say why.")
    world.script([{**EVOLVE, "reply": says_why}, ANSWER])
    assert world.evolve(*settings, resume=True).results["rows"] == 10
    write_lines(tmp_path / "seeds.jsonl", [{"prompt": "What floats?"}])
    assert world.evolve(*settings, resume=True).results == {"seeds": 1.0, "rows": 1.0}


def test_too_few_seeds_are_refused_before_a_run_begins(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    with pytest.raises(DataError, match="10 different instructions"):
        world.evolve("evolve.mode=auto")
    assert not world.run.exists()


def test_progress_says_how_many_are_kept_and_what_it_costs(tmp_path: Path) -> None:
    world = World(tmp_path, [EVOLVE, ANSWER])
    world.evolve(
        "endpoint.usd_per_million_prompt_tokens=1000",
        "endpoint.usd_per_million_completion_tokens=1",
    )
    told = [event for event in world.told if isinstance(event, StageProgress)]
    assert (told[-1].done, told[-1].total) == (10, 10)
    assert "10 kept, 0 dropped" in told[-1].text
    assert "requests/s" in told[-1].text
    assert "$" in told[-1].text
