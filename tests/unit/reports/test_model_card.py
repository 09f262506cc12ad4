"""The model card: what the record holds, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from example_run import finished_run, resolved, trained_run

from aligner.reports.finish import finish_run
from aligner.runs.run import Run


@pytest.fixture(autouse=True)
def outside_any_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of this repository has no place in these records."""
    monkeypatch.chdir(tmp_path)


def read_card(run: Run) -> tuple[dict[str, Any], str]:
    """Front matter and text."""
    empty, front, text = (run.final_dir / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), text


def test_the_card_states_data_settings_results_and_how_to_make_it_again(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", "dpo", "Qwen/Qwen3-0.6B", steps=5)
    front, text = read_card(run)
    assert front["library_name"] == "transformers"
    assert front["base_model"] == "Qwen/Qwen3-0.6B"
    assert front["base_model_relation"] == "finetune"
    assert {"aligner", "dpo"} <= set(front["tags"])
    assert "license" not in front
    for part in (
        "direct preference optimization (`sigmoid` loss)",
        "58 duplicates, 140 not sampled, 1 broken",
        "| `train` | 3,789 | 201,345 | 88,120 | 12 | 0 |",
        "| `trainer.learning_rate` | `5e-05` |",
        "| `dpo.beta` | `0.1` |",
        "| DPO | 0.780 | 0.740 |",
        "| `eval_loss` | 0.357 |",
        run.read_json("resolved.json")["recipe_hash"],
        "```sh\n",
    ):
        assert part in text, part


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", model="Qwen/Qwen3-0.6B", steps=3)
    (run.final_dir / "adapter_config.json").write_text("{}")
    finish_run(run, {}, [])
    front, text = read_card(run)
    assert front["library_name"] == "peft"
    assert front["base_model_relation"] == "adapter"
    assert "A LoRA adapter for `Qwen/Qwen3-0.6B`" in text


def test_the_base_is_the_one_at_the_root_of_the_lineage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished_run(Path("runs/sft"), "sft", "Qwen/Qwen3-0.6B", steps=3)
    run = finished_run(Path("runs/dpo"), "dpo", "runs/sft/final", steps=3)
    front, text = read_card(run)
    assert front["base_model"] == "Qwen/Qwen3-0.6B"
    assert "model `Qwen/Qwen3-0.6B` → sft run `runs/sft` → this dpo run" in text


def test_a_local_base_model_gets_no_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    front, _ = read_card(finished_run(Path("run"), "sft", "model", steps=3))
    assert "base_model" not in front


def test_a_chat_template_changes_the_example(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", steps=3)
    (run.final_dir / "chat_template.jinja").write_text("{{ messages }}")
    finish_run(run, {}, [])
    assert '[{"role": "user", "content": "..."}]' in read_card(run)[1]


def test_names_cannot_break_the_card(tmp_path: Path) -> None:
    run = Run.create(resolved(tmp_path / "run", model="a|b`c\n---\nlicense: mit"))
    run.final_dir.mkdir()
    source = {"path": "x|y`\n# title", "format": "a|b<script>", "rows_read": 1, "to_train": 1}
    run.write_json("data.json", {"sources": [source], "splits": {}})
    finish_run(run, {"a|b": 1.0}, [])
    front, text = read_card(run)
    assert "license" not in front
    assert "\n# title" not in text
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("| `x")]
    assert rows == ["| `x\\|y' # title` | a\\|b&lt;script> | 1 | 1 | 0 | none |"]
