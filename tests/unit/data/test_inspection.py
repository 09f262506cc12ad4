"""What is wrong with data is found row by row, with its place: turns, pairs, duplicates, splits and
held-out files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import write_jsonl

from aligner.config.recipe import Source
from aligner.data.inspection import Inspection, inspect, other_splits
from aligner.errors import DataError

LONG = "please tell me in some detail how a tide comes about"


def look(folder: Path, rows: list[dict[str, Any]], *held_out: dict[str, Any]) -> Inspection:
    train = write_jsonl(folder / "rows.jsonl", rows)
    apart = [write_jsonl(folder / "held.jsonl", held_out)] if held_out else []
    return inspect([Source(path=str(train))], [Source(path=str(path)) for path in apart])


def found(inspection: Inspection) -> dict[str, list[tuple[int, str]]]:
    """Finding -> (line, what) of its rows."""
    assert all(
        inspection.findings.rows[name] == len(rows)
        for name, rows in inspection.findings.examples.items()
    )
    return {
        name: [(int(where.rsplit(":", 1)[1]), what) for where, what in rows]
        for name, rows in inspection.findings.examples.items()
    }


def talk(*said: str, roles: str = "ua") -> dict[str, Any]:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    turns = [{"role": names[role], "content": text} for role, text in zip(roles, said)]
    return {"messages": turns}


def test_good_rows_are_passed_and_counted(tmp_path: Path) -> None:
    done = look(tmp_path, [talk("a", "b"), talk("c", "d", "e", "f", roles="uaua")])
    assert found(done) == {}
    assert done.findings.failed() == []
    assert done.rows == 2


def test_broken_rows_are_findings_with_their_reason(tmp_path: Path) -> None:
    rows = [talk("a", "b"), talk("c", " "), {"messages": [{"role": "robot", "content": "d"}]}]
    done = found(look(tmp_path, rows))
    assert [line for line, _ in done["broken"]] == [2, 3]
    assert "is empty" in done["broken"][0][1]
    assert "robot" in done["broken"][1][1]


def test_pairs_of_one_answer_are_told_apart_from_broken_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "d", "chosen": "b", "rejected": ""},
    ]
    done = found(look(tmp_path, rows))
    assert done["identical_pair"] == [(2, "chosen and rejected are the same")]
    assert [line for line, _ in done["broken"]] == [3]


def test_turns_that_stand_twice(tmp_path: Path) -> None:
    rows = [
        talk("go on", "b", "go on", "c", roles="uaua"),  # short: people say so
        talk(LONG, "b", LONG, "c", roles="uaua"),
        talk("a", "b", "b", roles="uaa"),
    ]
    done = found(look(tmp_path, rows))
    assert done["repeated_turn"] == [
        (2, "turn 3 says what turn 1 says"),
        (3, "turn 3 says what turn 2 says"),
    ]
    assert [line for line, _ in done["role_order"]] == [3]


def test_roles_out_of_order_are_told_and_do_not_fail(tmp_path: Path) -> None:
    rows = [talk("a", "b", "c", roles="uua"), talk("d", "e", "f", "g", roles="uasa")]
    done = look(tmp_path, [*rows, talk("h", "i", "j", roles="sua")])
    assert found(done)["role_order"] == [
        (1, "turns 1 and 2 are both the user's"),
        (2, "turn 3 is the system's, and not the first"),
    ]
    assert done.findings.failed() == []


def test_equal_rows_fail_and_other_answers_to_a_prompt_are_told(tmp_path: Path) -> None:
    rows = [talk("a b", "c"), talk("d", "e"), talk("a b", "c"), talk("A b!", "f")]
    done = look(tmp_path, rows)
    origin = f"{tmp_path / 'rows.jsonl'}:1"
    assert found(done) == {
        "duplicate": [(3, f"the same as {origin}")],
        "same_prompt": [(4, f"the prompt of {origin}")],
    }
    assert done.findings.failed() == ["duplicate"]
    assert done.findings.failed(["duplicate"]) == []


def test_prompts_and_words_of_held_out_files(tmp_path: Path) -> None:
    sentence = "a train leaves the north station at nine and reaches the harbour before noon"
    held = [{"prompt": "Name a prime.", "completion": "Seven."}]
    held += [{"prompt": f"{sentence}, why?", "completion": "x"}]
    rows = [talk("name a PRIME", "two"), talk(f"Say: {sentence}.", "y"), talk("other", "z")]
    done = look(tmp_path, rows, *held)
    assert found(done)["across_splits"] == [(1, f"the prompt of {tmp_path / 'held.jsonl'}:1")]
    ((line, what),) = found(done)["held_out"]
    assert line == 2
    assert "a train leaves the north station" in what
    assert done.rows == 3


def test_other_splits_of_a_folder_are_held_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [talk("a", "b"), talk("c", "d")])
    write_jsonl(tmp_path / "test.jsonl", [talk("c", "e")])
    source = Source(path=str(tmp_path))
    assert [other.split for other in other_splits(source)] == ["test"]
    assert [line for line, _ in found(inspect([source]))["across_splits"]] == [2]


def test_a_folder_that_is_not_laid_out_by_split_has_no_others(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [talk("a", "b")])
    write_jsonl(tmp_path / "b.jsonl", [talk("c", "d")])
    assert other_splits(Source(path=str(tmp_path))) == []


def test_all_rows_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    done = look(tmp_path, [talk("a", "b")] * 9)
    assert done.findings.rows == {"duplicate": 8}
    assert len(done.findings.examples["duplicate"]) == 5


def test_data_without_a_usable_row_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="broken"):
        look(tmp_path, [talk("a", "")])
