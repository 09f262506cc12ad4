"""In which precision a CPU trains where the recipe does not say: in bfloat16 under autocast where
the CPU computes in it itself and a trial of a fraction of a second shows a gain, else in float32.

The trial is the larger part of a layer, two linear maps of the model's own widths, forward and
backward. What bfloat16 does not speed up (attention's softmax, norms, the optimizer) is not in it,
so the whole step gains less. The weights stay float32, and so does what is saved.

Not here: GPUs, which compute in bfloat16 wherever they have it; quantized weights, whose arithmetic
is that of bitsandbytes; weights that are bfloat16 themselves; models that several processes share
in parts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aligner.config.defaults import trainer_value
from aligner.config.recipe import TrainRecipe
from aligner.launch.devices import best_device, native_bf16

TINY = 1e10
"""Multiply-adds of a batch's forward pass, below which bfloat16 is not even tried: casting weights
costs as much as it saves, and a trial would measure noise. 75 tokens of a model of 135 million
weights; models of tests and tutorials stay below it."""

WORTHWHILE = 0.9
"""Share of float32's time that bfloat16 may take at most."""

MOST_TOKENS, WIDEST, WIDEST_INNER = 512, 1024, 2816
"""Of the trial, so that it stays short."""

REPEATS = 3


@dataclass(frozen=True, slots=True)
class Precision:
    """Whether a CPU computes in bfloat16 under autocast, and why."""

    bf16: bool
    why: str

    @property
    def in_short(self) -> str:
        """Return it as the plan has it."""
        return "mixed, bf16 and float32" if self.bf16 else "that of the weights"


@dataclass(frozen=True, slots=True)
class Shape:
    """Widths of a model's layers, and the weights that a token is multiplied with."""

    width: int
    inner: int
    weights: float


def shape_of(config: Any) -> Shape:
    """Return the shape of a model from its configuration; about, for unusual architectures. Of
    experts those count that a token is sent to."""
    text = config.get_text_config()
    width = int(text.hidden_size)
    inner: Any = getattr(text, "moe_intermediate_size", None) or getattr(
        text, "intermediate_size", None
    )
    inner = int(max(inner) if isinstance(inner, list | tuple) else inner or 4 * width)
    experts = int(getattr(text, "num_experts_per_tok", None) or 1)
    layer = 4 * width**2 + 3 * width * inner * experts
    return Shape(width, inner, text.num_hidden_layers * layer + text.vocab_size * width)


def trains_on_cpu(recipe: TrainRecipe) -> bool:
    """Say whether the trainer will work on the CPU of this machine."""
    return bool(trainer_value(recipe, "use_cpu")) or best_device() == "cpu"


def choose_precision(
    recipe: TrainRecipe,
    config: Any,
    batch_tokens: float,
    measure: Callable[[Shape, int, bool], float] | None = None,
) -> Precision | None:
    """Return the precision of a training on this CPU; None where the recipe gives it, or where
    another device trains. `batch_tokens` are those of one process's micro-batch."""
    if not trains_on_cpu(recipe):
        return None
    if trainer_value(recipe, "fp16") or recipe.launch.mixed_precision == "fp16":
        return Precision(False, "fp16 is left out on a CPU")  # by accelerate, without a word
    if _is_given(recipe):
        return None
    if recipe.model.dtype in ("bfloat16", "float16"):
        return Precision(False, f"model.dtype is {recipe.model.dtype}")
    if recipe.model.quantization != "none" or getattr(config, "quantization_config", None):
        return Precision(False, "the weights are quantized")
    shape = shape_of(config)
    if shape.weights * batch_tokens < TINY:
        return Precision(False, "batches are too small for bfloat16 to be quicker on a CPU")
    if not native_bf16("cpu"):
        return Precision(False, "this CPU has neither AVX512-BF16 nor AMX")
    whole = recipe.model.lora is None
    share = (measure or time_share)(shape, math.ceil(batch_tokens), whole)
    took = f"{share:.2f} of float32's time in a short trial on this CPU"
    return Precision(share <= WORTHWHILE, f"bfloat16 takes {took}")


def _is_given(recipe: TrainRecipe) -> bool:
    """Say whether the recipe decides on the precision, or shards the weights, where another one
    would also be that of the gradients."""
    several = recipe.launch.num_processes > 1
    return (
        recipe.trainer.get("bf16") is not None
        or recipe.launch.mixed_precision is not None
        or (several and recipe.launch.strategy != "ddp")
    )


def time_share(shape: Shape, batch_tokens: int, whole: bool) -> float:
    """Return the time of bfloat16 as a share of float32's, of a forward and a backward pass through
    two linear maps; with the gradients of their weights where the model is trained `whole`.

    Draws no random numbers. Both are run in turn, and the best time of each counts.
    """
    tokens = min(batch_tokens, MOST_TOKENS)
    width, inner = min(shape.width, WIDEST), min(shape.inner, WIDEST_INNER)
    states = torch.full((tokens, width), 0.01, requires_grad=True)
    up = torch.full((inner, width), 0.01, requires_grad=whole)
    down = torch.full((width, inner), 0.01, requires_grad=whole)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(REPEATS + 1):
        for bf16, found in times.items():
            found.append(_pass_seconds(states, up, down, bf16))
    return min(times[True][1:]) / min(times[False][1:])  # the first ones warm up


def _pass_seconds(states: Tensor, up: Tensor, down: Tensor, bf16: bool) -> float:
    linear = torch.nn.functional.linear
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        inner = torch.nn.functional.silu(linear(states, up))
        loss = linear(inner, down).float().sum()
    loss.backward()
    return time.perf_counter() - start
