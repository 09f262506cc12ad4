"""Training a reward model: a score for an answer, learned from pairs or from ratings.

    bradley_terry   a head with one output, -log s(r_chosen - r_rejected), on TRL's RewardTrainer
    regression      a head with an output for each attribute, squared error (HelpSteer2, arXiv 2406.08673)
    pairwise        a language model that is asked which answer is better, A or B (arXiv 2405.07863)
    segment         Bradley-Terry on the mean of values at the ends of segments (arXiv 2501.02790)
    odin            Bradley-Terry with a second head that takes the length out of the first (arXiv 2402.07319)

A model that starts from a regression's result and is trained on pairs has the weighted sum of its outputs as its head, so
`regression`, then `bradley_terry` with `loss: scaled`, is the recipe of HelpSteer2-Preference (arXiv 2410.01257). The result holds
`reward_model.yaml`, a card that `aligner.reward_models` loads again.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from trl import RewardConfig

from aligner.chat import stop_token_ids
from aligner.config.load import recipe_hash
from aligner.config.schema import RewardRecipe, RewardSegments
from aligner.errors import RecipeError
from aligner.events import StageProgress
from aligner.heads import join_outputs
from aligner.launch import world
from aligner.methods.job import SHARDED, Job
from aligner.model_files import ADAPTER_FILE, saved_outputs
from aligner.models import load_policy, load_reward_model, load_tokenizer, resolve_dtype
from aligner.record import dumps, write_atomically
from aligner.reward_models.card import CARD_FILE, Card, Segments, card_text, find_card
from aligner.reward_models.heads import attribute_weights
from aligner.reward_trainer import (
    BradleyTerryTrainer,
    OdinTrainer,
    PairCollator,
    QuestionCollator,
    QuestionTrainer,
    RatingCollator,
    RegressionTrainer,
    RewardSteps,
    SegmentTrainer,
)
from aligner.segments import answer_entropies, segment_ends
from aligner.training import Fitted, fit, lengths_of, training_arguments

if TYPE_CHECKING:
    from datasets import Dataset

TRAINERS: dict[str, tuple[type[RewardSteps], Any]] = {
    "bradley_terry": (BradleyTerryTrainer, PairCollator),
    "regression": (RegressionTrainer, RatingCollator),
    "pairwise": (QuestionTrainer, QuestionCollator),
    "segment": (SegmentTrainer, PairCollator),
    "odin": (OdinTrainer, PairCollator),
}
"""Kind -> its trainer, and what stacks its rows."""

LEARNING_RATE = 1e-5
"""Our default for full fine-tuning; TRL's 1e-4 is meant for LoRA, and published 8B models used 2e-6."""
LORA_LEARNING_RATE = 1e-4
EPOCHS = 1
"""Our default, as of all published reward models; more usually overfits. TRL's is 3."""
LONGER_WINS = 0.6
"""Share of pairs whose longer answer is the chosen one, above which a word is said about it."""


def train(job: Job) -> Fitted:
    """Train the reward model of the recipe on its tokenised rows, and save it with its card."""
    recipe = job.recipe
    assert isinstance(recipe, RewardRecipe)
    splits = _with_segments(job) if recipe.reward.kind == "segment" else (job.prepared.train, job.prepared.eval)
    _tell_facts(job, splits[0])
    model = _load(job, recipe)
    kind, collator = TRAINERS[recipe.reward.kind]
    arguments = _arguments(job, recipe)
    if recipe.model.lora is not None and arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    trainer = kind(
        model=model,
        args=arguments,
        data_collator=collator(job.tokenizer.pad_token_id),
        train_dataset=splits[0],
        eval_dataset=splits[1],
        processing_class=job.tokenizer,
        settings=recipe.reward,
    )
    _keep_trained_in_float32(trainer.model)
    trainer.group_lengths = lengths_of(splits[0], job.prepared.batching.grouped)

    def finish(folder: Path) -> None:
        _write_card(job, recipe, trainer, folder)
        _show_scores(job, recipe, trainer, splits[1] or splits[0])

    return fit(trainer, recipe, job.run, job.on_event, finish=finish)


def before_ranks(job: Job) -> None:
    """Cut the answers into segments in the launching process, so that the ranks find it done."""
    recipe = job.recipe
    assert isinstance(recipe, RewardRecipe)
    if recipe.reward.kind == "segment":
        _with_segments(job)


def _arguments(job: Job, recipe: RewardRecipe) -> Any:
    ours = {
        "learning_rate": LEARNING_RATE if recipe.model.lora is None else LORA_LEARNING_RATE,
        "num_train_epochs": EPOCHS,
    }
    filled = recipe.model_copy(update={"trainer": {**ours, **recipe.trainer}})
    return training_arguments(
        filled, job.run, RewardConfig, max_length=None, remove_unused_columns=False, center_rewards_coefficient=None
    )


# --- the model -----------------------------------------------------------------------------------------------------


def _load(job: Job, recipe: RewardRecipe) -> Any:
    """Return the model with the outputs that its kind needs: its own, those of an earlier run, or freshly drawn ones."""
    kind, section = recipe.reward.kind, recipe.model
    if kind == "pairwise":
        return load_policy(section, job.tokenizer, trainable=True)
    wanted = {"regression": len(recipe.reward.attributes), "odin": 2}.get(kind, 1)
    saved = saved_outputs(section.name_or_path)
    if saved is not None:
        _refuse_other_head(recipe, saved)
    model = load_reward_model(section, job.tokenizer, outputs=wanted, trainable=True, seed=recipe.seed)
    if saved is not None and saved != wanted:
        weights = _weights_of_start(recipe, saved)
        join_outputs(model, weights)
        job.note(f"The head starts as the sum of {saved} ratings, weighted {', '.join(f'{w:g}' for w in weights)}.")
    return model


def _refuse_other_head(recipe: RewardRecipe, saved: int) -> None:
    """Refuse a start whose head means something else than the outputs of this kind."""
    start, kind = recipe.model.name_or_path, recipe.reward.kind
    if kind == "odin":
        raise RecipeError(
            f"model.name_or_path: {start} is a reward model already, and odin trains two new outputs",
            "start from a model that writes text",
        )
    if kind == "regression":
        card = find_card(start)
        rated = card.attributes if card is not None else []
        if saved != len(recipe.reward.attributes) or (rated and rated != recipe.reward.attributes):
            raise RecipeError(
                f"model.name_or_path: {start} rates {', '.join(rated) or f'{saved} attributes'}, reward.attributes are "
                f"{', '.join(recipe.reward.attributes)}",
                "give the same attributes in the same order, or start from a model that writes text",
            )
    is_adapter = (Path(start).expanduser() / ADAPTER_FILE).is_file()
    if kind != "regression" and saved != 1 and is_adapter and recipe.model.lora is not None:
        raise RecipeError(
            f"model.name_or_path: the adapter in {start} has {saved} outputs, and {kind} has one",
            "leave out model.lora to train the merged model",
        )


def _weights_of_start(recipe: RewardRecipe, outputs: int) -> list[float]:
    """The weights of the outputs that training starts from: the recipe's, else those of the card in the model's folder."""
    card = find_card(recipe.model.name_or_path)
    names, weights = ([], {}) if card is None else (card.attributes, card.weights)
    given = recipe.reward.attribute_weights
    if not names:
        return [1.0 / outputs] * outputs
    for name in given:
        if name not in names:
            raise RecipeError(
                f"reward.attribute_weights: {recipe.model.name_or_path} has no attribute {name!r}",
                f"it has {', '.join(names)}",
            )
    return attribute_weights(names, given or weights)


def _keep_trained_in_float32(model: Any) -> None:
    """Undo TRL's cast of the adapters to bfloat16 over a quantized base: small updates of Adam would round to nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16 and getattr(model, "is_quantized", False):
            parameter.data = parameter.data.float()


# --- segments ------------------------------------------------------------------------------------------------------


def _with_segments(job: Job) -> tuple[Dataset, Dataset | None]:
    """Return both splits with the ends of their answers' segments, found once and kept in the run directory."""
    held_out = job.prepared.eval
    return _cut(job, job.prepared.train, "train"), None if held_out is None else _cut(job, held_out, "eval")


def _cut(job: Job, rows: Dataset, name: str) -> Dataset:
    file = job.run.prepared_dir / f"segments-{name}.json"
    state = PartialState()
    if state.is_main_process and not file.is_file():
        write_atomically(file, dumps(_ends(job, rows, name)))
    state.wait_for_everyone()
    found = job.run.read_json(os.path.relpath(file, job.run.dir))
    for side in ("chosen", "rejected"):
        rows = rows.add_column(f"{side}_ends", found[side])
    return rows


def _ends(job: Job, rows: Dataset, name: str) -> dict[str, list[list[int]]]:
    """The ends of the segments of all chosen and all rejected answers."""
    recipe = job.recipe
    assert isinstance(recipe, RewardRecipe)
    segments, stops = recipe.reward.segments or RewardSegments(), stop_token_ids(job.tokenizer)
    sides = {side: list(zip(rows["prompt_ids"], rows[f"{side}_ids"])) for side in ("chosen", "rejected")}
    entropies: dict[str, Sequence[Any]] = {side: [None] * len(rows) for side in sides}
    if segments.rule == "entropy":
        entropies = _entropies(job, recipe, segments, sides, name)
    return {
        side: [
            segment_ends(segments.rule, answer, job.tokenizer, entropies=known, cutoff=segments.cutoff, stop_ids=stops)
            for (_, answer), known in zip(sides[side], entropies[side])
        ]
        for side in sides
    }


def _entropies(
    job: Job, recipe: RewardRecipe, segments: RewardSegments, sides: dict[str, list[Any]], name: str
) -> dict[str, Sequence[Any]]:
    section = reference_section(recipe, segments)
    if saved_outputs(section.name_or_path) is not None:
        raise RecipeError(
            "reward.segments.reference is missing: training starts from a reward model, which foresees no tokens",
            "name the model whose entropies cut the answers",
        )
    tokenizer = load_tokenizer(section)
    if tokenizer.get_vocab() != job.tokenizer.get_vocab():
        raise RecipeError(
            f"reward.segments.reference: {section.name_or_path} has another tokenizer than {recipe.model.name_or_path}",
            "segments are places between tokens, so both models must have the same ones",
        )
    reference = load_policy(section, job.tokenizer, trainable=False)

    def tell(done: int, total: int) -> None:
        if job.on_event:
            job.on_event(StageProgress(f"cutting {name} answers into segments", done, total))

    both = answer_entropies(
        reference, [*sides["chosen"], *sides["rejected"]], pad_token_id=job.tokenizer.pad_token_id, on_progress=tell
    )
    count = len(sides["chosen"])
    return {"chosen": both[:count], "rejected": both[count:]}


def reference_section(recipe: RewardRecipe, segments: RewardSegments) -> Any:
    """Return the model section of the reference that cuts answers."""
    if segments.reference is None:
        return recipe.model.model_copy(update={"lora": None})
    return recipe.model.model_copy(
        update={"name_or_path": segments.reference, "revision": None, "lora": None, "quantization": "none"}
    )


# --- what is told, and the card ------------------------------------------------------------------------------------


def _tell_facts(job: Job, rows: Dataset) -> None:
    """Say what a reward model could learn in place of quality: length, and labels that contradict one another."""
    if "chosen_ids" not in rows.column_names or world()[0] != 0:
        return
    chosen, rejected = (list(map(len, rows[f"{side}_ids"])) for side in ("chosen", "rejected"))
    longer, differing = sum(a > b for a, b in zip(chosen, rejected)), sum(a != b for a, b in zip(chosen, rejected))
    mean = sum(chosen) / len(chosen), sum(rejected) / len(rejected)
    told = f"Chosen answers have {mean[0]:.0f} tokens and rejected ones {mean[1]:.0f} in the mean"
    share = longer / max(1, differing)
    job.note(f"{told}; the longer answer is the chosen one in {share:.0%} of the pairs that differ in length.")
    if share > LONGER_WINS and differing >= 100 and job.recipe.reward.kind != "odin":  # type: ignore[attr-defined]
        job.warn(
            f"The longer answer wins in {share:.0%} of the pairs, so length alone ranks them well. Look at "
            "length_correlation, and at accuracy on pairs whose shorter answer is better (aligner eval --reward-model); "
            "reward.kind=odin keeps length out of the score."
        )
    seen = Counter(_contents(row) for row in rows)
    both = sum(min(count, seen[(prompt, b, a)]) for (prompt, a, b), count in seen.items()) // 2
    if both:
        job.warn(f"{both} pairs of answers are there with both labels: no model can rank these rightly.")


def _contents(row: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row[key]) for key in ("prompt_ids", "chosen_ids", "rejected_ids"))


def _show_scores(job: Job, recipe: RewardRecipe, trainer: RewardSteps, rows: Dataset) -> None:
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
        shown.append({"prompt": read(row.get("prompt_ids", row.get("input_ids"))), "answers": answers})
    job.run.write_json("scored.json", shown)


SHOWN = {"regression": ("answer",), "pairwise": ("P(right)",)}
"""Kind -> the answers of a row, as the report names them."""


def _write_card(job: Job, recipe: RewardRecipe, trainer: RewardSteps, folder: Path) -> None:
    reward, section = recipe.reward, recipe.model
    held_out = [logs["eval_accuracy"] for logs in trainer.state.log_history if "eval_accuracy" in logs]
    kind: Any = "bradley_terry" if reward.kind == "odin" else reward.kind
    values: dict[str, Any] = {
        "name": job.run.dir.resolve().name,
        "description": f"Trained by aligner reward ({reward.kind}, {reward.loss} loss) from {section.name_or_path}.",
        "model": ".",
        "dtype": str(resolve_dtype(section, trainable=True)).removeprefix("torch."),
        "quantization": section.quantization,
        "attn_implementation": section.attn_implementation,
        "trust_remote_code": section.trust_remote_code,
        "max_length": recipe.data.max_length,
        "fingerprint": recipe_hash(recipe),
    }
    if section.quantization in ("nf4", "fp4"):
        values["double_quant"] = section.double_quant
    if held_out:
        values["accuracy"] = round(held_out[-1], 4)
    if kind == "regression":
        values |= {"attributes": reward.attributes, "weights": reward.attribute_weights}
    if kind == "segment":
        segments = reward.segments or RewardSegments()
        if segments.rule == "entropy":
            reference = reference_section(recipe, segments).name_or_path
            path = Path(reference).expanduser()
            values["segments"] = Segments(
                cutoff=segments.cutoff, reference=str(path.resolve()) if path.is_dir() else reference
            )
        else:
            values["segments"] = Segments(rule=segments.rule)
    write_atomically(folder / CARD_FILE, card_text(Card(kind=kind, **values)))
