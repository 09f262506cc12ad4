"""Rules of single methods that join several keys of a recipe, as those of `rules.py` do for all of them."""

from __future__ import annotations

from pathlib import Path

from aligner.config.check import Finding, show
from aligner.config.choices import (
    LABEL_SMOOTHING_LOSSES,
    LOSSES,
    OTHER_LOSS_NAMES,
    PREFERENCE_FORMATS,
    REFERENCE_FREE_LOSSES,
    SAPO_LOSSES,
    SFT_FORMATS,
    SINGLE_ANSWER_FORMATS,
    TAU_LOSSES,
    WRITTEN,
)
from aligner.config.names import did_you_mean
from aligner.config.view import Findings, Rule, View, finding
from aligner.errors import RecipeError


def _packing_keeps_rows_whole(view: View) -> Findings:
    if view["trainer.packing_strategy"] == "wrapped":
        yield finding("trainer.packing_strategy", "`wrapped` cuts rows and lets them see each other", "use bfd")


def _packing_and_lengths(view: View) -> Findings:
    if view["sft.packing"] is True and view["trainer.train_sampling_strategy"] == "group_by_length":
        message = "groups rows by length, which packed sequences no longer differ in"
        yield finding("trainer.train_sampling_strategy", message, "drop it, or set `sft.packing: false`")


def _sft_formats(view: View) -> Findings:
    yield from _formats(view, SFT_FORMATS, "sft", "`aligner dpo` trains on preference pairs")


def _preference_formats(view: View) -> Findings:
    yield from _formats(
        view, PREFERENCE_FORMATS, "dpo", "it needs `chosen` and `rejected`; `aligner sft` trains on single answers"
    )


def _formats(view: View, usable: tuple[str, ...], method: str, hint: str) -> Findings:
    for path, source in [*view.sources("data.train"), *view.sources("data.eval")]:
        found = source.get("format", "auto")
        if found not in usable:
            yield Finding((*path, "format"), f"`{method}` cannot train on `{found}` rows", hint)


def _losses(view: View) -> list[str]:
    """Names and files of the objectives that `dpo.loss` asks for."""
    loss = view["dpo.loss"]
    return [str(name) for name in loss] if isinstance(loss, dict) else [str(loss)]


def _loss_exists(view: View) -> Findings:
    if not _losses(view):
        yield finding("dpo.loss", "a mixture of no objectives", "write `{sigmoid: 0.8, sft: 0.2}`, for example")
    for name in _losses(view):
        if name.endswith(".py"):
            yield from _objective_file(name)
        elif name not in LOSSES:
            other = OTHER_LOSS_NAMES.get(name.lower())
            hint = f"it is called `{other}` here" if other else did_you_mean(name, LOSSES)
            expected = f"expected one of {', '.join(LOSSES)}, or a .py file"
            yield finding("dpo.loss", f"{expected}, found {show(name)}", hint)


def _objective_file(path: str, key: str = "dpo.loss") -> Findings:
    from aligner.objective_source import read_objective

    try:
        read_objective(Path(path).expanduser())
    except RecipeError as error:
        yield finding(key, error.message, error.hint)


def _weights_are_positive(view: View) -> Findings:
    loss = view["dpo.loss"]
    for name, weight in loss.items() if isinstance(loss, dict) else ():
        if not weight > 0 or weight == float("inf"):
            yield finding("dpo.loss", f"the weight of `{name}` is {show(weight)}", "use a number above 0, or drop it")
    if "sft" in _losses(view) and view["dpo.nll_weight"]:
        hint = "keep one of the two: `sft` in the mixture is the same term"
        yield finding("dpo.nll_weight", "adds the next-token loss that `sft` is already", hint)


def _settings_of_other_losses(view: View) -> Findings:
    losses = _losses(view)
    if "exo_pair" in losses and not view["dpo.label_smoothing"]:
        yield finding(
            "dpo.label_smoothing", "must be above 0 for `exo_pair`, whose labels are soft", "0.001, for example"
        )
    if any(name not in LOSSES for name in losses):
        return
    shown = ", ".join(losses)
    smoothing = [name for name in losses if name in LABEL_SMOOTHING_LOSSES]
    if view["dpo.label_smoothing"] and not smoothing:
        hint = f"it is read by {', '.join(LABEL_SMOOTHING_LOSSES)}"
        yield finding("dpo.label_smoothing", f"has no effect on `{shown}`", hint)
    if view.given("dpo.tau") and not set(losses) & set(TAU_LOSSES):
        yield finding("dpo.tau", f"has no effect on `{shown}`", f"it is read by {', '.join(TAU_LOSSES)}")
    if view.given("dpo.simpo_gamma") and "simpo" not in losses:
        yield finding("dpo.simpo_gamma", f"has no effect on `{shown}`", "it is the margin of `simpo`")
    if set(losses) <= set(REFERENCE_FREE_LOSSES) and view["dpo.warmup_steps_dpo"]:
        hint = "drop it: without a reference there is no slope at the start that could be wrong"
        yield finding("dpo.warmup_steps_dpo", f"trains DPO's loss, and `{shown}` has no reference for it", hint)
    if set(losses) <= set(REFERENCE_FREE_LOSSES) and view["dpo.reference_model"] is not None:
        yield finding("dpo.reference_model", f"is not read by `{shown}`", "drop it: the objective needs no reference")


def _reference(view: View) -> Findings:
    if view["dpo.reference"] != "adapter_off":
        return
    if view["model.lora"] is None:
        hint = "add `model.lora: {}`, or use `precomputed`"
        yield finding("dpo.reference", "`adapter_off` needs an adapter to switch off", hint)
    if view["dpo.reference_model"] is not None:
        hint = "drop one: with `adapter_off` the base under the adapter is the reference"
        yield finding("dpo.reference_model", "contradicts `reference: adapter_off`", hint)


def _single_answers(view: View) -> Findings:
    yield from _formats(
        view, SINGLE_ANSWER_FORMATS, "sapo", "it needs prompts with one good answer each, as `sft` does"
    )


def _sapo_parts(view: View) -> Findings:
    loss, window = view["sapo.loss"], view["sapo.window"]
    if loss not in SAPO_LOSSES:
        other = OTHER_LOSS_NAMES.get(str(loss).lower())
        hint = f"it is called `{other}` here" if other else did_you_mean(str(loss), SAPO_LOSSES)
        yield finding("sapo.loss", f"expected one of {', '.join(SAPO_LOSSES)}, found {show(loss)}", hint)
    if window != "all" and window < 1:
        yield finding("sapo.window", f"is {window}", "a number of tokens from 1, or `all`")
    if view["sapo.window_from"] is not None and (window == "all" or view["sapo.window_from"] > window):
        yield finding("sapo.window_from", "must not be above `sapo.window`", "it is where the window begins to grow")
    if loss in REFERENCE_FREE_LOSSES:
        for key in ("reference", "reference_every"):
            if view.given(f"sapo.{key}"):
                yield finding(f"sapo.{key}", f"has no effect on `{loss}`, which reads no reference", "drop it")
    if view["sapo.reference"] == "fixed" and view.given("sapo.reference_every"):
        yield finding("sapo.reference_every", "has no effect with `reference: fixed`", "drop it")
    if view["sapo.temperature"] == 0 and window == "all" and view["sapo.retries"]:
        yield finding("sapo.retries", "has no effect on whole answers at temperature 0: all are the same", "drop it")
    for key in ("generate_every", "responses_per_prompt"):
        if view["sapo.buffer_size"] == 0 and view[f"sapo.{key}"] > 1:
            yield finding(f"sapo.{key}", "needs a replay buffer", "set sapo.buffer_size, or drop it")
    if view["sapo.ema_decay"] == 1 and view["sapo.export"] == "ema":
        yield finding("sapo.export", "with `ema_decay: 1` the average is what training started from", "use policy")
    if view["data.on_too_long"] == "truncate":
        message = "would cut the end off good answers, and training would then prefer answers that do not stop"
        yield finding("data.on_too_long", message, "use drop")


def _task_has_its_parts(view: View) -> Findings:
    task = view["discover.task"]
    for key in ("recipe", "prompts", "reward_model"):
        if task == "recipe" and view[f"discover.{key}"] is None:
            yield finding(f"discover.{key}", "is missing, and `task: recipe` needs it", _PARTS[key])
        if task != "recipe" and view.given(f"discover.{key}"):
            yield finding(f"discover.{key}", f"has no effect with `task: {task}`", "it belongs to `task: recipe`")
    if task == "bandit" and view["discover.overrides"]:
        yield finding("discover.overrides", "have no effect with `task: bandit`, which runs no recipe", "drop them")


_PARTS = {
    "recipe": "a DPO recipe: a file, or a shipped name",
    "prompts": "a file of prompts that the trained model answers",
    "reward_model": "`toy`, `verifier:number`, or a function of yours, `verifier:path/to/file.py:name`",
}


def _start_is_known(view: View) -> Findings:
    for name in view["discover.start"]:
        if name.endswith(".py"):
            yield from _objective_file(name, "discover.start")
        elif name not in WRITTEN:
            hint = did_you_mean(name, WRITTEN) or "or a .py file"
            yield finding("discover.start", f"expected some of {', '.join(WRITTEN)}, found {show(name)}", hint)


def _endpoint_is_whole(view: View) -> Findings:
    backend = view["endpoint.backend"]
    if backend == "scripted" and view["endpoint.script"] is None:
        yield finding("endpoint.script", "is missing, and `backend: scripted` reads its replies from it", "name a file")
    if backend != "scripted" and view.given("endpoint.script"):
        yield finding("endpoint.script", f"has no effect with `backend: {backend}`", "drop it")
    if backend in ("openai", "local") and not view["endpoint.model"] and view["endpoint.replay"] is None:
        yield finding("endpoint.model", "is missing", "the name of the model on the server, or a folder for `local`")
    if backend != "openai" and view.given("endpoint.base_url"):
        yield finding("endpoint.base_url", f"has no effect with `backend: {backend}`", "drop it")
    if view["endpoint.record"] is not None and view["endpoint.replay"] is not None:
        yield finding("endpoint.replay", "contradicts `endpoint.record`", "record a new folder, or replay an old one")
    prices = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
    if view["endpoint.budget.usd"] is not None and not any(view[f"endpoint.{price}"] for price in prices):
        yield finding(
            "endpoint.budget.usd", "needs prices to be counted with", f"set endpoint.{prices[0]} and the other"
        )


METHOD_RULES: dict[str, tuple[Rule, ...]] = {
    "sft": (_packing_keeps_rows_whole, _packing_and_lengths, _sft_formats),
    "dpo": (_preference_formats, _loss_exists, _weights_are_positive, _settings_of_other_losses, _reference),
    "sapo": (_single_answers, _sapo_parts),
    "discover": (_task_has_its_parts, _start_is_known, _endpoint_is_whole),
}
"""Rules of one method."""
