"""The padded forward pass: everything that it reads against each sequence alone, unpadded."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel

from aligner.models import forward
from aligner.models.answers import batched_logps, pad_answers
from aligner.models.forward import (
    answer_entropies,
    batched_forward,
    batches_by_length,
    eval_mode,
    pad,
    read_tokens,
    token_logps,
)
from aligner.models.fused_head import fuse_head
from aligner.runs.journal import Journal
from aligner.tokenization.encode import IGNORED

PAD = 5
"""An id that sequences hold too."""

DRAW = random.Random(0)
LENGTHS = (3, 17, 1, 9, 9, 30, 2)
SEQUENCES = [[DRAW.randrange(4, 200) for _ in range(length)] for length in LENGTHS]
ANSWERS = [
    ([7, 8, PAD], [9, 10, 11, 2]),
    ([7], [2]),
    ([PAD, 12, 13, 14, 15, 16, 17, 18, 19], [PAD, PAD, 20]),
    ([7, 8], [PAD, 9, 10, 11, 2]),
    ([30, 31, 32], []),
    ([], [40, 41, 42, 43]),
]
SIZES = ({}, {"batch_tokens": 40}, {"batch_tokens": 1}, {"batch_tokens": None, "batch_rows": 3})


@pytest.fixture(scope="module", params=["rotary", "learned"])
def model(request: pytest.FixtureRequest) -> Any:
    """Relative positions, and absolute ones, which show at once where a row begins."""
    if request.param == "rotary":
        return tiny_llama(byte_tokenizer(), initializer_range=0.3).eval()
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=256, initializer_range=0.3, **sizes)).eval()


def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """One sequence, alone and unpadded: (T, V)."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)])).logits[0].double()


# --- batches --------------------------------------------------------------------------------------


def test_padding_is_known_by_the_mask_and_left_padding_counts_positions() -> None:
    right, left = (pad([[1, PAD], [7, 8, 9]], PAD, left=left) for left in (False, True))
    assert right["input_ids"].tolist() == [[1, PAD, PAD], [7, 8, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert "position_ids" not in right
    assert left["input_ids"].tolist() == [[PAD, 1, PAD], [7, 8, 9]]
    assert left["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
    assert left["position_ids"].tolist() == [[0, 0, 1], [0, 1, 2]]


def test_labels_stand_at_answers_alone() -> None:
    batch = pad_answers([([1, PAD], [PAD, 2]), ([7], [8]), ([9], [])], PAD)
    assert batch["input_ids"].tolist() == [[1, PAD, PAD, 2], [7, 8, PAD, PAD], [9, PAD, PAD, PAD]]
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 2, 1]
    no = IGNORED
    assert batch["labels"].tolist() == [[no, no, PAD, 2], [no, 8, no, no], [no, no, no, no]]


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        ({}, [[3, 1, 4, 0, 2]]),
        ({"rows": 2}, [[3, 1], [4, 0], [2]]),
        ({"tokens": 10}, [[3], [1, 4], [0, 2]]),
        ({"tokens": 10, "rows": 1}, [[3], [1], [4], [0], [2]]),
        ({"tokens": 1}, [[3], [1], [4], [0], [2]]),
    ],
)
def test_batches_go_from_the_longest_to_the_shortest(
    limits: dict[str, int], batches: list[list[int]]
) -> None:
    assert list(batches_by_length([2, 4, 1, 12, 4], **limits)) == batches
    assert list(batches_by_length([], **limits)) == []


# --- forward passes -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_hidden_states_of_a_padded_row_are_those_of_the_row_alone(model: Any, size: Any) -> None:
    def read(batch: Any, rows: Sequence[int]) -> list[torch.Tensor]:
        states = model.base_model(**batch).last_hidden_state
        return [states[i, : LENGTHS[row]] for i, row in enumerate(rows)]

    found = batched_forward(model, SEQUENCES, read, pad_token_id=PAD, **size)
    for ids, states in zip(SEQUENCES, found, strict=True):
        with torch.no_grad():
            alone = model.base_model(torch.tensor([ids])).last_hidden_state[0]
        assert torch.allclose(states, alone, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_last_place_of_a_row_that_is_padded_on_the_left(model: Any, size: Any) -> None:
    def read(batch: Any, _: Sequence[int]) -> Any:
        return model(**batch, logits_to_keep=1).logits[:, -1]

    found = batched_forward(model, SEQUENCES, read, pad_token_id=PAD, left=True, **size)
    for ids, logits in zip(SEQUENCES, found, strict=True):
        assert torch.allclose(logits.double(), logits_of(model, ids)[-1], atol=1e-4)


@pytest.mark.parametrize("left", [False, True])
def test_equal_sequences_are_read_once_and_each_gets_its_value(model: Any, left: bool) -> None:
    seen: list[list[int]] = []
    progress: list[tuple[int, int]] = []

    def read(batch: dict[str, torch.Tensor], rows: Any) -> list[int]:
        rows_of_batch = zip(batch["input_ids"], batch["attention_mask"])
        found = [ids[mask.bool()].tolist() for ids, mask in rows_of_batch]
        seen.extend(found)
        return [sum(ids) for ids in found]

    sequences = [[1, 2], [5], [1, 2], [3, 3, 3, 3], [0]]
    options: Any = {"pad_token_id": 0, "batch_tokens": 4, "left": left}
    found = batched_forward(
        model, sequences, read, on_progress=lambda *n: progress.append(n), **options
    )
    assert found == [3, 5, 3, 12, 0]
    assert sorted(seen) == [[0], [1, 2], [3, 3, 3, 3], [5]]
    assert progress == [(1, 5), (4, 5), (5, 5)]
    seen.clear()
    batched_forward(model, sequences, read, marks=[0, 0, 1, 0, 0], **options)
    assert seen.count([1, 2]) == 2


def test_what_a_journal_holds_is_not_computed_again(model: Any, tmp_path: Path) -> None:
    batches: list[int] = []

    def read(batch: dict[str, torch.Tensor], rows: Sequence[int]) -> list[int]:
        batches.append(len(rows))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return [LENGTHS[row] for row in rows]

    def run() -> list[int]:
        journal = Journal(tmp_path / "journal.jsonl")
        return batched_forward(
            model, SEQUENCES, read, pad_token_id=0, batch_rows=3, journal=journal
        )

    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == list(LENGTHS)
    assert batches == [3, 3, 3, 1]


def test_every_module_has_its_mode_back_also_after_an_error(model: Any) -> None:
    model.train()
    model.base_model.eval()
    before = [module.training for module in model.modules()]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        _ = 1 / 0
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
    model.eval()


# --- what logits say of tokens --------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunk", [3, 1024])
def test_log_probabilities_of_wanted_tokens(
    model: Any, size: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "_CHUNK", chunk)
    draw = random.Random(1)
    wanted = [sorted(draw.sample(range(1, n), draw.randint(0, n - 1))) for n in LENGTHS]
    found = read_tokens(model, SEQUENCES, wanted, token_logps, pad_token_id=PAD, **size)
    for ids, places, logps in zip(SEQUENCES, wanted, found, strict=True):
        alone = logits_of(model, ids).log_softmax(-1)
        slow = [alone[place - 1, ids[place]].item() for place in places]
        assert logps == pytest.approx(slow, abs=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_entropies_are_those_of_what_the_answer_was_drawn_from(model: Any, size: Any) -> None:
    found = answer_entropies(model, ANSWERS, pad_token_id=PAD, **size)
    for (prompt, answer), entropies in zip(ANSWERS, found, strict=True):
        logits = logits_of(model, [*prompt, *answer])
        slow = []
        for place in range(len(prompt), len(prompt) + len(answer)):
            shares = logits[place - 1].softmax(-1)
            slow.append(-(shares * shares.log()).sum().item() if place else 0.0)
        assert entropies == pytest.approx(slow, abs=1e-4)


def test_equal_tokens_with_another_boundary_have_entropies_of_their_own(model: Any) -> None:
    parts = [([1, 9, 8], [5, 6]), ([1, 9], [8, 5, 6])]
    found = answer_entropies(model, parts, pad_token_id=PAD)
    assert [len(one) for one in found] == [2, 3]
    assert found[0] == pytest.approx(found[1][1:], abs=1e-5)


# --- log-probabilities of whole answers -----------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 2])
def test_summed_log_probabilities_of_answers(batch_rows: int, count: int) -> None:
    model = tiny_llama(byte_tokenizer(), initializer_range=0.3).train()
    rows = [ANSWERS[i : i + count] for i in range(0, 5 - count, count)]
    lengths = [max(len(prompt) + len(answer) for prompt, answer in row) for row in rows]
    slow = []
    for prompt, answer in [answer for row in rows for answer in row]:
        ids = [*prompt, *answer]
        alone = logits_of(model, ids).log_softmax(-1)
        places = range(len(prompt), len(ids))
        slow.append(sum(alone[place - 1, ids[place]].item() for place in places))
    fuse_head(model)
    options: Any = {"pad_token_id": PAD, "batch_rows": batch_rows}
    found = batched_logps(model, rows.__getitem__, lengths, **options)
    assert [len(logps) for logps in found] == [count] * len(rows)
    assert [logp for logps in found for logp in logps] == pytest.approx(slow, abs=1e-4)
    assert model.training
    assert batched_logps(model, rows.__getitem__, [], **options) == []
