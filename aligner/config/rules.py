"""Rules that involve several keys of a recipe. Each is one short function; all of them run, and all
that fail are reported.

A rule reads values through a `RecipeView`, which fills in the schema's defaults. Rules that read a
key which is already known to be wrong are skipped: one mistake is reported once. Here stand the
rules of every training recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.config.choices import ATTENTION, PLAIN_STARTS, SHARDED, STRATEGIES
from aligner.config.dead_keys import DEAD_KEY_RULES
from aligner.config.eval_rules import measured_rules
from aligner.config.generation_rules import engine_has_its_parts
from aligner.config.hints import closest, did_you_mean
from aligner.config.recipe import Recipe
from aligner.config.recipe_problem import RecipeProblem, RecipeProblems, problem_at, show
from aligner.config.trainer_rules import TRAINER_RULES, trackers_are_here
from aligner.config.view import RecipeView, Rule, SkipRule
from aligner.config.yaml_lines import KeyPath
from aligner.methods.catalogue import method_of, training_of


def check_rules(
    recipe_class: type[Recipe], values: dict[str, Any], broken: set[KeyPath]
) -> list[RecipeProblem]:
    """Everything that the rules of this method have against the values."""
    view = RecipeView(recipe_class, values, broken)
    findings: list[RecipeProblem] = []
    name = recipe_class.model_fields["method"].default
    training = training_of(name)
    general = (*RULES, *measured_rules(training)) if training else RULES_WITHOUT_TRAINING
    for rule in (*general, *method_of(name).rules):
        try:
            findings.extend(rule(view))
        except SkipRule:
            continue
    return findings


def _quantization_needs_lora(view: RecipeView) -> RecipeProblems:
    kind = view["model.quantization"]
    if kind != "none" and view["model.lora"] is None:
        yield problem_at(
            "model.quantization",
            f"a base in `{kind}` is frozen, and without `model.lora` nothing is left to train",
            "add `model.lora: {}` (`--use_peft`), or drop the quantization for full fine-tuning",
        )


def _double_quant_needs_4bit(view: RecipeView) -> RecipeProblems:
    if (
        view.given("model.double_quant")
        and view["model.double_quant"]
        and view["model.quantization"] in ("none", "int8")
    ):
        yield problem_at(
            "model.double_quant",
            "has no effect",
            "only `quantization: nf4` and `fp4` have constants to quantize",
        )


def _quantization_keeps_the_base(view: RecipeView) -> RecipeProblems:
    kind, start = view["model.quantization"], view["model.lora.init_lora_weights"]
    if (
        kind != "none"
        and view["model.lora"] is not None
        and start in ("olora", "orthogonal", "pissa")
    ):
        yield problem_at(
            "model.lora.init_lora_weights",
            f"`{start}` reads or changes the base's weights as they are unquantized, and this "
            f"base is in `{kind}`",
            "use true or gaussian, or leave out model.quantization",
        )


def _attention_is_known(view: RecipeView) -> RecipeProblems:
    name = view["model.attn_implementation"]
    if name is not None and name not in ATTENTION and "/" not in name:
        hint = did_you_mean(name, ATTENTION)
        yield problem_at(
            "model.attn_implementation",
            f"expected one of {', '.join(ATTENTION)}, found {show(name)}",
            hint,
        )


def _lora_has_targets(view: RecipeView) -> RecipeProblems:
    if view["model.lora"] is None:
        return
    if view["model.lora.target_modules"] == [] and not view["model.lora.target_parameters"]:
        yield problem_at(
            "model.lora.target_modules",
            "is empty",
            "`all-linear`, or names such as [q_proj, v_proj]",
        )


def _parameters_are_adapted_plainly(view: RecipeView) -> RecipeProblems:
    if view["model.lora"] is None or not view["model.lora.target_parameters"]:
        return
    for key, plain in (
        ("lora_dropout", (0.0,)),
        ("use_dora", (False,)),
        ("init_lora_weights", PLAIN_STARTS),
    ):
        if (value := view[f"model.lora.{key}"]) not in plain:
            yield problem_at(
                f"model.lora.{key}",
                f"is {show(value)}, which PEFT does not do with `model.lora.target_parameters`",
                f"drop it, or the parameters: write {show(plain[0])}",
            )


def _float16_is_not_trained(view: RecipeView) -> RecipeProblems:
    if view["model.dtype"] == "float16" and view["model.lora"] is None and view["trainer.fp16"]:
        yield problem_at(
            "model.dtype",
            "float16 weights cannot be trained with `trainer.fp16`, which scales gradients of "
            "float32 weights",
            "write `model.dtype: float32` (it still computes in float16), or add `model.lora: {}`",
        )


def _chosen_rows(view: RecipeView) -> RecipeProblems:
    for path, source in [*view.sources("data.train"), *view.sources("data.eval")]:
        if source.get("max_rows") is not None and source.get("weight", 1.0) != 1.0:
            yield RecipeProblem(
                path,
                "has both `weight` and `max_rows`",
                "`weight` is a share of the rows, `max_rows` a number",
            )


def _evaluation_needs_rows(view: RecipeView) -> RecipeProblems:
    if view["data.eval"] is not None:
        return
    hint = "set `data.eval` to a share (0.05), a number of rows, or sources"
    if view["early_stopping"] is not None:
        yield problem_at("early_stopping", "needs held-out rows", hint)
    if view["trainer.eval_strategy"] not in (None, "no"):
        yield problem_at("trainer.eval_strategy", "needs held-out rows", hint)
    for key in ("eval_on_start", "load_best_model_at_end"):
        if view[f"trainer.{key}"]:
            yield problem_at(f"trainer.{key}", "needs held-out rows", hint)


def _early_stopping_evaluates(view: RecipeView) -> RecipeProblems:
    if view["early_stopping"] is None or view["data.eval"] is None:
        return
    evaluates, saves = view["trainer.eval_strategy"], view["trainer.save_strategy"]
    if evaluates == "no":
        yield problem_at(
            "trainer.eval_strategy",
            "is `no`, and `early_stopping` has nothing to watch",
            "steps or epoch",
        )
    elif saves == "no":
        yield problem_at(
            "trainer.save_strategy",
            "is `no`, and `early_stopping` keeps the best checkpoint",
            "drop one",
        )
    elif evaluates and saves and evaluates != saves:
        message = (
            f"is `{saves}`, but rows are evaluated every `{evaluates}`; the best checkpoint must "
            "exist"
        )
        yield problem_at("trainer.save_strategy", message, "give both the same value")


def _one_half_precision(view: RecipeView) -> RecipeProblems:
    bf16, fp16, mixed = view["trainer.bf16"], view["trainer.fp16"], view["launch.mixed_precision"]
    if bf16 and fp16:
        yield problem_at(
            "trainer.fp16",
            "cannot be true together with `trainer.bf16`",
            "keep one; bf16 where the GPU has it",
        )
    for key, value in (("bf16", bf16), ("fp16", fp16)):
        if value and mixed is not None and mixed != key:
            yield problem_at(
                "launch.mixed_precision",
                f"is `{mixed}`, but `trainer.{key}` is true",
                "keep one of them",
            )


def _strategy_is_known(view: RecipeView) -> RecipeProblems:
    name = view["launch.strategy"]
    if name in STRATEGIES:
        return
    near = closest(name, STRATEGIES)
    if Path(name).suffix in (".yaml", ".yml", ".json") or "/" in name:
        if not Path(name).expanduser().is_file():
            yield problem_at(
                "launch.strategy",
                f"there is no file {show(name)}",
                "a configuration file of accelerate's",
            )
        return
    hint = f"did you mean `{near}`?" if near else "or a configuration file of accelerate's"
    yield problem_at(
        "launch.strategy", f"expected one of {', '.join(STRATEGIES)}, found {show(name)}", hint
    )


def _strategy_and_quantization(view: RecipeView) -> RecipeProblems:
    """Splitting a 4-bit base needs its storage in the type of the shards; that has not been run, so
    it is not offered."""
    strategy, quantization = view["launch.strategy"], view["model.quantization"]
    if strategy in SHARDED and quantization != "none":
        message = (
            f"`{strategy}` splits the base over the GPUs, and a base in {quantization} is not "
            "split here"
        )
        yield problem_at(
            "launch.strategy", message, "use `ddp` with it, or leave out model.quantization"
        )


def _machines_add_up(view: RecipeView) -> RecipeProblems:
    machines, processes = view["launch.num_machines"], view["launch.num_processes"]
    if view["launch.machine_rank"] >= machines:
        yield problem_at(
            "launch.machine_rank",
            f"must be below `num_machines` ({machines})",
            "machines count from 0",
        )
    if machines > 1 and processes % machines:
        message = f"{processes} processes cannot be spread evenly over {machines} machines"
        yield problem_at(
            "launch.num_processes", message, "it counts the processes of all machines together"
        )
    if machines > 1 and view["launch.main_process_ip"] is None:
        yield problem_at(
            "launch.main_process_ip",
            "is missing",
            "machines find each other at the address of machine 0",
        )


def _sampling_is_ours(view: RecipeView) -> RecipeProblems:
    asked = view["trainer.train_sampling_strategy"]
    if asked not in (None, "random", "group_by_length"):
        hint = "use random or group_by_length"
        message = (
            f"`{asked}` is not supported: rows come in a random order that a resumed run repeats"
        )
        yield problem_at("trainer.train_sampling_strategy", message, hint)


def _only_trainings_ask_for_reports(view: RecipeView) -> RecipeProblems:
    if view["data.test_set"] is not None:
        yield problem_at(
            "data.test_set",
            "only a training refuses rows that were not held against a test set",
            "give it to the training, and the rows to `aligner arena testset verify`",
        )


RULES: tuple[Rule, ...] = (
    *DEAD_KEY_RULES,
    _quantization_needs_lora,
    _double_quant_needs_4bit,
    _quantization_keeps_the_base,
    _attention_is_known,
    _lora_has_targets,
    _parameters_are_adapted_plainly,
    _float16_is_not_trained,
    _chosen_rows,
    _evaluation_needs_rows,
    _early_stopping_evaluates,
    _one_half_precision,
    _strategy_is_known,
    _strategy_and_quantization,
    _machines_add_up,
    _sampling_is_ours,
    engine_has_its_parts,
    *TRAINER_RULES,
)
"""Rules of every training recipe."""

RULES_WITHOUT_TRAINING: tuple[Rule, ...] = (trackers_are_here, _only_trainings_ask_for_reports)
"""Rules of every other recipe."""
