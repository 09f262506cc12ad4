"""Everything of a training before its first step: rows, model and tokenizer checked, settings tried
on this device, rows tokenized, and all of it written to the run directory.

Nothing heavy is imported before the rows have been read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.callables import is_callable
from aligner.config.defaults import trainer_value
from aligner.config.recipe import TrainRecipe
from aligner.data.loading import Loaded, load_rows
from aligner.data.memory import MemoryRows
from aligner.events import DataReady, Notice, OnEvent, Plan, StageStarted, Warned, tell
from aligner.methods.decisions import decide
from aligner.methods.plan import PlanRows
from aligner.methods.steps import steps_of
from aligner.models.libraries import (
    disable_progress_bars,
    import_bitsandbytes_plainly,
    quick_imports,
)
from aligner.models.positions import within_model
from aligner.reward_models.named_inputs import compare_inputs
from aligner.runs.files import DamagedError
from aligner.runs.run import Run
from aligner.training.cadence import chosen_rows
from aligner.training.decided import Decided, read_decided, write_decided

if TYPE_CHECKING:
    from aligner.losses.types import Objective
    from aligner.methods.job import Job
    from aligner.tokenization.dataset import TokenizedData, WatchRow

OPTIMIZERS_OF_TORCH = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")

QUESTIONS = "prepared/questions.json"
"""Held-out prompts for the report, kept beside the tokenized data so that ranks read no rows."""

ARENA_PROMPTS = "prepared/arena_prompts.json"
"""Held-out prompts for battles with the start."""


def load_data(
    recipe: TrainRecipe,
    on_event: OnEvent | None,
    memory: Mapping[str, MemoryRows] | None = None,
    objective: Objective | None = None,
) -> Loaded:
    """Read the rows of a recipe, once what needs no rows has been checked.

    `memory` holds the rows of a split that are in no file, `objective` the loss that was given as a
    function. Raises: RecipeError, DataError.
    """
    check_named(recipe, objective)
    steps = steps_of(recipe.method)
    tell(on_event, StageStarted("reading the data"))
    loaded = load_rows(
        recipe.data,
        steps.task_of(recipe),
        recipe.seed,
        group_by=steps.group_by(recipe),
        keep=tuple(steps.further_columns(recipe)),
        memory=memory,
    )
    steps.check_rows(recipe, loaded)
    _check_test_set(recipe, loaded)
    loaded.warn(on_event)
    return loaded


def _check_test_set(recipe: TrainRecipe, loaded: Loaded) -> None:
    """Refuse training rows that were not held against the recipe's test set. Raises: DataError."""
    if recipe.data.test_set is None:
        return
    from aligner.arena.testset.reports import require_reports

    sources: dict[str, list[str]] = {}
    for source in loaded.ledger.sources:
        if source.role == "train":
            sources.setdefault(source.path, []).extend(file.sha256 for file in source.files)
    require_reports(Path(recipe.data.test_set).expanduser(), sources)


def check_named(recipe: TrainRecipe, objective: Objective | None = None) -> None:
    """Check what a recipe names beside its model and its rows: scorers, references, judges."""
    steps_of(recipe.method).check(recipe, objective)
    _check_judge(recipe)


def _check_judge(recipe: TrainRecipe) -> None:
    """Find the judge of the arena. Raises: RecipeError where there is none of this name."""
    arena = recipe.eval.arena
    if arena is None or is_callable(arena.judge):
        return
    from aligner.reward_models.catalogue import read_spec
    from aligner.reward_models.ensemble import refuse_cycles

    refuse_cycles(read_spec(arena.judge))


def prepare(recipe: TrainRecipe, run: Run, loaded: Loaded, on_event: OnEvent | None) -> Job:
    """Tokenize, or find it done by an earlier attempt at this run, and write the ledger."""
    sources = loaded.ledger.sources
    files = {record.path: record.sha256 for source in sources for record in source.files}
    compare_inputs(run, recipe, on_event)
    run.check_data(loaded.fingerprint, files)
    tell(on_event, StageStarted("loading torch, transformers and TRL"))
    load_method(recipe)
    recipe, _ = try_out(recipe, loaded, run.read_json("resolved.json")["origins"], on_event)
    tell(on_event, StageStarted("tokenizing"))
    from aligner.methods.job import arena_prompts_from, questions_from

    tokenizer = load_checked_tokenizer(recipe, on_event)
    compare_inputs(run, recipe, on_event)  # a model of the hub is on this machine now
    trained = look_ahead(recipe, tokenizer) if read_decided(run) is None else None
    kept = _prepared_before(run, on_event)
    prepared = kept or tokenize_rows(recipe, loaded, tokenizer, run.prepared_dir, on_event)
    questions = questions_from(loaded.eval or loaded.train, recipe.report.num_prompts)
    run.write_json(QUESTIONS, [list(question) for question in questions])
    if (arena := recipe.eval.arena) is not None:
        asked = arena_prompts_from(loaded.eval or (), arena.prompts)
        run.write_json(ARENA_PROMPTS, [list(question) for question in asked])
    if kept is None:
        run.write_json(
            "data.json", {**loaded.ledger.to_json(), "batching": prepared.batching.reason}
        )
        tell(on_event, DataReady(data_table(recipe, loaded, prepared)))
    decided = _decide_once(recipe, run, prepared, trained)
    tell(on_event, Plan(decided.rows()))
    return job_of(recipe, run, tokenizer, prepared, on_event)


def _prepared_before(run: Run, on_event: OnEvent | None) -> TokenizedData | None:
    """Return what an earlier attempt at this run tokenized; None where there is nothing, or where
    it is damaged, which the listener hears of."""
    from aligner.tokenization.dataset import load_tokenized

    if not run.prepared_dir.is_dir() or run.read_json("data.json") is None:
        return None
    try:
        return load_tokenized(run.prepared_dir)
    except DamagedError as error:
        tell(on_event, Warned(f"{error.message}: the rows are tokenized again"))
        return None


def _decide_once(
    recipe: TrainRecipe, run: Run, prepared: TokenizedData, trained: int | None
) -> Decided:
    """Return what this run decided at its start; nothing for one that an older version trained."""
    if (decided := read_decided(run)) is not None:
        return decided
    decided = Decided()
    if "arguments" not in run.read_json("environment.json"):
        books = run.read_json("data.json")["splits"]
        decided = decide(recipe, prepared, books, len(run.read_json(QUESTIONS)), trained)
    write_decided(run, decided)
    return decided


def data_table(
    recipe: TrainRecipe, loaded: Loaded, prepared: TokenizedData
) -> list[tuple[str, str]]:
    """Return what is shown of the data once it is tokenized."""
    batches = ("batches", prepared.batching.reason)
    return [*loaded.ledger.table(), batches, *steps_of(recipe.method).facts(recipe, prepared)]


def tokenize_rows(
    recipe: TrainRecipe,
    loaded: Loaded,
    tokenizer: Any,
    folder: Path,
    on_event: OnEvent | None = None,
    watch: WatchRow | None = None,
) -> TokenizedData:
    """Turn the rows into columns of token ids as the method wants them, and write them to `folder`.
    `watch` sees each row as it is encoded.

    Raises: DataError listing rows that cannot be used; RecipeError where the model would not keep
    packed rows apart.
    """
    from aligner.models.row_sharing import foretell_packing
    from aligner.tokenization.dataset import tokenize

    steps = steps_of(recipe.method)
    steps.check_model(recipe, on_event)
    rows = steps.row_encoder(recipe, tokenizer)
    return tokenize(
        recipe,
        loaded,
        tokenizer,
        rows if watch is None else rows.watched(watch),
        folder,
        on_event,
        steps.epoch_source(recipe, loaded.train, tokenizer, on_event),
        partial(foretell_packing, recipe.model),
    )


def load_checked_tokenizer(recipe: TrainRecipe, on_event: OnEvent | None) -> Any:
    """Load the tokenizer as the recipe wants texts to be read, and pass on what is remarkable about
    it.

    A model that cannot be trained as the recipe says is refused here, before the rows are
    tokenized.
    """
    from aligner.models.configs import read_config
    from aligner.models.loading import check_policy
    from aligner.models.tokenizers import load_tokenizer
    from aligner.models.vision import remark_on
    from aligner.tokenization.control_tokens import set_control_tokens
    from aligner.tokenization.encode import check_tokenizer

    tokenizer = load_tokenizer(recipe.model)
    if steps_of(recipe.method).num_outputs(recipe) is None:
        check_policy(recipe.model, trainable=True)
        if (remark := remark_on(read_config(recipe.model), recipe.model.name_or_path)) is not None:
            tell(on_event, Notice(remark))
    set_control_tokens(tokenizer, recipe.data.control_tokens)
    for remark in check_tokenizer(tokenizer):
        tell(on_event, Warned(remark))
    return tokenizer


def look_ahead(recipe: TrainRecipe, tokenizer: Any, on_event: OnEvent | None = None) -> int | None:
    """Look up what the recipe names in the model before anything is tokenized; with a listener, say
    what would be trained. Returns the number of weights that are trained, where it can be told."""
    from aligner.models.loading import load_outline
    from aligner.models.trained_weights import describe_trained, trained_of

    outputs = steps_of(recipe.method).num_outputs(recipe)
    outline = load_outline(recipe.model, tokenizer, outputs=outputs)
    if outline is None:
        return None
    found = trained_of(outline, recipe.model.lora)
    if on_event is not None:
        for line in describe_trained(found):
            tell(on_event, Notice(line))
        if recipe.model.lora is None and recipe.model.dtype in ("bfloat16", "float16"):
            text = (
                f"weights are trained in {recipe.model.dtype}, where small steps are lost in "
                "rounding; the number of such weights follows"
            )
            tell(
                on_event,
                Notice(f"{text} when they are loaded. model.dtype=float32 keeps them all"),
            )
    return found.trained


def job_of(
    recipe: TrainRecipe, run: Run, tokenizer: Any, prepared: TokenizedData, on_event: OnEvent | None
) -> Job:
    """Return the job of a prepared run."""
    from aligner.methods.job import Job

    questions = [(prompt, expected) for prompt, expected in run.read_json(QUESTIONS)]
    asked = [] if recipe.eval.arena is None else run.read_json(ARENA_PROMPTS)
    arena = [(prompt, expected) for prompt, expected in asked]
    cadence = (read_decided(run) or Decided()).cadence
    if cadence is None:
        return Job(recipe, run, tokenizer, prepared, on_event, questions, arena)
    if prepared.eval is not None and cadence.held_out_rows < len(prepared.eval):
        rows = chosen_rows(len(prepared.eval), cadence.held_out_rows, recipe.seed)
        prepared = replace(prepared, eval=prepared.eval.select(rows))
    answered = questions[: cadence.prompts]
    return Job(recipe, run, tokenizer, prepared, on_event, answered, arena, cadence.max_new_tokens)


def within_sizes(
    recipe: TrainRecipe, sizes: Mapping[str, Any], on_event: OnEvent | None
) -> TrainRecipe:
    """Return the recipe within the sizes of its model, and tell what that changes."""
    recipe, remark = within_model(recipe, sizes)
    if remark:
        tell(on_event, Notice(remark))
    return recipe


def try_out(
    recipe: TrainRecipe, loaded: Loaded, origins: Mapping[str, str], on_event: OnEvent | None
) -> tuple[TrainRecipe, PlanRows]:
    """Find out, before rows are tokens, what would not work: settings on this device, sizes of a
    model on the hub, no batch. Returns the recipe within its model, and what the device decides."""
    from aligner.tokenization.batching import refuse_no_batch

    with quick_imports():
        from aligner.training.rehearsal import rehearse
    refuse_no_batch(recipe, len(loaded.train))
    decided = rehearse(recipe, origins)
    return within_sizes(recipe, sizes_once_loaded(recipe), on_event), decided


def sizes_once_loaded(recipe: TrainRecipe) -> Mapping[str, Any]:
    """The sizes of a model, also of one on the hub."""
    from aligner.models.configs import read_config

    sizes: dict[str, Any] = read_config(recipe.model).get_text_config().to_dict()
    return sizes


def load_method(recipe: TrainRecipe) -> None:
    """Import the method of a recipe, and with it everything heavy; progress is left to our
    events."""
    with quick_imports():
        optimizer = str(trainer_value(recipe, "optim"))
        if recipe.model.quantization == "none" and optimizer in OPTIMIZERS_OF_TORCH:
            import_bitsandbytes_plainly()
        steps_of(recipe.method).load()
    disable_progress_bars()
