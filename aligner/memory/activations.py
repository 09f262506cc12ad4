"""What a pass through a decoder keeps in memory: what the backward pass will read, and what is
there for a moment.

Counted is what autograd saves of each part of a layer, as the models of transformers compute it. Of
a norm: its input in float32, and where its weight is trained what that is multiplied with. Of a
linear layer: its input, where its weight or an adapter on it is trained; one array for all layers
that read the same, but where each casts it first (autocast, adapters in another data type). Of
attention: queries, keys, values, the output, and a mask in numbers where there is one, for which
keys and values are repeated for each head. Of the feed-forward part: what its product and its
activation read. Not counted: what is smaller than a hundredth of a layer.

Legend: D hidden size, Q width of all queries, K of all keys, I of the feed-forward part, V
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from aligner.config.recipe import Lora, Model
from aligner.memory.footprint import Batch, Head
from aligner.memory.numbers import Numbers
from aligner.memory.shape import Linear, Shape

TILE_TOKENS, TILE_WIDTH = 4096, 32768
"""Positions and words of a tile of logits in TRL's head. A tile is as wide also where the
vocabulary is not."""

READ_AT_ONCE = 1024
"""Positions whose logits are turned to float32 at a time (`aligner.models.forward`)."""

EXACT = 4
"""Bytes of what is computed in float32 whatever the rest is."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder with the numbers that it is trained in."""

    shape: Shape
    numbers: Numbers
    lora: Lora | None
    attention: str = "sdpa"

    def layer(self, batch: Batch) -> int:
        """Return the bytes that one layer keeps for its backward pass."""
        return batch.size * self._per_token(batch) + self._mask(batch)

    def inputs(self, batch: Batch) -> int:
        """Return the bytes of what goes into a layer: all that is kept of one that is computed
        again."""
        return batch.size * self.shape.width * self.numbers.stream

    def around(self, batch: Batch, head: Head) -> int:
        """Return the bytes that are kept outside the layers: of the last norm, rotary angles, the
        mask, and the positions that are read."""
        shape, numbers = self.shape, self.numbers
        last = shape.width * (EXACT + (numbers.stream if self.lora is None else 0))
        angles = 2 * shape.head_dim * numbers.stream
        read = batch.read * shape.width * numbers.stream if head == "fused" else 0
        mask = {"": 0, "padding": 1, "prefixes": numbers.stream}[batch.mask] * batch.pairs
        return batch.size * (last + angles) + mask + read

    def for_a_moment(self, batch: Batch) -> int:
        """Return the bytes of gradients that are there at once while a layer is computed backward:
        of two arrays of the feed-forward part and two of the stream."""
        inner = self.shape.inner * self.shape.experts_per_token * self.numbers.computed
        return round(batch.size * 2 * (inner + self.shape.width * EXACT))

    def at_rest(self, batch: Batch) -> int:
        """Return the bytes of a layer that is computed without a backward pass: three arrays of the
        feed-forward part, or the ones of attention, and the stream."""
        shape, numbers = self.shape, self.numbers
        inner = 3 * shape.inner * shape.experts_per_token * numbers.computed
        attention = (2 * shape.queries + 2 * self._keys(batch)) * numbers.computed
        stream = 2 * shape.width * max(numbers.stream, numbers.computed)
        largest = max(inner * batch.size, attention * batch.size + 2 * self._mask(batch))
        return round(largest + stream * batch.size)

    def _per_token(self, batch: Batch) -> int:
        shape, numbers = self.shape, self.numbers
        whole = self.lora is None
        norms = shape.norms * shape.width * self._of_norm(whole)
        heads = 0
        if shape.normed_heads:
            heads = (shape.queries + shape.keys) * self._of_norm(whole)
        attention = (2 * shape.queries + 2 * self._keys(batch)) * numbers.computed
        attention += EXACT * shape.heads  # a number of each head, to compute its softmax again
        inner = shape.inner * shape.activated * numbers.computed * shape.experts_per_token
        return round(norms + heads + attention + inner + self._of_linears())

    def _of_norm(self, whole: bool) -> int:
        """Bytes of each number that a norm reads."""
        if self.shape.has_layer_norm:
            return self.numbers.stream
        return EXACT + (self.numbers.stream if whole else 0)

    def _keys(self, batch: Batch) -> int:
        """Width of keys as attention reads them."""
        repeated = bool(batch.mask) and self.attention == "sdpa"
        return self.shape.queries if repeated or self.attention == "eager" else self.shape.keys

    def _mask(self, batch: Batch) -> int:
        """Bytes that a layer keeps for each pair of tokens."""
        if self.attention == "eager":  # probabilities in float32, and in the type of the values
            softmax = EXACT + (self.numbers.computed if self.numbers.computed != EXACT else 0)
            capped = self.numbers.computed if self.shape.caps_scores else 0
            return batch.pairs * self.shape.heads * (softmax + capped)
        turned = batch.mask == "padding" and self.attention == "sdpa"
        return batch.pairs * self.numbers.computed if turned else 0

    def _of_linears(self) -> float:
        """Bytes of the inputs of linear layers that are kept for a token, and of what goes through
        adapters."""
        shape, numbers = self.shape, self.numbers
        trained = shape.linears if self.lora is None else shape.adapted(self.lora)
        by_input = {"stream": [], "attention": [], "product": []}  # type: dict[str, list[Linear]]
        for linear in trained:
            by_input[self._input_of(linear)].append(linear)
        total = 0.0
        for name, linears in by_input.items():
            if not linears:
                continue
            width = linears[0].inputs
            if linears[0].name.startswith("mlp.experts"):
                width = round(width * shape.experts_per_token)
            total += width * self._input_bytes(name, linears)
        if self.lora is not None:
            total += len(trained) * self.lora.r * numbers.computed
        return total

    def _input_of(self, linear: Linear) -> str:
        """What a layer reads: the stream behind a norm, what attention gives, or the product within
        the feed-forward part."""
        if linear is self.shape.linears[-1]:
            return "product"
        is_output = linear.name.rpartition(".")[2] in ("o_proj", "out_proj", "dense", "c_proj")
        return "attention" if is_output else "stream"

    def _input_bytes(self, name: str, linears: list[Linear]) -> int:
        """Bytes for each number of an input that some layers read."""
        numbers, count = self.numbers, len(linears)
        adapters = self.lora is not None
        if name == "stream":
            each = 2 if numbers.autocast else EXACT if adapters else numbers.stream
            if each == numbers.stream and not (numbers.autocast and adapters):
                return each * self._norms_read(linears)  # the norm's output itself
            return each * count
        already = numbers.computed if name == "product" else 0  # attention keeps its output anyway
        if not adapters:
            return already
        if numbers.autocast and numbers.computed == 2:
            return 2  # cast to float32 for the adapter, and back
        return already if numbers.computed == EXACT else EXACT

    def _norms_read(self, linears: list[Linear]) -> int:
        """How many norms the given layers read: that before attention, that before the feed-forward
        part."""
        inner = {self._is_inner(linear) for linear in linears}
        return len(inner)

    def _is_inner(self, linear: Linear) -> bool:
        return linear.name.startswith(("mlp.", "fc")) or "mlp" in linear.name


@dataclass(frozen=True, slots=True)
class HeadBytes:
    """What a head takes: while its backward pass runs, in the forward pass, and `again` where its
    weights are trained: the gradient of all of them."""

    backward: int
    forward: int


def head_bytes(decoder: Decoder, batch: Batch, head: Head, outputs: int | None) -> HeadBytes:
    """Return what a head takes for the positions that are read, beside its gradient."""
    numbers, shape = decoder.numbers, decoder.shape
    if head == "values":
        size = batch.size * shape.width * EXACT  # its input in float32
        return HeadBytes(2 * size, size)
    if head == "letters":
        logits = batch.rows * shape.vocabulary * EXACT
        return HeadBytes(3 * logits, 3 * logits)
    if head == "logits":
        logits = batch.read * shape.vocabulary * numbers.computed
        some = min(batch.read, READ_AT_ONCE) * shape.vocabulary * EXACT
        return HeadBytes(logits + 3 * some, logits + 3 * some)
    rows = min(batch.read, TILE_TOKENS)
    words = min(shape.vocabulary, TILE_WIDTH)
    tile = rows * TILE_WIDTH * numbers.computed
    cast = words * shape.width * numbers.computed if numbers.computed != numbers.weights else 0
    gradients = batch.read * shape.width * EXACT + decoder.inputs(batch)
    if numbers.on_cuda:
        return HeadBytes(tile + cast + gradients, tile + cast)
    # Without Triton each step of the arithmetic has an array of its own: seven in float32, and one
    # of truth values.
    return HeadBytes(
        tile + cast + rows * words * (7 * EXACT + 1), tile + cast + 3 * rows * words * EXACT
    )


def decoder_of(shape: Shape, numbers: Numbers, model: Model) -> Decoder:
    """Return the decoder that a recipe's section describes."""
    attention = model.attn_implementation or "sdpa"
    return Decoder(shape, numbers, model.lora, "flash" if "flash" in attention else attention)
