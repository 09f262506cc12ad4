"""What gets an adapter: the same linear layers in every family, never a router, experts when they
are asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from aligner.config.load import load_recipe
from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_outline, load_policy
from aligner.models.lora_targets import linear_layers, routers, stacks, targets_of
from aligner.models.tokenizers import load_tokenizer
from aligner.models.trained_weights import trained_of
from tests.fakes import save_model, small_recipe
from tests.mixtures import MIXTURES, ROUTERS, mixture, save_mixture

IDS = torch.tensor([[5, 80, 90, 100, 7, 2], [9, 60, 61, 62, 63, 2]])
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixtures")
    return {
        family: save_mixture(family, folder / family)
        for family in ("mixtral", "deepseek_v3", "phimoe")
    }


def adapted(folder: Path, **lora: Any) -> Any:
    model = Model(name_or_path=str(folder), lora=Lora(r=4, **lora))
    torch.manual_seed(0)
    return load_policy(model, load_tokenizer(model), trainable=True)


def places(policy: Any) -> set[str]:
    return set(trained_of(policy).places)


def step(policy: Any) -> None:
    """Take a step that moves every adapter far enough to be seen."""
    optimizer = torch.optim.SGD(
        [part for part in policy.parameters() if part.requires_grad], lr=0.5
    )
    for _ in range(2):
        policy(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()


def logits(policy: Any) -> torch.Tensor:
    with torch.no_grad():
        return policy.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("family", MIXTURES)
def test_all_linear_means_every_linear_layer_but_heads_and_routers_in_every_family(
    family: str,
) -> None:
    model = mixture(family)
    found = targets_of(model, Lora())
    layers = [*found.modules, *(name.removesuffix(".weight") for name in found.parameters or [])]
    assert sorted(layers) == sorted(linear_layers(model))
    names = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    missing = {re.sub(r"model\.layers\.\d+\.", "", name) for name in names - set(layers)}
    assert missing <= {
        "lm_head",
        *(f"{block}.{name}" for block in BLOCKS for name in ROUTERS),
        "mixer.out_proj",
    }
    assert {
        name for name in layers if any(part in ("router", "gate") for part in name.split("."))
    } == set()


BLOCKS = ("mlp", "feed_forward", "block_sparse_moe", "mixer", "self_attention.experts")


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_found_by_their_shape_in_every_family(family: str) -> None:
    found = stacks(mixture(family))
    assert found
    assert {len(weight) for weight in found.values()} == {4}
    assert not any(name.rpartition(".")[0] in routers(mixture(family)) for name in found)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "phimoe"])
def test_adapters_of_a_mixture_train_and_open_with_plain_peft(family, folders, tmp_path):
    policy = adapted(folders[family])
    before = logits(policy)
    step(policy)
    assert all(weight.grad is not None for weight in policy.parameters() if weight.requires_grad)
    assert not any(
        "experts.gate_up" in place or place.endswith((".gate", ".router"))
        for place in places(policy)
    )
    policy.save_pretrained(tmp_path)
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert torch.allclose(logits(again), logits(policy), atol=1e-6)
    assert (logits(policy) - before).abs().max() > 1e-3


def test_shared_experts_and_dense_layers_are_adapted_beside_attention(folders):
    policy = adapted(folders["deepseek_v3"])
    assert {"mlp.gate_proj", "mlp.shared_experts.down_proj", "self_attn.o_proj"} <= places(policy)


def test_experts_are_trained_saved_and_merged_when_the_recipe_names_them(folders, tmp_path):
    policy = adapted(folders["mixtral"], target_parameters=EXPERTS)
    found = trained_of(policy, Lora())
    assert found.places["mlp.experts.down_proj"] == 2 * 4 * 4 * (
        64 + 96
    )  # layers, experts, rank, both sides
    assert found.left == {}
    assert all(w.dtype == torch.float32 for w in policy.parameters() if w.requires_grad)
    step(policy)
    policy.save_pretrained(tmp_path)
    expected = logits(policy)
    merged = load_policy(
        Model(name_or_path=str(tmp_path)),
        load_tokenizer(Model(name_or_path=str(folders["mixtral"]))),
        trainable=False,
    )
    assert torch.allclose(logits(merged).cpu(), expected, atol=1e-5)
    assert torch.allclose(
        logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path)), expected, atol=1e-6
    )


def test_an_adapter_is_trained_further_with_the_parameters_that_it_has(folders, tmp_path):
    adapted(folders["mixtral"], target_parameters=EXPERTS).save_pretrained(tmp_path)
    model = Model(name_or_path=str(tmp_path), lora=Lora(r=4, target_parameters=[EXPERTS[0]]))
    tokenizer = load_tokenizer(Model(name_or_path=str(folders["mixtral"])))
    with pytest.raises(RecipeError, match=r"target_parameters is .* but the adapter in"):
        load_policy(model, tokenizer, trainable=True)
    for same in (EXPERTS, None):
        lora = Lora(r=4, target_parameters=same)
        policy = load_policy(model.model_copy(update={"lora": lora}), tokenizer, trainable=True)
        assert "mlp.experts.down_proj" in places(policy)


def test_a_router_is_adapted_only_when_it_is_named(folders):
    assert "mlp.gate" in places(adapted(folders["mixtral"], target_parameters=["mlp.gate.weight"]))


def test_excluded_modules_get_no_adapter(tmp_path):
    folder = save_model(tmp_path / "model")
    assert places(adapted(folder, exclude_modules=["q_proj", "mlp.up_proj"])) == {
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.down_proj",
    }
    assert places(adapted(folder, exclude_modules=r".*\.mlp\..*")) == {
        f"self_attn.{name}_proj" for name in "qkvo"
    }


def test_what_peft_takes_for_experts_can_be_excluded_too(folders):
    policy = adapted(folders["deepseek_v3"], exclude_modules=["shared_experts.down_proj"])
    assert "mlp.shared_experts.up_proj" in places(policy)
    assert "mlp.shared_experts.down_proj" not in places(policy)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_parameters": ["experts.w1"]}, "no weight 'experts.w1'"),
        ({"exclude_modules": ["w1"]}, "exclude_modules: 'w1' fits no module"),
        ({"exclude_modules": "mlp"}, "exclude_modules: 'mlp' fits no module"),
    ],
)
def test_names_that_fit_nothing_are_refused_with_those_that_do(settings, message, folders):
    with pytest.raises(RecipeError, match=message) as caught:
        adapted(folders["mixtral"], **settings)
    assert "mlp." in (caught.value.hint or "") or "self_attn." in (caught.value.hint or "")


@pytest.mark.parametrize(
    "setting", ["lora_dropout=0.1", "use_dora=true", "init_lora_weights=pissa"]
)
def test_what_peft_cannot_do_with_parameters_is_refused_before_anything_is_loaded(setting):
    given = [
        "model.name_or_path=x",
        "data.train=y",
        "output_dir=z",
        f"model.lora.target_parameters=[{EXPERTS[1]}]",
    ]
    with pytest.raises(RecipeError, match=setting.split("=")[0]):
        load_recipe("sft", None, [*given, f"model.lora.{setting}"], {})
    load_recipe("sft", None, [*given, "model.lora.target_modules=[]"], {})


@pytest.mark.parametrize(
    "lora", [None, {}, {"target_parameters": EXPERTS, "modules_to_save": ["lm_head"]}]
)
def test_weights_are_counted_before_they_are_read(lora, folders):
    model = Model(
        name_or_path=str(folders["deepseek_v3"]), lora=None if lora is None else Lora(**lora)
    )
    tokenizer = load_tokenizer(model)
    outline = load_outline(model, tokenizer)
    assert all(weight.is_meta for weight in outline.parameters())
    assert trained_of(outline, model.lora) == trained_of(
        load_policy(model, tokenizer, trainable=True), model.lora
    )


def test_an_adapter_that_is_trained_further_is_counted_before_it_is_read(folders, tmp_path):
    policy = adapted(folders["phimoe"], target_modules=["q_proj"], target_parameters=EXPERTS)
    policy.save_pretrained(tmp_path)
    lora = Lora(r=4, target_modules=["q_proj"], target_parameters=EXPERTS)
    tokenizer = load_tokenizer(Model(name_or_path=str(folders["phimoe"])))
    outline = load_outline(Model(name_or_path=str(tmp_path), lora=lora), tokenizer)
    assert trained_of(outline, lora) == trained_of(policy, lora)


def test_a_dry_run_says_what_would_be_trained_and_refuses_what_the_model_has_not(
    small_world, tmp_path
):
    said: list[str] = []
    recipe = small_recipe("sft", small_world, tmp_path / "run", model__lora={"r": 2})
    run_recipe(recipe, dry_run=True, on_event=lambda event: said.append(getattr(event, "text", "")))
    assert any(
        text.startswith("training 2,048 of ") and "self_attn (q_proj, " in text for text in said
    )
    wrong = small_recipe(
        "sft", small_world, tmp_path / "run", model__lora={"target_parameters": ["experts.w1"]}
    )
    with pytest.raises(RecipeError, match=r"no weight 'experts\.w1'"):
        run_recipe(wrong, dry_run=True)


def test_a_family_without_a_head_for_numbers_is_refused_before_its_rows_are_tokenised(
    small_world, tmp_path
):
    save_mixture("granitemoe", tmp_path / "model")
    flags = {"model__name_or_path": str(tmp_path / "model")}
    recipe = small_recipe("reward", small_world, tmp_path / "run", **flags)
    with pytest.raises(RecipeError, match="no model of type granitemoe with a head") as caught:
        run_recipe(recipe, dry_run=True)
    assert "reward.kind=pairwise" in (caught.value.hint or "")
