"""Where training starts is where the reference is, and what is saved is what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import byte_tokenizer, save_model, small_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, FalconConfig, MixtralConfig, OPTConfig, PhimoeConfig

from aligner.config.recipe import Model
from aligner.events import Notice, StageProgress
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.saved_tokenizer import without_marks
from aligner.runs.files import read_metrics
from aligner.training.preference import without_base_noise

pytestmark = pytest.mark.usefixtures("own_cache")

PROBE = torch.tensor([[1, 20, 30, 40, 50, 60, 70, 80]])


def train(method: str, world: Path, folder: Path, *overrides: str, **flags: Any) -> Path:
    return run_recipe(small_recipe(method, world, folder, *overrides, **flags)).run_dir


def reward_at_start(run: Path) -> tuple[float, float]:
    first = read_metrics(run)[0]
    assert first["step"] == 1
    return first["rewards/chosen"], first["rewards/rejected"]


LORA = {"r": 4, "lora_dropout": 0.1}


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"model__lora": LORA},
        {"model__lora": LORA, "dpo__reference": "precomputed"},
        pytest.param({"model__lora": LORA | {"bias": "all"}}, marks=pytest.mark.slow),
        pytest.param(
            {"model__lora": {"r": 4, "init_lora_weights": "pissa"}}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"model__lora": LORA | {"init_lora_weights": "orthogonal"}}, marks=pytest.mark.slow
        ),
        pytest.param({"model__lora": LORA | {"use_dora": True}}, marks=pytest.mark.slow),
        pytest.param({"trainer__bf16": True}, marks=pytest.mark.slow),
        pytest.param({"model__dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param(
            {"trainer__gradient_checkpointing": True, "model__lora": LORA}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_rewards_are_zero_before_the_first_step(small_world, tmp_path, flags):
    run = train("dpo", small_world, tmp_path / "run", "trainer.max_steps=1", **flags)
    tolerance = (
        2e-2 if flags.get("model__dtype") == "bfloat16" or "trainer__bf16" in flags else 1e-5
    )
    assert reward_at_start(run) == pytest.approx((0.0, 0.0), abs=tolerance)


def test_rewards_are_zero_before_the_first_step_also_for_a_model_with_dropout(
    small_world, tmp_path
):
    noisy = save_model(tmp_path / "noisy", attention_dropout=0.5)
    run = train(
        "dpo", small_world, tmp_path / "run", "trainer.max_steps=1", model__name_or_path=str(noisy)
    )
    assert reward_at_start(run) == pytest.approx((0.0, 0.0), abs=1e-5)


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
NOISY = {
    "dropout and jitter": MixtralConfig(
        **SIZES,
        num_key_value_heads=2,
        num_local_experts=4,
        router_jitter_noise=0.5,
        attention_dropout=0.3,
    ),
    "experts chosen by lot": PhimoeConfig(
        **SIZES,
        num_key_value_heads=2,
        num_local_experts=4,
        router_jitter_noise=0.5,
        input_jitter_noise=0.5,
    ),
    "skipped layers": OPTConfig(
        vocab_size=300,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        dropout=0.3,
        attention_dropout=0.3,
        layerdrop=0.4,
    ),
    "numbers of the config": FalconConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        hidden_dropout=0.3,
    ),
}


@pytest.mark.parametrize("kind", NOISY)
def test_a_base_without_noise_is_in_training_what_it_is_at_rest(kind):
    """Its config, which is saved, stays as it was."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(NOISY[kind])
    before = model.config.to_dict()
    with torch.no_grad():
        eval_mode = model.eval()(input_ids=PROBE, use_cache=False).logits
        model.train()
        assert (model(input_ids=PROBE, use_cache=False).logits - eval_mode).abs().max() > 1e-3
        without_base_noise(model)
        model.train()
        assert torch.equal(model(input_ids=PROBE, use_cache=False).logits, eval_mode)
    assert model.training
    assert model.config.to_dict() == before


@pytest.mark.parametrize("method", ["dpo", "sapo"])
def test_rewards_are_zero_before_the_first_step_also_for_a_router_with_jitter(
    small_world, tmp_path, method
):
    """A base that shakes its router while it trains is at rest under policy and reference alike."""
    tokenizer = byte_tokenizer()
    AutoModelForCausalLM.from_config(NOISY["dropout and jitter"]).save_pretrained(
        tmp_path / "noisy"
    )
    tokenizer.save_pretrained(tmp_path / "noisy")
    flags = {
        "model__lora": {"r": 4, "target_modules": ["q_proj"]},
        "model__name_or_path": str(tmp_path / "noisy"),
    }
    run = train(method, small_world, tmp_path / "run", "trainer.max_steps=1", **flags)
    assert reward_at_start(run) == pytest.approx((0.0, 0.0), abs=1e-5)


@pytest.mark.parametrize("bias", ["none", pytest.param("all", marks=pytest.mark.slow)])
def test_the_base_under_the_adapter_stays_the_reference_while_training(small_world, tmp_path, bias):
    """Two ways to the same numbers: switch the adapter off at each step, or compute the reference
    before."""
    flags = {"model__lora": {"r": 4, "bias": bias}, "trainer__learning_rate": 1e-2}
    auto = train("dpo", small_world, tmp_path / "auto", **flags)
    computed = train(
        "dpo", small_world, tmp_path / "computed", dpo__reference="precomputed", **flags
    )
    for left, right in zip(read_metrics(auto), read_metrics(computed)):
        for key in ("loss", "rewards/chosen", "rewards/rejected", "grad_norm"):
            assert left[key] == pytest.approx(right[key], abs=1e-4), key
    assert read_metrics(auto)[-1]["rewards/margins"] > 0.01
    weights = [load_file(run / "final" / "adapter_model.safetensors") for run in (auto, computed)]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-4), name


def test_a_cached_reference_computes_nothing_and_trains_the_same(small_world, tmp_path, own_cache):
    found = []
    for name in ("first", "second"):
        events: list[Any] = []
        recipe = small_recipe("dpo", small_world, tmp_path / name, data__eval=0.2)
        run = run_recipe(recipe, on_event=events.append).run_dir
        scored = [
            event
            for event in events
            if isinstance(event, StageProgress) and "reference" in event.name
        ]
        cached = [
            event
            for event in events
            if isinstance(event, Notice) and "from the cache" in event.text
        ]
        found.append(
            (bool(scored), len(cached), (run / "final" / "model.safetensors").read_bytes())
        )
    assert [first for first, _, _ in found] == [True, False]
    assert [number for _, number, _ in found] == [0, 2]  # training and held-out pairs
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize(
    "change",
    [{"model__chat_template": "TEMPLATE"}, {"model__dtype": "bfloat16"}, {"data__train": "ROWS"}],
    ids=str,
)
def test_the_cache_is_not_used_after_template_dtype_or_rows_changed(small_world, tmp_path, change):
    template = tmp_path / "other.jinja"
    text = byte_tokenizer().chat_template
    template.write_text(text.replace("message['role'] + '", "message['role'] + ': '+ '"))
    rows = [json.loads(line) for line in (small_world / "pairs.jsonl").read_text().splitlines()]
    rows[7]["rejected"][0]["content"] += "!"
    data = tmp_path / "changed.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"TEMPLATE": str(template), "ROWS": str(data)}
    train("dpo", small_world, tmp_path / "first", "trainer.max_steps=1")
    events: list[Any] = []
    flags = {key: values.get(value, value) for key, value in change.items()}
    run_recipe(
        small_recipe("dpo", small_world, tmp_path / "second", "trainer.max_steps=1", **flags),
        on_event=events.append,
    )
    assert not any(isinstance(event, Notice) and "from the cache" in event.text for event in events)
    assert any(isinstance(event, StageProgress) and "reference" in event.name for event in events)


# --- what is saved --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4},
        pytest.param({"r": 4, "use_rslora": True, "use_dora": True}, marks=pytest.mark.slow),
        pytest.param({"r": 4, "bias": "all"}, marks=pytest.mark.slow),
        pytest.param({"r": 4, "init_lora_weights": "pissa"}, marks=pytest.mark.slow),
        pytest.param({"r": 4, "init_lora_weights": "olora"}, marks=pytest.mark.slow),
        pytest.param({"r": 4, "modules_to_save": ["lm_head"]}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_adapters_merged_answer_like_adapters_on_their_base(
    small_world, tmp_path, monkeypatch, method, lora
):
    """The logits at the end of training, of the saved adapter on its base, and of the merged model
    are the same."""
    from peft import PeftModel

    import aligner.training.fit as training

    trained: list[torch.Tensor] = []
    save_final = training.save_final

    def spy(trainer: Any, run: Any, finish: Any = None) -> None:
        trainer.model.eval()
        with torch.no_grad():
            trained.append(trainer.model(PROBE).logits)
        save_final(trainer, run, finish)

    monkeypatch.setattr(training, "save_final", spy)
    run = train(
        method, small_world, tmp_path / "run", "trainer.learning_rate=0.02", model__lora=lora
    )
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(small_world / "model")
        start = base(PROBE).logits
        on_base = PeftModel.from_pretrained(base, run / "final").eval()(PROBE).logits
        merged = load_policy(
            Model(name_or_path=str(run / "final")), byte_tokenizer(), trainable=False
        )
        merged_logits = merged(PROBE.to(merged.device)).logits.cpu()
    assert (trained[0] - start).abs().max() > 1e-2
    assert torch.allclose(on_base, trained[0], atol=1e-5)
    assert torch.allclose(merged_logits, trained[0], atol=1e-4)


def test_the_final_model_is_the_trained_one_and_opens_anywhere(small_world, tmp_path):
    run = train(
        "sft", small_world, tmp_path / "run", report__num_prompts=2, report__max_new_tokens=4
    )
    names = {file.name for file in (run / "final").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    assert tokenizer.chat_template == without_marks(byte_tokenizer().chat_template)
    assert len(json.loads((run / "samples.json").read_text())) == 2


def test_training_goes_on_from_an_adapter_with_itself_as_the_reference(small_world, tmp_path):
    """`dpo` on the adapter that `sft` made: the reference is base and adapter together, not the
    base alone."""
    first = train(
        "sft", small_world, tmp_path / "sft", "trainer.learning_rate=0.02", model__lora={"r": 4}
    )
    final = str(first / "final")
    run = train(
        "dpo", small_world, tmp_path / "dpo", model__name_or_path=final, model__lora={"r": 4}
    )
    assert reward_at_start(run) == pytest.approx((0.0, 0.0), abs=1e-5)
    lines = read_metrics(run)
    base = train("dpo", small_world, tmp_path / "base", "trainer.max_steps=1")
    assert lines[0]["logps/chosen"] != pytest.approx(read_metrics(base)[0]["logps/chosen"], abs=0.1)
