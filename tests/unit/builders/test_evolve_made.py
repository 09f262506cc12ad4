"""Rows that were made, and their ids."""

from __future__ import annotations

import json

from aligner.builders.evolve.made import Made, row_id

TURNS = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"})


def test_a_row_comes_back_from_json_and_is_read_by_trainings() -> None:
    made = Made(
        row_id("s1", 2, TURNS),
        "s1",
        TURNS,
        "because",
        round=2,
        parent_id="p",
        finish_reason="length",
        provenance={"models": {"answerer": "m"}},
    )
    assert Made.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert made.truncated
    assert made.instruction == "why?"
    assert made.row() == {
        "id": made.id,
        "prompt": list(TURNS),
        "completion": [{"role": "assistant", "content": "because"}],
    }


def test_an_id_is_that_of_a_place_and_a_prompt() -> None:
    ids = {
        row_id("s1", 1, TURNS),
        row_id("s2", 1, TURNS),
        row_id("s1", 2, TURNS),
        row_id("s1", 1, TURNS[1:]),
    }
    assert len(ids) == 4
    assert row_id("s1", 1, TURNS) in ids
