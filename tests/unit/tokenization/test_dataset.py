"""From rows to token datasets: what is cut, dropped or refused, the books, and how batches are
decided."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from fakes import byte_tokenizer, save_model, small_recipe, write_jsonl

from aligner.data.loading import load_rows
from aligner.errors import DataError
from aligner.events import StageProgress, Warned
from aligner.methods.preparation import tokenize_rows
from aligner.methods.steps import steps_of
from aligner.runs.files import write_checksums
from aligner.tokenization.batching import choose_batching, padding_share
from aligner.tokenization.dataset import load_tokenized, quantiles


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def talk(question: str, answer: str) -> dict:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


def pair(prompt: str, chosen: str, rejected: str, **more) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def prepared_from(rows, tokenizer, tmp_path: Path, method: str = "sft", on_event=None, **flags):
    """Prepare rows; returns what was prepared and the ledger."""
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    recipe = small_recipe(method, tmp_path, tmp_path / "run", data__train=str(file), **flags).recipe
    loaded = load_rows(recipe.data, steps_of(method).task_of(recipe), recipe.seed)
    try:
        return tokenize_rows(
            recipe, loaded, tokenizer, tmp_path / "prepared", on_event
        ), loaded.ledger
    finally:
        loaded.ledger.check()  # the books balance, also where rows were refused


def length_of(tokenizer, row: dict) -> int:
    return (
        len(tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False))["input_ids"])
        - 1
    )


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_rows_that_wait_on_disk_are_the_same_rows(
    method: str, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = [str(number) * (1 + number % 5) for number in range(23)]
    rows = [talk(f"say {number}", number) for number in numbers]
    if method == "dpo":
        rows = [pair(f"say {number}", number, f"{number}0") for number in numbers]
    rows[7] = rows[8] = {**rows[7], "messages": [{"role": "user", "content": "nobody answers"}]}
    rows = rows if method == "sft" else [row for row in rows if "messages" not in row]
    whole, books = prepared_from(rows, tokenizer, tmp_path, method, data__on_bad_row="drop")
    columns, counted = whole.train.to_dict(), books.to_json()
    monkeypatch.setattr("aligner.tokenization.dataset.IN_MEMORY", 100)
    monkeypatch.setattr("aligner.tokenization.dataset.TOGETHER", 3)
    (tmp_path / "prepared.rows").mkdir()  # left by a run that was killed
    parts, books = prepared_from(rows, tokenizer, tmp_path, method, data__on_bad_row="drop")
    assert parts.train.features == whole.train.features
    assert parts.train.to_dict() == columns
    assert books.to_json() == counted
    assert not (tmp_path / "prepared.rows").exists()


def test_columns_hold_ids_labels_and_lengths(tokenizer, tmp_path):
    rows = [talk("hi", "hello"), talk("a longer question", "yes")]
    found, ledger = prepared_from(rows, tokenizer, tmp_path)
    for row, ids, labels, length in zip(
        rows, *(found.train[key] for key in ("input_ids", "labels", "length"))
    ):
        assert len(ids) == len(labels) == length
        trained = [i for i in labels if i != -100]
        assert tokenizer.decode(trained) == row["messages"][1]["content"] + tokenizer.eos_token
        assert all(label in (-100, i) for i, label in zip(ids, labels))
    books = ledger.split("train")
    assert books.rows == 2
    assert books.tokens == sum(found.train["length"])
    assert books.trained_tokens == len("hello") + len("yes") + 2
    assert books.masked_tokens == books.tokens - books.trained_tokens


def test_pairs_are_stored_with_one_prompt_two_answers_and_a_weight(tokenizer, tmp_path):
    found, ledger = prepared_from(
        [pair("hi", "hello", "no"), pair("b", "x", "yy", weight=2.5)], tokenizer, tmp_path, "dpo"
    )
    first = found.train[0]
    assert tokenizer.decode(first["chosen_ids"]) == "hello" + tokenizer.eos_token
    assert tokenizer.decode(first["rejected_ids"]) == "no" + tokenizer.eos_token
    assert list(found.train["weight"]) == [1.0, 2.5]
    assert first["length"] == len(first["prompt_ids"]) + 6
    books = ledger.split("train")
    prompts = sum(len(ids) for ids in found.train["prompt_ids"])
    assert books.trained_tokens == 6 + 3 + 2 + 3
    assert (
        books.tokens == 2 * prompts + books.trained_tokens
    )  # a prompt is read once for each answer


def test_a_long_row_is_an_error_that_gives_the_lengths(tokenizer, tmp_path):
    rows = [talk("q", "a" * n) for n in (5, 6, 7, 300)]
    with pytest.raises(DataError) as caught:
        prepared_from(rows, tokenizer, tmp_path, data__max_length=64)
    text = str(caught.value)
    assert "1 of 4 rows are longer than data.max_length=64" in text
    assert "rows.jsonl:4" in text
    assert str(length_of(tokenizer, rows[3])) in text.replace(",", "")
    assert not (tmp_path / "prepared").exists()


def test_long_rows_are_dropped_and_counted(tokenizer, tmp_path):
    rows = [talk("q", "a" * n) for n in (5, 300, 7, 300)]
    found, ledger = prepared_from(
        rows, tokenizer, tmp_path, data__max_length=64, data__on_too_long="drop"
    )
    books = ledger.split("train")
    assert (len(found.train), books.rows, books.too_long_dropped, books.truncated_tokens) == (
        2,
        2,
        2,
        0,
    )
    assert max(found.train["length"]) <= 64


def test_long_rows_are_cut_and_every_token_counted(tokenizer, tmp_path):
    rows = [talk("q", "a" * n) for n in (5, 100, 7, 200)]
    whole = [length_of(tokenizer, row) for row in rows]
    found, ledger = prepared_from(
        rows, tokenizer, tmp_path, data__max_length=64, data__on_too_long="truncate"
    )
    books = ledger.split("train")
    assert list(found.train["length"]) == [min(64, n) for n in whole]
    assert (books.truncated_rows, books.truncated_tokens) == (2, sum(max(0, n - 64) for n in whole))
    assert books.tokens + books.truncated_tokens == sum(whole)


def test_a_row_whose_answer_is_cut_away_is_left_out_and_listed(tokenizer, tmp_path):
    rows = [talk("q", "fine"), talk("a" * 100, "never seen")]
    found, ledger = prepared_from(
        rows, tokenizer, tmp_path, data__max_length=64, data__on_too_long="truncate"
    )
    books = ledger.split("train")
    assert (len(found.train), books.rows, books.unusable) == (1, 1, 1)
    assert books.unusable_rows[0].where.endswith("rows.jsonl:2")


def test_a_cut_pair_keeps_its_prompt_and_loses_from_the_answers(tokenizer, tmp_path):
    rows = [pair("hi", "a" * 100, "b" * 90), pair("hi", "ok", "no")]
    found, ledger = prepared_from(
        rows, tokenizer, tmp_path, "dpo", data__max_length=50, data__on_too_long="truncate"
    )
    first, second = found.train[0], found.train[1]
    assert first["prompt_ids"] == second["prompt_ids"]
    room = 50 - len(first["prompt_ids"])
    assert (len(first["chosen_ids"]), len(first["rejected_ids"])) == (room, room)
    assert ledger.split("train").truncated_tokens == (101 - room) + (91 - room)


def test_prompts_are_cut_at_their_start_where_a_length_is_set_for_them(tokenizer, tmp_path):
    rows = [pair("q" * 200, "a" * 30, "b" * 9), pair("hi", "ok", "no")]
    cut = {"data__max_length": 60, "data__on_too_long": "truncate"}
    whole, _ = prepared_from(rows, tokenizer, tmp_path, "dpo", data__max_length=500)
    found, ledger = prepared_from(
        rows, tokenizer, tmp_path, "dpo", dpo__max_prompt_length=40, **cut
    )
    asked, short = whole.train["prompt_ids"]
    assert list(found.train["prompt_ids"]) == [asked[-40:], short]
    assert list(map(len, found.train["chosen_ids"])) == [20, 3]
    assert list(map(len, found.train["rejected_ids"])) == [10, 3]
    books = ledger.split("train")
    assert (books.truncated_rows, books.truncated_tokens) == (1, 2 * (len(asked) - 40) + 11)
    found, ledger = prepared_from(rows, tokenizer, tmp_path, "dpo", **cut)
    assert (len(found.train), ledger.split("train").unusable) == (1, 1)  # no room for an answer


def test_a_pair_whose_answers_differ_only_beyond_the_cut_is_left_out(tokenizer, tmp_path):
    rows = [pair("hi", "a" * 60 + "x", "a" * 60 + "y"), pair("hi", "ok", "no")]
    found, ledger = prepared_from(
        rows, tokenizer, tmp_path, "dpo", data__max_length=50, data__on_too_long="truncate"
    )
    assert len(found.train) == 1
    assert ledger.split("train").unusable == 1
    assert "same" in ledger.split("train").unusable_rows[0].reason


def test_nothing_left_to_train_is_an_error(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no row of the train split"):
        prepared_from(
            [talk("a" * 100, "b")],
            tokenizer,
            tmp_path,
            data__max_length=32,
            data__on_too_long="truncate",
        )


def test_rows_that_cannot_be_trained_are_refused_by_number_or_dropped_when_asked(
    tokenizer, tmp_path
):
    rows = [pair("hi", "ok", "no"), pair("hi", "same", "same")]
    with pytest.raises(DataError, match=r"rows\.jsonl:2"):
        prepared_from(rows, tokenizer, tmp_path, "dpo")
    found, ledger = prepared_from(rows, tokenizer, tmp_path, "dpo", data__on_bad_row="drop")
    assert len(found.train) == 1
    lost = ledger.split("train").unusable + sum(source.bad for source in ledger.sources)
    assert lost == 1


def test_held_out_rows_get_books_of_their_own(tokenizer, tmp_path):
    rows = [talk(f"q{i}", "a" * (i + 1)) for i in range(40)]
    found, ledger = prepared_from(rows, tokenizer, tmp_path, data__eval=0.25)
    assert len(found.train) + len(found.eval) == 40
    assert ledger.split("eval").rows == len(found.eval) == 10
    assert ledger.split("eval").tokens == sum(found.eval["length"])


def test_progress_is_told_to_its_end(tokenizer, tmp_path):
    events: list = []
    prepared_from([talk("q", "a")] * 7, tokenizer, tmp_path, on_event=events.append)
    last = [event for event in events if isinstance(event, StageProgress)][-1]
    assert (last.done, last.total) == (7, 7)


def test_what_was_written_is_read_again(tokenizer, tmp_path):
    found, _ = prepared_from(
        [talk(f"q{i}", "a" * i + "b") for i in range(9)], tokenizer, tmp_path, data__eval=0.3
    )
    again = load_tokenized(tmp_path / "prepared")
    assert again.train.to_list() == found.train.to_list()
    assert again.eval.to_list() == found.eval.to_list()
    assert again.batching == found.batching


def test_what_a_kill_left_half_written_is_replaced(tokenizer, tmp_path):
    for name in ("prepared.unfinished", "prepared"):
        (tmp_path / name / "train").mkdir(parents=True)
        (tmp_path / name / "train" / "junk.arrow").write_bytes(b"junk")
    found, _ = prepared_from([talk("q", "a"), talk("r", "b")], tokenizer, tmp_path)
    assert len(found.train) == 2
    assert not list(tmp_path.rglob("junk.arrow"))


# --- batches --------------------------------------------------------------------------------------


def recipe_for(tmp_path, method="sft", **flags):
    return small_recipe(method, tmp_path, tmp_path / "run", **flags).recipe


DRAW = random.Random(0)
MIXED = [DRAW.randint(4, 400) for _ in range(2000)]


def test_rows_of_one_length_are_batched_at_random(tmp_path):
    found = choose_batching(recipe_for(tmp_path), [50] * 1000, "auto")
    assert (found.packing, found.grouped) == (False, False)
    assert "random batches" in found.reason


def test_many_rows_of_mixed_lengths_are_packed(tmp_path):
    flags = {"data__max_length": 400, "trainer.per_device_train_batch_size": 2}
    found = choose_batching(recipe_for(tmp_path, **flags), MIXED, "auto")
    assert (found.packing, found.grouped) == (True, False)
    assert "steps" in found.reason


def test_few_rows_of_mixed_lengths_are_grouped_since_packing_would_leave_few_steps(tmp_path):
    found = choose_batching(recipe_for(tmp_path, data__max_length=2048), MIXED, "auto")
    assert (found.packing, found.grouped) == (False, True)
    assert "packing would leave only" in found.reason


def test_pairs_are_grouped_and_never_packed(tmp_path):
    found = choose_batching(recipe_for(tmp_path, "dpo", data__max_length=400), MIXED)
    assert (found.packing, found.grouped) == (False, True)


def test_packing_is_done_when_asked_for(tmp_path):
    found = choose_batching(recipe_for(tmp_path), [50] * 10, True)
    assert found.packing
    assert "asks" in found.reason


def test_packing_is_not_done_when_it_is_off(tmp_path):
    flags = {"data__max_length": 400, "trainer.per_device_train_batch_size": 2}
    assert not choose_batching(recipe_for(tmp_path, **flags), MIXED).packing


@pytest.mark.parametrize(("asked", "grouped"), [("group_by_length", True), ("random", False)])
def test_a_sampling_strategy_is_followed(tmp_path, asked, grouped):
    found = choose_batching(
        recipe_for(tmp_path, **{"trainer.train_sampling_strategy": asked}), MIXED, "auto"
    )
    assert (found.packing, found.grouped) == (False, grouped)
    assert asked in found.reason


def test_packed_sequences_hold_every_token_of_every_row_once(tokenizer, tmp_path):
    rows = [talk("q", "".join(random.Random(i).choices("abc", k=i % 30 + 1))) for i in range(60)]
    (tmp_path / "one").mkdir()
    save_model(tmp_path / "model")
    alone, _ = prepared_from(rows, tokenizer, tmp_path / "one", sft__packing=False)
    packed, ledger = prepared_from(rows, tokenizer, tmp_path, sft__packing=True)
    pieces = []
    for sequence in packed.train:
        assert len(sequence["input_ids"]) <= 128
        start = 0
        for length in sequence["seq_lengths"]:
            stop = start + length
            pieces.append((sequence["input_ids"][start:stop], sequence["labels"][start:stop]))
            start = stop
    assert sorted(pieces) == sorted(zip(alone.train["input_ids"], alone.train["labels"]))
    books = ledger.split("train")
    assert books.sequences == len(packed.train) < 60
    assert books.packed_fill == pytest.approx(books.tokens / (len(packed.train) * 128))


def test_the_reason_is_written_beside_the_data(tokenizer, tmp_path):
    found, _ = prepared_from([talk("q", "a")] * 3, tokenizer, tmp_path)
    written = json.loads((tmp_path / "prepared" / "batching.json").read_text())
    assert written["reason"] == found.batching.reason


def test_what_another_version_wrote_is_named_with_a_cure(tokenizer, tmp_path):
    prepared_from([talk("q", "a")] * 3, tokenizer, tmp_path)
    folder = tmp_path / "prepared"
    facts = json.loads((folder / "batching.json").read_text())
    (folder / "batching.json").write_text(json.dumps({**facts, "passes": None}))
    (folder / "checksums.json").unlink()
    write_checksums(folder)
    with pytest.raises(DataError, match=r"another version of aligner(.|\n)*add --resume"):
        load_tokenized(folder)


def test_padding_share_by_hand():
    assert padding_share([2, 2, 2], 3, 0) == 0
    assert padding_share([1, 3], 2, 0) == pytest.approx(2 / 6)
    assert padding_share([4, 1, 4, 1], 2, 0, grouped=True) == 0


def test_quantiles_by_hand():
    assert quantiles([5]) == [5] * 7
    assert quantiles(list(range(101))) == [0, 25, 50, 75, 90, 99, 100]


# --- what a row says beside its tokens ------------------------------------------------------------


@pytest.mark.parametrize("how", ["allow", "as_text", "error"])
@pytest.mark.parametrize("method", ["sft", "dpo", "sapo", "reward"])
def test_control_tokens_in_texts_are_counted_and_become_what_the_recipe_says(method, how, tmp_path):
    tokenizer, events = byte_tokenizer(), []
    stop = tokenizer.eos_token
    if method in ("dpo", "reward"):
        rows = [pair("hi", f"a{stop}b", "c"), pair("hi", "d", "e")]
    else:
        rows = [talk("hi", f"a{stop}b"), talk("hi", "d")]
    options = {"data__control_tokens": how, "on_event": events.append}
    if how == "error":
        with pytest.raises(DataError, match="1 rows cannot be trained on") as caught:
            prepared_from(rows[:1], tokenizer, tmp_path, method, **options)
        assert f"holds the control token `{stop}`" in caught.value.problems[0].message
        options["data__on_bad_row"] = "drop"
        _, ledger = prepared_from(rows, tokenizer, tmp_path, method, **options)
        assert (ledger.split("train").rows, ledger.split("train").unusable) == (1, 1)
        return
    found, ledger = prepared_from(rows, tokenizer, tmp_path, method, **options)
    column = "input_ids" if method == "sft" else "chosen_ids"
    held = sum(ids.count(tokenizer.eos_token_id) for ids in found.train[column])
    plain = sum(ids.count(tokenizer.eos_token_id) for ids in found.train[column][1:]) * 2
    assert held == plain + (how == "allow")
    books = ledger.split("train")
    assert (books.control_tokens, books.rows_with_control) == ({stop: 1}, 1)
    assert ("train control tokens", f"in the texts of 1 rows: {stop} 1") in books.table("train")
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert [
        text.startswith("control tokens stand in the texts of 1 train rows") for text in warnings
    ] == ([True] if how == "allow" else [])


@pytest.mark.parametrize("method", ["sft", "dpo", "sapo", "reward"])
def test_parts_of_rows_that_the_template_leaves_out_are_in_the_books(method, tokenizer, tmp_path):
    turns = [talk("hi", text)["messages"] for text in ("a", "b")]
    turns[0][1]["reasoning_content"] = "since"
    row = (
        {"chosen": turns[0], "rejected": turns[1]}
        if method in ("dpo", "reward")
        else {"messages": turns[0]}
    )
    _, ledger = prepared_from([row, row], tokenizer, tmp_path, method)
    assert ledger.split("train").unread == {"`reasoning_content`": 2}
