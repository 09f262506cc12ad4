"""Self-tests of the arithmetic that training relies on, each on a random Llama with two layers, in
about a second.

Every one compares two ways to the same numbers and returns the largest difference. They exist
because each of these has been silently wrong in a released library: packed rows that see each other
(an all-ones mask or a cache is enough), accumulation that is not the large batch, padding that
shifts positions, a reference that is not the policy it started from. A test that passes says so for
this machine and these versions; `tests/invariants` say it for the trainers.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aligner.models.answers import pad_answers
from aligner.models.forward import pad

VOCABULARY = 61
LENGTHS = (11, 7, 13, 5, 9, 12, 3, 8)
QUANTIZED = ("nf4", "fp4", "int8")
TOLERANCE = 1e-4  # float32, values of the order of one; a real fault shows as 0.1 or more
ROUGH_TOLERANCE = 2e-2  # GPUs may multiply float32 in fewer bits
INT8_TOLERANCE = 0.15  # inputs rounded to 8 bits give 0.03 here, a gradient that does not flow 1


@dataclass(frozen=True, slots=True)
class Measured:
    """What a self-test found: the largest difference, and how large it may be."""

    name: str
    claim: str
    difference: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the two ways agree. A difference that is not a number does not."""
        return self.difference <= self.tolerance


def random_llama(device: str) -> Any:
    """Return a random model in float32, the same every time, leaving the global random state
    alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(device).eval()


def random_rows() -> list[Tensor]:
    """Return rows of token ids (T,) of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


@torch.no_grad()
def packing(device: str) -> float:
    """Rows packed behind one another against each alone. No mask and no cache: either lets rows see
    each other."""
    model, rows = random_llama(device), random_rows()
    packed_1T = torch.cat(rows)[None].to(device)
    positions_1T = torch.cat([torch.arange(len(row)) for row in rows])[None].to(device)
    together = (
        model(input_ids=packed_1T, position_ids=positions_1T, use_cache=False)
        .logits[0]
        .split(LENGTHS)
    )
    return max(_gap(part, _alone(model, row, device)) for part, row in zip(together, rows))


@torch.no_grad()
def padding(device: str) -> float:
    """A batch padded on the right, and one padded on the left with a mask, against each row
    alone."""
    model, rows = random_llama(device), random_rows()
    worst = 0.0
    for left in (False, True):
        padded = pad([row.tolist() for row in rows], 0, left=left)
        batch = {name: value.to(device) for name, value in padded.items()}
        together = model(**batch, use_cache=False).logits
        for row, logits_TV in zip(rows, together):
            part = logits_TV[-len(row) :] if left else logits_TV[: len(row)]
            worst = max(worst, _gap(part, _alone(model, row, device)))
    return worst


def accumulation(device: str) -> float:
    """Gradient of one batch of 8 against 4 batches of 2, each divided by the tokens of the whole
    step."""
    rows = random_rows()
    large, small = (_gradient(rows, size, device) for size in (8, 2))
    return max(_gap(a, b) for a, b in zip(large, small))


def reference(device: str) -> float:
    """A policy with a fresh adapter against itself with the adapter off: the reference of a
    preference objective."""
    from peft import LoraConfig, get_peft_model

    model, row = random_llama(device), random_rows()[0]
    policy = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    with torch.no_grad():
        before = _alone(policy, row, device)
        with policy.disable_adapter():
            return _gap(before, _alone(policy, row, device))


def quantized(kind: str, device: str) -> float:
    """Gradient of adapters over a quantized base against that over its dequantized twin, before and
    after an evaluation.

    Returned is the larger difference, as a share of the gradient's size.
    """
    from aligner.models.quantized import keep_steady

    policy, twin = (_adapted(_quantize(random_llama(device), kind)) for _ in range(2))
    keep_steady(policy)
    _dequantize(twin)
    row_1T = random_rows()[0][None].to(device)
    wanted, before = _adapter_gradient(twin, row_1T), _adapter_gradient(policy, row_1T)
    with torch.no_grad():
        policy.eval()(input_ids=row_1T, use_cache=False)
    after = _adapter_gradient(policy, row_1T)
    return max(float((found - wanted).norm() / wanted.norm()) for found in (before, after))


def stop_token(_device: str) -> float:
    """Share of assistant turns whose stop token is not trained, in a small conversation."""
    from aligner.data.rows import ConversationRow
    from aligner.tokenization.encode import IGNORED, encode_sft, stop_token_ids
    from aligner.toy.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    turns = [{"role": role, "content": "word"} for role in ("user", "assistant") * 2]
    labels = encode_sft(tokenizer, ConversationRow(turns)).labels
    trained = sum(label in stop_token_ids(tokenizer) for label in labels if label != IGNORED)
    return 1.0 - trained / 2


TESTS: dict[str, tuple[str, Callable[[str], float]]] = {
    "packing": ("a packed row does not see its neighbours", packing),
    "padding": ("a padded row gives the numbers of the row alone", padding),
    "accumulation": ("4 batches of 2 give the gradient of 1 batch of 8", accumulation),
    "reference": ("policy and reference agree before the first step", reference),
    "stop token": ("the token that ends an answer is trained", stop_token),
}


def measure_quantized(kind: str, device: str) -> Measured:
    """Run the self-test of one kind of quantization on a device. On a GPU, `int8` rounds the inputs
    of its layers too."""
    claim = (
        f"{kind} trains: its gradient is that of its dequantized twin, before and after an "
        "evaluation"
    )
    tolerance = (
        TOLERANCE if device == "cpu" else INT8_TOLERANCE if kind == "int8" else ROUGH_TOLERANCE
    )
    return Measured(kind, claim, quantized(kind, device), tolerance)


def measure(device: str) -> list[Measured]:
    """Run every self-test on a device."""
    tolerance = TOLERANCE if device == "cpu" else ROUGH_TOLERANCE
    return [Measured(name, claim, test(device), tolerance) for name, (claim, test) in TESTS.items()]


def _alone(model: Any, row_T: Tensor, device: str) -> Tensor:
    return model(input_ids=row_T[None].to(device), use_cache=False).logits[0]


def _gradient(rows: list[Tensor], batch_size: int, device: str) -> list[Tensor]:
    model = random_llama(device)
    predicted = sum(len(row) - 1 for row in rows)
    for start in range(0, len(rows), batch_size):
        part = [((), row.tolist()) for row in rows[start : start + batch_size]]
        batch = {name: value.to(device) for name, value in pad_answers(part, 0).items()}
        model(**batch, num_items_in_batch=predicted).loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def _quantize(model: Any, kind: str) -> Any:
    """Put every linear layer but the head into 4 or 8 bits, as loading with `model.quantization`
    does."""
    import bitsandbytes as bnb

    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, torch.nn.Linear):
            shape = layer.in_features, layer.out_features
            if kind == "int8":
                packed = bnb.nn.Linear8bitLt(
                    *shape, bias=False, has_fp16_weights=False, threshold=6.0
                )
            else:
                packed = bnb.nn.Linear4bit(
                    *shape, bias=False, compute_dtype=layer.weight.dtype, quant_type=kind
                )
            packed.load_state_dict(layer.state_dict())
            model.model.set_submodule(name, packed.to(layer.weight.device))
    setattr(
        model, "is_loaded_in_8bit" if kind == "int8" else "is_loaded_in_4bit", True
    )  # PEFT asks
    return model


def _dequantize(model: Any) -> None:
    from aligner.models.quantized import plain_weight, quantized_layers

    for name, layer in quantized_layers(model).items():
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        plain.weight = torch.nn.Parameter(plain_weight(layer), requires_grad=False)
        model.set_submodule(name, plain)


def _adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return get_peft_model(model, config)


def _adapter_gradient(policy: Any, row_1T: Tensor) -> Tensor:
    policy.train().zero_grad()
    policy(input_ids=row_1T, labels=row_1T, use_cache=False).loss.backward()
    return torch.cat(
        [weight.grad.flatten() for weight in policy.parameters() if weight.requires_grad]
    )


def _gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max())
