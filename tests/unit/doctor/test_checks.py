"""The doctor finds what is there, says what is wrong with a cure, and its self-tests notice the
faults they are for."""

from __future__ import annotations

import pytest
import torch

from aligner.doctor import checks, numerics
from aligner.doctor.checks import Check, examine


def by_name(checks) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_is_examined_and_every_problem_has_a_cure() -> None:
    state = torch.get_rng_state()
    found = by_name(examine())
    assert {
        "python",
        "torch",
        "cpu",
        "gloo",
        *numerics.QUANTIZED,
        "hub",
        "cache",
        "deepspeed",
        *numerics.TESTS,
    } <= set(found)
    assert all(check.cure for check in found.values() if check.status == "problem")
    assert [
        name
        for name in ("torch", "trl", "gloo", *numerics.QUANTIZED, *numerics.TESTS)
        if found[name].status != "ok"
    ] == []
    assert "HF_HUB_OFFLINE" in found["hub"].detail
    assert torch.equal(torch.get_rng_state(), state)


def test_a_version_outside_our_range_is_a_problem_with_the_line_that_cures_it(monkeypatch) -> None:
    real = checks.metadata.version
    monkeypatch.setattr(
        checks.metadata, "version", lambda name: "0.9" if name == "trl" else real(name)
    )
    found = by_name(checks.check_packages())["trl"]
    assert (found.status, found.detail.split(",")[0]) == ("problem", "0.9")
    assert found.cure.startswith('run: pip install "trl')


def test_a_missing_package_is_a_problem(monkeypatch) -> None:
    def version(name: str) -> str:
        raise checks.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checks.metadata, "version", version)
    assert {check.detail for check in checks.check_packages()} == {"not installed"}


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch) -> None:
    monkeypatch.setattr("aligner.launch.command.count_nvidia", lambda: 2)
    found = checks._no_gpu("2.13.0+cpu")
    assert found.status == "problem"
    assert "2 NVIDIA GPU(s)" in found.detail


def test_walls_that_this_machine_cannot_build_around_programs_are_named(monkeypatch) -> None:
    from aligner.sandbox import worker

    monkeypatch.setattr(worker, "WITHOUT", ["landlock", "unshare"])
    (found,) = checks.check_verifiers()
    assert found.status == "note"
    words = "here programs of answers can read your files, the right answers among them (this sys"
    assert found.detail.startswith(words)
    assert "container" in found.cure


def test_a_broken_bitsandbytes_is_reported_and_not_raised(monkeypatch) -> None:
    import bitsandbytes

    def broken(*_, **__):
        raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", broken)
    found = by_name(checks.check_quantized())
    assert {name: check.status for name, check in found.items()} == {
        "nf4": "problem",
        "fp4": "problem",
        "int8": "ok",
    }
    assert found["nf4"].detail.endswith("no kernel")


@pytest.mark.parametrize("kind", numerics.QUANTIZED)
def test_the_doctor_notices_a_quantized_gradient_that_an_evaluation_cuts_off(
    monkeypatch, kind
) -> None:
    from aligner.models import quantized

    layer = quantized.SteadyLinear8bit if kind == "int8" else quantized.SteadyLinear4bit
    healthy = layer.forward

    def cut_off(self, x):
        self.evaluated = getattr(self, "evaluated", False) or not torch.is_grad_enabled()
        return healthy(self, x).detach() if self.evaluated else healthy(self, x)

    monkeypatch.setattr(layer, "forward", cut_off)
    monkeypatch.setattr(quantized, "_prove", lambda *_: None)
    assert by_name(checks.check_quantized())[kind].status == "problem"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("packing", {"use_cache": True}),
        ("padding", {"attention_mask": None, "position_ids": None}),
        ("accumulation", {"num_items_in_batch": None}),
    ],
)
def test_a_self_test_notices_the_fault_it_is_for(monkeypatch, name, fault) -> None:
    healthy = numerics.random_llama

    def faulty(device: str):
        model = healthy(device)
        forward = model.forward
        model.forward = lambda **given: forward(**{**given, **fault})
        return model

    monkeypatch.setattr(numerics, "random_llama", faulty)
    assert numerics.TESTS[name][1]("cpu") > 100 * numerics.TOLERANCE


def test_a_difference_that_is_not_a_number_does_not_hold() -> None:
    assert not numerics.Measured("x", "", float("nan"), 1.0).holds
