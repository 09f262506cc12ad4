"""What a training will do, found out before it starts: the dry run, and what lengths, steps and the
launch come to. For `aligner plan`.

Rows that are too long do not end a plan, as they end a training that does not drop them: they are
counted, and `refused` says what the training would say. Memory is estimated in `aligner.memory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.defaults import DEFAULT, is_default, trainer_value
from aligner.config.load import Resolved
from aligner.config.method import RunStatus
from aligner.config.recipe import Recipe, TrainRecipe
from aligner.data.rows import Row
from aligner.errors import DataError, UsageError
from aligner.events import DataReady, Event, Notice, OnEvent, Plan, StageStarted, Warned, tell
from aligner.launch.command import launch_line, shown
from aligner.memory.footprint import Lengths, row_lengths, rows_together
from aligner.methods.catalogue import command_of, function_of, method_of, trainer_of
from aligner.methods.dry_run import Foreseen, foresee
from aligner.methods.plan import PlanRows
from aligner.methods.plan_memory import (
    Again,
    MemoryPlan,
    around_itself,
    inner_trainings,
    memory_of,
    memory_of_inner,
    with_changes,
)
from aligner.methods.preparation import load_data, within_sizes
from aligner.methods.steps import steps_of
from aligner.models.positions import positions_in, sizes_of
from aligner.runs.places import refuse_unusable
from aligner.tokenization.batching import WORTHWHILE_PADDING, rows_per_step, total_steps
from aligner.tokenization.dataset import SkipRow, TokenizedRow, refuse_too_long
from aligner.tokenization.length_report import AtLength, LengthReport, report_lengths

if TYPE_CHECKING:
    from aligner.tokenization.dataset import TokenizedData


@dataclass(frozen=True, slots=True)
class StepCounts:
    """The arithmetic of a training. `tokens` and `trained_tokens` are those of an epoch, padding
    not counted; `responses` and `response_tokens`: how many are sampled for a row at each step, and
    the most tokens of one."""

    sequences: int
    per_device: int
    accumulation: int
    processes: int
    rows_a_step: int
    epochs: float
    steps_an_epoch: int
    steps: int
    tokens: int
    trained_tokens: int
    responses: int
    response_tokens: int


@dataclass(frozen=True, slots=True)
class Advice:
    """A setting that would change something for the better, as it is typed, and what it changes."""

    setting: str
    why: str


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The command that starts the training; the one that it runs for several processes, None for
    one; and why this machine could not."""

    line: str
    ranks: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class OtherPlan:
    """What the dry run of a builder, a search or a training in rounds says: its data, its rows of
    what, how much and why, its remarks; and what it will ask of language models, where it does."""

    table: list[tuple[str, str]]
    rows: PlanRows
    notes: list[str]
    estimate: RunStatus | None
    output: str
    trainings: list[tuple[str, MemoryPlan]]
    """Those that it will do, each with its memory, of rows as long as they may be."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that is known of a training before its first step. `refused`: what it would refuse
    of the data, None where nothing."""

    recipe: TrainRecipe
    table: list[tuple[str, str]]
    books: dict[str, Any]
    lengths: LengthReport
    counts: StepCounts
    decided: PlanRows
    launch: LaunchPlan
    advice: list[Advice]
    output: str
    memory: MemoryPlan
    refused: DataError | None = None


def plan_training(
    resolved: Resolved,
    arguments: Sequence[str],
    on_event: OnEvent | None = None,
    *,
    limit: int | None = None,
    again: Again | None = None,
) -> TrainingPlan:
    """Find out what a training will do: check everything, tokenize, count. Nothing is written.
    `arguments`: the recipe and its settings as they were typed; `limit`: bytes of memory of a GPU
    that it shall fit in; `again` reads the recipe with further settings, so that none is offered
    that it refuses.

    Raises: RecipeError, DataError and UsageError as the training would.
    """
    from aligner.models.files import as_trained, check_model_path

    check_model_path(resolved.recipe.model)
    asked = resolved.recipe.model_copy(update={"model": as_trained(resolved.recipe.model)})
    refuse_unusable(Path(asked.output_dir), "output_dir")
    resolved = replace(resolved, recipe=asked).filled()
    asked = within_sizes(resolved.recipe, sizes_of(asked.model), on_event)
    loaded = load_data(asked, on_event)
    tell(on_event, StageStarted("loading torch, transformers and TRL"))
    seen = _Seen({id(row) for row in loaded.eval}, rows_together(asked))
    found = foresee(
        replace(resolved, recipe=_that_drops(asked)), loaded, on_event, seen.watch, seen.measure
    )
    recipe = found.recipe.model_copy(update={"data": asked.data})
    report = report_lengths(
        [length for _, length in seen.train],
        found.recipe.data.max_length,
        batch=int(trainer_value(recipe, "per_device_train_batch_size")),
        seed=recipe.seed,
        packs=_packing_key(recipe) is not None,
    )
    counted = recipe if limit is not None else _in_bf16(recipe, found)
    memory = memory_of(counted, seen.longest, limit)
    return TrainingPlan(
        recipe,
        found.table,
        found.books,
        report,
        _counts(recipe, found),
        found.decided,
        _launch(recipe, arguments),
        list(_advice(recipe, resolved.origins, report)),
        _output(recipe),
        with_changes(memory, recipe, seen.longest, around_itself(recipe, again)),
        _refused(recipe, seen),
    )


def plan_other(
    resolved: Resolved,
    on_event: OnEvent | None = None,
    *,
    limit: int | None = None,
    again: Again | None = None,
) -> OtherPlan:
    """Find out what a recipe that is no single training will do: its dry run, its estimate, and the
    memory of the trainings that it consists of. `limit` and `again`: as in `plan_training`.

    Raises: UsageError where there is a limit and no training; what the dry run raises.
    """
    method = method_of(resolved.recipe.method)
    plan = OtherPlan([], [], [], None, _output(resolved.recipe), [])

    def listen(event: Event) -> None:
        if isinstance(event, DataReady):
            plan.table.extend(event.table)
        elif isinstance(event, Plan):
            plan.rows.extend(event.rows)
        elif isinstance(event, Notice | Warned):
            plan.notes.append(event.text)
        else:
            tell(on_event, event)

    trainings = inner_trainings(resolved)
    if limit is not None and not trainings:
        name = command_of(resolved.recipe.method)
        raise UsageError(
            f"--gpu asks about a training, and this recipe of `aligner {name}` does none", "drop it"
        )
    function_of(method.run)(resolved, dry_run=True, on_event=listen)
    for one in trainings:
        plan.trainings.append((one.name, memory_of_inner(one, limit, again)))
    estimated = function_of(method.estimate)(resolved, None) if method.estimate else None
    return replace(plan, estimate=estimated)


def _that_drops(recipe: TrainRecipe) -> TrainRecipe:
    """The recipe, with rows dropped that are too long where it would refuse them."""
    if recipe.data.on_too_long != "error":
        return recipe
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"on_too_long": "drop"})}
    )


@dataclass
class _Seen:
    """What is seen of rows while they are tokenized: origin and length of those of each split.
    `held_out`: the identities of the rows that are; `batch`: rows of one on a device."""

    held_out: set[int]
    batch: int
    train: list[tuple[str, int]] = field(default_factory=list)
    eval: list[tuple[str, int]] = field(default_factory=list)
    longest: Lengths | None = None

    def watch(self, row: Row, made: TokenizedRow | SkipRow) -> None:
        """Note a row."""
        if isinstance(made, TokenizedRow):
            split = self.eval if id(row) in self.held_out else self.train
            split.append((row.origin, made.num_untruncated))

    def measure(self, prepared: TokenizedData) -> None:
        """Look at what the trainer will read."""
        batching = prepared.batching
        grouped = self.batch if batching.grouped else 0
        self.longest = row_lengths(prepared.train, is_packed=batching.packing, grouped=grouped)


def _refused(recipe: TrainRecipe, seen: _Seen) -> DataError | None:
    """What the training would say of rows that are too long."""
    limit = recipe.data.max_length
    for rows in (seen.train, seen.eval):
        too_long = [(origin, length) for origin, length in rows if length > limit]
        fitting = [length for _, length in rows if length <= limit]
        try:
            refuse_too_long(too_long, fitting, recipe.data, len(rows))
        except DataError as error:
            return error
    return None


# --- steps ----------------------------------------------------------------------------------------


def _counts(recipe: TrainRecipe, found: Foreseen) -> StepCounts:
    batching, books = found.batching, found.books["train"]
    per_step = rows_per_step(recipe)
    responses, longest = steps_of(recipe.method).responses(recipe)
    epochs = len(batching.epoch_sizes) if batching.epoch_sizes else 1
    return StepCounts(
        sequences=found.sequences,
        per_device=int(trainer_value(recipe, "per_device_train_batch_size")),
        accumulation=int(trainer_value(recipe, "gradient_accumulation_steps")),
        processes=recipe.launch.num_processes,
        rows_a_step=per_step,
        epochs=float(trainer_value(recipe, "num_train_epochs")),
        steps_an_epoch=-(-found.sequences // (per_step * epochs))
        * trainer_of(recipe.method).repeats(recipe),
        steps=total_steps(recipe, found.sequences, batching.epoch_sizes, batching.steps),
        tokens=books["tokens"] // epochs,
        trained_tokens=books["trained_tokens"] // epochs,
        responses=responses,
        response_tokens=longest,
    )


def _launch(recipe: TrainRecipe, arguments: Sequence[str]) -> LaunchPlan:
    """The line that starts it."""
    command, launch = [command_of(recipe.method), *arguments], recipe.launch
    line = shown(["aligner", *command])
    if launch.num_processes == 1:
        return LaunchPlan(line)
    problem = ""
    try:
        launch_line(launch, command)
    except UsageError as error:
        problem = error.message
    try:
        here = launch.num_processes // launch.num_machines
        return LaunchPlan(line, shown(launch_line(launch, command, gpus=here)), problem)
    except UsageError as error:
        return LaunchPlan(line, None, error.message)


def _output(recipe: Recipe) -> str:
    """What stands in the place of the run directory."""
    folder = Path(recipe.output_dir)
    if (folder / "manifest.json").is_file():
        return f"{folder} holds a finished run: --overwrite replaces it"
    if (folder / "resolved.json").is_file():
        return f"{folder} holds a run that has not finished: --resume continues it"
    return ""


def _in_bf16(recipe: TrainRecipe, found: Foreseen) -> TrainRecipe:
    """The recipe with the precision that a trial on this CPU has chosen, where it has."""
    if found.bf16 is None:
        return recipe
    return recipe.model_copy(update={"trainer": {**recipe.trainer, "bf16": found.bf16}})


# --- advice ---------------------------------------------------------------------------------------


def _packing_key(recipe: TrainRecipe) -> str | None:
    """The key by which the method packs rows; None for one that does not."""
    flags = trainer_of(recipe.method).flags
    return next((flag.key for flag in flags if flag.name == "packing"), None)


def _advice(
    recipe: TrainRecipe, origins: Mapping[str, str], report: LengthReport
) -> Iterator[Advice]:
    own, *others = report.settings
    positions = positions_in(sizes_of(recipe.model))
    if own.longer:
        yield from _of_longer_rows(recipe, own, others, positions)
    key = "train_sampling_strategy"
    written = not is_default(origins.get(f"trainer.{key}", DEFAULT))
    if not written or recipe.trainer[key] != "random" or own.padding < WORTHWHILE_PADDING:
        return  # what is left open was decided from the same lengths
    saved = f"padding falls from {own.padding:.0%} to {own.grouped:.0%} of a batch"
    yield Advice("trainer.train_sampling_strategy=group_by_length", saved)
    if own.packed is not None:
        fill = f"sequences of {own.max_length:,} tokens are {own.packed:.0%} full"
        yield Advice(f"{_packing_key(recipe)}=true", fill)


def _of_longer_rows(
    recipe: TrainRecipe, own: AtLength, others: Sequence[AtLength], positions: int | None
) -> Iterator[Advice]:
    """What would keep the rows that are longer than the longest length, or let them go."""
    fitting = [
        other
        for other in others
        if other.max_length > own.max_length and (not positions or other.max_length <= positions)
    ]
    for other in [*fitting[:-1][-1:], *fitting[-1:]]:
        kept = own.longer - other.longer
        left = f", {other.longer:,} are still longer" if other.longer else ", which is all"
        yield Advice(f"data.max_length={other.max_length}", f"{kept:,} rows more are whole{left}")
    if recipe.data.on_too_long == "error":
        lost = f"leaves {own.longer:,} rows out, {own.dropped:.1%} of the tokens"
        yield Advice("data.on_too_long=drop", lost)
