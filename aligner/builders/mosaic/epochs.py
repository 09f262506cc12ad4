"""Mosaics without files: epochs over rows in memory, or a dataset with its counts and costs.

`mosaics_of` is what everything else is made with, the files of `aligner mosaic` too; so equal rows,
settings and seed give equal samples everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aligner.builders.mosaic.costs import Costs, costs
from aligner.builders.mosaic.engine import Counts, Mosaics, Sample
from aligner.builders.mosaic.examples import Examples
from aligner.builders.mosaic.lengths import EstimatedLengths, Lengths, TokenizerLengths
from aligner.builders.mosaic.paper_compat import ReleasedMosaics
from aligner.builders.mosaic.phrasings import MASK_RULES, PERMUTE_RULES, Phrasings, load_phrasings
from aligner.config.recipe import Mosaic
from aligner.data.ledger import LISTED
from aligner.data.rows import Row
from aligner.errors import DataError, Problem, RecipeError
from aligner.tokenization.chat_template import has_template

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 2048


def lengths_for(tokenizer: PreTrainedTokenizerBase | None, phrasings: Phrasings) -> Lengths:
    """Return exact lengths with a tokenizer, estimates without one.

    Raises: RecipeError for a tokenizer without a chat template: joined as plain text, a prompt
    would run into its answer.
    """
    if tokenizer is not None and not has_template(tokenizer):
        raise RecipeError(
            "mosaics need a chat template, and the tokenizer has none",
            "name one with model.chat_template (mosaic.chat_template for files): a Jinja file, or "
            "a name such as qwen3",
        )
    return EstimatedLengths() if tokenizer is None else TokenizerLengths.of(tokenizer, phrasings)


def mosaics_over(
    examples: Examples,
    settings: Mosaic,
    phrasings: Phrasings,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_tokens: int,
    seed: int,
) -> Mosaics:
    """Return the mosaics of examples that are known already."""
    lengths = lengths_for(tokenizer, phrasings)
    limit = settings.max_tokens or max_tokens
    if settings.compat == "robust":
        return Mosaics(examples, settings, phrasings, lengths, max_tokens=limit, seed=seed)
    _refuse_silent_rules(settings, phrasings)
    released = ReleasedMosaics(examples, settings, phrasings, lengths, max_tokens=limit, seed=seed)
    if tokenizer is not None:
        released.count = lambda text: len(
            tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        )
    return released


def _refuse_silent_rules(settings: Mosaic, phrasings: Phrasings) -> None:
    """The authors' code draws every rule, also one that the phrasings' language does not have."""
    rules = {
        "permute": settings.permute_rules or PERMUTE_RULES,
        "maskout": settings.mask_rules or MASK_RULES,
    }
    silent = [
        f"{name}.{rule}"
        for name, weight in settings.strategies
        if weight
        for rule in rules.get(name, ())
    ]
    silent = [label for label in silent if label not in phrasings.texts]
    if silent:
        raise RecipeError(
            f"mosaic.phrasings has no texts for {', '.join(silent)}, and mosaic.compat=released "
            "may draw them",
            "write texts for them, or name the rules to be drawn in mosaic.permute_rules and "
            "mosaic.mask_rules",
        )


def examples_of(
    rows: Iterable[tuple[int, Row]],
    settings: Mosaic,
    phrasings: Phrasings,
    lengths: Lengths,
    *,
    limit: int,
    read: Callable[[int], Row] | None = None,
    on_bad_row: str = "error",
    is_too_long: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Examples:
    """Look at every row, given with its number, once: whether it can be an example, and how long it
    is.

    Raises: DataError with the first of the rows that the chat template refuses, or that are too
    long where `on_overlong` makes that an error; or that would stand alone with more tokens than
    `is_too_long`; and when no row is left.
    """
    examples = Examples(read, settings.multiturn)
    refused: list[Problem] = []
    overlong: list[tuple[int, str]] = []
    for done, (number, row) in enumerate(rows, start=1):
        try:
            is_example = examples.add(number, row, phrasings, lengths)
        except DataError as error:
            examples.left_out["refused by the chat template"] += 1
            refused.append(
                Problem(
                    error.message,
                    hint=error.hint.replace("model.chat_template", "the chat template"),
                )
            )
            continue
        if is_example and examples.tokens[-1] > limit:
            overlong.append((examples.tokens[-1], row.origin))
        if on_progress is not None:
            on_progress(done)
    if refused and on_bad_row == "error":
        hint = (
            "fix them, choose another chat template, or set data.on_bad_row=drop (they are counted)"
        )
        raise DataError(
            f"{len(refused):,} rows are refused by the chat template", hint, refused[:LISTED]
        )
    _refuse_overlong(examples, settings, limit, overlong, is_too_long)
    return examples


def _refuse_overlong(
    examples: Examples,
    settings: Mosaic,
    limit: int,
    overlong: list[tuple[int, str]],
    is_too_long: int | None,
) -> None:
    """Raise where too long rows are an error, or where nothing else is there. `overlong`: tokens
    and place of each."""
    if not examples:
        reasons = ", ".join(
            f"{number:,} {reason}" for reason, number in examples.left_out.most_common()
        )
        raise DataError(
            f"no row can be part of a mosaic: {reasons or 'there are none'}", "see docs/mosaic.md"
        )
    way = "drop" if settings.compat == "released" else settings.on_overlong
    than = f"the {limit:,} tokens of a sample"
    hint = (
        "raise mosaic.max_tokens (or data.max_length), or set mosaic.on_overlong to alone or drop"
    )
    if way == "alone":
        overlong = [row for row in overlong if is_too_long is not None and row[0] > is_too_long]
        than = f"data.max_length={is_too_long} tokens"
        hint = (
            "raise data.max_length, set data.mosaic.on_overlong=drop, or data.on_too_long=drop "
            "(or truncate); what is lost is counted"
        )
    if overlong and (
        settings.on_overlong == "error" or way == "alone" or len(overlong) == len(examples)
    ):
        raise DataError(
            f"{len(overlong):,} of {len(examples):,} rows alone are longer than {than} (the "
            f"longest has {max(examples.tokens):,})",
            hint,
            [Problem(f"{tokens:,} tokens", where=origin) for tokens, origin in overlong[:LISTED]],
        )


def mosaics_of(
    rows: Iterable[Row],
    settings: Mosaic,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = 42,
    on_bad_row: str = "error",
    is_too_long: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Mosaics:
    """Return the mosaics of rows in memory; `max_tokens` is the limit where the settings name none.

    `is_too_long`: what a training refuses (`data.max_length`); rows of more tokens that would stand
    alone are refused here, by name.

    Raises: DataError when rows cannot be used; RecipeError when the phrasings or the tokenizer
    cannot.
    """
    phrasings = load_phrasings(settings.phrasings)
    examples = examples_of(
        enumerate(rows),
        settings,
        phrasings,
        lengths_for(tokenizer, phrasings),
        limit=settings.max_tokens or max_tokens,
        on_bad_row=on_bad_row,
        is_too_long=is_too_long,
        on_progress=on_progress,
    )
    return mosaics_over(examples, settings, phrasings, tokenizer, max_tokens=max_tokens, seed=seed)


class MosaicEpochs:
    """The mosaics of each epoch, for `aligner.tokenization.dataset`: epoch e holds the rows that
    `aligner mosaic` would write for it."""

    def __init__(self, mosaics: Mosaics, given: int) -> None:
        self.mosaics, self.given, self.epochs, self.counts = mosaics, given, 0, Counts()

    def rows(self, number: int) -> list[Row]:
        """Return the mosaics of an epoch."""
        self.epochs += 1
        return [sample.row for sample in self.mosaics.epoch_samples(number, self.counts)]

    def describe(self) -> str:
        """Say how many mosaics were made of how many rows, and what was left out."""
        examples, by_name = self.mosaics.examples, self.counts.by_name
        text = f"{by_name['samples']:,} samples in {self.epochs} epochs over {len(examples):,} rows"
        reasons = [f"{number:,} ({reason})" for reason, number in examples.left_out.most_common()]
        reasons += (
            [f"{by_name['overlong:drop'] // self.epochs:,} (too long)"]
            if by_name["overlong:drop"]
            else []
        )
        text += f"; of {self.given:,} rows not used: {', '.join(reasons)}" if reasons else ""
        alone = [
            f"{number:,} ({reason})" for reason, number in examples.alone_because.most_common()
        ]
        text += f"; always alone: {', '.join(alone)}" if alone else ""
        failed = sum(number for key, number in by_name.items() if key.startswith("violation:"))
        return text + (
            f"; {failed:,} failed their check, and their rows stand alone" if failed else ""
        )


@dataclass(frozen=True)
class Built:
    """A dataset of mosaics, and what there is to know of it."""

    dataset: Dataset
    counts: Counts
    source: Costs
    costs: Costs


def build(
    rows: Iterable[Row],
    settings: Mosaic,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = 42,
    epochs: int = 4,
    batch_size: int = 128,
) -> Built:
    """Return the mosaics of all epochs as a dataset with `prompt` and `completion`, and its costs
    for each epoch."""
    from datasets import Dataset

    mosaics, counts = (
        mosaics_of(rows, settings, tokenizer=tokenizer, max_tokens=max_tokens, seed=seed),
        Counts(),
    )
    samples = [
        as_columns(sample)
        for number in range(epochs)
        for sample in mosaics.epoch_samples(number, counts)
    ]
    limit = mosaics.max_tokens
    examples = mosaics.examples
    return Built(
        Dataset.from_list(samples),
        counts,
        costs(examples.tokens, sum(examples.trained), max_tokens=limit, batch_size=batch_size),
        costs(
            counts.lengths(),
            counts.trained(),
            max_tokens=limit,
            batch_size=batch_size,
            epochs=epochs,
        ),
    )


def as_columns(sample: Sample) -> dict[str, Any]:
    """Return a sample as TRL's prompt/completion row, with what is recorded about it."""
    return {"prompt": sample.row.prompt, "completion": sample.row.completion, **sample.record()}
