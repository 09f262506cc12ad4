"""Prompts of an arena, and answers from every form of file, matched by id or by text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from fakes import write_jsonl

from aligner.arena.battle.answer_files import items_in, read_answer_file, read_answers
from aligner.arena.battle.prompts import read_prompts
from aligner.arena.battle.sheets import Answer, Item
from aligner.config.recipe import Data
from aligner.errors import DataError
from aligner.events import Notice

ITEMS = [
    Item("p1", "What is 2+3?"),
    Item("p2", [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Hello"}]),
]


def texts(path: Path, items: list[Item] = ITEMS) -> dict[str, str]:
    return {name: answer.text for name, answer in read_answers(path, items).items()}


def problems(path: Path, rows: Iterable[dict[str, Any]], items: list[Item] = ITEMS) -> list[str]:
    write_jsonl(path, rows)
    with pytest.raises(DataError) as caught:
        read_answers(path, items)
    return [str(problem).removeprefix(str(path)) for problem in caught.value.problems]


FORMS: dict[str, list[dict[str, Any]]] = {
    "ids": [{"prompt_id": "p1", "answer": "5"}, {"uid": "p2", "answer": "Hi"}],
    "prompts": [{"prompt": "Hello ", "answer": "Hi"}, {"prompt": "What is 2+3?", "answer": "5"}],
    "aligner generate": [
        {"prompt": "What is 2+3?", "completions": [{"text": "5"}], "answer": "expected"},
        {"prompt": [{"role": "user", "content": "Hello"}], "completions": [{"text": "Hi"}]},
    ],
    "Arena-Hard": [
        {
            "uid": name,
            "model": "m",
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": {"answer": answer}},
            ],
        }
        for name, prompt, answer in (("p1", "What is 2+3?", "5"), ("p2", "Hello", "Hi"))
    ],
    "Arena-Hard 0.1": [
        {"question_id": name, "choices": [{"index": 0, "turns": [{"content": answer}]}]}
        for name, answer in (("p1", "5"), ("p2", "Hi"))
    ],
    "AlpacaEval": [
        {"instruction": "What is 2+3?", "output": "5", "generator": "m"},
        {"instruction": "Hello", "output": "Hi", "generator": "m"},
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_matched_by_id_or_else_by_text(tmp_path: Path, form: str) -> None:
    assert texts(write_jsonl(tmp_path / "mine.jsonl", FORMS[form])) == {"p1": "5", "p2": "Hi"}


def test_a_contestant_is_called_as_asked_for_or_as_its_file_says(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "mine.v2.jsonl", FORMS["ids"])
    assert read_answers(path, ITEMS)["p1"] == Answer("mine", "5")
    assert read_answers(path, ITEMS, "other")["p1"] == Answer("other", "5")
    assert read_answer_file(write_jsonl(path, FORMS["AlpacaEval"]), ITEMS).model == "m"


def test_cut_answers_are_marked_and_thinking_is_taken_off(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "What is 2+3?",
            "completions": [{"text": "<think>2+3</think> 5", "finish_reason": "length"}],
        },
        {"prompt_id": "p2", "answer": "say `<think>` and </think>"},
        {"prompt_id": "p9", "answer": "of another prompt"},
    ]
    found = read_answer_file(write_jsonl(tmp_path / "a.jsonl", rows), ITEMS, "m")
    assert found.answers["p1"] == Answer("m", "5", is_cut=True)
    assert found.answers["p2"] == Answer("m", "say `<think>` and </think>")
    assert (found.others, found.reasoned) == (1, 1)


def test_prompts_without_an_answer_are_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "a.jsonl", [{"prompt_id": "p1", "answer": ""}]) == [
        "no answer to 'p2': 'Hello'"
    ]
    many = [Item(f"q{number}", f"ask {number}") for number in range(30)]
    with pytest.raises(DataError, match=r"no answer to 30 of 30 prompts, the first 20 of them"):
        read_answers(write_jsonl(tmp_path / "b.jsonl", FORMS["ids"]), many)


def test_rows_that_cannot_be_used_are_named_with_their_line(tmp_path: Path) -> None:
    good = FORMS["ids"]
    bad: list[dict[str, Any]] = [
        {"prompt_id": "p1", "answer": "6"},
        {"prompt_id": "p1", "prompt": "Hello", "answer": "5"},
        {"prompt_id": "p1"},
        {"answer": "5"},
        {"prompt_id": "p1", "answer": 5},
        {"prompt": "Hello", "completions": [{"text": "a"}, {"text": "b"}]},
        {"prompt": 7, "answer": "5"},
        {"uid": "p1", "messages": [{"role": "user", "content": "x"}, {"role": "user"}]},
    ]
    assert problems(tmp_path / "a.jsonl", [*good, *bad]) == [
        f":3: answers what {tmp_path / 'a.jsonl'}:1 answers too",
        ":4: has the id 'p1' and another prompt than it: 'Hello', not 'What is 2+3?'",
        ":5: holds no answer (columns: prompt_id)",
        ":6: says neither an id nor a prompt",
        ":7: the answer in answer is a number, not text",
        ":8: completions holds 2 answers, and a contestant has one",
        ":9: prompt is a number, not a text or turns",
        ":10: messages does not end with an answer of the assistant",
    ]


def test_a_prompt_that_is_shared_under_other_system_prompts_needs_ids(tmp_path: Path) -> None:
    other = [{"role": "system", "content": "be long"}, {"role": "user", "content": "Hello"}]
    items = [*ITEMS, Item("p3", other)]
    row = {"prompt": "Hello", "answer": "Hi"}
    said = problems(tmp_path / "a.jsonl", [row], items)
    assert said == [":1: has a prompt that several share, with other system prompts: add its id"]


def test_a_file_of_several_models_is_refused(tmp_path: Path) -> None:
    rows = [{**row, "model": f"m{place}"} for place, row in enumerate(FORMS["ids"])]
    with pytest.raises(DataError, match="holds answers of 2 models: m0, m1"):
        read_answers(write_jsonl(tmp_path / "a.jsonl", rows), ITEMS)


def test_prompts_can_be_taken_from_a_file_of_answers(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", FORMS["Arena-Hard"])
    assert [item.id for item in items_in(path)] == ["p1", "p2"]
    assert texts(path, items_in(path)) == {"p1": "5", "p2": "Hi"}
    with pytest.raises(DataError, match=r"2 rows of .* cannot be used"):
        items_in(write_jsonl(path, FORMS["Arena-Hard 0.1"]))


def test_prompts_have_ids_categories_and_right_answers(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "What is 2+3?", "answer": "5", "uid": 7, "kind": "sums"},
        {"prompt": "Hello"},
        {"prompt": [{"role": "user", "content": "Hello"}]},
    ]
    told: list[Any] = []
    path = write_jsonl(tmp_path / "p.jsonl", rows[:2])
    more = write_jsonl(tmp_path / "q.jsonl", rows[2:])
    data = Data.model_validate({"train": [str(path), str(more)]})
    items = read_prompts(data, 0, "kind", told.append).items
    first, second = items
    assert (first.id, first.category, first.reference) == ("7", "sums", "5")
    assert (second.category, second.reference, len(second.id)) == ("", None, 16)
    assert [event.text for event in told if isinstance(event, Notice)] == [
        "1 row asks what an earlier one does, without an id: left out"
    ]
    with pytest.raises(DataError, match="no row has the column sort"):
        read_prompts(data, 0, "sort")


def test_prompts_that_cannot_be_asked_are_refused(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "id": "x"},
        {"prompt": "b", "id": "x"},
        {"prompt": [{"role": "user", "content": "c"}, {"role": "system", "content": "d"}]},
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read_prompts(Data.model_validate({"train": str(path)}), 0)
    assert [problem.message for problem in caught.value.problems] == [
        f"its id 'x' is that of {path}:1",
        "its last turn is of the system, not of the user",
    ]


def test_ids_of_every_form_of_prompts_are_kept(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}], "id": "x", "kind": "k"}]
    data = Data.model_validate({"train": str(write_jsonl(tmp_path / "p.jsonl", rows))})
    assert [(item.id, item.category) for item in read_prompts(data, 0, "kind").items] == [
        ("x", "k")
    ]
