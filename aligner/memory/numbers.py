"""In how many bytes each number of a training is kept and computed, and what is trained.

Weights are loaded as `aligner.models.dtypes` says, computed under autocast where the trainer says
so, and adapters are float32 in every case.
"""

from __future__ import annotations

from dataclasses import dataclass

from aligner.config.defaults import trainer_value
from aligner.config.recipe import Model, TrainRecipe
from aligner.memory.shape import Linear, Shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
IN_WORDS = {4: "float32", 2: "16 bits"}

BLOCK, NESTED_BLOCK = 64, 256
"""Weights in 4 bits that share a scale, and scales that share one where these are quantized too."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Bytes of a number: of frozen and trained `weights`, of what linear layers give (`computed`),
    of what passes from layer to layer (`stream`). `autocast`: weights are cast for each pass."""

    weights: int
    trained: int
    computed: int
    stream: int
    autocast: bool
    on_cuda: bool


def numbers_of(recipe: TrainRecipe, *, cuda: bool) -> Numbers:
    """Return the bytes of the numbers of a training.

    On a GPU it is taken to be one that computes in bfloat16; on a CPU bfloat16 is used where the
    recipe says so.
    """
    weights = weight_bytes(recipe.model, trainable=True, cuda=cuda)
    given = [trainer_value(recipe, key) for key in ("bf16", "fp16")]
    mixed = recipe.launch.mixed_precision
    if mixed is not None:
        autocast = mixed != "no"
    else:
        autocast = any(given) or (cuda and given[0] is None)
    if not cuda and (mixed == "fp16" or (given[1] and not given[0])):
        autocast = False  # accelerate leaves it out on a CPU
    trained = 4 if recipe.model.lora is not None else weights
    computed = 2 if autocast else weights
    return Numbers(weights, trained, computed, weights, autocast, cuda)


def weight_bytes(model: Model, *, trainable: bool, cuda: bool) -> int:
    """Return the bytes of a weight that is not quantized."""
    if model.dtype != "auto":
        return BYTES[model.dtype]
    frozen = model.lora is not None or not trainable
    return 2 if frozen and cuda else 4


@dataclass(frozen=True, slots=True)
class Base:
    """The weights of a model, in bytes: those that are quantized, and the others."""

    plain: int
    quantized: int
    how: str
    quantized_how: str


def base_of_shape(
    shape: Shape, model: Model, each: int, outputs: int | None = None, *, with_head: bool = True
) -> Base:
    """Return what the weights of a model take; `each`: bytes of one that is not quantized."""
    everything = shape.weights(outputs) if with_head else shape.backbone
    if model.quantization == "none":
        return Base(each * everything, 0, f"{_count(everything)} in {IN_WORDS[each]}", "")
    packed = [linear for linear in shape.linears if not linear.experts]
    numbers = shape.layers * sum(linear.inputs * linear.outputs for linear in packed)
    stored = shape.layers * sum(quantized_bytes(linear, model) for linear in packed)
    rest = everything - numbers
    how = f"{_count(rest)} that are not quantized, in {IN_WORDS[each]}"
    return Base(each * rest, stored, how, f"{_count(numbers)} in {model.quantization}")


def quantized_bytes(linear: Linear, model: Model) -> int:
    """Return what a layer's weights take once they are quantized, with their scales."""
    numbers = linear.inputs * linear.outputs
    if model.quantization == "int8":
        return numbers + 4 * linear.outputs  # a scale for each output
    scales = -(-numbers // BLOCK)
    if not model.double_quant:
        return numbers // 2 + 4 * scales
    return numbers // 2 + scales + 4 * -(-scales // NESTED_BLOCK)


def _count(number: int) -> str:
    for size, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{name} weights"
    return f"{number} weights"


@dataclass(frozen=True, slots=True)
class Trained:
    """How many weights are trained: in linear layers, in embeddings and head, elsewhere; `copied`:
    of these, how many are held beside the weights of the base."""

    in_layers: int
    in_ends: int
    elsewhere: int
    copied: int
    how: str

    @property
    def total(self) -> int:
        """All of them."""
        return self.in_layers + self.in_ends + self.elsewhere


def trained_of(shape: Shape, model: Model, outputs: int | None = None) -> Trained:
    """Return how many weights are trained; `outputs`: of a head that gives numbers."""
    lora, width = model.lora, shape.width
    if lora is None:
        total = shape.weights(outputs)
        writes = outputs is None and not shape.is_tied
        ends = shape.embeddings * (2 if writes else 1)
        others = total - ends - shape.in_linears
        return Trained(shape.in_linears, ends, others, 0, f"{_count(total)}, all of them")
    adapters = 0
    for linear in shape.adapted(lora):
        adapters += lora.r * (linear.inputs + linear.outputs) + lora.use_dora * linear.outputs
    adapters *= shape.layers
    ends = _whole_ends(shape, model)
    rows = len(model.new_tokens) * width * (1 if shape.is_tied else 2)
    head = (outputs or 0) * width
    total = adapters + ends + rows + head
    how = f"{_count(total)} of rank {lora.r}{' with magnitudes' if lora.use_dora else ''}"
    return Trained(adapters, ends, rows + head, total, how)


def _whole_ends(shape: Shape, model: Model) -> int:
    """The weights of embeddings and head that are trained whole beside adapters."""
    assert model.lora is not None, "it is asked under adapters"
    names = {name.rpartition(".")[2] for name in model.lora.modules_to_save or []}
    ends = names & {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"}
    return shape.embeddings * min(len(ends), 1 if shape.is_tied else 2)
