"""Training with shared prefixes is training with separate rows: the same numbers at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import save_model, small_recipe

from aligner.errors import RecipeError
from aligner.events import DataReady, Notice
from aligner.methods.pipeline import run_recipe
from aligner.runs.files import read_metrics

pytestmark = pytest.mark.usefixtures("own_cache")

STEPS: dict[str, Any] = {
    "trainer__max_steps": 4,
    "trainer__logging_steps": 1,
    "trainer__learning_rate": 1e-3,
    "trainer__eval_steps": 2,
    "trainer__gradient_accumulation_steps": 2,
    "data__eval": 0.25,
}
TIMES = ("runtime", "per_second", "generation_share", "time")


def metrics(method: str, world: Path, folder: Path, prefix: str, **flags: Any) -> list[dict]:
    recipe = small_recipe(
        method, world, folder / prefix, preference__prefix=prefix, **{**STEPS, **flags}
    )
    return read_metrics(run_recipe(recipe).run_dir)


LORA = {"model__lora": {"r": 4, "target_modules": "all-linear"}, "trainer__learning_rate": 1e-2}


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("dpo", {}),
        ("dpo", {**LORA, "trainer__gradient_checkpointing": True}),
        (
            "dpo",
            {"dpo__nll_weight": 0.5, "dpo__loss": "ipo", "model__attn_implementation": "eager"},
        ),
        ("dpo", {**LORA, "model__quantization": "nf4"}),
        ("dpo", {"dpo__forward_kl": 0.1, "dpo__forward_kl_tokens": 4}),
        ("sapo", {"sapo__window": 3, "sapo__buffer_size": 64}),
        ("reward", {}),
        ("reward", LORA),
        ("reward", {"reward__kind": "segment", "reward__segments": {"rule": "token"}}),
        ("reward", {"reward__kind": "odin"}),
    ],
)
def test_shared_prefixes_change_no_number(
    small_world: Path, tmp_path: Path, method: str, flags: dict[str, Any]
) -> None:
    separate = metrics(method, small_world, tmp_path, "separate", **flags)
    shared = metrics(method, small_world, tmp_path, "shared", **flags)
    assert len(shared) == len(separate) >= 6
    for place, (one, other) in enumerate(zip(shared, separate)):
        assert set(one) == set(other)
        for key, value in other.items():
            if place == 0 and key == "rewards/accuracies":
                continue  # before the first step all rewards are 0 up to rounding: a tie
            if isinstance(value, float) and not any(part in key for part in TIMES):
                assert one[key] == pytest.approx(value, rel=1e-4, abs=2e-5), key


def test_the_plan_says_what_sharing_saves(small_world: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    run_recipe(small_recipe("dpo", small_world, tmp_path / "run", **STEPS), on_event=events.append)
    table = next(event for event in events if isinstance(event, DataReady))
    said = dict(table.table)["prompts"]
    assert "shared by the answers of a pair" in said
    assert "fewer tokens" in said


def windowed(folder: Path) -> Path:
    """A model whose attention reaches 8 tokens back."""
    from transformers import MistralConfig, MistralForCausalLM

    model = save_model(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    MistralForCausalLM(
        MistralConfig(vocab_size=260, sliding_window=8, **size, **heads)
    ).save_pretrained(model)
    return model


def test_a_model_with_windows_computes_each_answers_prompt_and_says_so(
    small_world: Path, tmp_path: Path
) -> None:
    model = windowed(tmp_path / "model")
    flags = {**STEPS, "model__name_or_path": str(model)}
    events: list[Any] = []
    run_recipe(small_recipe("dpo", small_world, tmp_path / "run", **flags), on_event=events.append)
    said = [event.text for event in events if isinstance(event, Notice)]
    assert any("reaches 8 tokens back (sliding_window)" in text for text in said)
    with pytest.raises(RecipeError, match=r"preference\.prefix is shared, and the model"):
        metrics("dpo", small_world, tmp_path, "shared", model__name_or_path=str(model))
    assert not (tmp_path / "shared" / "checkpoints").exists()
    with pytest.raises(RecipeError, match=r"preference\.prefix is shared, and the model"):
        run_recipe(
            small_recipe(
                "dpo", small_world, tmp_path / "dry", preference__prefix="shared", **flags
            ),
            dry_run=True,
        )


def test_a_reference_with_windows_is_computed_apart_and_that_is_said(
    small_world: Path, tmp_path: Path
) -> None:
    flags = {**STEPS, "dpo__reference_model": str(windowed(tmp_path / "model"))}
    told: list[Any] = []
    recipe = small_recipe(
        "dpo", small_world, tmp_path / "run", preference__prefix="shared", **flags
    )
    found = read_metrics(run_recipe(recipe, on_event=told.append).run_dir)
    said = [event.text for event in told if isinstance(event, Notice)]
    assert any(text.startswith("the reference computes each answer") for text in said)
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    expected = metrics("dpo", small_world, tmp_path, "separate", **flags)
    for one, other in zip(found, expected, strict=True):
        assert one["logps/chosen"] == pytest.approx(other["logps/chosen"], rel=1e-4)
        assert one["rewards/margins"] == pytest.approx(other["rewards/margins"], abs=2e-5)
