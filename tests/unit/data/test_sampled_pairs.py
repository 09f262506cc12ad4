"""Pairs that a model sampled: with their token ids, and perhaps without a word."""

from __future__ import annotations

from typing import Any

import pytest

from aligner.data.checks import BadRow
from aligner.data.mapping import map_row
from aligner.data.rows import SAMPLED, PreferenceRow

USER = [{"role": "user", "content": "say something"}]


def row(**changes: Any) -> dict[str, Any]:
    said = [{"role": "assistant", "content": "yes"}]
    silent = [{"role": "assistant", "content": ""}]
    return {"prompt": USER, "chosen": said, "rejected": silent, SAMPLED: [[5, 2], [2]], **changes}


def test_a_model_may_have_said_nothing() -> None:
    found = map_row(row(), "preference", "preference", "a.jsonl:1")
    assert isinstance(found, PreferenceRow)
    assert found.rejected == [{"role": "assistant", "content": ""}]
    plain = row(prompt="say something", chosen="yes", rejected="")
    assert map_row(plain, "preference", "preference", "").rejected == ""  # type: ignore[union-attr]


def test_without_token_ids_an_empty_answer_is_a_broken_row() -> None:
    with pytest.raises(BadRow, match="is empty"):
        map_row(row(**{SAMPLED: None}), "preference", "preference", "")


@pytest.mark.parametrize("rejected", [[], [{"role": "user", "content": "x"}], [1], None, 3])
def test_what_is_no_answer_is_refused(rejected: Any) -> None:
    with pytest.raises(BadRow):
        map_row(row(rejected=rejected), "preference", "preference", "")
