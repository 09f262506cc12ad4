"""Training on preference pairs: Direct Preference Optimization (arXiv 2305.18290) and every objective of the catalogue.

The trainer is `aligner.preference.PreferenceTrainer`; this file chooses the reference and puts the parts together.
A fresh LoRA adapter that starts as a no-op has its reference below it (the base, adapter off). Anything else, full
fine-tuning, an adapter that is trained further, or one that takes a part of the base with it (PiSSA, biases), gets the
reference's log-probabilities once, before training (`aligner.reference`), so no second model is in memory while training.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainingArguments

from aligner.config.choices import REFERENCE_FREE_LOSSES
from aligner.config.schema import DpoRecipe
from aligner.errors import RecipeError, UsageError
from aligner.guards import AccuracyAlarm, wrong_start
from aligner.launch import world
from aligner.methods.job import SHARDED, Job
from aligner.model_files import ADAPTER_FILE
from aligner.models import load_policy
from aligner.objectives import BATCH_DEPENDENT, Objective, Settings, check_file, load_objective
from aligner.preference import PairCollator, PreferenceTrainer
from aligner.reference import Scorer, with_reference
from aligner.training import Fitted, fit, lengths_of, training_arguments

if TYPE_CHECKING:
    from datasets import Dataset

LEARNING_RATE = 1e-6
"""Our default, which is TRL's for DPO; transformers' 5e-5 would wreck a policy."""


def train(job: Job) -> Fitted:
    """Optimise the policy of the recipe on its tokenised pairs, and save it."""
    recipe = job.recipe
    assert isinstance(recipe, DpoRecipe)
    model = load_policy(recipe.model, job.tokenizer, trainable=True)
    job.answer_before(model)
    arguments = _arguments(job, recipe)
    trainer = PreferenceTrainer(
        model=model,
        args=arguments,
        data_collator=PairCollator(job.tokenizer.pad_token_id),
        train_dataset=job.prepared.train,
        eval_dataset=job.prepared.eval,
        processing_class=job.tokenizer,
        objective=_objective(job, recipe),
        settings=objective_settings(recipe),
        nll_weight=recipe.dpo.nll_weight,
        warmup_steps_dpo=recipe.dpo.warmup_steps_dpo,
        needs_reference=needs_reference(recipe),
    )
    if recipe.model.lora is not None and arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    if needs_reference(recipe) and not uses_adapter_off(recipe):
        scorer = Scorer(
            recipe, job.tokenizer, model, arguments.per_device_eval_batch_size, arguments.bf16, job.on_event
        )
        trainer.train_dataset, trainer.eval_dataset = add_reference(job, scorer)
    trainer.group_lengths = lengths_of(job.prepared.train, job.prepared.batching.grouped)
    fitted = fit(trainer, recipe, job.run, job.on_event, _guards(job, recipe))
    job.answer_after(trainer)
    return fitted


def before_ranks(job: Job) -> None:
    """Score the reference in the launching process where ranks could not: when they hold only shards of the policy."""
    recipe = job.recipe
    assert isinstance(recipe, DpoRecipe)
    if recipe.launch.strategy in SHARDED and needs_reference(recipe) and not uses_adapter_off(recipe):
        arguments = _arguments(job, recipe)
        scorer = Scorer(recipe, job.tokenizer, None, arguments.per_device_eval_batch_size, arguments.bf16, job.on_event)
        add_reference(job, scorer)


def _objective(job: Job, recipe: DpoRecipe) -> Objective:
    """Return the objective, and say what a user should know about it before the first step."""
    dpo = recipe.dpo
    files = [Path(name).expanduser() for name in sorted(losses_of(recipe)) if name.endswith(".py")]
    for number, path in enumerate(files):
        job.say(f"trying the objective {path}")
        _keep_source(job, f"objectives/{number}-{path.name}", path, check_file(path, dpo.beta))
    objective, settings = load_objective(dpo.loss), objective_settings(recipe)
    if wrong := wrong_start(objective, settings, _typical_length(job)):
        if dpo.warmup_steps_dpo:
            first = f"The first {dpo.warmup_steps_dpo} steps train DPO's loss: {wrong}"
            job.note(f"{first}. Look whether rewards/accuracies stays up after them.")
        else:
            job.warn(f"{wrong}. Set dpo.warmup_steps_dpo=100, or for the DiscoPOP objective a dpo.tau above 0.1023")
    if batchwise := sorted(losses_of(recipe) & set(BATCH_DEPENDENT)):
        rows = int(recipe.trainer.get("per_device_train_batch_size", 8)) * recipe.launch.num_processes
        job.note(f"{', '.join(batchwise)} reads statistics over {rows} pairs: batch x processes, without accumulation.")
    if "simpo" in losses_of(recipe) and dpo.beta < 1:
        job.note(f"dpo.beta is {dpo.beta:g}; simpo was published with 2 to 2.5, since its rewards are per token.")
    return objective


def _guards(job: Job, recipe: DpoRecipe) -> list[AccuracyAlarm]:
    """The alarm; without a reference a reward is no comparison with the start, and may well rank pairs wrongly there."""
    dpo = recipe.dpo
    if not dpo.alarm_steps or not needs_reference(recipe):
        return []
    return [AccuracyAlarm(dpo.alarm_steps, dpo.on_alarm == "stop", job.warn, after=dpo.warmup_steps_dpo)]


def _typical_length(job: Job) -> float:
    """The median length of a chosen answer, in tokens."""
    return float(statistics.median(map(len, job.prepared.train["chosen_ids"])))


def _keep_source(job: Job, name: str, path: Path, text: str) -> None:
    """Keep the objective's source in the run, and refuse to go on with another one."""
    kept = job.run.dir / name
    if not kept.exists():
        if world()[0] == 0:
            job.run.write_text(name, text)
    elif kept.read_text(encoding="utf-8") != text:
        raise UsageError(
            f"{path} changed since {job.run.dir} was begun, so resuming it would mix two objectives.",
            f"Put it back ({kept} is what it was), or choose another output_dir.",
        )


def losses_of(recipe: DpoRecipe) -> set[str]:
    """Names and files of the objectives that the recipe asks for."""
    loss = recipe.dpo.loss
    return {loss} if isinstance(loss, str) else set(loss)


def needs_reference(recipe: DpoRecipe) -> bool:
    """Say whether any objective of the recipe reads the reference."""
    return not losses_of(recipe) <= set(REFERENCE_FREE_LOSSES)


def add_reference(job: Job, scorer: Scorer) -> tuple[Dataset, Dataset | None]:
    """Return both splits with their reference log-probabilities."""
    held_out = job.prepared.eval
    return (
        with_reference(job.prepared.train, scorer, "training"),
        with_reference(held_out, scorer, "held-out") if held_out is not None else None,
    )


def uses_adapter_off(recipe: DpoRecipe) -> bool:
    """Say whether the reference is the base under a fresh adapter.

    Raises: RecipeError when that is asked for, but the base is not what training starts from.
    """
    if recipe.model.lora is None or recipe.dpo.reference == "precomputed" or recipe.dpo.reference_model is not None:
        return False
    why = _why_base_is_no_reference(recipe)
    if why and recipe.dpo.reference == "adapter_off":
        raise RecipeError(f"dpo.reference is adapter_off, but {why}", "use dpo.reference=auto or precomputed")
    return not why


def _why_base_is_no_reference(recipe: DpoRecipe) -> str:
    """Return what makes the base, its adapter off, another model than the one that training starts from; or nothing."""
    lora = recipe.model.lora
    assert lora is not None
    if (Path(recipe.model.name_or_path).expanduser() / ADAPTER_FILE).is_file():
        return f"the adapter in {recipe.model.name_or_path} is trained further, and without it the model is another"
    if lora.bias != "none":
        return f"model.lora.bias={lora.bias} trains biases of the base itself, which stay when the adapter is off"
    if lora.init_lora_weights in ("pissa", "olora"):
        return f"model.lora.init_lora_weights={lora.init_lora_weights} moves a part of the base into the adapter"
    if lora.init_lora_weights is False:
        return "model.lora.init_lora_weights=false starts from a random adapter"
    return ""


def objective_settings(recipe: DpoRecipe) -> Settings:
    """Return the numbers of the objective."""
    dpo = recipe.dpo
    return Settings(dpo.beta, dpo.label_smoothing, dpo.tau, dpo.simpo_gamma)


def _arguments(job: Job, recipe: DpoRecipe) -> TrainingArguments:
    learning_rate = recipe.trainer.get("learning_rate", LEARNING_RATE)
    with_rate = recipe.model_copy(update={"trainer": {**recipe.trainer, "learning_rate": learning_rate}})
    return training_arguments(with_rate, job.run, TrainingArguments, remove_unused_columns=False)
