"""The recipe of `aligner dpo`: its section, the rules on which settings its losses read and what
they need, and what the method says of itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aligner.config.callables import is_callable
from aligner.config.choices import PREFERENCE_FORMATS
from aligner.config.dead_keys import no_noise_beside_a_reference, no_smoothing_of_tokens
from aligner.config.generation_rules import SERVED
from aligner.config.loss_names import (
    LABEL_SMOOTHING_LOSSES,
    LOSSES,
    REFERENCE_FREE_LOSSES,
    REWARD_LOSSES,
    TAU_LOSSES,
    meant_loss,
    objective_file,
)
from aligner.config.method import Flag, TrainingMethod
from aligner.config.mosaic_rules import no_mosaics
from aligner.config.named import Names
from aligner.config.pair_methods import PAIR_CHARTS, PAIR_METRICS
from aligner.config.recipe import Preference, Section, Strength, TrainRecipe, Weight, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at, show
from aligner.config.view import RecipeView, refuse_formats

DISTILL_FORWARD_KL = 0.1
"""Weight of the forward KL with such an objective, where `dpo.forward_kl` is left out."""


class Dpo(Section):
    """Training on preference pairs."""

    loss: Annotated[str | dict[str, float], Names("objective")] = "sigmoid"
    """The objective: a name (`sigmoid` is DPO, arXiv 2305.18290), a `.py` file with a proposed one,
    or weights of several: `{sigmoid: 0.8, sft: 0.2}`."""
    beta: Strength = 0.1
    """Strength of the pull towards the reference; the inverse temperature of the implicit
    reward."""
    max_prompt_length: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    """With `data.on_too_long: truncate`, the last so many tokens of a longer prompt are kept, and
    what is cut is counted. A prompt may then begin anywhere, without its system turn. Absent:
    prompts are never cut."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Assumed share of flipped labels, for the objectives that use it."""
    tau: Strength = 0.05
    """Temperature in the gates of the discovered objectives (arXiv 2406.08414)."""
    simpo_gamma: Weight = 0.5
    """Target margin of `simpo`, in units of its reward."""
    warmup_steps_dpo: Whole = Field(0, ge=0)
    """Optimizer steps with `sigmoid` before the objective takes over: for one that starts on a
    wrong slope."""
    alarm_steps: Whole = Field(50, ge=0)
    """Look, after so many steps, whether the share of pairs ranked rightly has stayed below a half.
    0: never."""
    on_alarm: Literal["warn", "stop"] = "warn"
    """What happens then."""
    nll_weight: Weight = 0.0
    """Weight of a next-token loss on the chosen answer, added to the objective (RPO, arXiv
    2404.19733)."""
    reward_models: Annotated[list[str], Names("scorer")] = []
    """`reward_distill`: the scorers whose rewards are followed (arXiv 2405.19316), each a card or
    `kind:argument`."""
    reward_scale: Strength | Literal["std"] = 1.0
    """`reward_distill`: what rewards are multiplied by; `std` divides each model's differences by
    their standard deviation."""
    reward_combine: Literal["mean", "min"] = "mean"
    """`reward_distill`: follow the mean of several reward models, or, pessimistically, the one
    whose loss over the batch is smallest."""
    forward_kl: Weight | None = None
    """Weight of the forward KL to the reference, in nats per answer, estimated on one answer that
    the reference writes to each prompt before training. Absent: 0.1 with `reward_distill`, else 0.
    With `sigmoid` it makes DPO pessimistic."""
    forward_kl_tokens: Whole = Field(256, ge=1)
    """Longest such answer, in tokens; `data.max_length` bounds it too."""
    reference: Literal["auto", "adapter_off", "precomputed"] = "auto"
    """Where the reference log-probabilities come from: the base under the adapter, or computed once
    and cached. `auto`: the first for a fresh LoRA adapter, the second otherwise."""
    reference_model: Annotated[str | None, Names("model")] = None
    """Another model as the reference. Absent: the model that training starts from."""


class DpoRecipe(TrainRecipe):
    """`aligner dpo`: training on preference pairs."""

    method: Literal["dpo"] = "dpo"
    """What to do."""
    dpo: Dpo = Dpo()
    """What belongs to this method alone."""
    preference: Preference = Preference()
    """How answers to one prompt are computed."""


def _preference_formats(view: RecipeView) -> RecipeProblems:
    yield from refuse_formats(
        view,
        PREFERENCE_FORMATS,
        "dpo",
        "it needs `chosen` and `rejected`; `aligner sft` trains on single answers",
    )


def _losses(view: RecipeView) -> list[str]:
    """Names and files of the objectives that `dpo.loss` asks for."""
    loss = view["dpo.loss"]
    return [str(name) for name in loss] if isinstance(loss, dict) else [str(loss)]


def _loss_exists(view: RecipeView) -> RecipeProblems:
    if not _losses(view):
        yield problem_at(
            "dpo.loss",
            "a mixture of no objectives",
            "write `{sigmoid: 0.8, sft: 0.2}`, for example",
        )
    for name in _losses(view):
        if name.endswith(".py"):
            yield from objective_file(name)
        elif name not in LOSSES and not is_callable(name):
            hint = meant_loss(name, LOSSES)
            expected = f"expected one of {', '.join(LOSSES)}, or a .py file"
            yield problem_at("dpo.loss", f"{expected}, found {show(name)}", hint)


def _weights_are_positive(view: RecipeView) -> RecipeProblems:
    loss = view["dpo.loss"]
    for name, weight in loss.items() if isinstance(loss, dict) else ():
        if not 1e-6 <= weight <= 1e6:
            hint = "use a number above 0 (from 1e-6 to 1e6), or drop it"
            yield problem_at("dpo.loss", f"the weight of `{name}` is {show(weight)}", hint)
    if "sft" in _losses(view) and view["dpo.nll_weight"]:
        hint = "keep one of the two: `sft` in the mixture is the same term"
        yield problem_at("dpo.nll_weight", "adds the next-token loss that `sft` is already", hint)


def _settings_of_other_losses(view: RecipeView) -> RecipeProblems:
    losses = _losses(view)
    if "exo_pair" in losses and not view["dpo.label_smoothing"]:
        yield problem_at(
            "dpo.label_smoothing",
            "must be above 0 for `exo_pair`, whose labels are soft",
            "0.001, for example",
        )
    if any(name not in LOSSES for name in losses):
        return
    shown = ", ".join(losses)
    smoothing = [name for name in losses if name in LABEL_SMOOTHING_LOSSES]
    if view["dpo.label_smoothing"] and not smoothing:
        hint = f"it is read by {', '.join(LABEL_SMOOTHING_LOSSES)}"
        yield problem_at("dpo.label_smoothing", f"has no effect on `{shown}`", hint)
    if view.given("dpo.tau") and not set(losses) & set(TAU_LOSSES):
        yield problem_at(
            "dpo.tau", f"has no effect on `{shown}`", f"it is read by {', '.join(TAU_LOSSES)}"
        )
    if view.given("dpo.simpo_gamma") and "simpo" not in losses:
        yield problem_at(
            "dpo.simpo_gamma", f"has no effect on `{shown}`", "it is the margin of `simpo`"
        )
    if set(losses) <= set(REFERENCE_FREE_LOSSES) and view["dpo.warmup_steps_dpo"]:
        hint = "drop it: without a reference there is no slope at the start that could be wrong"
        yield problem_at(
            "dpo.warmup_steps_dpo",
            f"trains DPO's loss, and `{shown}` has no reference for it",
            hint,
        )
    if set(losses) <= set(REFERENCE_FREE_LOSSES) and view["dpo.reference_model"] is not None:
        yield problem_at(
            "dpo.reference_model",
            f"is not read by `{shown}`",
            "drop it: the objective needs no reference",
        )


def _prompts_are_cut(view: RecipeView) -> RecipeProblems:
    if view["dpo.max_prompt_length"] is None or view["data.on_too_long"] == "truncate":
        return
    hint = "set data.on_too_long=truncate, or drop it: `data.max_length` counts prompts too"
    message = f"cuts nothing with `data.on_too_long: {view['data.on_too_long']}`"
    yield problem_at("dpo.max_prompt_length", message, hint)


def _distillation(view: RecipeView) -> RecipeProblems:
    losses, models, several = (
        _losses(view),
        view["dpo.reward_models"],
        isinstance(view["dpo.loss"], dict),
    )
    distilled = [name for name in losses if name in REWARD_LOSSES]
    for name in distilled if several else ():
        message = f"`{name}` cannot stand in a mixture: its loss is in units of a reward"
        yield problem_at(
            "dpo.loss", message, "write it alone; `nll_weight` and `forward_kl` may be added to it"
        )
    if distilled and not models:
        hint = (
            "a list of scorers: `[toy]`, or the folder of a reward model that `aligner reward` "
            "has trained"
        )
        yield problem_at("dpo.reward_models", f"is missing, and `{distilled[0]}` needs it", hint)
    if not distilled:
        for key, default in (
            ("reward_models", []),
            ("reward_scale", 1.0),
            ("reward_combine", "mean"),
        ):
            if view[f"dpo.{key}"] != default:
                hint = f"it is read by {', '.join(REWARD_LOSSES)}"
                yield problem_at(f"dpo.{key}", f"has no effect on `{', '.join(losses)}`", hint)
        return
    yield from _family(view, models)
    if view["data.on_too_long"] == "truncate":
        message = "would cut answers whose rewards are those of the whole answers"
        yield problem_at("data.on_too_long", message, "use drop, or a larger data.max_length")
    if view["dpo.warmup_steps_dpo"]:
        message = f"trains on the labels, which `{distilled[0]}` does not read"
        yield problem_at(
            "dpo.warmup_steps_dpo", message, "drop it: the slope at the start is right"
        )


def _family(view: RecipeView, models: list[str]) -> RecipeProblems:
    for name in sorted({name for name in models if models.count(name) > 1}):
        yield problem_at(
            "dpo.reward_models", f"names {show(name)} more than once", "name each reward model once"
        )
    if view["dpo.reward_combine"] == "min" and len(models) == 1:
        yield problem_at(
            "dpo.reward_combine",
            "`min` chooses among several reward models, and there is one",
            "name more",
        )


def _forward_kl(view: RecipeView) -> RecipeProblems:
    losses, weight = _losses(view), view["dpo.forward_kl"]
    if weight and set(losses) <= set(REFERENCE_FREE_LOSSES):
        yield problem_at(
            "dpo.forward_kl",
            f"pulls towards a reference, and `{', '.join(losses)}` has none",
            "drop it",
        )
    if weight is None and not _distils(view) and view.given("dpo.forward_kl_tokens"):
        yield problem_at(
            "dpo.forward_kl_tokens",
            "has no effect without `forward_kl`",
            "set dpo.forward_kl above 0",
        )


def _engine_of_the_reference(view: RecipeView) -> RecipeProblems:
    """An engine with weights of its own can be the reference, and nothing else."""
    engine, weight = view["generation.engine"], view["dpo.forward_kl"]
    if engine not in SERVED:
        return
    if not (DISTILL_FORWARD_KL if weight is None and _distils(view) else weight):
        message = (
            f"is `{engine}`, which has weights of its own: it can answer as the reference for "
            "`dpo.forward_kl`, which is not asked for"
        )
        yield problem_at("generation.engine", message, "use hf, or hf_cb")
    if view["launch.num_processes"] > 1 and engine == "vllm":
        message = "is `vllm`, which one process loads, and several train"
        yield problem_at("generation.engine", message, "use hf, or a server (`endpoint`)")


def _distils(view: RecipeView) -> bool:
    return bool(set(_losses(view)) & set(REWARD_LOSSES))


def _reference(view: RecipeView) -> RecipeProblems:
    if view["dpo.reference"] != "adapter_off":
        return
    if view["model.lora"] is None:
        hint = "add `model.lora: {}`, or use `precomputed`"
        yield problem_at("dpo.reference", "`adapter_off` needs an adapter to switch off", hint)
    if view["dpo.reference_model"] is not None:
        hint = "drop one: with `adapter_off` the base under the adapter is the reference"
        yield problem_at("dpo.reference_model", "contradicts `reference: adapter_off`", hint)


FLAGS = (
    Flag("beta", "dpo.beta", "Strength of the pull towards the reference."),
    Flag("loss_type", "dpo.loss", "Objective: sigmoid, ipo, hinge, discopop, ..."),
    Flag("label_smoothing", "dpo.label_smoothing", "Assumed share of flipped labels."),
    Flag("discopop_tau", "dpo.tau", "Temperature of the discovered objectives."),
    Flag("simpo_gamma", "dpo.simpo_gamma", "Target margin of simpo."),
    Flag(
        "precompute_ref_log_probs",
        "dpo.reference",
        "Compute the reference once and keep it.",
        {True: "precomputed", False: "auto"},
        write="dpo.reference: precomputed",
    ),
)


def _loss_in_short(dpo: Dpo) -> str:
    mixture = {} if isinstance(dpo.loss, str) else dpo.loss
    loss = " + ".join(f"{weight:g} {name}" for name, weight in mixture.items()) or dpo.loss
    return f"{loss}, beta {dpo.beta:g}"


OF_OBJECTIVES = (
    _loss_exists,
    _weights_are_positive,
    _settings_of_other_losses,
    no_mosaics,
    no_smoothing_of_tokens(
        f"set `dpo.label_smoothing`, which {', '.join(LABEL_SMOOTHING_LOSSES)} read"
    ),
    no_noise_beside_a_reference("dpo.loss"),
)
"""The rules of every method that trains pairs by `dpo.loss`."""

METHOD = TrainingMethod(
    recipe=DpoRecipe,
    title="direct preference optimization",
    help="Direct preference optimization, on pairs of answers.",
    examples=(
        "aligner dpo tiny/dpo",
        "aligner dpo recipe.yaml dpo.beta=0.05 model.lora.r=32",
        "aligner dpo --model runs/sft/final --data pairs.jsonl --output runs/dpo --beta 0.1",
        "aligner dpo recipe.yaml --dry-run",
        "aligner dpo --loss-table dpo.tau=0.2",
    ),
    rules=(
        _preference_formats,
        _prompts_are_cut,
        _distillation,
        _forward_kl,
        _engine_of_the_reference,
        _reference,
        *OF_OBJECTIVES,
    ),
    flags=FLAGS,
    has_arena=True,
    trainer_class="transformers.TrainingArguments",
    # TRL's for DPO; transformers' 5e-5 would wreck a policy
    defaults={"learning_rate": 1e-6},
    settings=("loss", "beta", "label_smoothing"),
    metrics={
        **PAIR_METRICS,
        "forward_kl": False,
        "distill/error": False,
        "distill/accuracies": True,
    },
    charts=PAIR_CHARTS,
    in_short=_loss_in_short,
    card_note=lambda dpo: f"`{dpo['loss']}` loss",
    objective_key="dpo.loss",
)
