"""What makes a training fit into less memory: the cheapest changes of its recipe, alone or
together.

    cheaper(recipe, parse_memory("24GB"), lengths, cuda=True)

Changes stand on lines of their own, each in steps that save more and cost more: smaller batches
with as many more of them, activations that are computed again, processes that share the model, an
optimizer with smaller numbers, adapters in place of all weights, a base in 4 bits, shorter rows;
and what the method itself offers. Combinations are tried from the cheapest on. One that holds
another which fits is not shown.

Prices are an order, not a measurement: what leaves the training as it is comes first, then what
slows it down, then what changes it.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

from aligner.config.defaults import trainer_value
from aligner.config.recipe import Lora, TrainRecipe
from aligner.memory.estimate import Estimate, estimate, footprint_of
from aligner.memory.footprint import Footprint, Lengths, Step, halved
from aligner.memory.training import SHARDS_OPTIMIZER, is_checkpointed
from aligner.models.configs import configs_read_once

SHOWN = 3
"""Changes that are returned at the most."""

LEAST_LENGTH = 256
"""Rows are not offered to be shorter than this, in tokens."""

REFUSED = 20
"""After so many combinations that the recipe's rules refuse, no more are tried."""

R = TypeVar("R", bound=BaseModel)

Line = Sequence[Step]
Values = Mapping[str, Any]
Levels = tuple[int, ...]
"""How many steps a combination takes on each line."""


@dataclass(frozen=True, slots=True)
class Change:
    """What to add to a command, the estimate with it, and what it costs, in words."""

    overrides: tuple[str, ...]
    estimate: Estimate
    price: str


@dataclass(frozen=True, slots=True)
class Around:
    """The recipe that a training stands in. `typed`: values of the training's recipe -> how they
    are typed there, value by key; `again`: what is typed, and what it means for the training -> the
    training's recipe with it, None where the rules refuse it."""

    typed: Callable[[Values], Values] = dict
    again: Callable[[Sequence[str], Values], TrainRecipe | None] | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """The cheapest changes that make a training fit. `least`: what it takes with all changes there
    are, where none do; None where some do."""

    changes: list[Change]
    least: Change | None = None


def cheaper(
    recipe: TrainRecipe, limit_bytes: int, lengths: Lengths | None = None, *, cuda: bool
) -> list[Change]:
    """Return the at most three cheapest changes, or combinations, that bring the peak below a
    limit; the cheapest first, and none where nothing found does."""
    return options(recipe, limit_bytes, lengths, cuda=cuda).changes


def options(
    recipe: TrainRecipe,
    limit_bytes: int,
    lengths: Lengths | None = None,
    *,
    cuda: bool,
    around: Around | None = None,
) -> Options:
    """Return the same as `cheaper`, as it is typed for the recipe around a training, and what is
    left where nothing makes it fit."""
    with configs_read_once():
        lines = [line for line in lines_of(recipe, lengths, cuda=cuda) if line]
        search = _Search(recipe, lines, lengths, limit_bytes, cuda, around or Around())
        found = search.changes()
        return Options(found, None if found else search.least())


@dataclass
class _Search:
    recipe: TrainRecipe
    lines: Sequence[Line]
    lengths: Lengths | None
    limit: int
    cuda: bool
    around: Around
    _can_fit: dict[Levels, bool] = field(default_factory=dict)

    def changes(self) -> list[Change]:
        """The cheapest combinations that fit."""
        found: list[tuple[Levels, Change]] = []
        refused = 0
        for levels in self._by_price():
            if any(_holds(levels, fitting) for fitting, _ in found):
                continue
            change = self._tried(levels)
            if change is None or change.estimate.peak_bytes > self.limit:
                continue
            if (confirmed := self._confirmed(levels, change)) is None:
                refused += 1
            else:
                found.append((levels, confirmed))
            if len(found) == SHOWN or refused == REFUSED:
                break
        return [change for _, change in found]

    def least(self) -> Change | None:
        """What is left when everything is changed that can be; None where nothing can be."""
        most = tuple(len(line) for line in self.lines)
        several = [most]
        if self._values(most) is None:  # two lines contradict each other
            several = [(*most[:one], 0, *most[one + 1 :]) for one in range(len(most))]
        tried = [change for levels in several if any(levels) and (change := self._tried(levels))]
        return min(tried, key=lambda change: change.estimate.peak_bytes, default=None)

    def _by_price(self) -> Iterator[Levels]:
        """The combinations, from the cheapest on, but those of lines which together do not save
        enough: further steps on a line save more."""
        start = (0,) * len(self.lines)
        waiting: list[tuple[float, int, Levels]] = [(0.0, 0, start)]
        while waiting:
            _, _, levels = heapq.heappop(waiting)
            if any(levels) and self._may_fit(levels):
                yield levels
            last = max((one for one, level in enumerate(levels) if level), default=0)
            for one in range(last, len(levels)):
                if levels[one] < len(self.lines[one]):
                    further = (*levels[:one], levels[one] + 1, *levels[one + 1 :])
                    steps = self._steps(further)
                    price = sum(step.price for step in steps)
                    heapq.heappush(waiting, (price, len(steps), further))

    def _may_fit(self, levels: Levels) -> bool:
        most = tuple(len(line) if level else 0 for line, level in zip(self.lines, levels))
        if most not in self._can_fit:
            tried = self._tried(most)
            self._can_fit[most] = tried is None or tried.estimate.peak_bytes <= self.limit
        return self._can_fit[most]

    def _steps(self, levels: Levels) -> list[Step]:
        return [line[level - 1] for line, level in zip(self.lines, levels) if level]

    def _values(self, levels: Levels) -> dict[str, Any] | None:
        """What a combination sets; None where two of its steps contradict each other."""
        values: dict[str, Any] = {}
        for step in self._steps(levels):
            if any(values.get(key, value) != value for key, value in step.values.items()):
                return None
            values |= step.values
        return values

    def _tried(self, levels: Levels) -> Change | None:
        """A combination with its estimate; None where its steps contradict each other."""
        values = self._values(levels)
        if values is None:
            return None
        found = self._estimate(with_values(self.recipe, values))
        values = {key: value for key, value in values.items() if not self._says(key, value)}
        typed = self.around.typed(values)
        overrides = tuple(settings_of(typed))
        return Change(overrides, found, "; ".join(step.in_words for step in self._steps(levels)))

    def _confirmed(self, levels: Levels, change: Change) -> Change | None:
        """The same, once the recipe was read again with it; None where that is refused, or does
        not fit after all."""
        if self.around.again is None:
            return change
        changed = self.around.again(change.overrides, self._values(levels) or {})
        if changed is None:
            return None
        found = self._estimate(changed)
        if found.peak_bytes > self.limit:
            return None
        return Change(change.overrides, found, change.price)

    def _estimate(self, recipe: TrainRecipe) -> Estimate:
        lengths = self.lengths
        longest = None if lengths is None else lengths.within(recipe.data.max_length)
        return estimate(recipe, longest, cuda=self.cuda)

    def _says(self, key: str, value: Any) -> bool:
        """Whether the recipe has a value already."""
        section, _, name = key.partition(".")
        return section != "trainer" and getattr(getattr(self.recipe, section), name) == value


def _holds(levels: Levels, other: Levels) -> bool:
    """Say whether a combination goes at least as far as another on every line."""
    return all(one >= two for one, two in zip(levels, other))


def settings_of(values: Values) -> list[str]:
    """Return values as they are typed: `key=value`."""
    return [f"{key}={_as_written(value)}" for key, value in values.items()]


def _as_written(value: Any) -> str:
    if isinstance(value, Lora):
        return "{}"
    return value if isinstance(value, str) else json.dumps(value)


def with_values(recipe: R, values: Mapping[str, Any]) -> R:
    """Return a recipe, or a section, with other values at dotted keys."""
    update: dict[str, Any] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        inner = update.get(name, getattr(recipe, name))
        if not rest:
            update[name] = value
        elif isinstance(inner, dict):
            update[name] = {**inner, rest: value}
        else:
            update[name] = with_values(inner, {rest: value})
    return recipe.model_copy(update=update)


# --- lines ----------------------------------------------------------------------------------------


def lines_of(recipe: TrainRecipe, lengths: Lengths | None, *, cuda: bool) -> Iterator[Line]:
    """Yield the lines of changes that a recipe can take, those of its method last."""
    footprint = footprint_of(recipe, lengths or Lengths(recipe.data.max_length))
    yield list(_smaller_batches(recipe, footprint.statistic))
    if recipe.data.eval is not None:
        size = int(trainer_value(recipe, "per_device_eval_batch_size"))
        key = "trainer.per_device_eval_batch_size"
        yield halved(key, size, 0.2, "the same numbers, in smaller passes")
    yield list(_checkpointing(recipe, cuda=cuda))
    yield list(_sharing(recipe, footprint))
    yield list(_optimizers(recipe, cuda=cuda))
    yield list(_fewer_weights(recipe))
    yield list(_shorter_rows(recipe, lengths))
    yield from footprint.lines


def _smaller_batches(recipe: TrainRecipe, statistic: str) -> Iterator[Step]:
    size = int(trainer_value(recipe, "per_device_train_batch_size"))
    steps = int(trainer_value(recipe, "gradient_accumulation_steps"))
    price, words = 1.0, "as many rows a step, in smaller passes that fill a GPU less"
    if statistic:
        price, words = 4.0, f"as many rows a step, but {statistic} takes a mean over fewer of them"
    while size > 1:
        smaller = max(one for one in range(1, size // 2 + 1) if size % one == 0)
        size, steps = smaller, steps * (size // smaller)
        values = {
            "trainer.per_device_train_batch_size": size,
            "trainer.gradient_accumulation_steps": steps,
        }
        yield Step(values, price, words)
        price += 0.5


def _checkpointing(recipe: TrainRecipe, *, cuda: bool) -> Iterator[Step]:
    if not is_checkpointed(recipe, cuda=cuda):
        words = "the same training, about a third more time"
        yield Step({"trainer.gradient_checkpointing": True}, 2.0, words)


def _sharing(recipe: TrainRecipe, footprint: Footprint) -> Iterator[Step]:
    """Processes share the model; where each one samples, all of them hold all weights."""
    if recipe.launch.num_processes == 1 or recipe.launch.strategy not in ("ddp", "zero1"):
        return
    if footprint.samplings or recipe.eval.arena is not None:
        words = "the same training, gradients and AdamW's numbers split over the GPUs by DeepSpeed"
        yield Step({"launch.strategy": "zero2"}, 2.5, words)
    elif recipe.model.quantization == "none":
        words = "the same training, the model split over the GPUs, which exchange more"
        yield Step({"launch.strategy": "fsdp"}, 2.5, words)


def _optimizers(recipe: TrainRecipe, *, cuda: bool) -> Iterator[Step]:
    name = str(trainer_value(recipe, "optim"))
    shared = recipe.launch.num_processes > 1 and recipe.launch.strategy in SHARDS_OPTIMIZER
    if cuda and not shared and name.startswith("adamw_torch") and not name.endswith("bit"):
        words = "nearly the same training: AdamW's numbers in 8 bits"
        values: dict[str, Any] = {"trainer.optim": "adamw_bnb_8bit"}
        if recipe.launch.num_processes > 1:
            values["launch.strategy"] = recipe.launch.strategy  # it is not split
        yield Step(values, 3.0, words)


def _fewer_weights(recipe: TrainRecipe) -> Iterator[Step]:
    adapters: dict[str, Any] = {}
    words = "the base in 4 bits: some accuracy, and slower passes"
    if recipe.model.lora is None:
        adapters = {"model.lora": Lora()}
        trained = "another training: adapters in place of all weights"
        yield Step(adapters, 5.0, trained)
        words = f"{trained}, on a base in 4 bits"
    if recipe.model.quantization == "none":
        values = {**adapters, "model.quantization": "nf4"}
        if recipe.launch.num_processes > 1:
            values["launch.strategy"] = "ddp"  # a base in 4 bits is not split
        yield Step(values, 7.0, words)


def _shorter_rows(recipe: TrainRecipe, lengths: Lengths | None) -> Iterator[Step]:
    longest = recipe.data.max_length if lengths is None else lengths.longest
    length, price = min(longest, recipe.data.max_length) // 2, 10.0
    while length >= LEAST_LENGTH:
        values: dict[str, Any] = {"data.max_length": length}
        words = f"rows are cut after {length:,} tokens"
        if recipe.data.on_too_long != "truncate":
            values["data.on_too_long"] = "drop"
            words = f"rows of more than {length:,} tokens are left out"
        yield Step(values, price, words)
        length, price = length // 2, price + 3
