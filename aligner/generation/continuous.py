"""Our own decode loop on a transformers model: rows leave the batch when they end, and waiting ones
take their places at once.

A prompt is computed once for all of its samples, and for equal prompts. The batch is bounded by
rows and by the memory of the cache. Nothing but the model's forward pass is transformers':
`model.generate` pays at every step for things that are off here, and decodes every batch until its
longest row ends.

It needs a cache of plain keys and values, and a model that asks for no more than token ids, a mask
and positions: `can_decode` says whether that is so, by the model's config and code.

It does not page the cache, compile, or speculate: serving engines do that better.

Legend: G prompts of one prefill, P their padded length, R rows in the batch, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from aligner.generation.batchwise import Row
from aligner.generation.requests import Generated, OnFinished
from aligner.generation.sampling import choose, said_ids, settings_of
from aligner.generation.slots import Slots, bytes_per_token
from aligner.models.forward import pad

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PADDED = 1.1
PADDING = 64
"""Prompts are computed together while padding makes them at most this many times as long, or adds
no more tokens than these: a forward pass of its own costs about as much."""

PREFILL_TOKENS = 2048
"""Tokens of prompts that are computed together, unless one prompt alone has more."""

PASS = 12.0
"""What a forward pass costs beside its rows, in rows of a step: about a dozen on a CPU (SmolLM2,
one thread), more where the model is smaller or the device faster."""

INPUTS = {"input_ids", "attention_mask", "position_ids", "past_key_values"}

BATCH_DEPENDENT = ("dynamic", "longrope")
"""Kinds of rotary positions whose frequencies follow from the longest row of the batch."""


def can_decode(decoder: PreTrainedModel) -> bool:
    """Say whether this loop can lead the model's cache."""
    prepares = type(decoder).prepare_inputs_for_generation
    inputs = inspect.signature(type(decoder).forward).parameters.keys()
    return bool(
        prepares is GenerationMixin.prepare_inputs_for_generation
        and inputs >= INPUTS
        and inputs & {"use_cache", "kwargs"}
        and not positions_of_the_batch(decoder)
        and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
            for layer in DynamicCache(config=decoder.config).layers
        )
    )


def positions_of_the_batch(decoder: PreTrainedModel) -> bool:
    """Say whether a row's rotary positions follow from the longest row of its batch."""
    config = decoder.config.get_text_config(decoder=True)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    return bool(kinds & set(BATCH_DEPENDENT))


@dataclass
class _Prompt:
    """A prompt that was computed: its place in a prefill, and the logits (V,) behind it."""

    cache: DynamicCache
    index: int
    logits_V: Tensor


@dataclass
class _Active:
    """A row in the batch, and what was chosen for it so far."""

    row: Row
    draws: list[float]
    ids: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    raw_logps: list[float] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return self.ids[-1] in self.row.request.stop_ids or len(self.ids) == self.row.budget

    def generated(self) -> Generated:
        is_stop = self.ids[-1] in self.row.request.stop_ids
        return Generated(self.ids, "stop" if is_stop else "length", self.logps, self.raw_logps)


class Continuous:
    """One run of the loop. `cache_bytes`: how much its cache may take; at least one row is always
    decoded."""

    def __init__(
        self,
        decoder: PreTrainedModel,
        rows: Sequence[Row],
        batch_size: int,
        cache_bytes: float,
        on_finished: OnFinished,
    ) -> None:
        self.decoder = decoder
        self.waiting = list(rows)[::-1]
        self.batch_size = batch_size
        self.cache_bytes = cache_bytes
        self.on_finished = on_finished
        self.active: list[_Active] = []
        self.prompts: dict[tuple[int, ...], _Prompt] = {}
        self.slots, self.bytes_per_token = Slots(0), 0
        self.steps, self.ended, self.idle = 0, 0, 0
        self.last_only = (
            {"logits_to_keep": 1}
            if "logits_to_keep" in inspect.signature(type(decoder).forward).parameters
            else {}
        )

    def run(self) -> None:
        """Decode all rows."""
        while self.waiting or self.active:
            if self._is_worth_a_pass():
                self._admit()
            if self.active:
                self._step()

    # --- newcomers --------------------------------------------------------------------------------

    def _is_worth_a_pass(self) -> bool:
        """Whether enough rows are free for newcomers: one more pass for their prompts against steps
        with rows that idle.

        Rows end at a rate of r a step, and a pass costs c rows of a step: both together cost least
        where sqrt(2 c r) newcomers share a pass. Idle rows worth a pass end the wait in any case.
        """
        free = self.batch_size - len(self.active)
        cost = PASS * self.batch_size / (PASS + self.batch_size)
        self.idle += free
        if self.active and self.idle < cost:
            rate = self.ended / max(1, self.steps)
            return free >= min(len(self.waiting), (2 * cost * rate) ** 0.5)
        return True

    def _admit(self) -> None:
        """Let waiting rows in while there is room for them, each with its first token."""
        self.idle = 0
        while newcomers := self._next():
            self._prefill(newcomers)
            prompts = [self.prompts[_key(row)] for row in newcomers]
            logits_RV = torch.stack([prompt.logits_V for prompt in prompts])
            started = [_Active(row, row.draws().tolist()) for row in newcomers]
            self._choose(started, logits_RV)
            self._place([active for active in started if not self._has_ended(active)])
            still = [_key(row) for row in self.waiting[-1:]]
            self.prompts = {key: self.prompts[key] for key in still if key in self.prompts}

    def _place(self, started: Sequence[_Active]) -> None:
        """Give rows that continue a slot each, with the keys and values of their prompts."""
        if not started:
            return
        lengths = [len(active.row.request.prompt_ids) for active in started]
        prompts = [self.prompts[_key(active.row)] for active in started]
        self.slots.reserve(len(started), max(lengths), prompts[0].cache)
        for prompt, length in zip(prompts, lengths):
            self.slots.add(prompt.cache, prompt.index, length)
        self.active += started

    def _has_ended(self, active: _Active) -> bool:
        """Whether a row has its last token; hands it over if so."""
        if active.is_done:
            self.on_finished(active.row.index, active.row.sample, active.generated())
        return active.is_done

    def _next(self) -> list[Row]:
        """Take the rows that fit in next, in one prefill."""
        taken: list[Row] = []
        reach = max((_reach(active.row) for active in self.active), default=0)
        while self.waiting and len(self.active) + len(taken) < self.batch_size:
            reach = max(reach, _reach(self.waiting[-1]))
            if not self._fits(len(self.active) + len(taken) + 1, reach):
                break
            taken.append(self.waiting.pop())
        return taken

    def _fits(self, rows: int, reach: int) -> bool:
        """Whether the cache may hold so many rows, all of them as long as the longest can become;
        before the first prefill nothing is known of its size, so one row goes first."""
        if rows == 1 or not self.slots.layers:
            return rows == 1
        return self.bytes_per_token * reach * rows <= self.cache_bytes

    def _prefill(self, rows: Sequence[Row]) -> None:
        """Compute the prompts of rows that have not been computed, those of similar length together
        and equal ones once."""
        missing = {key: len(key) for key in map(_key, rows) if key not in self.prompts}
        for keys in _similar(missing):
            padded = pad(keys, 0, left=True)
            batch = {name: value.to(self.decoder.device) for name, value in padded.items()}
            cache = DynamicCache()
            logits_GV = self._forward(past_key_values=cache, **batch)
            for index, key in enumerate(keys):
                self.prompts[key] = _Prompt(cache, index, logits_GV[index])
            if not self.slots.layers:
                self.slots = Slots(len(cache.layers))
                self.bytes_per_token = bytes_per_token(cache)

    # --- a step -----------------------------------------------------------------------------------

    def _step(self) -> None:
        """Choose the next token of every row, and let those leave that have ended."""
        device, slots = self.decoder.device, self.slots
        slots.before_step()
        logits_RV = self._forward(
            input_ids=torch.tensor([[active.ids[-1]] for active in self.active], device=device),
            attention_mask=slots.mask(device),
            position_ids=torch.tensor(slots.lengths, device=device)[:, None],
            past_key_values=slots,
        )
        slots.stepped()
        self.steps += 1
        self._choose(self.active, logits_RV)
        for place in reversed(range(len(self.active))):
            if self._has_ended(self.active[place]):
                slots.remove(place)
                self.active[place] = self.active[-1]
                self.active.pop()
                self.ended += 1

    def _forward(self, **inputs: Any) -> Tensor:
        """Return the logits behind the last token of each row, in float32; a copy, which does not
        keep those of the other tokens."""
        output = self.decoder(**inputs, **self.last_only, use_cache=True, return_dict=True)
        return output.logits[:, -1].to(torch.float32, copy=True)

    def _choose(self, actives: Sequence[_Active], logits_RV: Tensor) -> None:
        """Give each row its next token, those with the same settings together."""
        places = sorted(
            range(len(actives)), key=lambda i: settings_of(actives[i].row.request.sampling)
        )
        for _, group in groupby(places, key=lambda i: settings_of(actives[i].row.request.sampling)):
            some = list(group)
            logits = logits_RV if len(some) == len(actives) else logits_RV[some]
            self._choose_alike([actives[i] for i in some], logits)

    def _choose_alike(self, actives: Sequence[_Active], logits_RV: Tensor) -> None:
        sampling = actives[0].row.request.sampling
        said_RT = None
        if sampling.repetition_penalty != 1.0:
            said = [[*active.row.request.prompt_ids, *active.ids] for active in actives]
            said_RT = said_ids(said, logits_RV.device)
        draws_R = torch.tensor([one.draws[len(one.ids)] for one in actives], dtype=torch.float64)
        chosen = choose(logits_RV, sampling, said_RT, draws_R)
        for active, token, logp, raw_logp in zip(
            actives, chosen.ids_B.tolist(), chosen.logps_B.tolist(), chosen.raw_logps_B.tolist()
        ):
            active.ids.append(token)
            active.logps.append(logp)
            active.raw_logps.append(raw_logp)


def _reach(row: Row) -> int:
    """The tokens that a row may come to."""
    return len(row.request.prompt_ids) + row.budget


def _key(row: Row) -> tuple[int, ...]:
    return tuple(row.request.prompt_ids)


def _similar(lengths: dict[tuple[int, ...], int]) -> Iterator[list[tuple[int, ...]]]:
    """Cut prompts into groups of similar lengths, longest first, none with too many tokens."""
    group: list[tuple[int, ...]] = []
    total = 0
    for key in sorted(lengths, key=lambda key: -lengths[key]):
        longest = lengths[group[0]] if group else lengths[key]
        padded, real = longest * (len(group) + 1), total + lengths[key]
        if group and padded > min(PREFILL_TOKENS, max(PADDED * real, real + PADDING)):
            yield group
            group, total = [], 0
        group.append(key)
        total += lengths[key]
    if group:
        yield group
