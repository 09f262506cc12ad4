"""Reinforcement learning on sampled responses: GRPO and its relatives (arXiv 2402.03300), and PPO,
with credit for segments and tokens (arXiv 2501.02790).

Each optimizer step samples `rlhf.group_size` responses to each of its prompts with the weights of
the moment, has them scored, turns scores into advantages and trains on them. Before the first one,
where segments are rewarded, the model that training starts from answers some prompts, and what the
segment model says of these fits the normalizer.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import numpy as np
from accelerate import PartialState

from aligner.config.callables import short_name
from aligner.config.choices import SHARDED
from aligner.config.segments import Segments
from aligner.errors import RecipeError
from aligner.launch.devices import best_device
from aligner.launch.world import world
from aligner.methods.job import Job
from aligner.methods.rlhf.credit import Credit
from aligner.methods.rlhf.grpo import GrpoTrainer
from aligner.methods.rlhf.normalizer import LocationNormalizer
from aligner.methods.rlhf.normalizer import fit as fit_normalizer
from aligner.methods.rlhf.ppo import PpoTrainer
from aligner.methods.rlhf.recipe import RlhfRecipe
from aligner.methods.rlhf.rollout import Roller
from aligner.methods.rlhf.trainer import RlhfTrainer, RowCollator
from aligner.methods.win_rate import against_start
from aligner.models.ema import trained_weights
from aligner.models.loading import load_policy
from aligner.models.shared_base import SharedBase, offers
from aligner.reward_models.base import Scorer
from aligner.reward_models.catalogue import load_scorer, read_spec
from aligner.runs.checkpoints import latest_checkpoint
from aligner.tokenization.encode import stop_token_ids
from aligner.training.arguments import preference_arguments
from aligner.training.fit import TrainResult, fit
from aligner.training.prefix import settle_prefix
from aligner.training.trainer import lengths_of

NORMALIZER = "prepared/normalizer.json"
SHOWN_RESPONSES = 6
"""Latest responses that the report shows."""


def train(job: Job) -> TrainResult:
    """Train the policy of the recipe on its own responses, and save it."""
    recipe = job.recipe
    assert isinstance(recipe, RlhfRecipe)
    _refuse_shards(recipe)
    model = load_policy(recipe.model, job.tokenizer, trainable=True)
    arguments = preference_arguments(recipe, job.run)
    job.answer_before(model)
    measure = against_start(job, model)
    with offers(model, recipe.model) as base:
        roller = _roller(job, recipe, model, arguments)
    _tell_roles(job, base)
    normalizer = _normalizer(job, recipe, model, roller)
    _record_rewards(job, roller)
    kind: type[RlhfTrainer] = PpoTrainer if recipe.rlhf.algorithm == "ppo" else GrpoTrainer
    trainer = kind(
        model=model,
        args=arguments,
        data_collator=RowCollator(job.tokenizer.pad_token_id),
        train_dataset=job.prepared.train,
        eval_dataset=job.prepared.eval,
        processing_class=job.tokenizer,
        roller=roller,
        credit=Credit(recipe.rlhf, normalizer),
        settings=recipe.rlhf,
    )
    if recipe.model.lora is not None and arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    prefix = settle_prefix(trainer, recipe, [], sharded=job.is_sharded, note=job.note)
    trainer.data_collator = RowCollator(job.tokenizer.pad_token_id, prefix)
    if (checkpoint := latest_checkpoint(job.run.checkpoints_dir)) is not None:
        trainer.load_rest(checkpoint)
    trainer.group_lengths = lengths_of(job.prepared.train, job.prepared.batching.grouped)
    job.tell_trained(trainer.model, arguments.learning_rate)
    if isinstance(trainer, PpoTrainer):
        _settle_critic(job, trainer)
    trainer.also_measure = measure
    fitted = fit(trainer, recipe, job.run, job.on_event)
    _keep_responses(job, trainer)
    job.answer_after(trainer)
    return fitted


def _tell_roles(job: Job, base: SharedBase) -> None:
    """Say which models stand on the policy's base, and which are held whole beside it."""
    for name in base.shared:
        job.note(f"{name} stands on the policy's own base, which is held once")
    for name, why in base.separate.items():
        job.note(f"{name} is a whole model beside the policy: {why}")


def _record_rewards(job: Job, roller: Roller) -> None:
    """Keep what rewards, with its fingerprint, for the manifest: the run comes from these too."""
    named: dict[str, Any] = dict(roller.scorers)
    if roller.segment_scorer is not None:
        named[str(roller.settings.segment_model)] = roller.segment_scorer
    members = [
        {"name": name, "fingerprint": scorer.fingerprint()} for name, scorer in named.items()
    ]
    if world()[0] == 0:
        job.run.write_json("rewards.json", {"members": members})


def _settle_critic(job: Job, trainer: PpoTrainer) -> None:
    """Say what is trained beside the policy."""
    if trainer.is_deepspeed_enabled:
        raise RecipeError(
            "launch.strategy is one of DeepSpeed's, which trains one model, and `algorithm: ppo` "
            "trains a critic beside the policy",
            "use ddp, or rlhf.algorithm=grpo",
        )
    count = sum(weight.numel() for weight in trained_weights(trainer.critic).values())
    shared = ", on the policy's own base" if job.recipe.model.lora is not None else ""
    job.note(f"the critic trains {count:,} weights at {trainer.critic_rate:g}{shared}")


def before_ranks(job: Job) -> None:
    """Fit the normalizer of segments in the launching process: ranks would wait for one of them."""
    recipe = job.recipe
    assert isinstance(recipe, RlhfRecipe)
    if recipe.rlhf.segment_model is not None and not (job.run.dir / NORMALIZER).exists():
        model = load_policy(recipe.model, job.tokenizer, trainable=True)
        arguments = preference_arguments(recipe, job.run)
        with offers(model, recipe.model):
            roller = _roller(job, recipe, model, arguments)
        _normalizer(job, recipe, model, roller)


def _refuse_shards(recipe: RlhfRecipe) -> None:
    if recipe.launch.strategy in SHARDED and world()[1] > 1:
        raise RecipeError(
            f"launch.strategy is {recipe.launch.strategy}, and responses are sampled from a policy "
            "that each process holds whole",
            "use ddp, zero1 or zero2",
        )


def _roller(job: Job, recipe: RlhfRecipe, model: Any, arguments: Any) -> Roller:
    rlhf = recipe.rlhf
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps
    named = [spec for spec in rlhf.reward_models if spec not in job.scorers]
    job.announce_walls([read_spec(spec) for spec in named])
    scorers: dict[str, Scorer] = {}
    for spec in rlhf.reward_models:
        scorers[spec] = job.scorers[spec] if spec in job.scorers else load_scorer(spec)
    segment_scorer: Any = None
    if rlhf.segment_model is not None:
        segment_scorer = load_scorer(rlhf.segment_model)
        segment_scorer.refuse_other_tokenizer(job.tokenizer, recipe.model.name_or_path)
        if rlhf.unit == "token":
            card = segment_scorer.card.model_copy(update={"segments": Segments(rule="token")})
            segment_scorer = replace(segment_scorer, card=card, reference=None)
    return Roller(
        job.tokenizer,
        rlhf,
        recipe.seed,
        rlhf.generation_batch_size or rows * rlhf.group_size,
        tuple(stop_token_ids(job.tokenizer, model)),
        scorers,
        segment_scorer,
        recipe.generation.engine,
    )


def _normalizer(
    job: Job, recipe: RlhfRecipe, model: Any, roller: Roller
) -> LocationNormalizer | None:
    """Return the normalizer of segment values, fitted once to responses of the model that training
    starts from."""
    if roller.segment_scorer is None:
        return None
    file = job.run.dir / NORMALIZER
    fingerprint = {
        "reward model": roller.segment_scorer.fingerprint(),
        "unit": recipe.rlhf.unit,
        "form": recipe.rlhf.normalizer,
    }
    if world()[0] == 0 and not file.exists():
        if recipe.model.quantization == "none":
            model.to(best_device())
        fitted = _fitted(job, recipe, model, roller, fingerprint)
        fitted.save(file)
    PartialState().wait_for_everyone()
    return LocationNormalizer.load(file, fingerprint)


def _fitted(
    job: Job, recipe: RlhfRecipe, model: Any, roller: Roller, fingerprint: dict[str, str]
) -> LocationNormalizer:
    rows, wanted = job.prepared.train, recipe.rlhf.normalizer_samples
    job.say(f"answering prompts {wanted} times, for the normalizer of segments")
    order = np.random.default_rng(recipe.seed).permutation(len(rows))[:wanted]
    chosen = [rows[int(place)] for place in order]
    each = -(-wanted // len(chosen))
    valued = replace(roller, scorers={})
    groups = valued.sample(model, chosen, "normalizer", samples=each)
    valued.score(chosen, groups)
    responses = list(chain.from_iterable(groups))
    values: list[list[float]] = []
    for one in responses:
        values.append([one.values[end] for end in one.ends])
    found = fit_normalizer(values, form=recipe.rlhf.normalizer, fingerprint=fingerprint)
    count = sum(map(len, values)) / len(values)
    job.note(
        f"segments: {count:.1f} a response in the mean; their values average "
        f"{found.mean:.3g} + {found.mean_slope:.3g} ln p at location p, and scatter by "
        f"{found.spread:.3g} + {found.spread_slope:.3g} ln p"
    )
    if found.note:
        job.warn(f"the normalizer of segments: {found.note}")
    return found


def _keep_responses(job: Job, trainer: RlhfTrainer) -> None:
    """Keep the latest responses with their rewards, for the report."""
    if world()[0] != 0 or not trainer.groups:
        return
    decode, shown = job.tokenizer.decode, []
    responses = [group[0] for group in trainer.groups][:SHOWN_RESPONSES]
    for one in responses:
        entry: dict[str, Any] = {
            "prompt": decode(one.prompt_ids, skip_special_tokens=True),
            "response": one.text,
            "scores": {short_name(name): score for name, score in one.scores.items()},
        }
        if one.values:
            _, rewards, _ = trainer.credit.segment_rewards([one])
            starts = [0, *(end + 1 for end in one.ends)]
            texts = [decode(one.token_ids[a:b]) for a, b in pairwise(starts)]
            entry["segments"] = [
                {"text": text, "reward": reward} for text, reward in zip(texts, rewards[0].tolist())
            ]
        shown.append(entry)
    job.run.write_json("rollouts.json", shown)
