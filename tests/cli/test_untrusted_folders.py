"""What comes with a model's folder is read, and never run, unless the command or the recipe allows
it: whichever of its files asks, and whatever a record of a run beside it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import save_model, write_jsonl
from runner import aligner

Change = Callable[[Path], object]
"""What is done to a folder so that one of its files asks for code."""


def with_keys(file: Path, **keys: object) -> None:
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**known, **keys}))


def by_config(folder: Path) -> None:
    own = {"AutoConfig": "own_code.Config", "AutoModelForCausalLM": "own_code.Model"}
    with_keys(folder / "config.json", model_type="own", auto_map=own)


def by_tokenizer(folder: Path) -> None:
    own = {"AutoTokenizer": [None, "own_code.Tokenizer"]}
    with_keys(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map=own)


def by_generation(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    code = (folder / "own_code.py").read_text()
    (folder / "custom_generate/generate.py").write_text(f"{code}def generate(model): ...\n")


def by_base_of_adapter(folder: Path) -> None:
    base = save_model(folder.parent / "base")
    (base / "own_code.py").write_text((folder / "own_code.py").read_text())
    by_config(base)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    with_keys(
        folder / "adapter_config.json",
        peft_type="LORA",
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base),
        auto_mapping={"base_model_class": "Model", "parent_library": "own_code"},
    )


ASKS: dict[str, Change] = {
    "config.json": by_config,
    "tokenizer_config.json": by_tokenizer,
    "custom_generate": by_generation,
    "the base of an adapter": by_base_of_adapter,
}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def final(tmp_path: Path, marker: Path) -> Path:
    """The result of a run whose own records say that code was allowed."""
    run = tmp_path / "run"
    final = save_model(run / "final")
    (final / "own_code.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    model = {"name_or_path": str(final), "trust_remote_code": True}
    for file in (run / "resolved.json", final / "resolved.json"):
        file.write_text(json.dumps({"recipe": {"method": "sft", "model": model}, "model": model}))
    for folder in (run, final):
        (folder / "recipe.yaml").write_text(f"method: sft\nmodel: {json.dumps(model)}\n")
    return final


@pytest.mark.parametrize("what", ASKS)
def test_code_in_a_folder_is_not_run_by_a_command_that_does_not_allow_it(
    what: str, final: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ASKS[what](final)
    monkeypatch.chdir(final)
    rows = write_jsonl(
        tmp_path / "rows.jsonl",
        [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
    )
    results = [
        aligner("generate", final, "hello", "--max-new-tokens", 1),
        aligner("eval", final, "--data", rows),
        aligner(
            "sft",
            f"model.name_or_path={final}",
            f"data.train={rows}",
            f"output_dir={tmp_path / 'out'}",
            "--dry-run",
        ),
    ]
    for result in results:
        if what == "custom_generate":  # the commands decode by themselves
            assert result.exit_code == 0, result.output
        else:
            assert result.exit_code == 2
            assert "contains custom code" in result.output
            assert "give --trust-remote-code, if you trust the code" in result.output
    assert not marker.exists()
