"""A training as a row of phases, and what is in memory where each takes most.

An update is looked at where its backward pass begins, and holds all activations; at the last layer
and at the first one, each computed again where that is asked for; and where it ends, and holds all
gradients. In between there is a part of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aligner.config.defaults import trainer_value
from aligner.config.recipe import Model, TrainRecipe
from aligner.memory.activations import Decoder, decoder_of, head_bytes
from aligner.memory.footprint import Batch, Beside, Footprint, Lengths, Pass, Sampling
from aligner.memory.numbers import (
    Base,
    Numbers,
    Trained,
    base_of_shape,
    numbers_of,
    trained_of,
    weight_bytes,
)
from aligner.memory.optimizers import is_paged, note_of, optimizer_bytes
from aligner.memory.parts import Part, Parts, total
from aligner.memory.shape import Shape, shape_of

PREFILL_TOKENS = 2048
"""Tokens of prompts that are read at once before they are answered (`generation/continuous.py`)."""

SHARDS_WEIGHTS = ("fsdp", "fsdp1", "fsdp2", "zero3")
SHARDS_GRADIENTS = (*SHARDS_WEIGHTS, "zero2")
SHARDS_OPTIMIZER = (*SHARDS_GRADIENTS, "zero1")


@dataclass(frozen=True)
class Training:
    """A training, as far as its memory goes."""

    recipe: TrainRecipe
    footprint: Footprint
    decoder: Decoder
    base: Base
    trained: Trained
    config: Mapping[str, Any]
    sees: bool = False

    @property
    def shape(self) -> Shape:
        """The sizes of the model that is trained."""
        return self.decoder.shape

    @property
    def numbers(self) -> Numbers:
        """In which numbers it is trained."""
        return self.decoder.numbers

    # --- phases -----------------------------------------------------------------------------------

    def phases(self) -> Iterator[tuple[str, Parts]]:
        """Yield the name of each phase, and what is in memory at its peak."""
        loading = self._loading()
        if loading is not None:
            yield "loading", loading
        for one in self.footprint.passes:
            held = self.held(one.name, begun=not one.is_before)
            yield one.name, (*held, *(self._update(one) if one.trains else self._pass(one)))
        samplings = list(self.footprint.samplings)
        if (arena := self.recipe.eval.arena) is not None:
            rows, new = min(arena.prompts, arena.batch_size), arena.max_new_tokens
            longest = max(one.batch.tokens for one in self.footprint.passes)
            samplings.append(Sampling("battles", rows, longest, new))
        for sampling in samplings:
            yield sampling.name, (*self.held(sampling.name), *self._sampling(sampling))

    def _loading(self) -> Parts | None:
        """On a CPU, weights of another data type than the file's are there in both for a while."""
        saved = {"bfloat16": 2, "float16": 2, "float32": 4}.get(str(self.config.get("dtype")))
        weights = self.shape.weights(self.footprint.outputs)
        if self.numbers.on_cuda or saved in (None, self.numbers.weights) or self.base.quantized:
            return None
        assert saved is not None, "it is in the table"
        file = Part("weights as saved", saved * weights, f"in {self.config['dtype']}")
        return (*self._base_parts(), file)

    def held(self, phase: str, *, begun: bool = True) -> Parts:
        """Return what is in memory through the whole training, and the models beside it that are
        there during a phase; without the optimizer's part where training has not `begun`."""
        found = [*self._base_parts(), *self._adapters(), *(self._states() if begun else ())]
        for beside in self.footprint.beside:
            if not beside.only or phase in beside.only:
                found.append(self._beside(beside))
        return tuple(part for part in found if part.bytes)

    def _base_parts(self) -> Iterator[Part]:
        ranks = self._ranks(SHARDS_WEIGHTS)
        base, model = self.base, self.recipe.model
        yield Part("weights", base.plain // ranks, base.how + _shared_by(ranks))
        if base.quantized:
            bits = 8 if model.quantization == "int8" else 4
            name = f"weights in {bits} bits"
            yield Part(name, base.quantized // ranks, base.quantized_how + _shared_by(ranks))

    def _adapters(self) -> Iterator[Part]:
        trained, each = self.trained, self.numbers.trained
        if trained.copied:
            ranks = self._ranks(SHARDS_WEIGHTS)
            how = f"{trained.how}, in float32{_shared_by(ranks)}"
            yield Part("adapters", each * trained.copied // ranks, how)
        if self.footprint.has_critic:
            whole = self.trained.copied == 0
            size = self.base.plain if whole else each * trained.copied
            how = "a copy of the policy" if whole else "adapters on the policy's own base"
            yield Part("critic", size, how)
        for copy in self.footprint.copies:
            yield Part(copy, 4 * trained.total, "a float32 copy of the trained weights")

    def _states(self) -> Iterator[Part]:
        trained, each = self.trained, self.numbers.trained
        ranks = self._ranks(SHARDS_OPTIMIZER)
        name = str(trainer_value(self.recipe, "optim"))
        kept = optimizer_bytes(name, self.shape, trained.total, trained.in_ends, each)
        times = 2 if self.footprint.has_critic else 1
        yield Part("optimizer", times * kept // ranks, f"{name}{_shared_by(ranks)}")

    def _beside(self, beside: Beside) -> Part:
        each = weight_bytes(beside.model, trainable=False, cuda=self.numbers.on_cuda)
        if beside.on_base:
            head = (beside.outputs or 0) * self.shape.width
            how = "on the policy's own base: adapters and head alone"
            return Part(beside.name, 4 * (self.trained.total + head), how)
        shape = shape_of(_config_of(beside.model))
        base = base_of_shape(shape, beside.model, each, beside.outputs)
        how = ", ".join(text for text in (base.how, base.quantized_how) if text)
        return Part(beside.name, base.plain + base.quantized, how)

    # --- an update --------------------------------------------------------------------------------

    def _update(self, one: Pass) -> Parts:
        moments = [self._begins(one), self._last_layer(one), self._first_layer(one)]
        moments.append(self._ends(one))
        if one.has_reference:
            kept = (*self._gradients(begun=True), *self._activations(one))
            moments.append(_there([*kept, *self._pass(one)]))
        return max(moments, key=total)

    def _begins(self, one: Pass) -> Parts:
        """Where the backward pass has reached the head: all activations are there."""
        found = [*self._gradients(begun=True), *self._activations(one)]
        head = head_bytes(self.decoder, one.batch, one.head, self.footprint.outputs)
        found.append(Part("logits", head.backward, _head_in_words(one)))
        if self._head_is_trained(one):
            size = 4 * self.shape.embeddings  # summed up in float32
            found.append(Part("gradient of the head", size, "in float32, while it is summed up"))
        return _there(found)

    def _last_layer(self, one: Pass) -> Parts:
        """Where it has reached the last layer, which is computed again where that is asked for."""
        found = [*self._gradients(begun=True), *self._activations(one)]
        if self._head_is_trained(one):
            size = self.numbers.trained * self.shape.embeddings
            found.append(Part("gradient of the head", size, "as the weights"))
        if self.is_checkpointed:
            size = self.decoder.layer(one.batch)
            found.append(Part("activations of a layer", size, "computed again"))
        found.append(self._moment(one))
        return _there(found)

    def _first_layer(self, one: Pass) -> Parts:
        """Where it has reached the first layer: all gradients are there but those of embeddings
        that nothing else has given one."""
        found = list(self._gradients(begun=False))
        if self.trained.in_ends and not self._is_summed_up and not self._adds_to_head(one):
            size = self.numbers.trained * self.shape.embeddings
            found[0] = replace(found[0], bytes=found[0].bytes - size)
        layer = Part("activations", self.decoder.layer(one.batch), "of the first layer")
        return _there([*found, layer, self._moment(one)])

    def _ends(self, one: Pass) -> Parts:
        """Where it has reached the embeddings: all gradients are there."""
        found = list(self._gradients(begun=False))
        if self.trained.in_ends and (self._is_summed_up or self._adds_to_head(one)):
            size = self.numbers.trained * self.shape.embeddings
            found.append(Part("gradient of embeddings", size, "dense, before it is added"))
        return _there(found)

    def _moment(self, one: Pass) -> Part:
        return Part("gradients of activations", self.decoder.for_a_moment(one.batch), "of a layer")

    def _activations(self, one: Pass) -> Iterator[Part]:
        decoder, batch, shape = self.decoder, one.batch, self.shape
        layers = f"{batch.in_words()}, {shape.layers} layers"
        around = decoder.around(batch, one.head)
        if not self.is_checkpointed:
            size = shape.layers * decoder.layer(batch) + around
            yield Part("activations", size, f"{layers}, without checkpointing")
            if self.numbers.autocast and self.numbers.weights == 4:
                yield Part("weights for autocast", 2 * shape.in_linears, "a copy in 16 bits")
            return
        size = shape.layers * decoder.inputs(batch) + around
        yield Part("activations", size, f"{layers}, the inputs of each, with checkpointing")

    def _gradients(self, *, begun: bool) -> Iterator[Part]:
        """Gradients of all weights: there at the end of the backward pass, and from its beginning
        where they are summed up over several."""
        size, ranks = self.numbers.trained * self.trained.total, self._ranks(SHARDS_GRADIENTS)
        times = 2 if self.footprint.has_critic else 1
        if not begun or self._is_summed_up or times > 1:
            summed = ", summed up over several passes" if self._is_summed_up else ""
            yield Part("gradients", times * size // ranks, f"as the weights{summed}")
        if self.recipe.launch.num_processes > 1 and self.recipe.launch.strategy == "ddp":
            yield Part("gradients on their way", size, "buckets that processes exchange")

    @property
    def _is_summed_up(self) -> bool:
        """Whether gradients of several passes are added up before a step."""
        return int(trainer_value(self.recipe, "gradient_accumulation_steps")) > 1

    def _adds_to_head(self, one: Pass) -> bool:
        """Whether embeddings add to a gradient that the head has had before: they share weights."""
        return self.shape.is_tied and self._head_is_trained(one)

    def _head_is_trained(self, one: Pass) -> bool:
        writes = one.head != "values"
        return writes and bool(self.trained.in_ends)

    @property
    def is_checkpointed(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return is_checkpointed(self.recipe, cuda=self.numbers.on_cuda)

    # --- without a backward pass ------------------------------------------------------------------

    def _pass(self, one: Pass) -> Parts:
        batch, decoder = one.batch, self._decoder_of(one)
        head = head_bytes(decoder, batch, one.head, self.footprint.outputs)
        layer = Part("activations", decoder.at_rest(batch), f"of a layer, {batch.in_words()}")
        outputs = Part("logits", head.forward, _head_in_words(one))
        return max(((layer,), (outputs,)), key=total)

    def _decoder_of(self, one: Pass) -> Decoder:
        """The decoder that computes a pass."""
        for beside in self.footprint.beside:
            if beside.name == one.of:
                shape = shape_of(_config_of(beside.model))
                each = weight_bytes(beside.model, trainable=False, cuda=self.numbers.on_cuda)
                numbers = replace(self.numbers, weights=each, computed=each, stream=each)
                return decoder_of(shape, replace(numbers, autocast=False), beside.model)
        return self.decoder

    def _sampling(self, one: Sampling) -> Parts:
        shape, numbers = self.shape, self.numbers
        tokens = one.prompt + one.new
        each = 2 * shape.keys * numbers.computed
        kept = one.rows * min(tokens, shape.window or tokens)
        how = f"keys and values of {one.rows:,} x {tokens:,} tokens, {shape.layers} layers"
        cache = Part("generation cache", shape.layers * each * kept, how)
        at_once = max(1, min(one.rows, PREFILL_TOKENS // max(1, one.prompt)))
        batch = Batch(at_once, one.prompt, at_once, "padding")
        # While a prompt is read there is a layer's work, and later what a token more takes: the
        # cache of a layer twice, and logits.
        logits = 3 * one.rows * shape.vocabulary * 4
        later = Part("logits", logits + each * kept, "of a token of each row, and a layer's cache")
        reading = Part("activations", self.decoder.at_rest(batch), "of a layer, the prompts")
        return (cache, max((later, reading), key=lambda part: part.bytes))

    # --- the rest ---------------------------------------------------------------------------------

    def _ranks(self, strategies: tuple[str, ...]) -> int:
        """Among how many processes something is split."""
        launch = self.recipe.launch
        return launch.num_processes if launch.strategy in strategies else 1

    def notes(self, lengths: Lengths) -> Iterator[str]:
        """Say what is not counted, and what is assumed."""
        numbers, recipe = self.numbers, self.recipe
        if numbers.on_cuda:
            yield (
                "not counted: CUDA's context and libraries (about 0.5 GiB) and what the allocator "
                "holds in pieces too small to use; no figure was measured on a GPU"
            )
        else:
            yield "not counted: the program and its libraries (about 0.7 GiB), and tokenized rows"
        if not self.shape.is_familiar:
            kind = self.shape.family or "this model"
            yield f"{kind} is counted as if it were built like Llama: a rough estimate"
        if self.sees:
            yield "not counted: the part of the model that sees"
        if recipe.eval.arena is not None:
            yield "not counted: a model that judges battles (eval.arena) in this process"
        yield from (f"not counted: {name}" for name in self.footprint.left_out)
        if lengths.trained is None:
            yield "rows are taken to be as long as data.max_length, all of it trained"
        if remark := note_of(str(trainer_value(recipe, "optim"))):
            yield remark
        if is_paged(str(trainer_value(recipe, "optim"))) and numbers.on_cuda:
            yield "the optimizer's part may move to the CPU's memory where the GPU's is full"
        if recipe.launch.strategy in SHARDS_WEIGHTS and recipe.launch.num_processes > 1:
            yield "not counted: the layer whose shards are gathered to be computed"


def _there(parts: Iterable[Part]) -> Parts:
    return tuple(part for part in parts if part.bytes)


def _shared_by(ranks: int) -> str:
    return f", a share of 1 in {ranks}" if ranks > 1 else ""


def _head_in_words(one: Pass) -> str:
    if one.head == "fused":
        return f"{one.batch.read:,} positions, in tiles"
    if one.head == "logits":
        return f"{one.batch.read:,} positions"
    return "a few numbers" if one.head == "values" else "of the last token of each row"


def is_checkpointed(recipe: TrainRecipe, *, cuda: bool) -> bool:
    """Say whether activations are computed again in the backward pass; on a GPU they are, where
    the recipe says nothing."""
    for key in ("activation_checkpointing", "gradient_checkpointing"):
        if (given := recipe.trainer.get(key)) is not None:
            return bool(given)
    return cuda


def training_of(recipe: TrainRecipe, footprint: Footprint, *, cuda: bool) -> Training:
    """Return a training, from what its method says of it."""
    config = _config_of(recipe.model)
    shape = with_new_tokens(shape_of(config), recipe.model)
    numbers = numbers_of(recipe, cuda=cuda)
    decoder = decoder_of(shape, numbers, recipe.model)
    base = base_of_shape(shape, recipe.model, numbers.weights, footprint.outputs)
    trained = trained_of(shape, recipe.model, footprint.outputs)
    return Training(recipe, footprint, decoder, base, trained, config, config["sees"])


def with_new_tokens(shape: Shape, model: Model) -> Shape:
    """Return the sizes of a model whose vocabulary grows by the tokens that a recipe adds."""
    return replace(shape, vocabulary=shape.vocabulary + len(model.new_tokens))


def _config_of(model: Model) -> Mapping[str, Any]:
    from aligner.models.configs import config_values

    return config_values(model)
