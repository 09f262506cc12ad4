"""Rules on `trainer:`: values out of range, arguments that nothing takes, keys that need another
key, rows or a package.

The ranges and names stand in `trainer_values.py`. Packages are looked up, not imported.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aligner.config.hints import did_you_mean
from aligner.config.recipe_problem import RecipeProblem, RecipeProblems, problem_at, show
from aligner.config.trainer_values import (
    BY_MODULES,
    MAPPINGS,
    OPTIMIZER_ARGUMENTS,
    PACKAGES,
    RANGES,
    REPORTERS,
    SCHEDULER_ARGUMENTS,
    SHARE_OR_COUNT,
    WORDS,
    Kind,
    of_optimizer,
    wrong_argument,
)
from aligner.config.view import RecipeView, Rule
from aligner.config.yaml_lines import KeyPath
from aligner.launch.world import world

DEFAULT_OPTIMIZER = "adamw_torch_fused"
MLFLOW_PLACE = "MLFLOW_TRACKING_URI"
DEFAULT_SHARE_OF_STEPS = 0.1
"""Without a word in the recipe, a checkpoint (and an evaluation) is made every tenth of the run."""


def _numbers_in_range(view: RecipeView) -> RecipeProblems:
    for key, allowed in RANGES.items():
        value = view.unless_broken(f"trainer.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if wrong := allowed.wrong(value):
            yield problem_at(f"trainer.{key}", f"{wrong}, found {show(value)}")
        elif key in SHARE_OR_COUNT and value > 1 and not float(value).is_integer():
            yield problem_at(
                f"trainer.{key}",
                f"found {show(value)}",
                "below 1 a share of all steps, else a whole number",
            )


def _words_are_known(view: RecipeView) -> RecipeProblems:
    for key, words in WORDS.items():
        value = view.unless_broken(f"trainer.{key}")
        if value is None and key == "report_to" and view.given("trainer.report_to"):
            yield problem_at(
                "trainer.report_to", "expected a text or a list of texts, found null", "write none"
            )
        given = value.split() if key == "debug" and isinstance(value, str) else value
        for word in given if isinstance(given, list) else [] if given is None else [given]:
            if word not in words:
                hint = did_you_mean(str(word), words) or f"it takes: {', '.join(words)}"
                yield problem_at(f"trainer.{key}", f"does not know {show(word)}", hint)
    padding = view.unless_broken("trainer.pad_to_multiple_of")
    if isinstance(padding, str) and padding != "auto":
        yield problem_at(
            "trainer.pad_to_multiple_of",
            f"expected a whole number or `auto`, found {show(padding)}",
        )


def _arguments(
    path: KeyPath, values: Any, arguments: dict[str, Kind], of: str = ""
) -> RecipeProblems:
    for name, value in values.items() if isinstance(values, dict) else ():
        wrong, hint = wrong_argument(str(name), value, arguments, of)
        if wrong:
            yield RecipeProblem(
                (*path, name), f"{wrong}, found {show(value)}" if name in arguments else wrong, hint
            )


def _mappings_are_known(view: RecipeView) -> RecipeProblems:
    for key, arguments in MAPPINGS.items():
        yield from _arguments(("trainer", key), view.unless_broken(f"trainer.{key}"), arguments)
    names = ("activation_checkpointing", "gradient_checkpointing")
    for ending in ("", "_kwargs"):
        new, old = (f"trainer.{name}{ending}" for name in names)
        if view[new] is not None and view[old] is not None and view[new] != view[old]:
            yield problem_at(
                old, f"contradicts `{new}`, of which it is the older name", "keep one of them"
            )
    for name in names:
        options = view[f"trainer.{name}_kwargs"] or {}
        if options.get("use_reentrant") and set(options) & {
            "determinism_check",
            "debug",
            "early_stop",
        }:
            hint = "drop them, or set use_reentrant: false"
            yield problem_at(
                f"trainer.{name}_kwargs", "`use_reentrant` takes `preserve_rng_state` alone", hint
            )


def _scheduler_has_its_arguments(view: RecipeView) -> RecipeProblems:
    name, key = view["trainer.lr_scheduler_type"] or "linear", "trainer.lr_scheduler_kwargs"
    values = view[key] or {}
    for found in _arguments(
        ("trainer", "lr_scheduler_kwargs"), values, SCHEDULER_ARGUMENTS[name], name
    ):
        is_unknown = found.message == "unknown argument"
        yield RecipeProblem(
            found.path, f"unknown argument of `{name}`" if is_unknown else found.message, found.hint
        )
    if "min_lr" in SCHEDULER_ARGUMENTS[name] and name.startswith("cosine"):
        given = [
            argument for argument in ("min_lr", "min_lr_rate") if values.get(argument) is not None
        ]
        if len(given) != 1:
            hint = "the rate to end at, or its share of learning_rate: {min_lr_rate: 0.1}"
            yield problem_at(
                key,
                f"`{name}` needs one of min_lr and min_lr_rate, found {len(given) or 'none'}",
                hint,
            )
    if name == "warmup_stable_decay" and "num_decay_steps" not in values:
        yield problem_at(
            key, f"`{name}` needs num_decay_steps", "the steps at the end over which the rate falls"
        )
    if name in ("reduce_lr_on_plateau", "greedy") and not _evaluates(view):
        yield problem_at(
            "trainer.lr_scheduler_type", f"`{name}` follows the held-out loss", "set `data.eval`"
        )


def _evaluates(view: RecipeView) -> bool:
    return view["data.eval"] is not None and view["trainer.eval_strategy"] != "no"


def _optimizer_has_its_arguments(view: RecipeView) -> RecipeProblems:
    name, text = view["trainer.optim"] or DEFAULT_OPTIMIZER, view["trainer.optim_args"]
    arguments = of_optimizer(OPTIMIZER_ARGUMENTS, name) or {}
    for part in text.replace(" ", "").split(",") if text else ():
        argument, equals, value = part.partition("=")
        if not equals or "=" in value:
            yield problem_at(
                "trainer.optim_args",
                f"`{part}` is not `name=value`",
                "write `momentum=0.9,nesterov=true`",
            )
            continue
        wrong, hint = wrong_argument(argument, _read(value), arguments)
        if wrong:
            about = wrong if argument in arguments else f"`{name}` takes no such argument"
            yield problem_at("trainer.optim_args", f"`{part}`: {about}", hint)
    by_modules = name.startswith(BY_MODULES)
    if by_modules and not view["trainer.optim_target_modules"]:
        yield problem_at(
            "trainer.optim_target_modules",
            f"is missing, and `{name}` needs it",
            "all-linear, for example",
        )
    if not by_modules and view["trainer.optim_target_modules"] is not None:
        yield problem_at(
            "trainer.optim_target_modules",
            f"has no effect with `{name}`",
            "drop it; LoRA has its own targets",
        )


def _read(text: str) -> Any:
    """A value of `optim_args` as the number or boolean that it stands for."""
    if text.lower() in ("true", "false", "yes", "no"):
        return text.lower() in ("true", "yes")
    try:
        return float(text)
    except ValueError:
        return text


def trackers_are_here(view: RecipeView, key: str = "report_to") -> RecipeProblems:
    """Refuse a tracker whose package is not installed; this is known before anything is loaded."""
    words = view[key]
    for word in words if isinstance(words, list) else [words]:
        absent = [package for package in REPORTERS.get(word, ()) if not is_installed(package)]
        if absent:
            packages = " ".join(absent)
            hint = (
                f"`pip install {packages}`, or drop it: metrics.jsonl and the report need nothing"
            )
            message = f"`{word}` needs {' and '.join(absent)}, not installed here"
            yield problem_at(key, message, hint)
        elif word == "mlflow" and not (os.environ.get(MLFLOW_PLACE) or is_installed("sqlalchemy")):
            message = "`mlflow` writes to a database here, and mlflow-skinny comes without one"
            yield problem_at(key, message, f"`pip install mlflow`, or set {MLFLOW_PLACE}")


def _packages_are_here(view: RecipeView) -> RecipeProblems:
    yield from trackers_are_here(view, "trainer.report_to")
    optimizer = view["trainer.optim"] or DEFAULT_OPTIMIZER
    package = of_optimizer(PACKAGES, optimizer)
    if package is not None and not is_installed(package):
        yield problem_at(
            "trainer.optim",
            f"`{optimizer}` needs {package}, not installed here",
            "install it, or use another",
        )
    if view["trainer.use_liger_kernel"] and not is_installed("liger_kernel"):
        yield problem_at(
            "trainer.use_liger_kernel",
            "needs liger-kernel, not installed here",
            "pip install liger-kernel",
        )
    if view["trainer.liger_kernel_config"] and not view["trainer.use_liger_kernel"]:
        yield problem_at(
            "trainer.liger_kernel_config",
            "has no effect without `use_liger_kernel`",
            "set both, or drop it",
        )


def is_installed(package: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    return find_spec(package) is not None


def _workers_are_there(view: RecipeView) -> RecipeProblems:
    if view["trainer.dataloader_num_workers"]:
        return
    for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):
        if view[f"trainer.dataloader_{name}"]:
            hint = "set `dataloader_num_workers` above 0, or drop it"
            yield problem_at(
                f"trainer.dataloader_{name}", "is about worker processes, and there are none", hint
            )


def _backend_has_processes(view: RecipeView) -> RecipeProblems:
    several = view["launch.num_processes"] > 1 or world()[1] > 1
    if view["trainer.ddp_backend"] is not None and not several:
        yield problem_at(
            "trainer.ddp_backend", "is about several processes, and there is one", "drop it"
        )


def _best_is_known(view: RecipeView) -> RecipeProblems:
    """What `save_strategy: best` and `load_best_model_at_end` need."""
    saves, loads = view["trainer.save_strategy"] or "steps", view["trainer.load_best_model_at_end"]
    if saves == "best" and not _evaluates(view):
        yield problem_at(
            "trainer.save_strategy",
            "`best` chooses by held-out rows, and none are evaluated",
            "set `data.eval`",
        )
    if not loads or not _evaluates(view) or saves == "best" or view["early_stopping"] is not None:
        return
    evaluates = view["trainer.eval_strategy"] or "steps"
    if saves != evaluates:
        message = (
            f"is `{saves}`, but rows are evaluated every `{evaluates}`; the best checkpoint must "
            "exist"
        )
        yield problem_at("trainer.save_strategy", message, "give both the same value")
    elif saves == "steps":
        save, evaluate = (
            view[f"trainer.{key}_steps"] or DEFAULT_SHARE_OF_STEPS for key in ("save", "eval")
        )
        is_multiple = (save < 1) == (evaluate < 1) and (
            round(save * 1_000_000) % round(evaluate * 1_000_000) == 0
            if evaluate < 1
            else save % evaluate == 0
        )
        if not is_multiple:
            message = (
                f"is {save:g}, which is not a multiple of `eval_steps` ({evaluate:g}); the best "
                "checkpoint must exist"
            )
            yield problem_at("trainer.save_steps", message, "give both the same value")


def metric_is_measured(known: Collection[str]) -> Rule:
    """The best checkpoint is chosen by something that the method measures."""

    def rule(view: RecipeView) -> RecipeProblems:
        metric = view["trainer.metric_for_best_model"]
        if metric is not None and metric.removeprefix("eval_") not in known:
            hint = did_you_mean(metric, known) or f"it takes: {', '.join(known)}"
            yield problem_at(
                "trainer.metric_for_best_model", f"nothing called {show(metric)} is measured", hint
            )

    return rule


def _one_half_in_evaluation(view: RecipeView) -> RecipeProblems:
    if view["trainer.bf16_full_eval"] and view["trainer.fp16_full_eval"]:
        yield problem_at(
            "trainer.fp16_full_eval", "cannot be true together with `bf16_full_eval`", "keep one"
        )


def _nothing_to_compute_metrics(view: RecipeView) -> RecipeProblems:
    for key in ("batch_eval_metrics", "include_for_metrics"):
        if view[f"trainer.{key}"]:
            yield problem_at(
                f"trainer.{key}", "is about a function of metrics, which no recipe holds", "drop it"
            )


def _hub_can_be_reached(view: RecipeView) -> RecipeProblems:
    if not view["trainer.push_to_hub"]:
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield problem_at(
            "trainer.push_to_hub",
            "needs the hub, and HF_HUB_OFFLINE forbids it",
            "unset one of the two",
        )
    elif not _has_token():
        yield problem_at(
            "trainer.push_to_hub",
            "needs a token of the hub",
            "set HF_TOKEN, or log in: hf auth login",
        )


def _has_token() -> bool:
    home = os.environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    file = Path(os.environ.get("HF_TOKEN_PATH") or f"{home}/token")
    return (
        bool(os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"))
        or file.is_file()
    )


TRAINER_RULES: tuple[Rule, ...] = (
    _numbers_in_range,
    _words_are_known,
    _mappings_are_known,
    _scheduler_has_its_arguments,
    _optimizer_has_its_arguments,
    _packages_are_here,
    _workers_are_there,
    _backend_has_processes,
    _best_is_known,
    _one_half_in_evaluation,
    _nothing_to_compute_metrics,
    _hub_can_be_reached,
)
"""Rules of every training recipe on the keys of its trainer."""
