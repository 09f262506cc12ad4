"""Self-Augmented Preference Optimization (SAPO, arXiv 2405.20830): preferences out of single good
answers.

It is not the `sapo` loss of GRPO trainers (Soft Adaptive Policy Optimization, arXiv 2511.20347).

A slowly moving copy of the policy rewrites one window of each good answer; answer and rewrite are a
pair; pairs go into a replay buffer, and the policy trains on pairs drawn from it. In each optimizer
step, in the order of the authors' code:

1. the moving average follows the policy, which folds in the step before (nothing at the first
   step);
2. the reference is refreshed: from the average, from the policy, or never;
3. the average rewrites the rows of the step, and the pairs go into the buffer;
4. as many pairs as the step has rows are drawn from the buffer;
5. they are trained on by the one preference trainer, with any objective of the catalogue.

Different from the authors' code, on purpose. All of this happens once per optimizer step and not
per micro-batch, and every process has the same buffer, so neither accumulation nor processes change
what is written and drawn. The reference is refreshed once per epoch by the length of the epoch, not
every 108 steps. Masks, positions, stop tokens and tokenization are those of
`aligner.tokenization.encode` and of training. Averages are float32, and of the trained weights only
(`aligner.models.ema`), so LoRA and 4-bit bases work. Random numbers follow from seed, step and row,
so a resumed run draws what it would have drawn. ORPO's next-token term counts the answer's tokens,
not those of prompt and padding.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainingArguments

from aligner.config.choices import SHARDED
from aligner.config.loss_names import REFERENCE_FREE_LOSSES
from aligner.errors import DataError, RecipeError
from aligner.launch.devices import best_device
from aligner.launch.world import world
from aligner.losses.catalogue import BATCH_DEPENDENT, load_objective
from aligner.losses.types import Settings
from aligner.methods.dpo.start_checks import check_initial_gradient
from aligner.methods.job import Job
from aligner.methods.sapo.recipe import SapoRecipe
from aligner.methods.sapo.trainer import RowCollator, SapoTrainer, as_pair, window_at
from aligner.methods.sapo.writer import Writer
from aligner.methods.win_rate import against_start
from aligner.models.fused_head import fuse_head
from aligner.models.loading import load_policy
from aligner.models.positions import max_positions
from aligner.reward_models.catalogue import load_scorer, read_spec
from aligner.runs.checkpoints import latest_checkpoint
from aligner.tokenization.encode import stop_token_ids
from aligner.training.arguments import preference_arguments
from aligner.training.fit import TrainResult, fit
from aligner.training.preference import (
    PairCollator,
)
from aligner.training.prefix import PROOF_GROUPS, Group, settle_prefix
from aligner.training.reference import reference_logps
from aligner.training.trainer import lengths_of

HELD_OUT_PAIRS = "prepared/held_out_pairs.json"
SHOWN_PAIRS = 6
"""Latest pairs that the report shows."""


def train(job: Job) -> TrainResult:
    """Train the policy of the recipe against its own rewrites, and save it."""
    recipe = job.recipe
    assert isinstance(recipe, SapoRecipe)
    _refuse_shards(recipe)
    sapo = recipe.sapo
    model = load_policy(recipe.model, job.tokenizer, trainable=True)
    arguments = preference_arguments(recipe, job.run)
    _refuse_what_does_not_fit(job, recipe, model, arguments)
    job.answer_before(model)
    measure = against_start(job, model)
    if sapo.verifier and world()[0] == 0:
        job.announce_walls([read_spec(sapo.verifier)])
    writer = _writer(job, recipe, model, arguments)
    _announce(job, recipe, writer)
    settings = Settings(sapo.beta)
    trainer = SapoTrainer(
        model=model,
        args=arguments,
        data_collator=RowCollator(PairCollator(job.tokenizer.pad_token_id)),
        train_dataset=job.prepared.train,
        eval_dataset=_held_out(job, recipe, model, writer, arguments),
        processing_class=job.tokenizer,
        objective=load_objective(sapo.loss),
        settings=settings,
        nll_weight=sapo.nll_weight,
        needs_reference=sapo.loss not in REFERENCE_FREE_LOSSES,
        writer=writer,
        sapo=sapo,
        warn=job.warn,
    )
    if recipe.model.lora is not None and arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    groups = _first_groups(job.prepared.train)
    prefix = settle_prefix(trainer, recipe, groups, sharded=job.is_sharded, note=job.note)
    trainer.data_collator = RowCollator(PairCollator(job.tokenizer.pad_token_id, prefix))
    if (checkpoint := latest_checkpoint(job.run.checkpoints_dir)) is not None:
        trainer.load_rest(checkpoint)
    trainer.group_lengths = lengths_of(job.prepared.train, job.prepared.batching.grouped)
    job.tell_trained(trainer.model, arguments.learning_rate)
    trainer.also_measure = measure
    fitted = fit(trainer, recipe, job.run, job.on_event)
    _keep_pairs(job, trainer)
    with trainer.exported():
        job.answer_after(trainer)
    return fitted


def _first_groups(rows: Dataset) -> list[Group]:
    """Sequences that begin as a rewrite does: those of the first answers, and the same with another
    end."""
    found: list[Group] = []
    for row in rows.select(range(min(PROOF_GROUPS, len(rows)))):
        ids, prompt = list(row["chosen_ids"]), list(row["prompt_ids"])
        found.append([[*prompt, *ids], [*prompt, *reversed(ids)]])
    return found


def _refuse_shards(recipe: SapoRecipe) -> None:
    if recipe.launch.strategy in SHARDED and world()[1] > 1:
        raise RecipeError(
            f"launch.strategy is {recipe.launch.strategy}, and SAPO generates with a policy that "
            "each process holds whole",
            "use ddp, zero1 or zero2; with model.lora three sets of adapters share one base",
        )


def _refuse_what_does_not_fit(
    job: Job, recipe: SapoRecipe, model: Any, arguments: TrainingArguments
) -> None:
    """Rows that the model has no positions for, and a buffer that cannot hold the pairs of one
    step."""
    splits = [job.prepared.train, *([job.prepared.eval] if job.prepared.eval is not None else [])]
    longest, positions = max(max(rows["length"]) for rows in splits), max_positions(model)
    if positions is not None and longest > positions:
        raise DataError(
            f"the longest row has {longest:,} tokens, and the model {positions:,} positions",
            f"set data.max_length={positions} and data.on_too_long=drop",
        )
    rows = (
        arguments.train_batch_size
        * arguments.gradient_accumulation_steps
        * max(1, arguments.world_size)
    )
    pairs = rows * recipe.sapo.responses_per_prompt
    if 0 < recipe.sapo.buffer_size < pairs:
        raise RecipeError(
            f"sapo.buffer_size is {recipe.sapo.buffer_size}, and one step writes {pairs} pairs",
            "make it several times as large, or 0 for no replay",
        )


def _writer(job: Job, recipe: SapoRecipe, model: Any, arguments: TrainingArguments) -> Writer:
    per_step = (
        arguments.train_batch_size
        * arguments.gradient_accumulation_steps
        * recipe.sapo.responses_per_prompt
    )
    return Writer(
        job.tokenizer,
        recipe.sapo,
        recipe.seed,
        recipe.sapo.generation_batch_size or per_step,
        tuple(stop_token_ids(job.tokenizer, model)),
        load_scorer(recipe.sapo.verifier) if recipe.sapo.verifier else None,
        recipe.generation.engine,
    )


def _announce(job: Job, recipe: SapoRecipe, writer: Writer) -> None:
    """Say how rewrites are sampled, and what a user should know about the objective."""
    sapo = recipe.sapo
    window = "the whole answer" if sapo.window == "all" else f"{sapo.window} tokens"
    stops = ", ".join(map(str, writer.stops))
    job.note(
        f"rewriting {window}: temperature {sapo.temperature:g}, top_k {sapo.top_k}, top_p "
        f"{sapo.top_p:g}, stops {stops}"
    )
    lengths = [len(ids) for ids in job.prepared.train["chosen_ids"]]
    if sapo.window != "all" and (short := sum(length <= int(sapo.window) for length in lengths)):
        job.note(
            f"{short / len(lengths):.0%} of the answers are no longer than the window and are "
            "rewritten whole"
        )
    wrong = check_initial_gradient(load_objective(sapo.loss), Settings(sapo.beta))
    if wrong:
        job.warn(f"{wrong}. Use another sapo.loss")
    if sapo.loss in BATCH_DEPENDENT:
        job.note(f"{sapo.loss} reads statistics of the batch")


def _held_out(
    job: Job, recipe: SapoRecipe, model: Any, writer: Writer, arguments: TrainingArguments
) -> Dataset | None:
    """Return pairs of the held-out rows, written once by the model that training starts from, and
    scored by it.

    They stay the same over the whole run, also a resumed one, so that the held-out numbers can be
    compared.
    """
    rows = job.prepared.eval
    if rows is None:
        return None
    if world()[0] == 0 and job.run.read_json(HELD_OUT_PAIRS) is None:
        if recipe.model.quantization == "none":
            model.to(best_device())
        job.say("rewriting held-out answers")
        job.run.write_json(HELD_OUT_PAIRS, _scored_pairs(job, model, writer, list(rows), arguments))
    PartialState().wait_for_everyone()
    pairs = job.run.read_json(HELD_OUT_PAIRS)
    if not pairs:
        raise RecipeError(
            "data.eval: every rewrite of a held-out answer is that answer again, so there is "
            "nothing to compare",
            "raise sapo.temperature or sapo.window, or leave data.eval out",
        )
    return Dataset.from_list(pairs)


def _scored_pairs(
    job: Job, model: Any, writer: Writer, rows: list[dict[str, Any]], arguments: TrainingArguments
) -> list[dict[str, Any]]:
    written = writer.rewrite(model, rows, "held out", window_at(writer.settings, 1, 1))
    useful = [rewrite for rewrite in written if not rewrite.is_useless]
    if not useful:
        return []
    pairs = Dataset.from_list([{**as_pair(one, 1.0), "length": one.length} for one in useful])
    fuse_head(model)
    autocast = torch.autocast(model.device.type, dtype=torch.bfloat16) if arguments.bf16 else None
    logps = reference_logps(
        model, pairs, job.tokenizer.pad_token_id, arguments.eval_batch_size, autocast=autocast
    )
    return [
        {**pair, "reference_chosen": chosen, "reference_rejected": rejected}
        for pair, (chosen, rejected) in zip(pairs, logps)
    ]


def _keep_pairs(job: Job, trainer: SapoTrainer) -> None:
    """Keep the latest pairs as text, for the report."""
    if world()[0] != 0:
        return
    decode = job.tokenizer.decode
    entries = trainer.buffer.entries if trainer.buffer is not None else ()
    latest = [entry for entry in reversed(entries) if not entry.is_identical][:SHOWN_PAIRS]
    job.run.write_json(
        "pairs.json",
        [
            {
                "prompt": decode(entry.prompt_ids),
                "chosen": decode(entry.chosen_ids),
                "rejected": decode(entry.rejected_ids),
                "created_step": entry.created_step,
                "draws": entry.draws,
            }
            for entry in latest
        ],
    )
