"""Estimates of whole trainings, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoConfig

from aligner.config.load import load_recipe
from aligner.config.recipe import TrainRecipe
from aligner.errors import UsageError
from aligner.memory.estimate import Estimate, estimate, parse_memory
from aligner.memory.footprint import Lengths, Typical, row_lengths

D, INNER, V, LAYERS = 64, 160, 40_000, 3
HEADS, KEYS, HEAD_DIM = 4, 2, 16
LINEAR = D * D * 2 + 2 * D * KEYS * HEAD_DIM + 3 * D * INNER
WEIGHTS = V * D + LAYERS * (LINEAR + 2 * D) + D
RANK = 4
OUTS_AND_INS = 2 * (D + D) + 2 * (D + KEYS * HEAD_DIM) + 3 * (D + INNER)
ADAPTERS = LAYERS * RANK * OUTS_AND_INS
LONG = Lengths(100, 150, 60)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": D,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "head_dim": HEAD_DIM,
        "vocab_size": V,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def recipe_of(model: Path, method: str = "sft", *settings: str) -> TrainRecipe:
    given = [
        f"model.name_or_path={model}",
        "data.train=rows.jsonl",
        "output_dir=run",
        "trainer.per_device_train_batch_size=2",
        *settings,
    ]
    recipe = load_recipe(method, None, given).recipe
    assert isinstance(recipe, TrainRecipe)
    return recipe


def of(model: Path, method: str = "sft", *settings: str, **more: Any) -> Estimate:
    options = {"lengths": LONG, "cuda": False, **more}
    return estimate(recipe_of(model, method, *settings), **options)


def part(found: Estimate, name: str, phase: str = "update") -> int:
    return next((one.bytes for one in found.phases[phase] if one.name == name), 0)


def test_weights_and_optimizer_of_full_training(model: Path) -> None:
    found = of(model)
    assert part(found, "weights") == 4 * WEIGHTS
    assert part(found, "optimizer") == 8 * WEIGHTS


def test_activations_are_those_of_each_layer(model: Path) -> None:
    # norms: input and what the weight is multiplied with; inputs of linear layers; attention's four
    # arrays, keys and values repeated for the mask, and the sums of its softmax; three of the inner
    # width and the product
    token = 4 * (4 * D + 2 * D + 4 * D + HEADS + 4 * INNER)
    layer = 200 * token + 4 * 2 * 100**2
    # the last norm, rotary angles, the positions that are read, the mask as truth values
    around = 200 * 4 * (2 * D + 2 * HEAD_DIM) + 120 * 4 * D + 2 * 100**2
    assert part(of(model), "activations") == LAYERS * layer + around


def test_checkpointing_keeps_the_input_of_each_layer(model: Path) -> None:
    found = of(model, "sft", "trainer.gradient_checkpointing=true")
    kept = part(found, "activations")
    assert kept < part(of(model), "activations") / 4
    assert part(found, "weights for autocast") == 0


def test_an_update_ends_with_all_gradients_and_one_of_embeddings_more(model: Path) -> None:
    short = Lengths(4, 4, 2, is_even=True)
    found = of(model, lengths=short)
    assert part(found, "gradients") == 4 * WEIGHTS
    assert part(found, "gradient of embeddings") == 4 * V * D
    assert found.peak_bytes == 16 * WEIGHTS + 4 * V * D


def test_adapters_leave_the_base_without_gradient(model: Path) -> None:
    found = of(model, "sft", f"model.lora={{r: {RANK}}}")
    assert part(found, "adapters") == 4 * ADAPTERS
    assert part(found, "optimizer") == 8 * ADAPTERS
    assert part(found, "gradient of the head") == 0


def test_four_bits_hold_linear_layers_with_their_scales(model: Path) -> None:
    plain = of(model, "sft", "model.lora={r: 4}", "model.quantization=nf4")
    numbers = LAYERS * LINEAR
    scales = numbers / 64
    assert part(plain, "weights in 4 bits") == pytest.approx(
        numbers / 2 + scales + 4 * scales / 256, rel=0.01
    )
    assert part(plain, "weights") == 4 * (WEIGHTS - numbers)
    settings = ("model.lora={r: 4}", "model.quantization=nf4", "model.double_quant=false")
    assert part(of(model, "sft", *settings), "weights in 4 bits") == numbers / 2 + 4 * scales


def test_dora_adds_a_magnitude_for_each_output(model: Path) -> None:
    outs = 2 * D + 2 * KEYS * HEAD_DIM + 2 * INNER + D
    found = of(model, "sft", "model.lora={r: 4, use_dora: true}")
    assert part(found, "adapters") == 4 * (ADAPTERS + LAYERS * outs)


@pytest.mark.parametrize(
    ("optimizer", "size"),
    [("adamw_torch", 8), ("sgd", 0), ("lion_32bit", 4), ("paged_adamw_32bit", 8), ("adagrad", 4)],
)
def test_optimizers_keep_what_they_keep(model: Path, optimizer: str, size: int) -> None:
    assert part(of(model, "sft", f"trainer.optim={optimizer}"), "optimizer") == size * WEIGHTS


def test_eight_bits_leave_embeddings_in_float32(model: Path) -> None:
    found = part(of(model, "sft", "trainer.optim=adamw_bnb_8bit"), "optimizer")
    inner = WEIGHTS - V * D
    assert found == pytest.approx(8 * V * D + 2 * inner * (1 + 4 / 256), abs=2)


def test_a_gpu_trains_under_autocast_with_checkpoints(model: Path) -> None:
    found = of(model, cuda=True, lengths=Lengths(1000, 1500, 600))
    assert part(found, "weights") == 4 * WEIGHTS
    lora = of(model, "sft", "model.lora={}", cuda=True)
    assert part(lora, "weights") == 2 * WEIGHTS
    assert "loading" not in found.phases
    assert any("GPU" in note for note in found.notes)


def test_sharding_divides_what_it_shards(model: Path) -> None:
    def shares(strategy: str) -> list[int]:
        settings = (
            "launch.num_processes=4",
            f"launch.strategy={strategy}",
            "trainer.gradient_accumulation_steps=2",
        )
        short = Lengths(4, 4, 2, is_even=True)
        found = of(model, "sft", *settings, lengths=short, cuda=True)
        return [part(found, name) for name in ("weights", "gradients", "optimizer")]

    whole = [4 * WEIGHTS, 4 * WEIGHTS, 8 * WEIGHTS]
    assert shares("ddp") == whole
    assert shares("zero1") == [*whole[:2], 2 * WEIGHTS]
    assert shares("zero2") == [whole[0], WEIGHTS, 2 * WEIGHTS]
    assert shares("zero3") == [WEIGHTS, WEIGHTS, 2 * WEIGHTS]


def test_a_reference_under_the_adapter_takes_no_weights(model: Path) -> None:
    lora = of(model, "dpo", "model.lora={r: 4}")
    assert set(lora.phases) == {"update"}
    full = of(model, "dpo")
    assert set(full.phases) == {"update", "reference"}
    assert part(full, "optimizer", "reference") == 0
    other = of(model, "dpo", f"dpo.reference_model={model}")
    assert part(other, "reference", "reference") == 4 * WEIGHTS
    assert part(other, "reference", "update") == 0


def test_pairs_share_their_prompts_where_that_saves(model: Path) -> None:
    """Prompts of 40 tokens and answers of 60 and 50 in one row, or two rows of 100 each."""
    lengths = Lengths(100, 150, 110)
    shared = part(of(model, "dpo", "model.lora={}", lengths=lengths), "activations")
    apart = ("model.lora={}", "preference.prefix=separate")
    assert shared < part(of(model, "dpo", *apart, lengths=lengths), "activations")


def test_a_reward_model_has_no_logits(model: Path) -> None:
    found = of(model, "reward")
    assert part(found, "weights") == 4 * (WEIGHTS + D)
    assert part(found, "gradient of the head") == 0
    short = Lengths(4, 6, 4, is_even=True)
    assert of(model, "reward", lengths=short).peak_bytes == 16 * (WEIGHTS + D)


def test_reinforcement_learning_holds_a_cache_and_a_reference(model: Path) -> None:
    settings = (
        "rlhf.reward_models=[verifier:number]",
        "rlhf.beta=0.1",
        "rlhf.group_size=4",
        "rlhf.max_new_tokens=20",
        "model.lora={r: 4}",
    )
    found = of(model, "rlhf", *settings, lengths=Lengths(30, 30, 0))
    cache = 2 * 4 * 50 * LAYERS * 2 * KEYS * HEAD_DIM * 4  # rows x tokens x keys and values
    assert part(found, "generation cache", "sampling") == cache
    assert part(found, "reference") == 4 * ADAPTERS
    ppo = of(model, "rlhf", *settings, "rlhf.algorithm=ppo", lengths=Lengths(30, 30, 0))
    assert part(ppo, "critic") == 4 * ADAPTERS
    assert part(ppo, "optimizer") == 2 * part(found, "optimizer")


def test_rewriting_holds_an_average_and_a_reference(model: Path) -> None:
    found = of(model, "sapo")
    assert part(found, "average") == part(found, "reference") == 4 * WEIGHTS
    assert part(of(model, "sapo", "sapo.offload=true"), "average") == 0


def test_battles_sample_beside_the_optimizer(model: Path) -> None:
    settings = ("data.eval=0.1", "eval.arena={judge: toy, max_new_tokens: 8, batch_size: 4}")
    found = of(model, "sft", *settings)
    assert part(found, "generation cache", "battles") == 2 * LAYERS * 32 * 4 * 4 * 108
    assert any("judges" in note for note in found.notes)


def test_the_part_that_sees_is_said_not_to_be_counted(tmp_path: Path) -> None:
    config = AutoConfig.for_model("gemma3")
    config.save_pretrained(tmp_path)
    assert any("sees" in note for note in of(tmp_path).notes)


def test_what_a_method_leaves_out_is_said(model: Path) -> None:
    noted = estimate(recipe_of(model, "dpo", "dpo.forward_kl=0.1"), cuda=False).notes
    assert "not counted: the reference's answers (dpo.forward_kl)" in noted
    assert noted != estimate(recipe_of(model, "dpo"), cuda=False).notes


def test_without_lengths_rows_are_as_long_as_they_may_be(model: Path) -> None:
    found = of(model, "sft", "data.max_length=512", lengths=None)
    assert found.peak_bytes > of(model).peak_bytes
    assert any("data.max_length" in note for note in found.notes)


def test_lengths_of_rows() -> None:
    rows = [
        {"input_ids": [1] * 9, "labels": [-100] * 4 + [1] * 5},
        {"input_ids": [1] * 7, "labels": [-100] + [1] * 6},
    ]
    assert row_lengths(rows) == Lengths(9, 9, 6, typical=Typical(8.0, 5.5, 0.5))
    assert row_lengths(rows, grouped=1) == Lengths(9, 9, 6, batch=((9, 5),))
    assert row_lengths(rows, is_packed=True) == Lengths(9, 9, 6, is_packed=True)
    pair = {"prompt_ids": [1] * 4, "chosen_ids": [1] * 5, "rejected_ids": [1] * 3}
    assert row_lengths([pair]) == Lengths(9, 12, 8, typical=Typical(12.0, 8.0, 0.0))
    prompt = row_lengths([{"prompt_ids": [1] * 4}])
    assert prompt == Lengths(4, 4, 0, is_even=True, typical=Typical(4.0, 0.0, 0.0))


def test_a_dataset_and_its_rows_have_the_same_lengths() -> None:
    rows = [{"input_ids": [1] * n, "labels": [-100] * 2 + [1] * (n - 2)} for n in (5, 9, 7)]
    assert row_lengths(Dataset.from_list(rows)) == row_lengths(rows)
    even = [{"prompt_ids": [1, 2], "chosen_ids": [1] * 3, "rejected_ids": [1] * 3}] * 4
    assert row_lengths(Dataset.from_list(even)) == row_lengths(even)


def test_random_batches_hold_less_than_the_longest_rows_together() -> None:
    lengths = Lengths(100, 100, 60, typical=Typical(40.0, 20.0, 10.0))
    assert lengths.trained_in(1) == 50
    assert lengths.trained_in(4) == 4 * 20 + 3 * 10 * 2
    assert Lengths(100, 100, 60).trained_in(4) == 240
    longest = Lengths(100, 100, 60, batch=((100, 30), (90, 60), (50, 5)))
    assert [longest.trained_in(rows) for rows in (1, 2, 3)] == [30, 90, 95]
    assert longest.rows_for(3) == 3
    assert lengths.rows_for(9) == 4  # 9 x 40 tokens in rows of 100 that are filled to nine tenths
    assert Lengths(100, 100, 60, typical=Typical(60.0, 20.0, 10.0)).rows_for(9) == 9


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GB", 24 << 30),
        ("24GiB", 24 << 30),
        ("80g", 80 << 30),
        ("1.5 gb", 3 << 29),
        ("25769803776", 24 << 30),
    ],
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "24 apples", "0GB", "nan", "24", "24b"])
def test_what_is_no_amount_of_memory(text: str) -> None:
    with pytest.raises(UsageError, match="no amount of memory") as caught:
        parse_memory(text)
    assert caught.value.hint == "write 24GB, for example"
