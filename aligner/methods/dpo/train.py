"""Training on preference pairs: Direct Preference Optimization (arXiv 2305.18290) and every
objective of the catalogue.

The trainer is `aligner.training.preference.PreferenceTrainer`; this file chooses the reference and
puts the parts together. A fresh LoRA adapter that starts as a no-op has its reference below it (the
base, adapter off). Anything else, full fine-tuning, an adapter that is trained further, or one that
takes a part of the base with it (PiSSA, biases), gets the reference's log-probabilities once,
before training (`aligner.training.reference`), so no second model is in memory while training. So
it is with the rewards that `reward_distill` follows (`aligner.methods.dpo.reward_distillation`),
scored before the policy is loaded, and with the answers of the reference on which `dpo.forward_kl`
is estimated (`aligner.methods.dpo.reference_samples`).
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from aligner.config.callables import source_of
from aligner.config.choices import SHARDED
from aligner.config.defaults import trainer_value
from aligner.errors import UsageError
from aligner.launch.world import world
from aligner.losses.catalogue import BATCH_DEPENDENT, load_objective
from aligner.losses.dsl.sandboxed import check_file
from aligner.losses.types import Objective, Settings
from aligner.methods.dpo.recipe import DpoRecipe
from aligner.methods.dpo.reference_samples import with_samples
from aligner.methods.dpo.references import (
    distils,
    forward_kl_weight,
    losses_of,
    needs_reference,
    uses_adapter_off,
)
from aligner.methods.dpo.start_checks import AccuracyAlarm, check_initial_gradient
from aligner.methods.job import Job
from aligner.methods.win_rate import against_start
from aligner.models.loading import load_policy
from aligner.tokenization.dataset import TokenizedData
from aligner.training.arguments import preference_arguments
from aligner.training.fit import TrainResult, fit
from aligner.training.preference import PairCollator, PreferenceTrainer
from aligner.training.prefix import first_groups, settle_prefix
from aligner.training.reference import ReferenceScorer, with_reference
from aligner.training.trainer import lengths_of

if TYPE_CHECKING:
    from datasets import Dataset


def train(job: Job) -> TrainResult:
    """Optimize the policy of the recipe on its tokenized pairs, and save it."""
    recipe = job.recipe
    assert isinstance(recipe, DpoRecipe)
    job = replace(job, prepared=add_rewards(job))
    model = load_policy(recipe.model, job.tokenizer, trainable=True)
    job.answer_before(model)
    measure = against_start(job, model)
    arguments = preference_arguments(recipe, job.run)
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
        reward_combine=recipe.dpo.reward_combine,
        forward_kl=forward_kl_weight(recipe),
    )
    if recipe.model.lora is not None and arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    groups = first_groups(job.prepared.train)
    prefix = settle_prefix(trainer, recipe, groups, sharded=job.is_sharded, note=job.note)
    trainer.data_collator = PairCollator(job.tokenizer.pad_token_id, prefix)
    scorer = ReferenceScorer(
        recipe,
        job.tokenizer,
        model,
        arguments.per_device_eval_batch_size,
        arguments.bf16,
        job.on_event,
        prefix,
    )
    if needs_reference(recipe) and not uses_adapter_off(recipe):
        trainer.train_dataset, trainer.eval_dataset = add_reference(job, scorer)
    if forward_kl_weight(recipe):
        splits = trainer.train_dataset, trainer.eval_dataset
        trainer.train_dataset, trainer.eval_dataset = add_samples(splits, scorer)
    trainer.group_lengths = lengths_of(job.prepared.train, job.prepared.batching.grouped)
    job.tell_trained(trainer.model, arguments.learning_rate)
    trainer.also_measure = measure
    fitted = fit(trainer, recipe, job.run, job.on_event, _guards(job, recipe))
    job.answer_after(trainer)
    return fitted


def before_ranks(job: Job) -> None:
    """Score and write in the launching process what ranks could not: they hold only shards of the
    policy, or would wait."""
    recipe = job.recipe
    assert isinstance(recipe, DpoRecipe)
    add_rewards(job)
    if recipe.launch.strategy not in SHARDED:
        return
    arguments = preference_arguments(recipe, job.run)
    scorer = ReferenceScorer(
        recipe,
        job.tokenizer,
        None,
        arguments.per_device_eval_batch_size,
        arguments.bf16,
        job.on_event,
        recipe.preference.prefix,
    )
    if needs_reference(recipe) and not uses_adapter_off(recipe):
        add_reference(job, scorer)
    if forward_kl_weight(recipe):
        add_samples((job.prepared.train, job.prepared.eval), scorer)


def _objective(job: Job, recipe: DpoRecipe) -> Objective:
    """Return the objective, and say what a user should know about it before the first step."""
    dpo = recipe.dpo
    files = [Path(name).expanduser() for name in sorted(losses_of(recipe)) if name.endswith(".py")]
    for number, path in enumerate(files):
        job.say(f"trying the objective {path}")
        _keep_source(job, f"objectives/{number}-{path.name}", path, check_file(path, dpo.beta))
    objective, settings = job.objective, objective_settings(recipe)
    if objective is None:
        objective = load_objective(dpo.loss)
    elif (source := source_of(objective)) is not None and world()[0] == 0:
        job.run.write_text("objectives/callable.py", source)
    if distils(recipe):
        _note_choice(job, recipe)
        return objective
    typical_length = float(statistics.median(map(len, job.prepared.train["chosen_ids"])))
    if wrong := check_initial_gradient(objective, settings, typical_length):
        if dpo.warmup_steps_dpo:
            first = f"the first {dpo.warmup_steps_dpo} steps train DPO's loss: {wrong}"
            job.note(f"{first}. Look whether rewards/accuracies stays up after them")
        else:
            job.warn(
                f"{wrong}. Set dpo.warmup_steps_dpo=100, or for the DiscoPOP objective a dpo.tau "
                "above 0.1023"
            )
    if batchwise := sorted(losses_of(recipe) & set(BATCH_DEPENDENT)):
        rows = _pairs_together(recipe)
        job.note(
            f"{', '.join(batchwise)} reads statistics over {rows} pairs: batch x processes, "
            "without accumulation"
        )
    if "simpo" in losses_of(recipe) and dpo.beta < 1:
        job.note(
            f"dpo.beta is {dpo.beta:g}; simpo was published with 2 to 2.5, since its rewards are "
            "per token"
        )
    return objective


def _pairs_together(recipe: DpoRecipe) -> int:
    """The pairs of a micro-batch over all processes."""
    return int(trainer_value(recipe, "per_device_train_batch_size")) * recipe.launch.num_processes


def _note_choice(job: Job, recipe: DpoRecipe) -> None:
    if recipe.dpo.reward_combine == "min":
        rows = _pairs_together(recipe)
        job.note(
            f"the reward model to follow is chosen by {rows} pairs: batch x processes, without "
            "accumulation"
        )


def _guards(job: Job, recipe: DpoRecipe) -> list[AccuracyAlarm]:
    """The alarm; without a reference a reward is not a comparison with the start, and may well rank
    pairs wrongly there.

    Where rewards are distilled, they say which answer is better, and not the labels.
    """
    dpo = recipe.dpo
    if not dpo.alarm_steps or not needs_reference(recipe):
        return []
    metric = "distill/accuracies" if distils(recipe) else "rewards/accuracies"
    return [
        AccuracyAlarm(
            dpo.alarm_steps,
            dpo.on_alarm == "stop",
            job.warn,
            after=dpo.warmup_steps_dpo,
            metric=metric,
        )
    ]


def _keep_source(job: Job, name: str, path: Path, text: str) -> None:
    """Keep the objective's source in the run, and refuse to resume with another one."""
    kept = job.run.dir / name
    if not kept.exists():
        if world()[0] == 0:
            job.run.write_text(name, text)
    elif kept.read_text(encoding="utf-8") != text:
        raise UsageError(
            f"{path} changed since {job.run.dir} was started; resuming would mix two objectives",
            f"put it back ({kept} is what it was), or choose another output_dir",
        )


def add_rewards(job: Job) -> TokenizedData:
    """Return both splits with the margins of the reward models that are followed, and record what
    is known of these."""
    recipe = job.recipe
    assert isinstance(recipe, DpoRecipe)
    if not distils(recipe):
        return job.prepared
    # Judges and their clients are loaded where rewards are followed, and by no other training.
    from aligner.methods.dpo.reward_distillation import with_reward_margins
    from aligner.reward_models.catalogue import read_spec

    if world()[0] == 0:
        job.announce_walls([read_spec(spec) for spec in recipe.dpo.reward_models])
    prepared, members = with_reward_margins(job.prepared, recipe.dpo, job.on_event)
    if world()[0] == 0:
        job.run.write_json(
            "rewards.json",
            {"combine": recipe.dpo.reward_combine, "members": list(map(asdict, members))},
        )
    return prepared


def add_samples(
    splits: tuple[Dataset, Dataset | None], scorer: ReferenceScorer
) -> tuple[Dataset, Dataset | None]:
    """Return both splits with an answer of the reference to each prompt."""
    train, held_out = splits
    return (
        with_samples(train, scorer, "training"),
        with_samples(held_out, scorer, "held-out") if held_out is not None else None,
    )


def add_reference(job: Job, scorer: ReferenceScorer) -> tuple[Dataset, Dataset | None]:
    """Return both splits with their reference log-probabilities."""
    held_out = job.prepared.eval
    return (
        with_reference(job.prepared.train, scorer, "training"),
        with_reference(held_out, scorer, "held-out") if held_out is not None else None,
    )


def objective_settings(recipe: DpoRecipe) -> Settings:
    """Return the numbers of the objective."""
    dpo = recipe.dpo
    return Settings(dpo.beta, dpo.label_smoothing, dpo.tau, dpo.simpo_gamma)
