"""Sampling, repeats, duplicates and held-out splits: seeded, independent of one another, and fully
booked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aligner.config.recipe import Data
from aligner.data.loading import Loaded, load_rows
from aligner.data.rows import prompt_text
from aligner.errors import DataError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.jsonl", [f"a{number}" for number in range(100)])
    write("b.jsonl", [f"b{number}" for number in range(40)])


def write(path: str, prompts: list[str]) -> None:
    rows = [
        {"prompt": prompt, "completion": f"answer {number}"}
        for number, prompt in enumerate(prompts)
    ]
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(seed: int = 0, **data: Any) -> Loaded:
    return load_rows(Data(**data), "sft", seed)


def prompts(rows: list[Any]) -> list[str]:
    return [row.prompt for row in rows]


def from_file(rows: list[Any], name: str) -> list[str]:
    return [row.prompt for row in rows if row.origin.startswith(name)]


def test_a_weight_of_one_half_draws_a_random_half_in_the_old_order() -> None:
    drawn = prompts(load(train=[{"path": "a.jsonl", "weight": 0.5}]).train)
    assert len(drawn) == len(set(drawn)) == 50
    assert drawn == sorted(drawn, key=lambda prompt: int(prompt[1:]))
    assert drawn != [f"a{number}" for number in range(50)]


def test_max_rows_draws_at_random_with_the_seed() -> None:
    source = [{"path": "a.jsonl", "max_rows": 10}]
    first, again, other = (prompts(load(seed, train=source).train) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 10
    assert max(int(prompt[1:]) for prompt in first) > 50


def test_the_draw_is_the_same_on_every_machine() -> None:
    drawn = prompts(load(7, train=[{"path": "a.jsonl", "max_rows": 5}]).train)
    assert drawn == ["a10", "a20", "a25", "a45", "a52"]


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_neither_the_draw_nor_the_fingerprint_hangs_on_the_hash_seed_or_the_folder(
    hash_seed: str, tmp_path: Path
) -> None:
    code = (
        "from aligner.config.recipe import Data\n"
        "from aligner.data.loading import load_rows\n"
        f"loaded = load_rows(Data(train=[{{'path': {str(tmp_path / 'a.jsonl')!r}, 'weight': "
        f"1.5}}], eval=0.1), 'sft', 3)\n"
        "print([row.prompt for row in loaded.eval], loaded.train[-1].prompt, loaded.fingerprint)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
    )
    here = load(3, train=[{"path": "a.jsonl", "weight": 1.5}], eval=0.1)
    assert run.stdout == f"{prompts(here.eval)} {prompts(here.train)[-1]} {here.fingerprint}\n"


def test_the_draw_of_a_source_hangs_on_no_other_source() -> None:
    a, b = {"path": "a.jsonl", "weight": 0.3}, {"path": "b.jsonl", "max_rows": 7}
    alone = prompts(load(train=[a]).train)
    assert (
        from_file(load(train=[a, b]).train, "a")
        == from_file(load(train=[b, a]).train, "a")
        == alone
    )


def test_a_source_listed_twice_draws_differently_the_second_time() -> None:
    source = {"path": "a.jsonl", "max_rows": 20}
    drawn = prompts(load(train=[source, source]).train)
    assert drawn[:20] != drawn[20:]


@pytest.mark.parametrize(
    ("weight", "rows"), [(1, 100), (2, 200), (2.5, 250), (0.25, 25), (0.001, 1)]
)
def test_weights_say_how_often_a_row_is_seen(weight: float, rows: int) -> None:
    loaded = load(train=[{"path": "a.jsonl", "weight": weight}])
    seen = prompts(loaded.train)
    counts = {seen.count(prompt) for prompt in seen}
    assert len(seen) == rows
    assert counts == ({2, 3} if weight == 2.5 else {max(1, int(weight))})
    assert loaded.ledger.sources[0].repeated == max(0, rows - 100)


def test_max_rows_comes_before_the_weight() -> None:
    assert len(load(train=[{"path": "a.jsonl", "max_rows": 10, "weight": 2}]).train) == 20
    assert len(load(train=[{"path": "a.jsonl", "max_rows": 10, "weight": 0.5}]).train) == 5


def test_a_held_out_share_has_no_prompt_of_the_training_rows() -> None:
    write("c.jsonl", [f"c{number % 30}" for number in range(100)])
    loaded = load(train=["a.jsonl", "c.jsonl"], eval=0.2)
    assert len(loaded.eval) == 40
    assert not set(prompts(loaded.eval)) & set(prompts(loaded.train))


def test_a_prompt_in_another_form_is_not_split_from_its_twin() -> None:
    rows = [
        {"conversations": [{"from": "human", "value": f"a{n}"}, {"from": "gpt", "value": "x"}]}
        for n in range(100)
    ]
    Path("s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load(train=["a.jsonl", "s.jsonl"], eval=0.3)
    assert {prompt_text(row) for row in loaded.eval}.isdisjoint(
        prompt_text(row) for row in loaded.train
    )
    assert len(loaded.eval) == 60


def test_the_same_prompts_are_held_out_whatever_the_order_of_sources() -> None:
    first, second = (
        load(train=order, eval=0.1) for order in (["a.jsonl", "b.jsonl"], ["b.jsonl", "a.jsonl"])
    )
    assert set(prompts(first.eval)) == set(prompts(second.eval))


def test_held_out_rows_are_never_repeated() -> None:
    loaded = load(train=[{"path": "a.jsonl", "weight": 3}], eval=0.1)
    assert (len(loaded.train), len(loaded.eval)) == (270, 10)


def test_at_least_one_row_is_held_out_and_one_is_left() -> None:
    write("two.jsonl", ["x", "y"])
    for share in (0.01, 0.99):
        loaded = load(train="two.jsonl", eval=share)
        assert (len(loaded.train), len(loaded.eval)) == (1, 1)


def test_a_number_of_rows_is_held_out_whole_prompts_at_a_time() -> None:
    write("c.jsonl", [f"c{number % 50}" for number in range(100)])
    loaded = load(train=["a.jsonl", "c.jsonl"], eval=40)
    assert (len(loaded.train), len(loaded.eval)) == (160, 40)
    assert not set(prompts(loaded.eval)) & set(prompts(loaded.train))
    assert set(prompts(load(train=["a.jsonl", "c.jsonl"], eval=0.2).eval)) == set(
        prompts(loaded.eval)
    )
    assert len(load(train="a.jsonl", eval=1).eval) == 1
    assert len(load(train="a.jsonl", eval=99).train) == 1
    assert loaded.fingerprint != load(train=["a.jsonl", "c.jsonl"], eval=41).fingerprint


def test_more_rows_than_there_are_cannot_be_held_out() -> None:
    for number in (100, 2000):
        with pytest.raises(DataError, match=f"eval: {number} rows cannot be held out: there are"):
            load(train="a.jsonl", eval=number)


def test_a_prompt_with_too_many_rows_is_passed_over_if_another_will_do() -> None:
    write("c.jsonl", ["x"] * 90 + [f"c{number}" for number in range(10)])
    for seed in range(5):
        assert len(load(seed, train="c.jsonl", eval=0.05).eval) == 5


def test_a_single_prompt_cannot_be_split() -> None:
    write("one.jsonl", ["x"] * 9)
    with pytest.raises(DataError, match="there is one distinct prompt in 9 rows"):
        load(train="one.jsonl", eval=0.5)


def test_eval_sources_are_kept_apart_and_shared_prompts_are_counted() -> None:
    write("c.jsonl", ["a1", "a2", "c1"])
    loaded = load(train="a.jsonl", eval="c.jsonl")
    assert prompts(loaded.eval) == ["a1", "a2", "c1"]
    assert loaded.ledger.prompts_in_both == 2
    assert ("eval prompts also in train", "2") in loaded.ledger.table()


def test_duplicates_are_removed_over_sources_and_counted_where_they_stood() -> None:
    Path("c.jsonl").write_text(Path("a.jsonl").read_text() * 2 + Path("b.jsonl").read_text())
    loaded = load(train=["a.jsonl", "c.jsonl"], deduplicate=True)
    assert [entry.duplicates for entry in loaded.ledger.sources] == [0, 200]
    assert len(loaded.train) == 140


def test_a_training_row_that_equals_a_held_out_row_goes() -> None:
    Path("c.jsonl").write_text("".join(Path("a.jsonl").read_text().splitlines(keepends=True)[:10]))
    loaded = load(train="a.jsonl", eval="c.jsonl", deduplicate=True)
    assert (len(loaded.train), len(loaded.eval), loaded.ledger.prompts_in_both) == (90, 10, 0)


def test_rows_that_differ_in_the_answer_only_are_no_duplicates() -> None:
    write("c.jsonl", ["x"] * 5)
    assert len(load(train="c.jsonl", deduplicate=True).train) == 5


def test_the_fingerprint_follows_content_settings_and_seed_but_not_the_place() -> None:
    Path("d").mkdir()
    Path("d/copy.jsonl").write_text(Path("a.jsonl").read_text())
    base = load(train="a.jsonl").fingerprint
    assert load(train="d/copy.jsonl").fingerprint == base
    others = [
        load(1, train="a.jsonl"),
        load(train="b.jsonl"),
        load(train=[{"path": "a.jsonl", "weight": 2}]),
        load(train="a.jsonl", eval=0.1),
        load(train="a.jsonl", deduplicate=True),
    ]
    assert len({base, *(loaded.fingerprint for loaded in others)}) == 6


def test_the_fingerprint_follows_the_code_of_a_function() -> None:
    Path("f.py").write_text("def same(row):\n    return row\n")
    first = load(train=[{"path": "a.jsonl", "function": "f.py:same"}]).fingerprint
    Path("f.py").write_text("def same(row):\n    return {**row}\n")
    assert load(train=[{"path": "a.jsonl", "function": "f.py:same"}]).fingerprint != first


def test_the_ledger_balances_with_everything_at_once() -> None:
    Path("c.jsonl").write_text(Path("a.jsonl").read_text() * 2 + "oops\n\n")
    data: dict[str, Any] = {
        "train": [
            {"path": "c.jsonl", "weight": 2.5, "max_rows": 80},
            {"path": "b.jsonl", "weight": 0.5},
        ],
        "eval": 0.1,
        "deduplicate": True,
        "on_bad_row": "drop",
    }
    loaded = load(**data)
    first, second = loaded.ledger.sources
    assert first.summary().startswith("201 read - 1 broken - 100 duplicates - 20 not sampled + ")
    assert second.summary() == f"40 read - 20 not sampled = {second.rows_out} rows"
    assert (
        loaded.ledger.split("train").rows_in
        == len(loaded.train)
        == first.to_train + second.to_train
    )
    assert loaded.ledger.split("eval").rows_in == len(loaded.eval) == 10
    assert json.loads(json.dumps(loaded.ledger.to_json()))["sources"][0]["blank_lines"] == 1


def test_the_ledger_takes_the_counts_of_tokenisation_and_notices_what_is_missing() -> None:
    ledger = load(train="a.jsonl").ledger
    split = ledger.split("train")
    for _ in range(98):
        split.count(rows=1, tokens=10, trained_tokens=4, masked_tokens=6)
    split.count(too_long_dropped=1)
    with pytest.raises(AssertionError, match="train: 98 rows kept and 1 dropped out of 100"):
        ledger.check()
    split.count(rows=1, tokens=10, trained_tokens=10, truncated_rows=1, truncated_tokens=7)
    split.count(lengths=[10, 10, 10], sequences=5, packed_fill=0.98, padding_share=0.25)
    ledger.check()
    table = dict(ledger.table())
    assert table["train"] == "100 rows, 1 too long, dropped"
    assert table["train tokens"] == "990: 402 trained, 59% masked, 7 cut off in 1 rows"
    assert table["train lengths"] == "shortest 10, 25% 10, 50% 10 tokens"
    assert table["train packed"] == "5 sequences, 98.0% full"
    split.count(tokens=1)
    with pytest.raises(AssertionError, match="402 tokens trained and 588 masked out of 991"):
        ledger.check()
