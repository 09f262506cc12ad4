"""Pairs that say which token ids were sampled: these are trained on, not those of the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import byte_tokenizer, small_recipe, write_jsonl
from sampled import largest_difference

from aligner.data.loading import load_rows
from aligner.data.rows import SAMPLED, PreferenceRow
from aligner.errors import DataError
from aligner.methods.dpo.encode import encoder
from aligner.methods.dpo.recipe import DpoRecipe
from aligner.methods.pipeline import run_recipe
from aligner.tokenization.encode import encode_prompt

EOS = 2


def pair(prompt: Any = "q", chosen: str = "ab", rejected: str = "c", **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def encoded(folder: Path, *rows: dict[str, Any]) -> list[Any]:
    """The rows as `aligner dpo` encodes them."""
    write_jsonl(folder / "sampled.jsonl", rows)
    recipe = small_recipe(
        "dpo", folder, folder / "run", f"data.train={folder}/sampled.jsonl"
    ).recipe
    assert isinstance(recipe, DpoRecipe)
    loaded = load_rows(recipe.data, "preference", 0, keep=(SAMPLED,))
    found = encoder(recipe, byte_tokenizer())
    if found.look_ahead is not None:
        found.look_ahead(loaded.train)
    return [found.encode(row, recipe.data.max_length) for row in loaded.train]


def test_the_ids_are_those_that_were_sampled(tmp_path: Path) -> None:
    """The text "ab" has two tokens; this model wrote it in another way, with a stop id."""
    own, other = [50, 51, 52, EOS], [60]
    (row,) = encoded(tmp_path, pair(**{SAMPLED: [own, other]}))
    assert row.columns["chosen_ids"].tolist() == own
    assert row.columns["rejected_ids"].tolist() == other, "truncated: no stop id is put behind it"
    prompt = encode_prompt(byte_tokenizer(), "q")
    assert row.columns["prompt_ids"].tolist() == prompt
    assert row.columns["length"] == len(prompt) + 4


def test_a_conversation_may_have_sampled_answers(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "q"}]
    sides = {
        side: [{"role": "assistant", "content": text}]
        for side, text in (("chosen", "ab"), ("rejected", "c"))
    }
    (row,) = encoded(tmp_path, pair(turns, **sides, **{SAMPLED: [[50, EOS], [60, EOS]]}))
    assert row.columns["prompt_ids"].tolist() == encode_prompt(byte_tokenizer(), turns)
    assert row.columns["chosen_ids"].tolist() == [50, EOS]


def test_a_model_may_say_nothing_or_the_same_in_two_ways(tmp_path: Path) -> None:
    """Rows that a person wrote are refused for either."""
    ids = {SAMPLED: [[EOS], [60, EOS]]}
    silent = [{"role": "assistant", "content": ""}], [{"role": "assistant", "content": "x"}]
    turns = [{"role": "user", "content": "q"}]
    rows = encoded(
        tmp_path,
        pair(chosen="", **ids),
        pair(chosen="c", **ids),
        pair(turns, *silent, **ids),  # type: ignore[arg-type]
    )
    assert [row.columns["chosen_ids"].tolist() for row in rows] == [[EOS]] * 3
    for bad in (pair(chosen=""), pair(chosen="c"), pair(turns, *silent)):  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"is broken"):
            encoded(tmp_path, bad)


@pytest.mark.parametrize(
    "ids",
    [
        [[50, EOS]],
        [[50, EOS], [60, 10**6]],
        [[50, EOS], [-1]],
        [[50, EOS], ["a"]],
        [[50, EOS], [True]],
        [[50, EOS], [1.0]],
        "ids",
        {"chosen": [1], "rejected": [2]},
    ],
)
def test_what_are_no_ids_is_refused_with_its_row(tmp_path: Path, ids: Any) -> None:
    good = pair(**{SAMPLED: [[50, EOS], [60, EOS]]})
    with pytest.raises(DataError) as caught:
        encoded(tmp_path, good, pair(**{SAMPLED: ids}))
    said = f"{caught.value} {caught.value.problems}"
    assert "sampled.jsonl:2" in said
    assert "holds no token ids of this tokenizer" in said


def test_a_row_without_ids_among_others_is_tokenized(tmp_path: Path) -> None:
    rows = encoded(tmp_path, pair(), pair(**{SAMPLED: None}), pair(**{SAMPLED: [[50], [60]]}))
    plain = [row.columns["chosen_ids"].tolist() for row in rows]
    assert (
        plain[0] == plain[1] == [*byte_tokenizer()("ab", add_special_tokens=False)["input_ids"], 2]
    )
    assert plain[2] == [50]


def test_ids_of_the_text_train_what_the_text_trains(small_world: Path, tmp_path: Path) -> None:
    """And other ids of the same text do not."""
    rows = [json.loads(line) for line in (small_world / "pairs.jsonl").read_text().splitlines()]
    tokenizer = byte_tokenizer()

    def ids(turns: list[dict[str, str]]) -> list[int]:
        text: list[int] = tokenizer(turns[0]["content"], add_special_tokens=False)["input_ids"]
        return [*text, EOS]

    same = [{**row, SAMPLED: [ids(row["chosen"]), ids(row["rejected"])]} for row in rows]
    other = [{**row, SAMPLED: [row[SAMPLED][0][:-1], row[SAMPLED][1]]} for row in same]
    for name, made in (("same", same), ("other", other)):
        data = write_jsonl(tmp_path / f"{name}.jsonl", made)
        run_recipe(small_recipe("dpo", small_world, tmp_path / name, f"data.train={data}"))
    run_recipe(small_recipe("dpo", small_world, tmp_path / "text"))
    assert largest_difference(tmp_path / "same", tmp_path / "text") == 0.0
    assert largest_difference(tmp_path / "other", tmp_path / "text") > 0.0


def test_pairs_of_a_round_are_rows_for_others_too(tmp_path: Path) -> None:
    """A reward model reads their texts."""
    write_jsonl(tmp_path / "sampled.jsonl", [pair(**{SAMPLED: [[50], [60]]})])
    recipe = small_recipe(
        "reward", tmp_path, tmp_path, f"data.train={tmp_path}/sampled.jsonl"
    ).recipe
    (row,) = load_rows(recipe.data, "preference", 0).train
    assert isinstance(row, PreferenceRow)
    assert (row.chosen, row.rejected) == ("ab", "c")
