"""Rules on the section `eval`, and on what may choose the best checkpoint."""

from __future__ import annotations

from aligner.config.choices import SHARDED
from aligner.config.method import ARENA_METRICS, TrainingMethod
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.trainer_rules import metric_is_measured
from aligner.config.view import RecipeView, Rule


def measured_rules(training: TrainingMethod) -> tuple[Rule, ...]:
    """The rules on what evaluations of a method measure."""
    if not training.has_arena:
        return (_no_arena, metric_is_measured(training.metrics))
    known = {**training.metrics, **ARENA_METRICS}
    return (_arena_is_measured, _arena_chooses, metric_is_measured(known))


def _no_arena(view: RecipeView) -> RecipeProblems:
    if view["eval.arena"] is not None:
        message = f"has no effect on `{view['method']}`"
        yield problem_at("eval.arena", message, "drop it; sft, dpo, sapo and rlhf have it")


def _arena_is_measured(view: RecipeView) -> RecipeProblems:
    """Battles with the start need held-out prompts, evaluations, and a whole model."""
    if view["eval.arena"] is None:
        return
    if view["data.eval"] is None:
        hint = "set `data.eval` to a share (0.05), a number of rows, or sources"
        yield problem_at("eval.arena", "needs held-out rows, whose prompts it answers", hint)
    if view["trainer.eval_strategy"] == "no":
        message = "is `no`, and `eval.arena` is measured at evaluations"
        yield problem_at("trainer.eval_strategy", message, "steps or epoch")
    if view["launch.strategy"] in SHARDED and view["launch.num_processes"] > 1:
        message = "needs a process that holds the whole model, which this strategy splits"
        yield problem_at("eval.arena", message, "use ddp, zero1 or zero2, or drop it")


def _arena_chooses(view: RecipeView) -> RecipeProblems:
    """A win rate chooses the best checkpoint only where it is measured."""
    metric = str(view["trainer.metric_for_best_model"] or "").removeprefix("eval_")
    if metric in ARENA_METRICS and view["eval.arena"] is None:
        hint = "name a judge: eval.arena.judge"
        yield problem_at("eval.arena", f"is missing, and `{metric}` is to choose by it", hint)
