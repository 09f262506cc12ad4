"""Training from a resolved recipe: the same flow for every method, read downward in `run_recipe`.

Nothing heavy is imported before recipe, model path and every row have been checked. Data are
tokenized once, before any rank starts. One process trains here; more are started through
accelerate's launcher and find the prepared run directory through the environment. Under somebody
else's launcher (`accelerate launch -m aligner ...`), rank 0 prepares while the others wait, with a
time-out of a day instead of NCCL's ten minutes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aligner.config.callables import is_callable
from aligner.config.defaults import as_given
from aligner.config.load import Resolved
from aligner.config.recipe import DpoRecipe, RewardRecipe, TrainRecipe
from aligner.data.loading import Loaded, load_rows
from aligner.data.memory import MemoryRows
from aligner.data.rows import Task
from aligner.errors import DataError, RecipeError, TrainingError
from aligner.events import (
    DataReady,
    Finished,
    Notice,
    OnEvent,
    Plan,
    StageStarted,
    Warned,
    tell,
)
from aligner.launch.command import launch_line, run_ranks, use_one_gpu
from aligner.launch.world import world
from aligner.methods.catalogue import TASKS, part_of
from aligner.methods.plan import PlanRows, plan_rows
from aligner.methods.tokenized import tokenize
from aligner.models.libraries import disable_progress_bars, quick_imports
from aligner.models.positions import sizes_of, within_model
from aligner.reports.finish import finish_run
from aligner.runs.places import refuse_unusable
from aligner.runs.result import Outcome, already_done
from aligner.runs.run import Run

if TYPE_CHECKING:
    from aligner.losses.types import Objective
    from aligner.methods.job import Job

PREPARED_RUN = "ALIGNER_PREPARED_RUN"
"""Environment variable: the run directory that the launching process has prepared for its ranks."""

QUESTIONS = "prepared/questions.json"
"""Held-out prompts for the report, kept beside the tokenized data so that ranks read no rows."""

RANKS_RECIPE = "prepared/recipe.json"
"""The recipe with overrides and flags applied, as the ranks read it."""

LONGEST_WAIT = timedelta(days=1)


def run_recipe(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
    memory: Mapping[str, MemoryRows] | None = None,
    objective: Objective | None = None,
) -> Outcome:
    """Check, tokenize, train, and write everything down.

    `memory` holds the rows of a split that are in no file, `objective` the loss that the recipe
    names as a callable: both live in this process alone, so no other one is started or joined.

    Raises: RecipeError, DataError and UsageError before anything is trained; TrainingError
    afterwards.
    """
    from aligner.models.files import as_trained, check_model_path

    check_model_path(resolved.recipe.model)
    trained = resolved.recipe.model_copy(update={"model": as_trained(resolved.recipe.model)})
    resolved = replace(resolved, recipe=trained).filled()
    rank, size = world()
    _refuse_what_lives_elsewhere(resolved.recipe, size, memory, objective)
    if size > 1:
        return _run_as_rank(_with_world(resolved, size), rank, resume, overwrite, on_event)
    resolved = replace(
        resolved, recipe=_within(resolved.recipe, sizes_of(resolved.recipe.model), on_event)
    )
    if resolved.recipe.launch.num_processes > 1:
        launch_line(resolved.recipe.launch, [])  # refuses here what could not be launched later
    if dry_run:
        refuse_unusable(Path(resolved.recipe.output_dir), "output_dir")
    else:
        Run.check_place(Path(resolved.recipe.output_dir), resume=resume, overwrite=overwrite)
    if resolved.recipe.launch.num_machines > 1 and not dry_run:
        return _run_machine(resolved, resume, overwrite, on_event)
    loaded = _load(resolved.recipe, on_event, memory)
    if dry_run:
        return _dry_run(resolved, loaded, on_event)
    run = Run.create(resolved, resume=resume, overwrite=overwrite)
    if run.is_done:
        return already_done(run, on_event)
    for note in run.notes:
        tell(on_event, Warned(note))
    if resolved.recipe.launch.num_processes > 1:
        return _run_ranks(resolved, run, loaded, on_event)
    if (remark := use_one_gpu()) is not None:
        tell(on_event, Notice(remark))
    job = _prepare(resolved.recipe, run, loaded, on_event)
    return _train_and_finish(replace(job, objective=objective))


# --- the steps ------------------------------------------------------------------------------------


def _refuse_what_lives_elsewhere(
    recipe: TrainRecipe, size: int, memory: Mapping[str, MemoryRows] | None, objective: Any
) -> None:
    """Refuse several processes where one alone has the rows or the objective, and an objective that
    a process long ended had."""
    if isinstance(recipe, DpoRecipe) and objective is None:
        for name in [recipe.dpo.loss] if isinstance(recipe.dpo.loss, str) else recipe.dpo.loss:
            if is_callable(name):
                raise RecipeError(
                    f"dpo.loss: `{name}` was a function given in Python, which no recipe can name",
                    "give it again with `aligner.train(..., objective=...)`, or write a .py file",
                )
    several = max(size, recipe.launch.num_processes, recipe.launch.num_machines) > 1
    given = "rows in memory" if memory else "a callable as the objective" if objective else ""
    if several and given:
        raise RecipeError(
            f"several processes cannot train with {given}: it lives in this process alone",
            "write the rows to a file, the objective to a .py file, or use one process",
        )


def _load(
    recipe: TrainRecipe,
    on_event: OnEvent | None,
    memory: Mapping[str, MemoryRows] | None = None,
) -> Loaded:
    group_by = None
    if recipe.data.mosaic is not None:
        from aligner.builders.mosaic.bank import load_bank

        # its problems are reported before anything else is read
        load_bank(recipe.data.mosaic.style_bank)
        group_by = recipe.data.mosaic.group_by
    scorers = recipe.dpo.reward_models if isinstance(recipe, DpoRecipe) else []
    if scorers:
        from aligner.reward_models.catalogue import read_spec
        from aligner.reward_models.ensemble import refuse_cycles

        for scorer in scorers:
            refuse_cycles(read_spec(scorer))  # that there is such a one, and such members, too
    if isinstance(recipe, RewardRecipe):
        from aligner.methods.reward.start import check_start

        check_start(recipe)
    tell(on_event, StageStarted("reading the data"))
    further = _further_columns(recipe)
    loaded = load_rows(
        recipe.data, task_of(recipe), recipe.seed, group_by=group_by, keep=further, memory=memory
    )
    if isinstance(recipe, RewardRecipe):
        _refuse_absent_columns(recipe, loaded, further)
    for source in loaded.ledger.sources:
        for remark in source.remarks():
            tell(on_event, Warned(remark))
    return loaded


def _within(recipe: TrainRecipe, sizes: Mapping[str, Any], on_event: OnEvent | None) -> TrainRecipe:
    """Return the recipe within the sizes of its model, and tell what that changes."""
    recipe, remark = within_model(recipe, sizes)
    if remark:
        tell(on_event, Notice(remark))
    return recipe


def _try_out(
    recipe: TrainRecipe, loaded: Loaded, origins: Mapping[str, str], on_event: OnEvent | None
) -> tuple[TrainRecipe, PlanRows]:
    """Find out, before rows are tokens, what would not work: settings on this device, sizes of a
    model on the hub, no batch. Returns the recipe within its model, and what the device decides."""
    from aligner.tokenization.dataset import refuse_no_batch

    with quick_imports():
        from aligner.training.rehearsal import rehearse
    refuse_no_batch(recipe, len(loaded.train))
    decided = rehearse(recipe, origins)
    return _within(recipe, _sizes_once_loaded(recipe), on_event), decided


def _sizes_once_loaded(recipe: TrainRecipe) -> Mapping[str, Any]:
    """The sizes of a model, also of one on the hub."""
    from aligner.models.configs import read_config

    sizes: dict[str, Any] = read_config(recipe.model).get_text_config().to_dict()
    return sizes


def _refuse_absent_columns(recipe: RewardRecipe, loaded: Loaded, columns: Sequence[str]) -> None:
    """Refuse a column that no row has, where the training reads it: one sentence in place of one
    for each row."""
    reward = recipe.reward
    needed = columns if reward.kind == "regression" or reward.loss != "plain" else ()
    key = "reward.attributes" if reward.kind == "regression" else "reward.strength"
    for name in needed:
        if not any(name in row.extra for row in loaded.train):
            unused = sorted(
                {column for source in loaded.ledger.sources for column in source.unused_columns}
            )
            raise DataError(
                f"{key}: no training row has a column `{name}`",
                f"further columns of the rows are: {', '.join(unused) or 'none'}. A column of "
                "another name is mapped with "
                f"`columns: {{{name}: your_column}}`",
            )


def task_of(recipe: TrainRecipe) -> Task:
    """Return the kind of rows that a recipe trains on."""
    if isinstance(recipe, RewardRecipe) and recipe.reward.kind == "regression":
        return "sft"  # single answers, with their ratings
    return TASKS[recipe.method]


def _further_columns(recipe: TrainRecipe) -> tuple[str, ...]:
    """Return the columns that are read beside prompts and answers."""
    if isinstance(recipe, DpoRecipe) and recipe.dpo.reward_models:
        return ("answer",)
    if isinstance(recipe, RewardRecipe):
        return (
            tuple(recipe.reward.attributes)
            if recipe.reward.kind == "regression"
            else (recipe.reward.strength,)
        )
    return ()


def _prepare(recipe: TrainRecipe, run: Run, loaded: Loaded, on_event: OnEvent | None) -> Job:
    """Tokenize, or find it done by an earlier attempt at this run, and write the ledger."""
    run.check_data(loaded.fingerprint, _files_of(loaded))
    tell(on_event, StageStarted("loading torch, transformers and TRL"))
    _import_method(recipe.method)
    disable_progress_bars()
    recipe, _ = _try_out(recipe, loaded, run.read_json("resolved.json")["origins"], on_event)
    tell(on_event, StageStarted("tokenizing"))
    from aligner.methods.job import questions_from
    from aligner.tokenization.dataset import load_prepared

    tokenizer = _load_tokenizer(recipe, on_event)
    done = run.prepared_dir.is_dir() and run.read_json("data.json") is not None
    if done:
        prepared = load_prepared(run.prepared_dir)
    else:
        _look_ahead(recipe, tokenizer)
        prepared = tokenize(recipe, loaded, tokenizer, run.prepared_dir, on_event)
        questions = questions_from(loaded.eval or loaded.train, recipe.report.num_prompts)
        run.write_json(QUESTIONS, [list(question) for question in questions])
        run.write_json(
            "data.json", {**loaded.ledger.to_json(), "batching": prepared.batching.reason}
        )
        tell(on_event, DataReady([*loaded.ledger.table(), ("batches", prepared.batching.reason)]))
    return _job(recipe, run, tokenizer, prepared, on_event)


def _load_tokenizer(recipe: TrainRecipe, on_event: OnEvent | None) -> Any:
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
    if not isinstance(recipe, RewardRecipe) or recipe.reward.kind == "pairwise":
        check_policy(recipe.model, trainable=True)
        if (remark := remark_on(read_config(recipe.model), recipe.model.name_or_path)) is not None:
            tell(on_event, Notice(remark))
    set_control_tokens(tokenizer, recipe.data.control_tokens)
    for remark in check_tokenizer(tokenizer):
        tell(on_event, Warned(remark))
    return tokenizer


def _look_ahead(recipe: TrainRecipe, tokenizer: Any, on_event: OnEvent | None = None) -> None:
    """Look up what the recipe names in the model before anything is tokenized; with a listener, say
    what would be trained."""
    from aligner.models.loading import load_outline
    from aligner.models.trained_weights import told, trained_of

    outputs = None
    if isinstance(recipe, RewardRecipe) and recipe.reward.kind != "pairwise":
        outputs = {"regression": len(recipe.reward.attributes), "odin": 2}.get(
            recipe.reward.kind, 1
        )
    outline = load_outline(recipe.model, tokenizer, outputs=outputs)
    if outline is not None and on_event is not None:
        for line in told(trained_of(outline, recipe.model.lora)):
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


def _job(
    recipe: TrainRecipe, run: Run, tokenizer: Any, prepared: Any, on_event: OnEvent | None
) -> Job:
    from aligner.methods.job import Job

    questions = [(prompt, expected) for prompt, expected in run.read_json(QUESTIONS)]
    return Job(recipe, run, tokenizer, prepared, on_event, questions)


def _train_and_finish(job: Job) -> Outcome:
    job.say("loading the model")
    disable_progress_bars()
    train: Callable[[Job], Any] = _import_method(job.recipe.method).train
    _record_devices(job.run)
    from transformers import set_seed

    set_seed(job.recipe.seed)  # what is initialized at random: a fresh adapter, new embeddings
    fitted = train(job)
    if world()[0] == 0:
        job.say("writing the report")
        finish_run(job.run, fitted.results, _parents(job.recipe, job.run))
        report = job.run.dir / "report.html"
        tell(
            job.on_event, Finished(fitted.results, {"run": str(job.run.dir), "report": str(report)})
        )
    return Outcome(job.run.dir, fitted.results, job.run.dir / "report.html")


def _import_method(method: str) -> ModuleType:
    """Import a method, and with it everything heavy."""
    with quick_imports():
        return part_of(method, "train")


# --- several processes ----------------------------------------------------------------------------


def _run_ranks(resolved: Resolved, run: Run, loaded: Loaded, on_event: OnEvent | None) -> Outcome:
    """Prepare everything here, then start the ranks and wait for them."""
    recipe = resolved.recipe
    job = _prepare(recipe, run, loaded, on_event)
    hook = getattr(_import_method(recipe.method), "before_ranks", None)
    if hook is not None:
        hook(job)
    given = as_given(recipe, resolved.origins)
    run.write_json(RANKS_RECIPE, given.model_dump(mode="json", exclude_unset=True))
    line = launch_line(recipe.launch, [recipe.method, str(run.dir / RANKS_RECIPE)])
    os.environ[PREPARED_RUN] = str(run.dir)
    try:
        _launch(line, on_event)
    finally:
        del os.environ[PREPARED_RUN]
    assert run.is_done, "ranks that end well have finished the run"
    return Outcome(run.dir, run.read_json("manifest.json")["results"], run.dir / "report.html")


def _run_machine(
    resolved: Resolved, resume: bool, overwrite: bool, on_event: OnEvent | None
) -> Outcome:
    """Start this machine's ranks among those of several: rank 0 prepares, in a folder that all
    machines share."""
    recipe = resolved.recipe
    options = [name for name, given in (("--resume", resume), ("--overwrite", overwrite)) if given]
    with tempfile.TemporaryDirectory(prefix="aligner-machine-") as folder:
        file = Path(folder) / "recipe.json"
        given = as_given(recipe, resolved.origins)
        file.write_text(
            json.dumps(given.model_dump(mode="json", exclude_unset=True)), encoding="utf-8"
        )
        line = launch_line(recipe.launch, [recipe.method, str(file), *options])
        _launch(line, on_event)
    run = Run.attach(recipe.output_dir)
    return Outcome(
        run.dir, (run.read_json("manifest.json") or {}).get("results", {}), run.dir / "report.html"
    )


def _launch(line: list[str], on_event: OnEvent | None) -> None:
    code = run_ranks(line, on_line=lambda text: tell(on_event, Notice(f"launching: {text}")))
    if code != 0:
        raise TrainingError(
            f"the processes ended with exit code {code} before the run was finished",
            "see the messages above; continue from the last checkpoint with --resume",
        )


def _run_as_rank(
    resolved: Resolved, rank: int, resume: bool, overwrite: bool, on_event: OnEvent | None
) -> Outcome:
    """Train as one of several processes, whoever started them."""
    listener = on_event if rank == 0 else None
    _import_method(resolved.recipe.method)
    prepared_run = os.environ.get(PREPARED_RUN)
    if prepared_run is not None:
        run = Run.attach(prepared_run)
    else:
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        # Without `cpu`, ranks on a machine that has no GPU would each be alone, and wait for
        # nobody.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=LONGEST_WAIT)
        if rank == 0:
            run = Run.create(resolved, resume=resume, overwrite=overwrite)
            if not run.is_done:
                _prepare(resolved.recipe, run, _load(resolved.recipe, listener), listener)
        state.wait_for_everyone()
        if rank != 0:
            run = Run.attach(resolved.recipe.output_dir)
        if run.is_done:
            return already_done(run, listener)
    from aligner.tokenization.dataset import load_prepared

    tokenizer = _load_tokenizer(resolved.recipe, None)
    recipe = _within(
        resolved.recipe, _sizes_once_loaded(resolved.recipe), None
    )  # told by the process that prepared
    job = _job(recipe, run, tokenizer, load_prepared(run.prepared_dir), listener)
    return _train_and_finish(job)


def _with_world(resolved: Resolved, size: int) -> Resolved:
    """Let the recipe say how many processes there really are, as somebody else's launcher
    decided."""
    launch = resolved.recipe.launch.model_copy(update={"num_processes": size})
    return replace(resolved, recipe=resolved.recipe.model_copy(update={"launch": launch}))


# --- dry run --------------------------------------------------------------------------------------


def _dry_run(resolved: Resolved, loaded: Loaded, on_event: OnEvent | None) -> Outcome:
    """Tokenize into a temporary folder, count, and say what would run."""
    recipe, decided = _try_out(resolved.recipe, loaded, resolved.origins, on_event)
    tokenizer = _load_tokenizer(recipe, on_event)
    _look_ahead(recipe, tokenizer, on_event)
    with tempfile.TemporaryDirectory(prefix="aligner-dry-run-") as folder:
        prepared = tokenize(recipe, loaded, tokenizer, Path(folder) / "prepared", on_event)
        batching, sequences = prepared.batching, len(prepared.train)
        del prepared
    tell(on_event, DataReady([*loaded.ledger.table(), ("batches", batching.reason)]))
    rows = plan_rows(recipe, sequences, batching.passes, batching.steps)
    tell(on_event, Plan([*decided, *rows]))
    return Outcome(Path(recipe.output_dir))


# --- small parts ----------------------------------------------------------------------------------


def _files_of(loaded: Loaded) -> dict[str, str]:
    return {
        record.path: record.sha256 for source in loaded.ledger.sources for record in source.files
    }


def _parents(recipe: TrainRecipe, run: Run) -> list[dict[str, Any]]:
    """Return where this run came from: its model, its reward models and its data files, with their
    fingerprints."""
    from aligner.models.fingerprint import model_fingerprint

    model = {
        "kind": "model",
        "path": recipe.model.name_or_path,
        "fingerprint": model_fingerprint(recipe.model),
    }
    data = [
        {"kind": "data", "path": path, "fingerprint": digest}
        for path, digest in run.read_json("inputs.json")["sources"].items()
    ]
    rewards = [
        {"kind": "reward_model", "path": member["name"], "fingerprint": member["fingerprint"]}
        for member in (run.read_json("rewards.json") or {}).get("members", [])
    ]
    return [model, *rewards, *data]


def _record_devices(run: Run) -> None:
    if world()[0] != 0:
        return
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    run.record_devices(
        {"gpus": gpus, "cpu_threads": torch.get_num_threads(), "processes": world()[1]}
    )
