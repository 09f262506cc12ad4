"""Rules of `dpo`: which settings its objectives read, and what they need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aligner.config.callables import is_callable
from aligner.config.choices import (
    LABEL_SMOOTHING_LOSSES,
    LOSSES,
    NO_LOSSES_OF_PAIRS,
    OTHER_LOSS_NAMES,
    REFERENCE_FREE_LOSSES,
    REWARD_LOSSES,
    TAU_LOSSES,
)
from aligner.config.hints import did_you_mean
from aligner.config.validate import show
from aligner.config.view import Findings, Rule, View, finding
from aligner.errors import RecipeError


def _losses(view: View) -> list[str]:
    """Names and files of the objectives that `dpo.loss` asks for."""
    loss = view["dpo.loss"]
    return [str(name) for name in loss] if isinstance(loss, dict) else [str(loss)]


def _loss_exists(view: View) -> Findings:
    if not _losses(view):
        yield finding(
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
            yield finding("dpo.loss", f"{expected}, found {show(name)}", hint)


def meant_loss(name: str, known: Iterable[str]) -> str:
    """Say what a name that is not an objective's is called here, what it is, or which one is
    near."""
    if explained := NO_LOSSES_OF_PAIRS.get(name.lower()):
        return explained
    other = OTHER_LOSS_NAMES.get(name.lower())
    return f"it is called `{other}` here" if other else did_you_mean(name, known)


def objective_file(path: str, key: str = "dpo.loss") -> Findings:
    from aligner.losses.dsl.parser import read_objective

    try:
        read_objective(Path(path).expanduser())
    except RecipeError as error:
        yield finding(key, error.message, error.hint)


def _weights_are_positive(view: View) -> Findings:
    loss = view["dpo.loss"]
    for name, weight in loss.items() if isinstance(loss, dict) else ():
        if not 1e-6 <= weight <= 1e6:
            hint = "use a number above 0 (from 1e-6 to 1e6), or drop it"
            yield finding("dpo.loss", f"the weight of `{name}` is {show(weight)}", hint)
    if "sft" in _losses(view) and view["dpo.nll_weight"]:
        hint = "keep one of the two: `sft` in the mixture is the same term"
        yield finding("dpo.nll_weight", "adds the next-token loss that `sft` is already", hint)


def _settings_of_other_losses(view: View) -> Findings:
    losses = _losses(view)
    if "exo_pair" in losses and not view["dpo.label_smoothing"]:
        yield finding(
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
        yield finding("dpo.label_smoothing", f"has no effect on `{shown}`", hint)
    if view.given("dpo.tau") and not set(losses) & set(TAU_LOSSES):
        yield finding(
            "dpo.tau", f"has no effect on `{shown}`", f"it is read by {', '.join(TAU_LOSSES)}"
        )
    if view.given("dpo.simpo_gamma") and "simpo" not in losses:
        yield finding(
            "dpo.simpo_gamma", f"has no effect on `{shown}`", "it is the margin of `simpo`"
        )
    if set(losses) <= set(REFERENCE_FREE_LOSSES) and view["dpo.warmup_steps_dpo"]:
        hint = "drop it: without a reference there is no slope at the start that could be wrong"
        yield finding(
            "dpo.warmup_steps_dpo",
            f"trains DPO's loss, and `{shown}` has no reference for it",
            hint,
        )
    if set(losses) <= set(REFERENCE_FREE_LOSSES) and view["dpo.reference_model"] is not None:
        yield finding(
            "dpo.reference_model",
            f"is not read by `{shown}`",
            "drop it: the objective needs no reference",
        )


def _distillation(view: View) -> Findings:
    losses, models, several = (
        _losses(view),
        view["dpo.reward_models"],
        isinstance(view["dpo.loss"], dict),
    )
    distilled = [name for name in losses if name in REWARD_LOSSES]
    for name in distilled if several else ():
        message = f"`{name}` cannot stand in a mixture: its loss is in units of a reward"
        yield finding(
            "dpo.loss", message, "write it alone; `nll_weight` and `forward_kl` may be added to it"
        )
    if distilled and not models:
        hint = (
            "a list of scorers: `[toy]`, or the folder of a reward model that `aligner reward` "
            "has trained"
        )
        yield finding("dpo.reward_models", f"is missing, and `{distilled[0]}` needs it", hint)
    if not distilled:
        for key, default in (
            ("reward_models", []),
            ("reward_scale", 1.0),
            ("reward_combine", "mean"),
        ):
            if view[f"dpo.{key}"] != default:
                hint = f"it is read by {', '.join(REWARD_LOSSES)}"
                yield finding(f"dpo.{key}", f"has no effect on `{', '.join(losses)}`", hint)
        return
    yield from _family(view, models)
    if view["data.on_too_long"] == "truncate":
        message = "would cut answers whose rewards are those of the whole answers"
        yield finding("data.on_too_long", message, "use drop, or a larger data.max_length")
    if view["dpo.warmup_steps_dpo"]:
        message = f"trains on the labels, which `{distilled[0]}` does not read"
        yield finding("dpo.warmup_steps_dpo", message, "drop it: the slope at the start is right")


def _family(view: View, models: list[str]) -> Findings:
    for name in sorted({name for name in models if models.count(name) > 1}):
        yield finding(
            "dpo.reward_models", f"names {show(name)} more than once", "name each reward model once"
        )
    if view["dpo.reward_combine"] == "min" and len(models) == 1:
        yield finding(
            "dpo.reward_combine",
            "`min` chooses among several reward models, and there is one",
            "name more",
        )


def _forward_kl(view: View) -> Findings:
    losses, weight = _losses(view), view["dpo.forward_kl"]
    if weight and set(losses) <= set(REFERENCE_FREE_LOSSES):
        yield finding(
            "dpo.forward_kl",
            f"pulls towards a reference, and `{', '.join(losses)}` has none",
            "drop it",
        )
    if (
        weight is None
        and not set(losses) & set(REWARD_LOSSES)
        and view.given("dpo.forward_kl_tokens")
    ):
        yield finding(
            "dpo.forward_kl_tokens",
            "has no effect without `forward_kl`",
            "set dpo.forward_kl above 0",
        )


def _reference(view: View) -> Findings:
    if view["dpo.reference"] != "adapter_off":
        return
    if view["model.lora"] is None:
        hint = "add `model.lora: {}`, or use `precomputed`"
        yield finding("dpo.reference", "`adapter_off` needs an adapter to switch off", hint)
    if view["dpo.reference_model"] is not None:
        hint = "drop one: with `adapter_off` the base under the adapter is the reference"
        yield finding("dpo.reference_model", "contradicts `reference: adapter_off`", hint)


DPO_RULES: tuple[Rule, ...] = (
    _loss_exists,
    _weights_are_positive,
    _settings_of_other_losses,
    _distillation,
    _forward_kl,
    _reference,
)
