"""All finished rows together: which are dropped, and in which order they are looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aligner.builders.evolve.made import Made, row_id
from aligner.builders.evolve.output_checks import check_all, load_test_sets
from aligner.builders.evolve.recipe import Checks, Evolve
from aligner.errors import DataError

LONG = "please write a letter to the old captain of the ship about his new dog"


def settings(**checks: Any) -> Evolve:
    return Evolve(checks=Checks.model_validate(checks))


def made(name: str, instruction: str, answer: str = "yes", **more: Any) -> Made:
    turns = ({"role": "user", "content": instruction},)
    return Made(name, f"seed {name}", turns, answer, **more)


def dropped(rows: list[Made], seeds: list[tuple[str, str]], **checks: Any) -> dict[str, str]:
    found = check_all(rows, seeds, settings(**checks))
    return {name: reason for name, (reason, _) in found.dropped.items()}


def test_the_earlier_row_stays() -> None:
    rows = [made("a", LONG), made("b", LONG.upper()), made("c", LONG + " Rex")]
    assert dropped(rows, []) == {"b": "duplicate", "c": "near_duplicate"}
    assert dropped(rows[::-1], []) == {"b": "near_duplicate", "a": "near_duplicate"}


def test_a_row_that_was_dropped_is_no_model_for_others() -> None:
    """b is near a, c near b, and c not near a."""
    words = [f"w{number}" for number in range(36)]
    texts = [" ".join(words[start : start + 30]) for start in (0, 3, 6)]
    rows = [made(name, text) for name, text in zip("abc", texts)]
    found = check_all(rows, [], settings(near_duplicates=0.75))
    assert list(found.dropped) == ["b"]
    assert found.dropped["b"] == ("near_duplicate", "a (81% the same)")
    assert (found.counts["compared"], found.counts["confirmed"]) == (2, 1)


def test_rows_are_compared_with_all_seeds() -> None:
    assert dropped([made("a", LONG)], [("s1", "else"), ("s2", LONG)]) == {"a": "duplicate"}


def test_a_row_that_keeps_its_seed_may_equal_it_once() -> None:
    kept = {"provenance": {"kept_seed": True}}
    rows = [made("a", LONG, **kept), made("b", LONG, **kept), made("c", LONG)]
    assert dropped(rows, [("s", LONG)]) == {"b": "duplicate", "c": "duplicate"}


def test_a_row_may_be_near_to_the_seed_that_it_comes_from_and_to_its_own_earlier_rounds() -> None:
    """LONG has 15 words: one more leaves 13 of 14 word 3-grams the same."""
    mine = ("seed a", LONG)
    assert dropped([made("a", LONG + " Rex")], [mine]) == {}
    assert dropped([made("a", LONG + " Rex")], [("seed b", LONG)]) == {"a": "near_duplicate"}
    assert dropped([made("a", LONG)], [mine]) == {"a": "duplicate"}
    turns = ({"role": "user", "content": LONG + " Rex please"},)
    second = Made("a2", "seed a", turns, "yes", round=2, parent_id="a")
    assert dropped([made("a", LONG + " Rex"), second], [mine]) == {}
    assert dropped([made("a", LONG + " Rex"), made("b", LONG + " Rex please")], [mine]) == {
        "b": "near_duplicate"
    }


def test_what_is_off_drops_nothing() -> None:
    rows = [made("a", LONG), made("b", LONG), made("c", LONG + " Rex")]
    assert dropped(rows, [], duplicates=False, near_duplicates=None) == {}
    assert dropped(rows, [], near_duplicates=None) == {"b": "duplicate"}
    assert dropped(rows, [], duplicates=False) == dict.fromkeys("bc", "near_duplicate")


def test_turns_of_the_user_alone_are_compared() -> None:
    turns = [
        {"role": "system", "content": "one"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "second"},
    ]
    others = [{**turn, "content": "other"} for turn in turns]
    prompts = [turns, [others[0], turns[1], others[2], turns[3]], [*turns[:3], others[3]]]
    rows = [
        Made(row_id(str(number), 1, prompt), str(number), tuple(prompt), "yes")
        for number, prompt in enumerate(prompts)
    ]
    assert list(dropped([*rows], [])) == [rows[1].id]


def write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_that_overlap_with_a_test_set_are_dropped_or_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", {"question": LONG, "answer": "a"})
    source = {"path": str(file), "columns": {"prompt": "question"}}
    checks = {"test_sets": [source], "duplicates": False, "near_duplicates": None}
    rows = [
        made("long", f"now {LONG} now"),
        made("answer", "what?", f"{LONG}!"),
        made("short", "write a letter to the old captain of my boat"),
        made("none", "write a letter"),
    ]
    evolve = settings(**checks)
    tests = load_test_sets(evolve)
    assert tests is not None
    found = check_all(rows, [], evolve, tests.texts)
    assert {name: reason for name, (reason, _) in found.dropped.items()} == dict.fromkeys(
        ("long", "answer"), "overlap"
    )
    assert found.dropped["long"][1].startswith(f"{file}:1: please write a letter")
    assert found.counts["short_overlap"] == 1
    assert [record.path for source in tests.ledger.sources for record in source.files] == [
        str(file)
    ]
    told = check_all(rows, [], settings(**checks, drop_overlaps=False), tests.texts)
    assert (told.dropped, told.counts) == ({}, {"long_overlap": 2, "short_overlap": 1})


def test_a_test_set_without_a_prompt_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", {"question": LONG, "answer": "a"})
    with pytest.raises(DataError, match="question"):
        load_test_sets(settings(test_sets=str(file)))
