"""The self-tests of the arithmetic hold here, each with its number, and a planted fault fails each
of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from runner import aligner

from aligner.doctor import numerics, trainings
from aligner.doctor.numerics import Measured
from aligner.doctor.proofs import prove
from aligner.doctor.quantized import QUANTIZED, measure_quantized

Patch = pytest.MonkeyPatch


def test_every_claim_is_proved_and_the_random_state_stays() -> None:
    state = torch.get_rng_state()
    found = list(prove("cpu"))
    assert {one.name for one in found} == {*numerics.TESTS, *QUANTIZED, *trainings.TESTS}
    assert [(one.name, one.difference, one.error) for one in found if not one.holds] == []
    assert all(one.difference >= 0 for one in found)
    assert torch.equal(torch.get_rng_state(), state)


# --- planted faults -------------------------------------------------------------------------------


def always_given(monkeypatch: Patch, fault: dict[str, Any]) -> None:
    """Let every model be called with something that its caller did not ask for."""
    healthy = numerics.random_llama

    def faulty(device: str, **settings: Any) -> Any:
        model = healthy(device, **settings)
        forward = model.forward
        model.forward = lambda **given: forward(**{**given, **fault})
        return model

    monkeypatch.setattr(numerics, "random_llama", faulty)


def a_cache_while_packed(monkeypatch: Patch) -> None:
    always_given(monkeypatch, {"use_cache": True})


def no_mask(monkeypatch: Patch) -> None:
    always_given(monkeypatch, {"attention_mask": None, "position_ids": None})


def each_batch_divided_by_its_own_tokens(monkeypatch: Patch) -> None:
    always_given(monkeypatch, {"num_items_in_batch": None})


def branches_that_see_each_other(monkeypatch: Patch) -> None:
    from aligner.models import fused_head, shared_prefix

    healthy = shared_prefix.attention_of

    def seeing(base: Any, groups: torch.Tensor, branches: torch.Tensor) -> Any:
        return healthy(base, groups, torch.zeros_like(branches))

    for module in (shared_prefix, fused_head):
        monkeypatch.setattr(module, "attention_of", seeing)


def an_adapter_that_is_not_zero_at_first(monkeypatch: Patch) -> None:
    from aligner.models import adapters

    monkeypatch.setattr(
        adapters,
        "with_new_adapter",
        lambda model, *_: numerics.random_adapter(model),
    )


def a_stop_token_that_is_masked(monkeypatch: Patch) -> None:
    from aligner.tokenization import encode

    monkeypatch.setattr(encode, "stop_token_ids", lambda _: {-1})


def a_matrix_that_embeddings_and_head_share(monkeypatch: Patch) -> None:
    from aligner.models import adapters

    monkeypatch.setattr(adapters, "untie_adapted", lambda adapted: None)


FAULTS: dict[str, Callable[[Patch], None]] = {
    "packing": a_cache_while_packed,
    "shared prefix": branches_that_see_each_other,
    "padding": no_mask,
    "accumulation": each_batch_divided_by_its_own_tokens,
    "reference": an_adapter_that_is_not_zero_at_first,
    "stop token": a_stop_token_that_is_masked,
    "merged": a_matrix_that_embeddings_and_head_share,
}


@pytest.mark.parametrize("name", numerics.TESTS)
def test_a_self_test_notices_the_fault_it_is_for(monkeypatch: Patch, name: str) -> None:
    FAULTS[name](monkeypatch)
    assert numerics.TESTS[name][1]("cpu") > 100 * numerics.TOLERANCE


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_gradient_that_an_evaluation_cuts_off_is_noticed(
    monkeypatch: Patch, kind: str
) -> None:
    from aligner.models import quantized

    layer = quantized.SteadyLinear8bit if kind == "int8" else quantized.SteadyLinear4bit
    healthy = layer.forward

    def cut_off(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.evaluated = getattr(self, "evaluated", False) or not torch.is_grad_enabled()
        return healthy(self, x).detach() if self.evaluated else healthy(self, x)

    monkeypatch.setattr(layer, "forward", cut_off)
    monkeypatch.setattr(quantized, "_prove", lambda *_: None)
    found = measure_quantized(kind, "cpu")
    assert not found.holds
    assert found.difference > 100 * numerics.TOLERANCE or found.error


def moments_that_are_forgotten(monkeypatch: Patch) -> None:
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda *_: None)


def dropout_that_begins_again(monkeypatch: Patch) -> None:
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "_load_rng_state", lambda *_: None)


def steps_that_do_not_know_their_tokens(monkeypatch: Patch) -> None:
    from transformers import Trainer

    healthy = Trainer.get_batch_samples

    def unknown(self: Any, *given: Any) -> Any:
        return healthy(self, *given)[0], None

    monkeypatch.setattr(Trainer, "get_batch_samples", unknown)


def a_reference_that_keeps_its_adapter(monkeypatch: Patch) -> None:
    from peft import PeftModel

    def broken(self: Any) -> Any:
        for name, weight in self.named_parameters():
            if "lora_B" in name:
                weight.data += 0.1
        return nullcontext()

    monkeypatch.setattr(PeftModel, "disable_adapter", broken)


def pairs_whose_answers_see_each_other(monkeypatch: Patch) -> None:
    from aligner.training import prefix

    branches_that_see_each_other(monkeypatch)
    monkeypatch.setattr(prefix, "why_not_alike", lambda *_, **__: "")


TRAINED = (
    ("resume", moments_that_are_forgotten),
    ("resume", dropout_that_begins_again),
    ("large batch", steps_that_do_not_know_their_tokens),
    ("first loss", a_reference_that_keeps_its_adapter),
    ("shared pairs", pairs_whose_answers_see_each_other),
)


@pytest.mark.parametrize(("name", "plant"), TRAINED)
def test_a_training_notices_the_fault_it_is_for(
    monkeypatch: Patch, name: str, plant: Callable[[Patch], None]
) -> None:
    plant(monkeypatch)
    assert trainings.TESTS[name][1]("cpu") > 10 * numerics.TOLERANCE


def test_every_self_test_has_a_fault() -> None:
    assert set(FAULTS) == set(numerics.TESTS)
    assert {name for name, _ in TRAINED} == set(trainings.TESTS)


# --- what is said ---------------------------------------------------------------------------------


def test_a_difference_that_is_not_a_number_does_not_hold() -> None:
    assert not Measured("x", "", float("nan"), 1.0).holds


def test_a_self_test_that_cannot_run_is_a_finding(monkeypatch: Patch) -> None:
    import bitsandbytes

    class Broken(bitsandbytes.nn.Linear4bit):
        def __init__(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", Broken)
    found = measure_quantized("nf4", "cpu")
    assert (found.holds, found.error) == (False, "no kernel")


def told(monkeypatch: Patch, *found: Measured) -> None:
    from aligner.doctor import proofs

    monkeypatch.setattr(proofs, "prove", lambda device: iter(found))


GOOD = Measured("packing", "rows stay apart", 3.3e-6, 1e-4, 0.2)
BAD = Measured("merged", "nothing changes", 0.5, 1e-4, 1.25)
BROKEN = Measured("nf4", "4 bits train", float("nan"), 1e-4, 0.0, "no kernel")


def test_the_command_prints_each_number_and_fails_where_one_is_too_large(
    monkeypatch: Patch,
) -> None:
    told(monkeypatch, GOOD)
    result = aligner("doctor", "--numerics")
    assert result.exit_code == 0
    assert "ok       packing        3.3e-06 of 1e-04   0.2 s  rows stay apart\n" in result.stdout
    told(monkeypatch, GOOD, BAD, BROKEN)
    result = aligner("doctor", "--numerics")
    assert result.exit_code == 6
    assert "PROBLEM  merged         5.0e-01 of 1e-04   1.2 s  nothing changes\n" in result.stdout
    assert "merged, nf4: the numbers here are wrong" in result.stderr


def test_the_command_writes_json(monkeypatch: Patch) -> None:
    told(monkeypatch, GOOD, BROKEN)
    result = aligner("doctor", "--numerics", "--json")
    record = json.loads(result.stdout)
    assert result.exit_code == 6
    assert [(test["difference"], test["holds"]) for test in record["tests"]] == [
        (3.3e-6, True),
        (None, False),
    ]
