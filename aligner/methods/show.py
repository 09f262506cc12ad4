"""Rows as a training reads them, for `aligner data show`: of a recipe, or of rows and a tokenizer.

A recipe's rows are shown after its sources are mixed and split, by its method's own encoder. Rows
of a file are encoded as answers, pairs or prompts, by what its columns allow. Nothing is written,
and no weights are loaded; only packing needs torch.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from aligner.config.load import Resolved
from aligner.config.recipe import Source, TrainRecipe
from aligner.data.ledger import Ledger
from aligner.data.loading import begun_source, drawn_from_source
from aligner.data.row_texts import task_of
from aligner.data.rows import PreferenceRow, PromptRow, Row
from aligner.errors import RecipeError, UsageError
from aligner.events import Notice, OnEvent, StageProgress, StageStarted, Warned, tell
from aligner.methods.catalogue import METHODS, command_of
from aligner.methods.preparation import load_data
from aligner.methods.steps import has_steps, steps_of
from aligner.models.tokenizers import load_tokenizer
from aligner.tokenization.control_tokens import set_control_tokens
from aligner.tokenization.dataset import Encode, SkipRow, TokenizedRow
from aligner.tokenization.encode import encode_pair, encode_prompt, encode_sft, stop_token_ids
from aligner.tokenization.row_view import Cut, RowViewer, ShownRow, ShownSequence
from aligner.tokenization.segments import segment_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowsToShow:
    """Rows in the order in which a training has them, and what shows them."""

    rows: Sequence[Row]
    viewer: RowViewer
    recipe: TrainRecipe | None = None
    has_more: bool = False
    """Whether these are the first rows of a file whose others were not read, or, with `drawn`, some
    of it."""
    drawn: bool = False
    """Whether these rows were drawn at random, so that their places are not known."""


def rows_of_recipe(
    resolved: Resolved, *, held_out: bool = False, on_event: OnEvent | None = None
) -> RowsToShow:
    """Return the training rows of a recipe, or those that it holds out.

    Raises: RecipeError for a recipe that trains on no rows; DataError for broken ones.
    """
    from aligner.models.files import as_trained, check_model_path

    recipe = resolved.recipe
    if not has_steps(recipe.method):
        known = ", ".join(name for name in METHODS if has_steps(name))
        raise RecipeError(
            f"a recipe of `aligner {command_of(recipe.method)}` does not train on rows of its own",
            f"name the file of rows and --model instead, or a recipe of {known}",
        )
    check_model_path(recipe.model)
    recipe = recipe.model_copy(update={"model": as_trained(recipe.model)})
    loaded = load_data(recipe, on_event)
    if held_out and not loaded.eval:
        raise UsageError("this recipe holds no rows out", "set data.eval, or drop --held-out")
    tell(on_event, StageStarted("loading the tokenizer"))
    tokenizer = load_tokenizer(recipe.model)
    set_control_tokens(tokenizer, recipe.data.control_tokens)
    if recipe.data.mosaic is not None:
        text = "the rows are shown one by one; training makes mosaics of them (`aligner mosaic`)"
        tell(on_event, Notice(text))
    viewer = RowViewer(
        tokenizer,
        steps_of(recipe.method).row_encoder(recipe, tokenizer).encode,
        recipe.data.max_length,
        recipe.data.on_too_long == "truncate",
        _segment_cut(resolved, tokenizer, on_event),
    )
    return RowsToShow(loaded.eval if held_out else loaded.train, viewer, recipe)


def rows_of_source(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    on_event: OnEvent | None = None,
    *,
    most: int | None = None,
    draw: int | None = None,
) -> RowsToShow:
    """Return the rows of a source: with `most`, the first of them; with `draw`, so many drawn at
    random where `most` are not all. `max_length`: tokens at which they are shown cut.

    Raises: DataError for a source without a row that can be used.
    """
    ledger, task = Ledger(), task_of(source)
    if most is None:
        most = sys.maxsize - 1
    rows, is_whole = begun_source(source, task, most, ledger)
    drawn = None
    if draw is not None and not is_whole:
        ledger = Ledger()
        drawn = drawn_from_source(source, task, draw, random.Random(), ledger)
        if drawn is None:
            ledger = Ledger()
            rows, is_whole = begun_source(source, task, sys.maxsize - 1, ledger)
    for entry in ledger.sources:
        if entry.bad and drawn is None:
            first = entry.bad_rows[0]
            are = "row is" if entry.bad == 1 else "rows are"
            text = f"{entry.bad:,} broken {are} left out, the first {first.where}: "
            tell(on_event, Warned(f"{text}{first.reason}"))
    for remark in ledger.remarks():
        tell(on_event, Warned(remark))
    return RowsToShow(
        rows if drawn is None else drawn,
        RowViewer(tokenizer, encode_as_is(tokenizer), max_length, True),
        has_more=not is_whole,
        drawn=drawn is not None,
    )


def chosen(total: int, number: int | None, count: int, *, at_random: bool = False) -> list[int]:
    """Return the places of the rows that are shown: `count` from the `number`-th on (1-based), or
    drawn at random."""
    if number is not None and number > total:
        raise UsageError(f"--row {number:,}: there are {total:,} rows", "give a smaller number")
    if at_random:
        return sorted(random.Random().sample(range(total), min(count, total)))
    first = (number or 1) - 1
    return list(range(first, min(total, first + count)))


# --- encoders -------------------------------------------------------------------------------------


def encode_as_is(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """Encode rows of any kind: answers, pairs, prompts alone; cut at the end."""

    def encode(row: Row, limit: int | None) -> TokenizedRow | SkipRow:
        if isinstance(row, PreferenceRow):
            pair = encode_pair(tokenizer, row)
            room = None if limit is None else max(0, limit - len(pair.prompt_ids))
            answers = {"chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
            longest = len(pair.prompt_ids) + max(map(len, answers.values()))
            kept = {name: ids[:room] for name, ids in answers.items()}
            return _counted({"prompt_ids": pair.prompt_ids, **kept}, longest)
        if isinstance(row, PromptRow):
            ids = encode_prompt(tokenizer, row.prompt, row.tools)
            return _counted({"prompt_ids": ids[:limit]}, len(ids))
        whole = encode_sft(tokenizer, row)
        kept_ids, kept_labels = whole.input_ids[:limit], whole.labels[:limit]
        return _counted({"input_ids": kept_ids, "labels": kept_labels}, len(whole.input_ids))

    return encode


def _counted(columns: dict[str, Any], longest: int) -> TokenizedRow:
    return TokenizedRow(columns, num_tokens=0, num_target=0, num_untruncated=longest)


def _segment_cut(
    resolved: Resolved, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent | None
) -> Cut | None:
    """What cuts answers into the segments that the training gives rewards to: a rule, or what a run
    has found."""
    steps = steps_of(resolved.recipe.method)
    segments = steps.segments(resolved.recipe)
    if segments is None:
        return None
    if segments.rule != "entropy":
        stops = stop_token_ids(tokenizer)
        return lambda ids: segment_ends(segments, ids, tokenizer, stop_ids=stops)
    is_run = resolved.path is not None and resolved.path.is_dir()
    found = steps.segments_of_run(resolved.path) if is_run and resolved.path else None
    if found is None:
        text = (
            "segments by entropy are not shown: they need the reference model, and are found "
            "when the training starts; name its run directory then"
        )
        tell(on_event, Notice(text))
    return found


# --- packed sequences -----------------------------------------------------------------------------


def packed_rows(
    shown: RowsToShow, on_event: OnEvent | None = None
) -> tuple[int, Iterator[ShownRow]]:
    """Pack the rows as a training with `sft.packing` does; return the number of sequences, and each
    of them as one row in which marks say which row begins where.

    Raises: UsageError for rows that a training does not pack.
    """
    import datasets

    from aligner.tokenization.batching import pack

    viewer = shown.viewer
    limit = viewer.max_length
    if limit is None:
        raise UsageError("--packed needs the length of a sequence", "add --max-length")
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": []}
    origins: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for done, row in enumerate(shown.rows):
        if done % 500 == 0:
            tell(on_event, StageProgress("tokenizing", done, len(shown.rows)))
        found = viewer.encode(row, limit if viewer.cuts else None)
        if isinstance(found, SkipRow) or (found.num_untruncated > limit and not viewer.cuts):
            continue
        if "labels" not in found.columns:
            raise UsageError(
                "--packed is for rows of `aligner sft`", "drop it: pairs are not packed"
            )
        ids = list(map(int, found.columns["input_ids"]))
        columns["input_ids"].append(ids)
        columns["labels"].append(list(map(int, found.columns["labels"])))
        columns["length"].append(len(ids))
        origins[tuple(ids)].append(row.origin)
    if not columns["length"]:
        raise UsageError(f"no row fits in {limit:,} tokens", "raise data.max_length")
    tell(on_event, StageStarted("packing"))
    seed = shown.recipe.seed if shown.recipe is not None else 0
    sequences = pack(datasets.Dataset.from_dict(columns), limit, seed)
    return len(sequences), (_packed(viewer, sequence, origins, limit) for sequence in sequences)


def _packed(
    viewer: RowViewer, sequence: Any, origins: dict[tuple[int, ...], list[str]], limit: int
) -> ShownRow:
    ids, labels = sequence["input_ids"], sequence["labels"]
    ends = list(accumulate(sequence["seq_lengths"]))
    marks = {}
    for start, end in zip([0, *ends], ends):
        found = origins[tuple(ids[start:end])]
        marks[start] = found.pop(0) if len(found) > 1 else found[0]
    tokens = viewer.tokens(ids, labels)
    trained = sum(token.trained for token in tokens)
    note = (
        f"{len(ends):,} rows, {len(ids):,} of {limit:,} tokens ({len(ids) / limit:.0%}), "
        f"{trained:,} of them trained; no row sees another"
    )
    return ShownRow("", [ShownSequence("packed", tokens, marks)], notes=[note])
