"""Rules that join several keys of a recipe. Each is one short function; all of them run, and all that fail are reported.

A rule reads values through a `View`, which fills in the schema's defaults. A key that is already known to be wrong makes
the rules that read it stand aside, so that one mistake is told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from aligner.config.check import Finding, show
from aligner.config.choices import (
    ATTENTION,
    LABEL_SMOOTHING_LOSSES,
    LOSSES,
    PREFERENCE_FORMATS,
    SFT_FORMATS,
    STRATEGIES,
)
from aligner.config.names import closest, did_you_mean
from aligner.config.schema import Section, TrainRecipe
from aligner.config.sections import section_in
from aligner.config.yaml_lines import KeyPath


class _StandAside(Exception):
    """A rule reads a key that is already reported, or malformed."""


class View:
    """The values of a recipe by dotted key, defaults included, whether or not the recipe is valid as a whole."""

    def __init__(self, recipe_class: type[TrainRecipe], values: dict[str, Any], broken: set[KeyPath]) -> None:
        self._class = recipe_class
        self._values = values
        self._broken = broken

    def __getitem__(self, key: str) -> Any:
        path = tuple(key.split("."))
        if any(path[: len(broken)] == broken for broken in self._broken):
            raise _StandAside
        here: Any = self._values
        section: type[Section] | None = self._class
        for part in path:
            here, section = _step(here, section, part)
        return here

    def given(self, key: str) -> bool:
        """Whether somebody wrote the key, rather than leaving it to its default."""
        here: Any = self._values
        for part in key.split("."):
            if not isinstance(here, dict) or part not in here:
                return False
            here = here[part]
        return True

    def sources(self, key: str) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
        """The sources under `data.train` or `data.eval`."""
        value = self[key]
        path: KeyPath = tuple(key.split("."))
        places: list[tuple[KeyPath, Any]] = [(path, value)]
        if isinstance(value, list):
            places = [((*path, index), item) for index, item in enumerate(value)]
        for place, item in places:
            is_broken = any(broken[: len(place)] == place for broken in self._broken)
            if isinstance(item, dict) and not is_broken:
                yield place, item


def _step(here: Any, section: type[Section] | None, part: str) -> tuple[Any, type[Section] | None]:
    if here is None:
        return None, None
    if isinstance(here, Section):
        return getattr(here, part), None
    if not isinstance(here, dict):
        raise _StandAside
    field = section.model_fields.get(part) if section else None
    inner = section_in(field.annotation) if field else None
    if part in here:
        return here[part], inner
    default = field.get_default(call_default_factory=True) if field else None
    if default is PydanticUndefined:
        raise _StandAside
    return default, inner


Rule = Callable[[View], Iterator[Finding]]


def check_rules(recipe_class: type[TrainRecipe], values: dict[str, Any], broken: set[KeyPath]) -> list[Finding]:
    """Everything that the rules of this method have against the values."""
    view = View(recipe_class, values, broken)
    findings: list[Finding] = []
    for rule in (*RULES, *METHOD_RULES[recipe_class.model_fields["method"].default]):
        try:
            findings.extend(rule(view))
        except _StandAside:
            continue
    return findings


def _finding(key: str, message: str, hint: str = "") -> Finding:
    return Finding(tuple(key.split(".")), message, hint)


def _quantization_needs_lora(view: View) -> Iterator[Finding]:
    kind = view["model.quantization"]
    if kind != "none" and view["model.lora"] is None:
        yield _finding(
            "model.quantization",
            f"a base in `{kind}` is frozen, and without `model.lora` nothing is left to train",
            "add `model.lora: {}` (`--use_peft`), or drop the quantization for full fine-tuning",
        )


def _double_quant_needs_4bit(view: View) -> Iterator[Finding]:
    if (
        view.given("model.double_quant")
        and view["model.double_quant"]
        and view["model.quantization"] in ("none", "int8")
    ):
        yield _finding(
            "model.double_quant", "has no effect", "only `quantization: nf4` and `fp4` have constants to quantize"
        )


def _attention_is_known(view: View) -> Iterator[Finding]:
    name = view["model.attn_implementation"]
    if name is not None and name not in ATTENTION and "/" not in name:
        hint = did_you_mean(name, ATTENTION)
        yield _finding("model.attn_implementation", f"expected one of {', '.join(ATTENTION)}, found {show(name)}", hint)


def _lora_has_targets(view: View) -> Iterator[Finding]:
    if view["model.lora"] is not None and view["model.lora.target_modules"] == []:
        yield _finding("model.lora.target_modules", "is empty", "`all-linear`, or names such as [q_proj, v_proj]")


def _chosen_rows(view: View) -> Iterator[Finding]:
    for path, source in [*view.sources("data.train"), *view.sources("data.eval")]:
        if source.get("max_rows") is not None and source.get("weight", 1.0) != 1.0:
            yield Finding(
                path, "has both `weight` and `max_rows`", "`weight` is a share of the rows, `max_rows` a number"
            )


def _evaluation_needs_rows(view: View) -> Iterator[Finding]:
    if view["data.eval"] is not None:
        return
    hint = "set `data.eval` to a share (0.05) or to sources"
    if view["early_stopping"] is not None:
        yield _finding("early_stopping", "needs held-out rows", hint)
    if view["trainer.eval_strategy"] not in (None, "no"):
        yield _finding("trainer.eval_strategy", "needs held-out rows", hint)
    for key in ("eval_on_start", "load_best_model_at_end"):
        if view[f"trainer.{key}"]:
            yield _finding(f"trainer.{key}", "needs held-out rows", hint)


def _early_stopping_evaluates(view: View) -> Iterator[Finding]:
    if view["early_stopping"] is None or view["data.eval"] is None:
        return
    evaluates, saves = view["trainer.eval_strategy"], view["trainer.save_strategy"]
    if evaluates == "no":
        yield _finding("trainer.eval_strategy", "is `no`, and `early_stopping` has nothing to watch", "steps or epoch")
    elif saves == "no":
        yield _finding("trainer.save_strategy", "is `no`, and `early_stopping` keeps the best checkpoint", "drop one")
    elif evaluates and saves and evaluates != saves:
        message = f"is `{saves}`, but rows are evaluated every `{evaluates}`; the best checkpoint must exist"
        yield _finding("trainer.save_strategy", message, "give both the same value")


def _one_half_precision(view: View) -> Iterator[Finding]:
    bf16, fp16, mixed = view["trainer.bf16"], view["trainer.fp16"], view["launch.mixed_precision"]
    if bf16 and fp16:
        yield _finding(
            "trainer.fp16", "cannot be true together with `trainer.bf16`", "keep one; bf16 where the GPU has it"
        )
    for key, value in (("bf16", bf16), ("fp16", fp16)):
        if value and mixed is not None and mixed != key:
            yield _finding("launch.mixed_precision", f"is `{mixed}`, but `trainer.{key}` is true", "keep one of them")


def _strategy_is_known(view: View) -> Iterator[Finding]:
    name = view["launch.strategy"]
    if name in STRATEGIES:
        return
    near = closest(name, STRATEGIES)
    if Path(name).suffix in (".yaml", ".yml", ".json") or "/" in name:
        if not Path(name).expanduser().is_file():
            yield _finding("launch.strategy", f"there is no file {show(name)}", "a configuration file of accelerate's")
        return
    hint = f"did you mean `{near}`?" if near else "or a configuration file of accelerate's"
    yield _finding("launch.strategy", f"expected one of {', '.join(STRATEGIES)}, found {show(name)}", hint)


def _strategy_and_quantization(view: View) -> Iterator[Finding]:
    """Splitting a 4-bit base needs its storage in the type of the shards; that has not been run, so it is not offered."""
    strategy, quantization = view["launch.strategy"], view["model.quantization"]
    if strategy in ("fsdp", "fsdp1", "fsdp2", "zero3") and quantization != "none":
        message = f"`{strategy}` splits the base over the GPUs, and a base in {quantization} is not split here"
        yield _finding("launch.strategy", message, "use `ddp` with it, or leave out model.quantization")


def _machines_add_up(view: View) -> Iterator[Finding]:
    machines, processes = view["launch.num_machines"], view["launch.num_processes"]
    if view["launch.machine_rank"] >= machines:
        yield _finding("launch.machine_rank", f"must be below `num_machines` ({machines})", "machines count from 0")
    if machines > 1 and processes % machines:
        message = f"{processes} processes cannot be spread evenly over {machines} machines"
        yield _finding("launch.num_processes", message, "it counts the processes of all machines together")
    if machines > 1 and view["launch.main_process_ip"] is None:
        yield _finding("launch.main_process_ip", "is missing", "machines find each other at the address of machine 0")


def _warmup_is_share_or_steps(view: View) -> Iterator[Finding]:
    steps = view["trainer.warmup_steps"]
    if steps is not None and (steps < 0 or (steps > 1 and not float(steps).is_integer())):
        yield _finding(
            "trainer.warmup_steps", f"found {show(steps)}", "below 1 a share of all steps, else a whole number"
        )


def _trainer_bounds(view: View) -> Iterator[Finding]:
    for key in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        value = view[f"trainer.{key}"]
        if value is not None and value < 1:
            yield _finding(f"trainer.{key}", f"must be at least 1, found {show(value)}")
    for key in ("learning_rate", "num_train_epochs", "weight_decay", "max_grad_norm"):
        value = view[f"trainer.{key}"]
        if value is not None and value < 0:
            yield _finding(f"trainer.{key}", f"must not be negative, found {show(value)}")


def _packing_keeps_rows_whole(view: View) -> Iterator[Finding]:
    if view["trainer.packing_strategy"] == "wrapped":
        yield _finding("trainer.packing_strategy", "`wrapped` cuts rows and lets them see each other", "use bfd")


def _packing_and_lengths(view: View) -> Iterator[Finding]:
    if view["sft.packing"] is True and view["trainer.train_sampling_strategy"] == "group_by_length":
        message = "groups rows by length, which packed sequences no longer differ in"
        yield _finding("trainer.train_sampling_strategy", message, "drop it, or set `sft.packing: false`")


def _sampling_is_ours(view: View) -> Iterator[Finding]:
    asked = view["trainer.train_sampling_strategy"]
    if asked not in (None, "random", "group_by_length"):
        hint = "use random or group_by_length"
        message = f"`{asked}` is not supported: rows come in a random order that a resumed run repeats"
        yield _finding("trainer.train_sampling_strategy", message, hint)


def _sft_formats(view: View) -> Iterator[Finding]:
    yield from _formats(view, SFT_FORMATS, "sft", "`aligner dpo` trains on preference pairs")


def _preference_formats(view: View) -> Iterator[Finding]:
    yield from _formats(
        view, PREFERENCE_FORMATS, "dpo", "it needs `chosen` and `rejected`; `aligner sft` trains on single answers"
    )


def _formats(view: View, usable: tuple[str, ...], method: str, hint: str) -> Iterator[Finding]:
    for path, source in [*view.sources("data.train"), *view.sources("data.eval")]:
        found = source.get("format", "auto")
        if found not in usable:
            yield Finding((*path, "format"), f"`{method}` cannot train on `{found}` rows", hint)


def _loss_exists(view: View) -> Iterator[Finding]:
    name = view["dpo.loss"]
    if name not in LOSSES:
        hint = did_you_mean(str(name), LOSSES)
        yield _finding("dpo.loss", f"expected one of {', '.join(LOSSES)}, found {show(name)}", hint)


def _settings_of_other_losses(view: View) -> Iterator[Finding]:
    loss = view["dpo.loss"]
    if loss not in LOSSES:
        return
    if view["dpo.label_smoothing"] and loss not in LABEL_SMOOTHING_LOSSES:
        hint = f"it is read by {', '.join(LABEL_SMOOTHING_LOSSES)}"
        yield _finding("dpo.label_smoothing", f"has no effect on `{loss}`", hint)
    if loss == "exo_pair" and not view["dpo.label_smoothing"]:
        yield _finding(
            "dpo.label_smoothing", "must be above 0 for `exo_pair`, whose labels are soft", "0.001, for example"
        )
    if view.given("dpo.tau") and loss != "discopop":
        yield _finding("dpo.tau", f"has no effect on `{loss}`", "it is the temperature of `discopop`")


def _reference(view: View) -> Iterator[Finding]:
    if view["dpo.reference"] != "adapter_off":
        return
    if view["model.lora"] is None:
        hint = "add `model.lora: {}`, or use `precomputed`"
        yield _finding("dpo.reference", "`adapter_off` needs an adapter to switch off", hint)
    if view["dpo.reference_model"] is not None:
        hint = "drop one: with `adapter_off` the base under the adapter is the reference"
        yield _finding("dpo.reference_model", "contradicts `reference: adapter_off`", hint)


RULES: tuple[Rule, ...] = (
    _quantization_needs_lora,
    _double_quant_needs_4bit,
    _attention_is_known,
    _lora_has_targets,
    _chosen_rows,
    _evaluation_needs_rows,
    _early_stopping_evaluates,
    _one_half_precision,
    _strategy_is_known,
    _strategy_and_quantization,
    _machines_add_up,
    _warmup_is_share_or_steps,
    _trainer_bounds,
    _sampling_is_ours,
)
"""Rules of every training recipe."""

METHOD_RULES: dict[str, tuple[Rule, ...]] = {
    "sft": (_packing_keeps_rows_whole, _packing_and_lengths, _sft_formats),
    "dpo": (_preference_formats, _loss_exists, _settings_of_other_losses, _reference),
}
"""Rules of one method."""
