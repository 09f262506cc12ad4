"""Reference log-probabilities: right, cached under everything they depend on, and never taken from
another reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from fakes import byte_tokenizer, save_model, small_recipe, tiny_llama
from safetensors.torch import load_file, save_file

from aligner.errors import RecipeError
from aligner.events import Notice, StageProgress
from aligner.methods.dpo.references import uses_adapter_off
from aligner.models.fused_head import fuse_head
from aligner.models.loading import load_policy
from aligner.runs.cache import cache_folder
from aligner.training.reference import ReferenceScorer, with_reference

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def model_folder(tmp_path) -> Path:
    return save_model(tmp_path / "model")


def rows_of(changed: int = 0) -> Dataset:
    """Three pairs of different lengths; `changed` alters one token of the second."""
    rows = [
        {"prompt_ids": [1, 10, 11], "chosen_ids": [20, 2], "rejected_ids": [21, 22, 23, 2]},
        {
            "prompt_ids": [1, 12],
            "chosen_ids": [30, 31, 32 + changed, 33, 2],
            "rejected_ids": [34, 2],
        },
        {"prompt_ids": [1, 13, 14, 15, 16], "chosen_ids": [40, 2], "rejected_ids": [41, 2]},
    ]
    for row in rows:
        answers = (len(row["chosen_ids"]), len(row["rejected_ids"]))
        row |= {"weight": 1.0, "length": len(row["prompt_ids"]) + max(answers)}
    return Dataset.from_list(rows)


def score(
    tokenizer, model_folder, rows=None, *, batch_size=2, bf16=False, with_policy=True, **flags
):
    """The rows with their reference, and what was said while computing it."""
    recipe = small_recipe("dpo", model_folder.parent, model_folder.parent / "run", **flags).recipe
    policy = None
    if with_policy:
        policy = load_policy(recipe.model, tokenizer, trainable=True)
        fuse_head(policy)
    events: list = []
    scorer = ReferenceScorer(recipe, tokenizer, policy, batch_size, bf16, events.append)
    return with_reference(rows or rows_of(), scorer, "training"), events


def was_computed(events) -> bool:
    cached = any(isinstance(event, Notice) and "from the cache" in event.text for event in events)
    computed = any(isinstance(event, StageProgress) for event in events)
    assert cached != computed
    return computed


def by_hand(model, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize("with_policy", [True, False])
def test_log_probabilities_are_sums_over_the_answer(tokenizer, model_folder, with_policy):
    scored, _ = score(tokenizer, model_folder, with_policy=with_policy)
    model = tiny_llama(tokenizer)
    for row in scored:
        for side in ("chosen", "rejected"):
            expected = by_hand(model, row["prompt_ids"], row[f"{side}_ids"])
            assert row[f"reference_{side}"] == pytest.approx(expected, abs=1e-4)


def test_the_second_time_nothing_is_computed(tokenizer, model_folder):
    first, events = score(tokenizer, model_folder)
    assert was_computed(events)
    again, events = score(
        tokenizer, model_folder, dpo__loss="ipo", dpo__beta=0.7, trainer__learning_rate=1e-5
    )
    assert not was_computed(events)
    assert again.to_list() == first.to_list()
    assert len(list(cache_folder("reference").glob("*.safetensors"))) == 1


def test_a_changed_token_is_another_reference(tokenizer, model_folder):
    score(tokenizer, model_folder)
    _, events = score(tokenizer, model_folder, rows_of(changed=1))
    assert was_computed(events)


def test_tokens_that_move_between_prompt_and_answer_are_another_reference(tokenizer, model_folder):
    """The same ids in a row, with another border between prompt and answer."""
    score(tokenizer, model_folder)
    rows = rows_of().to_list()
    rows[0] |= {
        "prompt_ids": [1, 10],
        "chosen_ids": [11, 20, 2],
        "rejected_ids": [11, 21, 22, 23, 2],
    }
    _, events = score(tokenizer, model_folder, Dataset.from_list(rows))
    assert was_computed(events)


def test_rows_in_another_order_are_another_reference(tokenizer, model_folder):
    first, _ = score(tokenizer, model_folder)
    turned, _ = score(tokenizer, model_folder, rows_of().select([2, 1, 0]))
    assert turned["reference_chosen"][::-1] == pytest.approx(first["reference_chosen"], abs=1e-5)


def test_changed_weights_in_the_same_folder_are_another_reference(tokenizer, model_folder):
    first, _ = score(tokenizer, model_folder)
    file = model_folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] *= 1.5
    save_file(weights, file, metadata={"format": "pt"})
    second, events = score(tokenizer, model_folder)
    assert was_computed(events)
    assert second["reference_chosen"] != first["reference_chosen"]


@pytest.mark.parametrize(
    "flags", [{"model__dtype": "bfloat16"}, {"model__attn_implementation": "eager"}]
)
def test_another_way_of_loading_is_another_reference(tokenizer, model_folder, flags):
    score(tokenizer, model_folder)
    _, events = score(tokenizer, model_folder, **flags)
    assert was_computed(events)


def test_autocast_is_another_reference(tokenizer, model_folder):
    exact, _ = score(tokenizer, model_folder)
    rounded, events = score(tokenizer, model_folder, bf16=True)
    assert was_computed(events)
    assert rounded["reference_chosen"] != exact["reference_chosen"]


def test_another_reference_model_is_used_and_kept_apart(tokenizer, model_folder, tmp_path):
    other = save_model(tmp_path / "other", seed=5)
    score(tokenizer, model_folder)
    scored, events = score(tokenizer, model_folder, dpo__reference_model=str(other))
    assert was_computed(events)
    row = scored[0]
    expected = by_hand(tiny_llama(tokenizer, seed=5), row["prompt_ids"], row["chosen_ids"])
    assert row["reference_chosen"] == pytest.approx(expected, abs=1e-4)


def test_the_batch_size_does_not_matter(tokenizer, model_folder, tmp_path, monkeypatch):
    first, _ = score(tokenizer, model_folder, batch_size=1)
    monkeypatch.setenv("ALIGNER_CACHE", str(tmp_path / "second"))
    second, events = score(tokenizer, model_folder, batch_size=3)
    assert was_computed(events)
    assert second["reference_chosen"] == pytest.approx(first["reference_chosen"], abs=1e-5)


def test_a_half_written_cache_file_is_never_read(tokenizer, model_folder, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("aligner.runs.cache.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            score(tokenizer, model_folder)
    names = [path.name for path in cache_folder("reference").iterdir()]
    assert all(name.startswith(".") or name.endswith(".sha256") for name in names)
    _, events = score(tokenizer, model_folder)
    assert was_computed(events)


# --- the base under the adapter -------------------------------------------------------------------

LORA = {"model__lora": {"r": 4}}


def says(model_folder, **flags) -> bool:
    return uses_adapter_off(
        small_recipe("dpo", model_folder.parent, model_folder.parent / "run", **flags).recipe
    )


def test_a_fresh_adapter_has_its_reference_below_it(model_folder):
    assert says(model_folder, **LORA)
    assert not says(model_folder)
    assert not says(model_folder, **LORA, dpo__reference="precomputed")


@pytest.mark.parametrize(
    "lora",
    [
        {"bias": "all"},
        {"bias": "lora_only"},
        *({"init_lora_weights": way} for way in ("pissa", "olora", False)),
    ],
)
def test_an_adapter_that_changes_its_base_gets_a_computed_reference(model_folder, lora):
    assert not says(model_folder, model__lora=lora)
    with pytest.raises(RecipeError, match="adapter_off"):
        says(model_folder, model__lora=lora, dpo__reference="adapter_off")


@pytest.mark.parametrize("way", [True, "gaussian", "orthogonal"])
def test_an_adapter_that_starts_as_a_no_op_does_not(model_folder, way):
    assert says(model_folder, model__lora={"init_lora_weights": way})


def test_an_adapter_that_is_trained_further_gets_a_computed_reference(model_folder):
    (model_folder / "adapter_config.json").write_text("{}")
    assert not says(model_folder, **LORA)
    with pytest.raises(RecipeError, match="trained further"):
        says(model_folder, **LORA, dpo__reference="adapter_off")
