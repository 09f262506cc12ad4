"""Training a reward model: a score for an answer, learned from pairs or from ratings.

    bradley_terry   a head with one output, -log s(r_chosen - r_rejected), on TRL's RewardTrainer
    regression      a head with an output for each attribute, squared error (HelpSteer2, arXiv
                    2406.08673)
    pairwise        a language model that is asked which answer is better, A or B (arXiv 2405.07863)
    segment         Bradley-Terry on the mean of values at the ends of segments (arXiv 2501.02790)
    odin            Bradley-Terry with a second head that takes the length out of the first (arXiv
                    2402.07319)

A model that starts from a regression's result and is trained on pairs has the weighted sum of its
outputs as its head, so `regression`, then `bradley_terry` with `loss: scaled`, is the recipe of
HelpSteer2-Preference (arXiv 2410.01257). The result holds `reward_model.yaml`, a card that
`aligner.reward_models` loads again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trl import RewardConfig

from aligner.config.choices import SHARDED
from aligner.config.load import recipe_hash
from aligner.config.segments import Segments
from aligner.errors import RecipeError
from aligner.launch.world import world
from aligner.methods.job import Job
from aligner.methods.reward.collators import PairCollator, QuestionCollator, RatingCollator
from aligner.methods.reward.recipe import RewardRecipe, RewardSegments
from aligner.methods.reward.segments import (
    PART,
    cut_of,
    dtype_of,
    reference_section,
    with_segments,
)
from aligner.methods.reward.trainers import (
    BradleyTerryTrainer,
    OdinTrainer,
    QuestionTrainer,
    RegressionTrainer,
    RewardTrainerBase,
    SegmentTrainer,
)
from aligner.models.files import saved_outputs
from aligner.models.loading import load_policy, load_reward_model
from aligner.models.reward_head import has_head, merge_heads, pool_by_mask
from aligner.reward_models.card import Card, card_text, find_card
from aligner.reward_models.grants import CARD_FILE
from aligner.reward_models.heads import attribute_weights
from aligner.runs.checkpoints import step_of
from aligner.runs.files import write_atomically
from aligner.training.arguments import training_arguments
from aligner.training.fit import TrainResult, fit
from aligner.training.prefix import first_groups, settle_prefix
from aligner.training.trainer import exact_adapters, lengths_of

if TYPE_CHECKING:
    from datasets import Dataset

TRAINERS: dict[str, tuple[type[RewardTrainerBase], Any]] = {
    "bradley_terry": (BradleyTerryTrainer, PairCollator),
    "regression": (RegressionTrainer, RatingCollator),
    "pairwise": (QuestionTrainer, QuestionCollator),
    "segment": (SegmentTrainer, PairCollator),
    "odin": (OdinTrainer, PairCollator),
}
"""Kind -> its trainer, and what stacks its rows."""

LONGER_WINS = 0.6
"""Share of pairs whose longer answer is the chosen one, above which a word is said about it."""


def train(job: Job) -> TrainResult:
    """Train the reward model of the recipe on its tokenized rows, and save it with its card."""
    recipe = job.recipe
    assert isinstance(recipe, RewardRecipe)
    splits = (
        with_segments(job)
        if recipe.reward.kind == "segment"
        else (job.prepared.train, job.prepared.eval)
    )
    _refuse_unrated(recipe, splits[0])
    _tell_facts(job, splits[0])
    model = _load(job, recipe)
    kind, collator = TRAINERS[recipe.reward.kind]
    arguments = _arguments(job, recipe)
    if recipe.model.lora is not None and arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    with exact_adapters(model):
        trainer = kind(
            model=model,
            args=arguments,
            data_collator=collator(job.tokenizer.pad_token_id, recipe.data.max_length),
            train_dataset=splits[0],
            eval_dataset=splits[1],
            processing_class=job.tokenizer,
            settings=recipe.reward,
        )
    if isinstance(trainer.data_collator, PairCollator):
        trainer.data_collator = _sharing(job, recipe, trainer, splits[0])
    trainer.group_lengths = lengths_of(splits[0], job.prepared.batching.grouped)

    job.tell_trained(trainer.model, arguments.learning_rate)

    def finish(folder: Path) -> None:
        _write_card(job, recipe, trainer, folder)
        _show_scores(job, recipe, trainer, splits[1] or splits[0])

    return fit(trainer, recipe, job.run, job.on_event, finish=finish)


def _sharing(
    job: Job, recipe: RewardRecipe, trainer: RewardTrainerBase, rows: Dataset
) -> PairCollator:
    """Return the collator, its prefixes shared where the model allows it."""
    collator: PairCollator = trainer.data_collator
    if not has_head(trainer.model):
        return collator
    groups = first_groups(rows)
    prefix = settle_prefix(trainer, recipe, groups, sharded=job.is_sharded, note=job.note)
    return replace(collator, prefix=prefix)


def before_ranks(job: Job) -> None:
    """Cut the answers into segments in the launching process, so that the ranks find it done."""
    recipe = job.recipe
    assert isinstance(recipe, RewardRecipe)
    if recipe.reward.kind == "segment":
        with_segments(job)


def _arguments(job: Job, recipe: RewardRecipe) -> Any:
    return training_arguments(
        recipe,
        job.run,
        RewardConfig,
        max_length=None,
        remove_unused_columns=False,
        center_rewards_coefficient=None,
    )


# --- the model ------------------------------------------------------------------------------------


def _load(job: Job, recipe: RewardRecipe) -> Any:
    """Return the model with the outputs that its kind needs: its own, those of an earlier run, or
    freshly drawn ones."""
    kind, section = recipe.reward.kind, recipe.model
    if kind == "pairwise":
        return load_policy(section, job.tokenizer, trainable=True)
    wanted = {"regression": len(recipe.reward.attributes), "odin": 2}.get(kind, 1)
    saved = saved_outputs(section.name_or_path)
    model = load_reward_model(
        section, job.tokenizer, outputs=wanted, trainable=True, seed=recipe.seed
    )
    if saved is not None and saved != wanted:
        weights = _weights_of_start(recipe, saved)
        merge_heads(model, weights)
        job.note(
            f"the head starts as the sum of {saved} ratings, weighted "
            f"{', '.join(f'{w:g}' for w in weights)}"
        )
    if kind != "segment":  # its trainer reads every token
        pool_by_mask(model)
    return model


def _weights_of_start(recipe: RewardRecipe, outputs: int) -> list[float]:
    """The weights of the outputs that training starts from: the recipe's, else those of the card in
    the model's folder."""
    start, trusted = recipe.model.name_or_path, recipe.model.trust_remote_code
    card = find_card(start, trust_remote_code=trusted)
    names, weights = ([], {}) if card is None else (card.attributes, card.weights)
    given = recipe.reward.attribute_weights
    if not names:
        return [1.0 / outputs] * outputs
    for name in given:
        if name not in names:
            raise RecipeError(
                f"reward.attribute_weights: {start} has no attribute {name!r}",
                f"it has {', '.join(names)}",
            )
    return attribute_weights(names, given or weights)


# --- messages, and the card -----------------------------------------------------------------------


def _refuse_unrated(recipe: RewardRecipe, rows: Dataset) -> None:
    """Refuse an attribute that no row has a rating for: its output would stay random, and be a part
    of the score."""
    if recipe.reward.kind != "regression":
        return
    ratings = np.asarray(rows.with_format("numpy")["ratings"])
    for place, name in enumerate(recipe.reward.attributes):
        if bool(np.isnan(ratings[:, place]).all()):
            raise RecipeError(
                f"reward.attributes: no training row has a rating `{name}`",
                "is the column called otherwise? Drop it, or map it",
            )


def _tell_facts(job: Job, rows: Dataset) -> None:
    """Say what a reward model could learn in place of quality: length, and labels that contradict
    one another."""
    if "chosen_ids" not in rows.column_names or world()[0] != 0:
        return
    lengths = [
        len(answer) for side in ("chosen", "rejected") for answer in _arrays(rows, f"{side}_ids")
    ]
    chosen, rejected = lengths[: len(rows)], lengths[len(rows) :]
    longer, differing = (
        sum(a > b for a, b in zip(chosen, rejected)),
        sum(a != b for a, b in zip(chosen, rejected)),
    )
    mean = sum(chosen) / len(chosen), sum(rejected) / len(rejected)
    text = f"chosen answers have {mean[0]:.0f} tokens and rejected ones {mean[1]:.0f} in the mean"
    share = longer / max(1, differing)
    job.note(
        f"{text}; the longer answer is the chosen one in {share:.0%} of the pairs that differ in "
        "length"
    )
    if share > LONGER_WINS and differing >= 100 and job.recipe.reward.kind != "odin":  # type: ignore[attr-defined]
        job.warn(
            f"the longer answer wins in {share:.0%} of the pairs, so length alone ranks them "
            "well. Look at "
            "length_correlation, and at accuracy on pairs whose shorter answer is better (aligner "
            "eval --reward-model); "
            "reward.kind=odin keeps length out of the score"
        )
    seen = Counter(_contents(rows))
    both = sum(min(count, seen[(prompt, b, a)]) for (prompt, a, b), count in seen.items()) // 2
    if both:
        job.warn(
            f"{both} pairs of answers are there with both labels: no model can rank these rightly"
        )


def _arrays(rows: Dataset, column: str) -> Iterator[Any]:
    """The values of a column as arrays, a part at a time: as Python's numbers they would take ten
    times the memory."""
    for part in rows.select_columns([column]).with_format("numpy").iter(batch_size=PART):
        yield from part[column]


def _contents(rows: Dataset) -> Iterator[tuple[bytes, ...]]:
    """Short hashes of each pair's prompt and answers."""
    columns = [_arrays(rows, key) for key in ("prompt_ids", "chosen_ids", "rejected_ids")]
    for parts in zip(*columns):
        yield tuple(
            blake2b(np.ascontiguousarray(part).tobytes(), digest_size=12).digest() for part in parts
        )


def _show_scores(job: Job, recipe: RewardRecipe, trainer: RewardTrainerBase, rows: Dataset) -> None:
    """Write scores of a few answers for the report, held-out ones where there are."""
    count = min(recipe.report.num_prompts, len(rows))
    if count == 0 or (recipe.launch.strategy in SHARDED and world()[1] > 1):
        return
    picked = [rows[place] for place in range(count)]
    batch = trainer._prepare_inputs(trainer.data_collator(picked))
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.eval()
    with torch.no_grad():
        scores = trainer.scores(model, batch).tolist()
    names = SHOWN.get(recipe.reward.kind, ("chosen", "rejected"))
    read = partial(job.tokenizer.decode, skip_special_tokens=True)
    shown = []
    for row, found in zip(picked, scores):
        texts = [read(row[f"{name}_ids"]) for name in names] if names[0] != "P(right)" else [""]
        labels = names if recipe.reward.kind != "regression" else tuple(recipe.reward.attributes)
        if recipe.reward.kind == "regression":
            said = ", ".join(
                f"{label} {value:.2f} (rated {'-' if math.isnan(given) else f'{given:g}'})"
                for label, value, given in zip(labels, found, row["ratings"])
            )
            answers = [{"label": said, "score": "", "text": texts[0]}]
        else:
            answers = [
                {"label": label, "score": f"{value:.3f}", "text": text}
                for label, value, text in zip(labels, found, texts)
            ]
        shown.append(
            {"prompt": read(row.get("prompt_ids", row.get("input_ids"))), "answers": answers}
        )
    job.run.write_json("scored.json", shown)


MEANING = {
    "bradley_terry": "Higher is better, among answers to one prompt only; a difference is the "
    "log-odds "
    "that "
    "an "
    "answer is preferred.",
    "regression": "The weighted sum of the ratings, on the scale that they were given in; each "
    "stands "
    "under "
    "its name too.",
    "pairwise": "The probability that an answer is preferred, asked in both orders.",
    "segment": "The mean of the values at the ends of an answer's segments; higher is better, "
    "among "
    "answers to one prompt only.",
}
"""Kind -> what its scores mean, for the card."""

SHOWN = {"regression": ("answer",), "pairwise": ("P(right)",)}
"""Kind -> the answers of a row, as the report names them."""


def _held_out_accuracy(trainer: RewardTrainerBase) -> float | None:
    """The accuracy on held-out pairs of the weights that are saved: the best checkpoint's, where
    that was put back."""
    state = trainer.state
    found = {
        logs["step"]: logs["eval_accuracy"] for logs in state.log_history if "eval_accuracy" in logs
    }
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        return found.get(step_of(state.best_model_checkpoint))
    return list(found.values())[-1] if found else None


def _write_card(job: Job, recipe: RewardRecipe, trainer: RewardTrainerBase, folder: Path) -> None:
    reward, section = recipe.reward, recipe.model
    kind: Any = "bradley_terry" if reward.kind == "odin" else reward.kind
    said = (
        reward.kind
        if reward.kind in ("regression", "pairwise")
        else f"{reward.kind}, {reward.loss} loss"
    )
    values: dict[str, Any] = {
        "description": f"Trained by aligner reward ({said}) from {section.name_or_path}. "
        f"{MEANING[kind]}",
        "model": ".",
        "dtype": dtype_of(recipe),
        "quantization": section.quantization,
        "attn_implementation": section.attn_implementation,
        "trust_remote_code": section.trust_remote_code,
        "max_length": recipe.data.max_length,
        "recipe_hash": recipe_hash(recipe),
    }
    if section.quantization in ("nf4", "fp4"):
        values["double_quant"] = section.double_quant
    if (accuracy := _held_out_accuracy(trainer)) is not None:
        values["accuracy"] = round(accuracy, 4)
    if kind in ("bradley_terry", "regression"):
        values["pad_token"] = job.tokenizer.pad_token
    if kind == "regression":
        values |= {"attributes": reward.attributes, "weights": reward.attribute_weights}
    if kind == "segment":
        values["segments"] = _segments_of_card(job, recipe)
    write_atomically(folder / CARD_FILE, card_text(Card(kind=kind, **values)))


def _segments_of_card(job: Job, recipe: RewardRecipe) -> Segments:
    """How the answers were cut, with what decided it."""
    cut = cut_of(job.run)
    if cut.rule != "entropy":
        return cut
    reference = reference_section(recipe, recipe.reward.segments or RewardSegments())
    path = Path(reference.name_or_path).expanduser()
    name = str(path.resolve()) if path.is_dir() else reference.name_or_path
    return cut.model_copy(update={"reference": name, "revision": reference.revision})
