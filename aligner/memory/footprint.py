"""What a method says of the memory that it takes: the passes that its training consists of, and
what it holds beside the model that is trained. How many bytes that is follows elsewhere
(`estimate`)."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any, Literal, NamedTuple, Protocol

from aligner.config.defaults import trainer_value
from aligner.config.recipe import Model, TrainRecipe

Head = Literal["fused", "values", "letters", "logits"]
"""What the head of a model gives: log-probabilities in tiles of the vocabulary; a few numbers;
whole logits at the last token of each row; or at every token."""


Mask = Literal["", "padding", "prefixes"]


WITH_ROOM, FILLED = 0.55, 0.9
"""Share of a row above which no second prompt with its answers fits behind the first, and how full
rows become where some do."""

ANSWERS = ("chosen_ids", "rejected_ids", "answer_ids")
COLUMNS = ("input_ids", "labels", "prompt_ids", *ANSWERS)
PART = 1000
"""Rows of a dataset that are read at once."""


@dataclass(frozen=True, slots=True)
class Typical:
    """Of rows in the mean: tokens of a prompt with all its answers, those that are trained, and
    their standard deviation."""

    together: float
    trained: float
    spread: float


@dataclass(frozen=True, slots=True)
class Lengths:
    """The longest row of the data, in tokens.

    `longest`: with its answer, of a pair the longer one; `together`: a prompt with both answers of
    a pair; `trained`: the tokens that a loss reads, of a pair those of both answers. None: as many
    as there may be. `is_even`: all rows are as long, so that no batch is padded. `is_packed`: rows
    share sequences. `typical`: what random batches hold; `batch`: of the longest
    rows the tokens `together` and `trained` of each, where rows of like length share a batch."""

    longest: int
    together: int | None = None
    trained: int | None = None
    is_even: bool = False
    is_packed: bool = False
    typical: Typical | None = None
    batch: tuple[tuple[int, int], ...] = ()

    def trained_in(self, rows: int) -> int:
        """Return how many tokens the loss reads of a batch of so many rows: of the longest; of
        random ones three standard deviations more than in the mean, and no more than there may
        be."""
        most = rows * (self.longest if self.trained is None else self.trained)
        if self.batch:
            return sum(trained for _, trained in self.batch[:rows])
        if self.typical is None:
            return most
        drawn = rows * self.typical.trained + 3 * self.typical.spread * rows**0.5
        return min(most, math.ceil(drawn))

    def rows_for(self, groups: int) -> int:
        """Return how many rows of the length `together` so many prompts with their answers fill:
        shorter ones are put into one row where there is room."""
        assert self.together, "answers are known"
        sizes = [together for together, _ in self.batch[:groups]]
        if not sizes and self.typical is None:
            return groups
        mean = self.typical.together if self.typical is not None else fmean(sizes)
        share = mean / self.together
        filled = groups if share > WITH_ROOM else math.ceil(groups * share / FILLED)
        return max(1, min(groups, filled))

    def within(self, longest: int) -> Lengths:
        """Return the lengths of the rows that are no longer than this; about, for what they hold of
        prompts and answers."""
        if longest >= self.longest:
            return self
        share = longest / self.longest
        together, trained = (
            None if part is None else int(part * share) for part in (self.together, self.trained)
        )
        return Lengths(longest, together, trained, is_packed=self.is_packed)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one pass reads at the most: `rows` of `tokens` each, padding included, and `read`
    positions of all rows whose outputs count. `mask`: what attention gets of which token sees
    which, (rows, tokens, tokens): of padding, as truth values, which each layer turns into numbers;
    or of rows that share prefixes, as numbers."""

    rows: int
    tokens: int
    read: int
    mask: Mask = ""

    @property
    def size(self) -> int:
        """All tokens."""
        return self.rows * self.tokens

    @property
    def pairs(self) -> int:
        """Numbers of a mask."""
        return self.rows * self.tokens**2

    def in_words(self) -> str:
        """Return it as rows x tokens."""
        rows = "1 row" if self.rows == 1 else f"{self.rows:,} rows"
        return f"{rows} x {self.tokens:,} tokens"


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass of the model that is trained, with a backward pass where it `trains`; or of
    the model beside it that is named by `of`. `has_reference`: between both, the same batch is read
    again without gradients. `is_before`: it comes before the first step, when no optimizer has
    numbers yet."""

    name: str
    batch: Batch
    head: Head = "fused"
    trains: bool = False
    of: str = ""
    has_reference: bool = False
    is_before: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """Responses that are sampled together: `rows` prompts of `prompt` tokens, `new` tokens each."""

    name: str
    rows: int
    prompt: int
    new: int


@dataclass(frozen=True, slots=True)
class Beside:
    """A frozen model in memory beside the one that is trained. `on_base`: it stands on that one's
    base. `only`: the passes during which it is there; all where empty."""

    name: str
    model: Model
    outputs: int | None = None
    on_base: bool = False
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """A change of a recipe: values by dotted key, its `price` beside those of others, and what it
    costs in words."""

    values: Mapping[str, Any]
    price: float
    in_words: str


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a training consists of. `outputs`: of a head that gives numbers, in place of the one
    that writes. `copies`: names of float32 copies of the trained weights. `has_critic`: a second
    model is trained beside the policy. `lines`: changes that only this method offers, on
    each line the cheaper ones first. `left_out`: what it holds beside, and does not say.
    `statistic`: the losses that read a mean over the rows of a batch on all devices, which smaller
    batches change."""

    passes: tuple[Pass, ...]
    samplings: tuple[Sampling, ...] = ()
    beside: tuple[Beside, ...] = ()
    outputs: int | None = None
    copies: tuple[str, ...] = ()
    has_critic: bool = False
    lines: tuple[tuple[Step, ...], ...] = ()
    left_out: tuple[str, ...] = ()
    statistic: str = ""


class SaysMemory(Protocol):
    """The one step of a method that is asked here."""

    def memory(self, recipe: Any, lengths: Lengths) -> Footprint:
        """Return what a training by this recipe consists of."""


def halved(key: str, size: int, price: float, words: str, least: int = 1) -> tuple[Step, ...]:
    """Return the changes of a size to its half, its quarter, ..., down to the `least`."""
    steps = []
    while size > 1 and -(-size // 2) >= least:
        size = -(-size // 2)
        steps.append(Step({key: size}, price, words))
        price += 0.5
    return tuple(steps)


def rows_together(recipe: TrainRecipe, split: str = "train") -> int:
    """Return the rows of a batch on one device."""
    return int(trainer_value(recipe, f"per_device_{split}_batch_size"))


def padded(recipe: TrainRecipe, tokens: int) -> int:
    """Return the length that rows are padded to."""
    given = recipe.trainer.get("pad_to_multiple_of")
    multiple = given if isinstance(given, int) else 1
    return -(-tokens // multiple) * multiple


def of_updates(
    recipe: TrainRecipe, batch_of: Callable[[str], Batch], head: Head = "fused"
) -> tuple[Pass, ...]:
    """Return the passes of a training on rows: an update, and an evaluation where rows are held
    out; `batch_of` gives the longest batch of the split `train` or `eval`."""
    update = Pass("update", batch_of("train"), head, trains=True)
    if recipe.data.eval is None:
        return (update,)
    return update, Pass("evaluation", batch_of("eval"), head)


def single_rows(recipe: TrainRecipe, lengths: Lengths, split: str) -> Batch:
    """Return the longest batch of single rows."""
    rows = rows_together(recipe, split)
    mask: Mask = "" if lengths.is_even or rows == 1 else "padding"
    return Batch(rows, padded(recipe, lengths.longest), lengths.trained_in(rows), mask)


def answers_together(
    recipe: Any, lengths: Lengths, split: str = "train", *, answers: int = 2
) -> Batch:
    """Return the longest batch of prompts with `answers` answers each: in rows of their own, or
    with prompts shared where the recipe and the config of its model allow it, as far as that is
    known before the model is loaded."""
    rows, tokens = rows_together(recipe, split), padded(recipe, lengths.longest)
    trained = answers * rows * lengths.longest
    if lengths.trained is not None:
        trained = lengths.trained_in(rows)
    mask: Mask = "" if lengths.is_even else "padding"
    separate = Batch(answers * rows, tokens, trained, mask)
    asked = recipe.preference.prefix
    if asked == "separate" or lengths.together is None:
        return separate
    from aligner.models.configs import read_config
    from aligner.models.shared_prefix import LEAST_SAVING, MOST_MASK, why_not_shared

    shared = Batch(lengths.rows_for(rows), lengths.together, trained, "prefixes")
    saved = 1 - shared.size / separate.size
    if asked == "auto" and (saved < LEAST_SAVING or shared.pairs > MOST_MASK):
        return separate
    attention = recipe.model.attn_implementation or "sdpa"
    return separate if why_not_shared(read_config(recipe.model), attention) else shared


def row_lengths(
    rows: Iterable[Mapping[str, Any]], *, is_packed: bool = False, grouped: int = 0
) -> Lengths:
    """Return the lengths of tokenized rows, as trainers read them: `input_ids` and `labels`, or
    prompts and answers in ids. `grouped`: how many rows of like length share a batch; 0 where they
    come at random."""
    measured = list(map(_measured, _read(rows)))
    assert measured, "there are rows"
    longest = max(one.longest for one in measured)
    shortest = min(one.shortest for one in measured)
    batch = heapq.nlargest(grouped, measured, lambda one: one.longest)
    return Lengths(
        longest,
        max(one.together for one in measured),
        max(one.trained for one in measured),
        shortest == longest,
        is_packed,
        None if is_packed or grouped else _typical(measured),
        tuple((one.together, one.trained) for one in batch),
    )


def _read(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Rows with their ids alone; those of a dataset as arrays, a part at a time, for as Python's
    numbers they would take a hundred times as long."""
    columns = getattr(rows, "column_names", None)
    if columns is None:
        yield from rows
        return
    dataset: Any = rows
    names = [name for name in COLUMNS if name in columns]
    for part in dataset.select_columns(names).with_format("numpy").iter(batch_size=PART):
        for values in zip(*part.values()):
            yield dict(zip(part, values))


class _Measured(NamedTuple):
    """The tokens of a row: of its longest and shortest answer with the prompt, of all answers with
    it, and those that are trained."""

    longest: int
    shortest: int
    together: int
    trained: int


def _typical(measured: Sequence[_Measured]) -> Typical:
    trained = [one.trained for one in measured]
    return Typical(fmean(one.together for one in measured), fmean(trained), pstdev(trained))


def _measured(row: Mapping[str, Any]) -> _Measured:
    if "labels" in row:
        length, labels = len(row["input_ids"]), row["labels"]
        if hasattr(labels, "dtype"):  # an array
            return _Measured(length, length, length, int((labels >= 0).sum()))
        return _Measured(length, length, length, sum(label >= 0 for label in labels))
    answers = [len(row[name]) for name in ANSWERS if name in row]
    before = len(row["prompt_ids"] if "prompt_ids" in row else row["input_ids"])
    alone = [before + answer for answer in answers or [0]]
    return _Measured(max(alone), min(alone), before + sum(answers), sum(answers))
