"""A quantized model is its dequantized twin: in its gradients, in its losses, before and after an
evaluation.

The processor that runs a test may lack what made them differ: on a CPU with AVX512-BF16,
bitsandbytes repacks a layer in 4 bits for inference. `other_processor` lets it believe in one. With
AVX512 its kernel takes the scales of other blocks; `RowByRow` is that kernel, in torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from fakes import byte_tokenizer, save_model, small_recipe, tiny_llama
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy, load_reward_model
from aligner.models.quantized import keep_steady, plain_weight, quantized_layers
from aligner.models.tokenizers import load_tokenizer
from aligner.runs.files import read_metrics

pytestmark = pytest.mark.usefixtures("own_cache")

KINDS = ("nf4", "fp4", "int8")
IDS = torch.randint(4, 250, (3, 17), generator=torch.Generator().manual_seed(0))
SHAPE: dict[str, Any] = {
    "vocab_size": 264,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


@pytest.fixture
def other_processor(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A processor with AVX512-BF16, in the eyes of bitsandbytes, and a list of what was repacked
    for it."""
    repacked: list[Any] = []
    repack = bnb.nn.modules._convert_weight_packed_for_cpu

    def watched(weight: Any, *rest: Any) -> Any:
        repacked.append(weight.shape)
        return repack(weight, *rest)

    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(bnb.nn.modules, "_convert_weight_packed_for_cpu", watched)
    yield repacked
    assert not repacked


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models: a Llama, a Qwen2 with biases and sizes that no block divides, a GPT-2 with
    transposed weights."""
    folder = tmp_path_factory.mktemp("bases")
    small = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    configs = {
        "qwen2": Qwen2Config(**SHAPE, **small, hidden_size=48, intermediate_size=80),
        "gpt2": GPT2Config(**SHAPE, **shape),
    }
    save_model(folder / "llama", initializer_range=0.2)
    for name, config in configs.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for part, weight in model.named_parameters():
                if part.endswith("bias"):
                    nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return {name: folder / name for name in ("llama", *configs)}


def load(
    folder: Path,
    kind: str,
    *,
    reward: bool = False,
    lora: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """The policy or reward model that training starts from, with adapters that are not zero."""
    adapters = Lora(r=4, **{"init_lora_weights": False, **(lora or {})})
    section = Model(name_or_path=str(folder), quantization=kind, lora=adapters, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if reward:
            return load_reward_model(section, load_tokenizer(section), outputs=1, trainable=True)
        return load_policy(section, load_tokenizer(section), trainable=True)


def dequantize(model: Any) -> Any:
    for name, layer in quantized_layers(model).items():
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(plain_weight(layer).to(model.dtype), requires_grad=False)
        plain.bias = layer.bias
        model.set_submodule(name, plain)
    return model


def gradient(model: Any) -> torch.Tensor:
    model.train().zero_grad()
    logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()
    logits.logsumexp(dim=-1).square().mean().backward()
    return torch.cat(
        [weight.grad.float().flatten() for weight in model.parameters() if weight.requires_grad]
    )


def gap(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def evaluate(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def in_training_mode(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.train()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


# --- gradients ------------------------------------------------------------------------------------


def test_the_other_processor_cuts_off_the_gradient_of_a_layer_that_is_left_as_it_is(
    other_processor, monkeypatch
) -> None:
    """What the fixture is for."""
    monkeypatch.setattr(
        bnb.functional, "gemv_4bit", lambda a, *_, **__: torch.zeros_like(a)
    )  # its kernel is not here
    layer = bnb.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.float32).to(
        "cpu"
    )
    row = torch.ones(1, 64, requires_grad=True)
    assert layer.train()(row).requires_grad
    with torch.no_grad():
        layer.eval()(row.detach())
    assert not layer.train()(row).requires_grad
    assert len(other_processor) == 1
    other_processor.clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["llama", "qwen2", "gpt2"])
def test_a_quantized_gradient_is_that_of_the_dequantized_twin(
    bases, other_processor, base, kind
) -> None:
    model, twin = load(bases[base], kind), dequantize(load(bases[base], kind))
    wanted = gradient(twin)
    assert gap(gradient(model), wanted) < 1e-4
    assert torch.equal(evaluate(model), in_training_mode(model))
    assert gap(gradient(model), wanted) < 1e-4
    assert torch.allclose(evaluate(model), evaluate(twin), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "bfloat16"},
        {"lora": {"bias": "all"}},
        {"lora": {"use_dora": True}},
        {"lora": {"modules_to_save": ["lm_head"]}},
        {"reward": True},
        {"reward": True, "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_so_it_is_in_bfloat16_with_biases_dora_a_whole_head_and_for_a_reward_model(
    bases, other_processor, kind, settings
) -> None:
    model, twin = (
        load(bases["qwen2"], kind, **settings),
        dequantize(load(bases["qwen2"], kind, **settings)),
    )
    tolerance = 0.05 if "dtype" in settings else 1e-4
    wanted = gradient(twin)
    assert gap(gradient(model), wanted) < tolerance
    assert torch.equal(evaluate(model), in_training_mode(model))
    assert gap(gradient(model), wanted) < tolerance


def test_single_quantization_has_its_own_twin(bases, other_processor) -> None:
    models = [load(bases["llama"], "nf4", double_quant=double) for double in (False, True)]
    first = [next(iter(quantized_layers(model).values())) for model in models]
    assert [layer.weight.quant_state.nested for layer in first] == [False, True]
    assert not torch.equal(plain_weight(first[0]), plain_weight(first[1]))
    assert (
        gap(
            gradient(models[0]),
            gradient(dequantize(load(bases["llama"], "nf4", double_quant=False))),
        )
        < 1e-4
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_is_near_the_weights_that_were_quantized(bases, kind) -> None:
    stored = load_file(bases["llama"] / "model.safetensors")
    model = load_policy(
        Model(name_or_path=str(bases["llama"]), quantization=kind),
        byte_tokenizer(),
        trainable=False,
    )
    error = max(
        gap(plain_weight(layer), stored[f"{name}.weight"])
        for name, layer in quantized_layers(model).items()
    )
    assert error < {"nf4": 0.15, "fp4": 0.2, "int8": 0.02}[kind]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_bias_stays_as_it_was_loaded_under_autocast(bases, kind) -> None:
    model = load(bases["gpt2"], kind)
    before = {
        name: weight.clone() for name, weight in model.named_parameters() if name.endswith("bias")
    }
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=IDS)
    after = dict(model.named_parameters())
    assert before
    assert all(
        torch.equal(after[name], weight) and after[name].dtype == weight.dtype
        for name, weight in before.items()
    )


# --- widths that are no whole number of blocks ----------------------------------------------------


class RowByRow:
    """The kernel of bitsandbytes for AVX512: row n begins at block n * (K // blocksize)."""

    def call_boxed(
        self,
        _keys: Any,
        packed: torch.Tensor,
        absmax: torch.Tensor,
        blocksize: int,
        quant_type: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        rows, width = shape
        first = torch.arange(rows)[:, None] * (width // blocksize)
        block = first + torch.arange(width) // blocksize
        if width % 16:  # too narrow for its registers: the blocks run on
            block = torch.arange(rows * width).view(shape) // blocksize
        packed = packed.flatten().long()
        places = torch.stack([packed >> 4, packed & 15], dim=1).view(shape)
        code = bnb.functional.get_4bit_type(quant_type, device="cpu")
        return (code[places] * absmax[block]).to(dtype)


def layer_of(width: int, kind: str, *, double: bool = True, outputs: int = 24) -> Any:
    """A layer in 4 bits whose blocks are of very different size, as it is after loading."""
    layer = bnb.nn.Linear4bit(
        width,
        outputs,
        bias=False,
        quant_type=kind,
        compress_statistics=double,
        compute_dtype=torch.float32,
    )
    random = torch.Generator().manual_seed(0)
    sizes = torch.rand(outputs, 1, generator=random) + 0.01
    layer.load_state_dict({"weight": torch.randn(outputs, width, generator=random) * sizes})
    layer = layer.to("cpu")
    keep_steady(nn.Sequential(layer))
    return layer


def test_the_kernel_for_avx512_takes_the_scales_of_other_blocks() -> None:
    """What the stand-in is for."""
    for width, error in ((64, 0.0), (100, 0.0), (32, 0.2), (48, 0.2), (96, 0.2)):
        layer = layer_of(width, "nf4", double=False)
        state = layer.weight.quant_state
        found = RowByRow().call_boxed(
            None, layer.weight.data, state.absmax, 64, "nf4", tuple(state.shape), torch.float32
        )
        assert gap(found, plain_weight(layer)) >= error
        assert error or torch.allclose(found, plain_weight(layer))


@pytest.mark.parametrize("processor", ["this one", "AVX512"])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [15, 16, 32, 48, 64, 96, 100])
def test_a_layer_in_four_bits_has_its_own_weights_at_every_width(
    monkeypatch, width, kind, double, processor
) -> None:
    if processor == "AVX512":
        monkeypatch.setattr("aligner.models.quantized.NATIVE", RowByRow())
    layer = layer_of(width, kind, double=double)
    weights = plain_weight(layer)
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = layer.train()(x)
    assert torch.allclose(y, x @ weights.T, atol=1e-5)
    assert torch.equal(layer.eval()(x), y)
    (found,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.allclose(found, 2 * y @ weights, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [32, 48, 96])
def test_and_whoever_unpacks_it_gets_them(width, dtype) -> None:
    """PEFT's DoRA and its merging, transformers' `dequantize`."""
    from peft.utils.integrations import dequantize_module_weight

    layer = layer_of(width, "nf4")
    layer.weight.quant_state.dtype = dtype
    found = dequantize_module_weight(layer)
    assert found.dtype == dtype
    assert gap(found.float(), plain_weight(layer)) < (1e-6 if dtype == torch.float32 else 0.01)


def test_the_proof_looks_at_a_width_that_is_no_whole_number_of_blocks_too(monkeypatch) -> None:
    layers = nn.Sequential(layer_of(64, "nf4", outputs=64), layer_of(96, "nf4", outputs=128))
    multiply = bnb.matmul_4bit

    def wrong(x: Any, weight: Any, *, quant_state: Any, **named: Any) -> Any:
        odd = quant_state.shape[-1] % 64
        return multiply(x, weight, quant_state=quant_state, **named) * (1.2 if odd else 1.0)

    monkeypatch.setattr(bnb, "matmul_4bit", wrong)
    with pytest.raises(RecipeError, match=r"that of 1 differs by 20%"):
        keep_steady(layers)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_bitsandbytes_that_cuts_the_gradient_off_in_another_way_is_refused(
    bases, monkeypatch, kind
) -> None:
    name = "matmul" if kind == "int8" else "matmul_4bit"
    multiply = getattr(bnb, name)
    monkeypatch.setattr(bnb, name, lambda x, *rest, **named: multiply(x.detach(), *rest, **named))
    with pytest.raises(
        RecipeError,
        match=r"model.quantization: bitsandbytes .* model.layers.0.self_attn.k_proj .* 100%",
    ):
        load(bases["llama"], kind)


@pytest.mark.parametrize("whole", ["up_proj", "mlp", "layers.1.mlp.up_proj"])
def test_a_layer_in_four_bits_is_not_trained_whole(bases, whole) -> None:
    with pytest.raises(
        RecipeError, match=rf"modules_to_save: {whole} is or holds model.layers.*up_proj|gate_proj"
    ):
        load(bases["llama"], "nf4", lora={"modules_to_save": [whole]})


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The dequantized twins of the small world's model, as ordinary models."""
    folders = {kind: tmp_path_factory.mktemp("twins") / kind for kind in KINDS}
    for kind, folder in folders.items():
        section = Model(name_or_path=str(small_world / "model"), quantization=kind)
        layers = quantized_layers(load_policy(section, byte_tokenizer(), trainable=False))
        plain = tiny_llama(byte_tokenizer())
        plain.load_state_dict(
            {f"{name}.weight": plain_weight(layer) for name, layer in layers.items()}, strict=False
        )
        plain.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
    return folders


QUICK = [("sft", "nf4"), ("dpo", "int8"), ("sapo", "nf4"), ("reward", "fp4")]


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        pytest.param(method, kind, marks=[] if (method, kind) in QUICK else [pytest.mark.slow])
        for method in ("sft", "dpo", "sapo", "reward")
        for kind in KINDS
    ],
)
def test_training_is_that_of_the_twin_with_answers_and_evaluations_on_the_way(
    small_world, twins, tmp_path, other_processor, method, kind
) -> None:
    flags = {
        "data__eval": 0.2,
        "trainer__eval_steps": 1,
        "model__lora": {"r": 4},
        "trainer__learning_rate": 1e-2,
    }
    found = []
    for name, model in {"quantized": small_world / "model", "twin": twins[kind]}.items():
        quantization = kind if name == "quantized" else "none"
        recipe = small_recipe(
            method,
            small_world,
            tmp_path / name,
            "trainer.max_steps=3",
            "report.num_prompts=1",
            model__name_or_path=str(model),
            model__quantization=quantization,
            report__max_new_tokens=4,
            **flags,
        )
        found.append(read_metrics(run_recipe(recipe).run_dir))
    keys = ("loss", "grad_norm", "rewards/margins", "accuracy")
    numbers = [
        [{key: line[key] for key in keys if key in line} for line in lines] for lines in found
    ]
    assert len(numbers[0]) == len(numbers[1]) >= 6
    for quantized, plain in zip(*numbers):
        assert quantized == pytest.approx(plain, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_an_adapter_that_is_trained_further_begins_exactly_where_it_ended(
    small_world, tmp_path, method
) -> None:
    """TRL rounds the adapters over a quantized base to bfloat16; a learning rate that changes
    nothing shows it."""
    flags = {"model__quantization": "nf4", "model__lora": {"r": 4}, "trainer__max_steps": 1}
    first = (
        run_recipe(small_recipe(method, small_world, tmp_path / "first", **flags)).run_dir / "final"
    )
    flags |= {"model__name_or_path": str(first), "trainer__learning_rate": 1e-30}
    second = (
        run_recipe(small_recipe(method, small_world, tmp_path / "second", **flags)).run_dir
        / "final"
    )
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    assert weights[0].keys() == weights[1].keys()
    assert [
        name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])
    ] == []


def test_a_model_whose_code_takes_the_numbers_of_a_packed_weight_is_refused_when_it_is_loaded(
    tmp_path,
):
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = byte_tokenizer()
    MambaForCausalLM(
        MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    section = Model(name_or_path=str(tmp_path), quantization="nf4")
    with pytest.raises(
        RecipeError, match=r"model\.quantization: MambaForCausalLM cannot be computed with packed"
    ):
        load_policy(section, tokenizer, trainable=False)
