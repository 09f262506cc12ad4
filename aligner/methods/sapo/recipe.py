"""The recipe of `aligner sapo`, and what the method says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from aligner.config.choices import SINGLE_ANSWER_FORMATS
from aligner.config.dead_keys import no_noise_beside_a_reference, no_smoothing_of_tokens
from aligner.config.generation_rules import sampled_from_whole, written_by_the_trained
from aligner.config.loss_names import LOSSES, REFERENCE_FREE_LOSSES, REWARD_LOSSES, meant_loss
from aligner.config.method import TrainingMethod
from aligner.config.mosaic_rules import no_mosaics
from aligner.config.named import Names
from aligner.config.pair_methods import PAIR_CHARTS, PAIR_METRICS
from aligner.config.recipe import Preference, Section, Strength, TrainRecipe, Weight, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at, show
from aligner.config.view import RecipeView, refuse_formats

SAPO_LOSSES = tuple(name for name in LOSSES if name not in ("exo_pair", "sft", *REWARD_LOSSES))
"""Objectives that `sapo.loss` may name: those that compare, and need no setting of their own."""


AVERAGE, REFERENCE, BUFFER = (
    "sapo_average.safetensors",
    "sapo_reference.safetensors",
    "sapo_buffer.safetensors",
)
"""What it adds to a checkpoint: the average that writes, the reference that moves, the pairs to
draw from."""


class Sapo(Section):
    """Self-Augmented Preference Optimization (arXiv 2405.20830): preferences out of single good
    answers."""

    loss: str = "sigmoid"
    """The objective: a name of the catalogue. `sigmoid` is SAPO-DPO, `orpo` SAPO-ORPO."""
    beta: Strength = 0.1
    """Strength of the pull towards the reference; the lambda of `orpo` (0.05 in the paper)."""
    nll_weight: Weight = 0.0
    """Weight of a next-token loss on the good answer, added to the objective. Not in the paper."""
    window: Whole | Literal["all"] = 256
    """Tokens of a good answer that are rewritten, at a random place; `all` rewrites the whole
    answer."""
    window_from: Whole | None = Field(None, ge=1)
    """Let the window grow from so many tokens to `window` over the training. Not in the paper."""
    suffix: Literal["keep", "drop"] = "keep"
    """What follows the window in the rewritten answer: the original text, as in the paper, or
    nothing."""
    responses_per_prompt: int = Field(1, ge=1, le=1000)
    """Rewrites of each row."""
    generate_every: Whole = Field(1, ge=1)
    """Optimizer steps between rewrites; in between, pairs come from the buffer alone."""
    generation_batch_size: int | None = Field(None, ge=1, le=65_536)
    """Rewrites decoded together. Absent: all of an optimizer step on this process."""
    temperature: float = Field(0.7, ge=0.0, le=100.0)
    """Sampling temperature of the rewrites."""
    top_k: Whole = Field(50, ge=0)
    """Sample from the k likeliest tokens; 0: from all."""
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    """Sample from the likeliest tokens that hold this share."""
    buffer_size: int = Field(2000, ge=0, le=100_000_000)
    """Pairs in the replay buffer, over all processes together. 0: no replay, the pairs of a step
    are trained in that step."""
    ema_decay: float = Field(0.5, ge=0.0, le=1.0)
    """Weight of the old in the moving average that writes. 1: it stays what training started
    from."""
    ema_every: Whole = Field(1, ge=1)
    """Optimizer steps between two updates of the average."""
    reference: Literal["ema", "policy", "fixed"] = "ema"
    """What the reference is refreshed from: the average, the policy, or nothing."""
    reference_every: Whole | None = Field(None, ge=1)
    """Optimizer steps between two refreshments. Absent: the steps of an epoch."""
    dead_pairs: Literal["keep", "drop"] = "keep"
    """Pairs whose rewrite is the answer again have no gradient; `drop` keeps them out of the
    buffer. Not in the paper."""
    retries: int = Field(0, ge=0, le=1000)
    """Further attempts at a rewrite that is the answer again, or as good. Not in the paper."""
    verifier: Annotated[str | None, Names("scorer")] = None
    """A scorer (`verifier:number`, `toy`): a rewrite that it scores as high as the answer is not
    used. Not in the paper."""
    export: Literal["policy", "ema"] = "policy"
    """Which weights become the result: those that were trained, or their moving average."""
    offload: bool = False
    """Keep average and reference on the CPU, for full fine-tuning where GPU memory is short."""


class SapoRecipe(TrainRecipe):
    """`aligner sapo`: Self-Augmented Preference Optimization."""

    method: Literal["sapo"] = "sapo"
    """What to do."""
    sapo: Sapo = Sapo()
    """What belongs to this method alone."""
    preference: Preference = Preference()
    """How answers to one prompt are computed."""


def _single_answers(view: RecipeView) -> RecipeProblems:
    yield from refuse_formats(
        view,
        SINGLE_ANSWER_FORMATS,
        "sapo",
        "it needs prompts with one good answer each, as `sft` does",
    )


def _sapo_parts(view: RecipeView) -> RecipeProblems:
    loss, window = view["sapo.loss"], view["sapo.window"]
    if loss not in SAPO_LOSSES:
        hint = meant_loss(str(loss), SAPO_LOSSES)
        yield problem_at(
            "sapo.loss", f"expected one of {', '.join(SAPO_LOSSES)}, found {show(loss)}", hint
        )
    if window != "all" and window < 1:
        yield problem_at("sapo.window", f"is {window}", "a number of tokens from 1, or `all`")
    if view["sapo.window_from"] is not None and (
        window == "all" or view["sapo.window_from"] > window
    ):
        yield problem_at(
            "sapo.window_from",
            "must not be above `sapo.window`",
            "it is where the window begins to grow",
        )
    if 0 < view["sapo.temperature"] < 1e-3:
        yield problem_at(
            "sapo.temperature",
            f"is {show(view['sapo.temperature'])}",
            "0 takes the likeliest token",
        )
    if loss in REFERENCE_FREE_LOSSES:
        for key in ("reference", "reference_every"):
            if view.given(f"sapo.{key}"):
                yield problem_at(
                    f"sapo.{key}", f"has no effect on `{loss}`, which reads no reference", "drop it"
                )
    if view["sapo.reference"] == "fixed" and view.given("sapo.reference_every"):
        yield problem_at("sapo.reference_every", "has no effect with `reference: fixed`", "drop it")
    if view["sapo.temperature"] == 0 and window == "all" and view["sapo.retries"]:
        yield problem_at(
            "sapo.retries",
            "has no effect on whole answers at temperature 0: all are the same",
            "drop it",
        )
    for key in ("generate_every", "responses_per_prompt"):
        if view["sapo.buffer_size"] == 0 and view[f"sapo.{key}"] > 1:
            yield problem_at(
                f"sapo.{key}", "needs a replay buffer", "set sapo.buffer_size, or drop it"
            )
    if view["sapo.ema_decay"] == 1 and view["sapo.export"] == "ema":
        yield problem_at(
            "sapo.export",
            "with `ema_decay: 1` the average is what training started from",
            "use policy",
        )
    if view["data.on_too_long"] == "truncate":
        message = (
            "would cut the end off good answers, and training would then prefer answers that do "
            "not stop"
        )
        yield problem_at("data.on_too_long", message, "use drop")


def _checkpoint_files(recipe: SapoRecipe) -> Mapping[str, str]:
    files = {AVERAGE: "the average that writes"}
    if recipe.sapo.loss not in REFERENCE_FREE_LOSSES:
        files[REFERENCE] = "the reference"
    if recipe.sapo.buffer_size:
        files[BUFFER] = "the pairs to draw from"
    return files


METHOD = TrainingMethod(
    recipe=SapoRecipe,
    title="Self-Augmented Preference Optimization (arXiv 2405.20830)",
    help=(
        "Self-Augmented Preference Optimization (arXiv 2405.20830): a moving average of the policy "
        "rewrites a window of each good answer, and the policy is trained to prefer the answer. "
        "Not to be confused with the GRPO loss `sapo` (Soft Adaptive Policy Optimization) of other "
        "tools."
    ),
    examples=(
        "aligner sapo tiny/sapo",
        "aligner sapo recipe.yaml sapo.window=128 sapo.suffix=drop",
        "aligner sapo --model runs/sft/final --data talks.jsonl --output runs/sapo --use_peft",
        "aligner sapo recipe.yaml sapo.loss=orpo sapo.beta=0.05",
    ),
    rules=(
        _single_answers,
        written_by_the_trained("here a moving average of what is trained writes"),
        sampled_from_whole("answers are rewritten by"),
        _sapo_parts,
        no_mosaics,
        no_smoothing_of_tokens("drop it: the objectives of `sapo` take labels as they are"),
        no_noise_beside_a_reference("sapo.loss"),
    ),
    has_arena=True,
    trainer_class="transformers.TrainingArguments",
    defaults={"learning_rate": 5e-7},  # the authors' for the DPO variant
    settings=("loss", "beta", "window", "temperature"),
    metrics=PAIR_METRICS,
    charts=PAIR_CHARTS,
    in_short=lambda sapo: f"{sapo.loss}, beta {sapo.beta:g}",
    card_note=lambda sapo: f"`{sapo['loss']}` loss",
    checkpoint_files=_checkpoint_files,
)
