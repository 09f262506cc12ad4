"""The recipe of `aligner sft`, and what the method says of itself."""

from __future__ import annotations

from typing import Literal

from aligner.config.choices import SINGLE_ANSWER_FORMATS
from aligner.config.generation_rules import written_by_the_trained
from aligner.config.method import Flag, TrainingMethod
from aligner.config.mosaic_rules import mosaic_of, single_turn_formats
from aligner.config.recipe import LossOn, Section, TrainRecipe
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView, refuse_formats

FORMATS = (*SINGLE_ANSWER_FORMATS, "text")
"""Formats of rows that it trains on."""


class Sft(Section):
    """Supervised fine-tuning."""

    loss_on: LossOn = "auto"
    """Which tokens are trained: every assistant turn, the last one, the completion, or everything.
    `auto`: assistant turns of conversations, completions of prompt/completion rows, everything of
    plain text."""
    packing: bool | Literal["auto"] = "auto"
    """Put several rows into one sequence without letting them see each other. `auto` decides
    from the length histogram, and from whether the model keeps rows apart."""


class SftRecipe(TrainRecipe):
    """`aligner sft`: supervised fine-tuning."""

    method: Literal["sft"] = "sft"
    """What to do."""
    sft: Sft = Sft()
    """What belongs to this method alone."""


def _packing_keeps_rows_whole(view: RecipeView) -> RecipeProblems:
    if view["trainer.packing_strategy"] == "wrapped":
        yield problem_at(
            "trainer.packing_strategy",
            "`wrapped` cuts rows and lets them see each other",
            "use bfd",
        )


def _packing_and_lengths(view: RecipeView) -> RecipeProblems:
    if view["sft.packing"] is True and view["trainer.train_sampling_strategy"] == "group_by_length":
        message = "groups rows by length, which packed sequences no longer differ in"
        yield problem_at(
            "trainer.train_sampling_strategy", message, "drop it, or set `sft.packing: false`"
        )


def _sft_formats(view: RecipeView) -> RecipeProblems:
    yield from refuse_formats(view, FORMATS, "sft", "`aligner dpo` trains on preference pairs")


def _mosaics_on_the_fly(view: RecipeView) -> RecipeProblems:
    """A training on mosaics is one run through all its epochs, so there are no ends of epochs to
    act at."""
    if view["data.mosaic"] is None:
        return
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if view[f"trainer.{key}"] == "epoch":
            yield problem_at(
                f"trainer.{key}",
                "cannot be `epoch` with `data.mosaic`",
                "use `steps`; a value below 1 is a share of all",
            )
    epochs, steps = view["trainer.num_train_epochs"], view["trainer.max_steps"]
    if epochs is not None and epochs <= 0 and not (steps or 0) > 0:
        yield problem_at(
            "trainer.num_train_epochs",
            f"is {epochs:g}, so no mosaics would be made",
            "at least a part of one",
        )
    limit, longest = view["data.mosaic.max_tokens"], view["data.max_length"]
    if limit is not None and limit > longest:
        yield problem_at(
            "data.mosaic.max_tokens",
            f"is above `data.max_length` ({longest})",
            "no row may be longer than that",
        )
    yield from single_turn_formats(view, "data.mosaic")


FLAGS = (
    Flag("packing", "sft.packing", "Put several rows into one sequence: true, false or auto."),
    Flag(
        "assistant_only_loss",
        "sft.loss_on",
        "Train on assistant turns only.",
        {True: "assistant", False: "all"},
        write="sft.loss_on: assistant",
    ),
    Flag(
        "completion_only_loss",
        "sft.loss_on",
        "Train on completions only.",
        {True: "completion", False: "all"},
        write="sft.loss_on: completion",
    ),
)


METHOD = TrainingMethod(
    recipe=SftRecipe,
    title="supervised fine-tuning",
    help="Supervised fine-tuning on conversations, completions or text.",
    examples=(
        "aligner sft tiny/sft",
        "aligner sft recipe.yaml trainer.learning_rate=1e-5 data.max_length=4096",
        "aligner sft --model Qwen/Qwen3-0.6B --data talks.jsonl --output runs/sft --use_peft",
        "aligner sft recipe.yaml 'data.mosaic={}'",
        "aligner sft recipe.yaml --num-processes 8 --resume",
    ),
    rules=(
        written_by_the_trained("here the model that is trained answers, for the report"),
        _packing_keeps_rows_whole,
        _packing_and_lengths,
        _sft_formats,
        _mosaics_on_the_fly,
        mosaic_of("data.mosaic"),
    ),
    flags=FLAGS,
    has_arena=True,
    trainer_class="trl.SFTConfig",
    settings=("loss_on", "packing"),
    metrics={"loss": False, "mean_token_accuracy": True, "entropy": False},
    charts=(
        (
            "Token accuracy",
            [
                ("train", "mean_token_accuracy", "train"),
                ("eval", "mean_token_accuracy", "held out"),
            ],
        ),
    ),
    in_short=lambda sft: f"loss on {sft.loss_on}",
)
