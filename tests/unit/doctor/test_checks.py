"""The doctor finds what is there, says what is wrong with a cure, and its self-tests notice the
faults they are for."""

from __future__ import annotations

import torch

from aligner.doctor import checks, numerics
from aligner.doctor.checks import Check, examine
from aligner.doctor.quantized import QUANTIZED


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
        *QUANTIZED,
        "hub",
        "cache",
        "deepspeed",
        *numerics.TESTS,
    } <= set(found)
    assert all(check.cure for check in found.values() if check.status == "problem")
    assert [
        name
        for name in ("torch", "trl", "gloo", *QUANTIZED, *numerics.TESTS)
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

    class Broken(bitsandbytes.nn.Linear4bit):
        def __init__(self, *_, **__):
            raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", Broken)
    found = by_name(checks.check_quantized())
    assert {name: check.status for name, check in found.items()} == {
        "nf4": "problem",
        "fp4": "problem",
        "int8": "ok",
    }
    assert found["nf4"].detail.endswith("no kernel")
