"""Rules on mosaics: of the section that draws them, wherever it stands, and of rows that can be in
one."""

from __future__ import annotations

from aligner.config.choices import SINGLE_ANSWER_FORMATS
from aligner.config.recipe import Strategies
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView, Rule, refuse_formats


def mosaic_of(prefix: str) -> Rule:
    """Rules on how mosaics are drawn, for the section below a key."""

    def rule(view: RecipeView) -> RecipeProblems:
        if view[prefix] is None:
            return
        smallest, largest, low_high = (
            view[f"{prefix}.min_examples"],
            view[f"{prefix}.max_examples"],
            view[f"{prefix}.mask_ratio"],
        )
        if smallest > largest:
            yield problem_at(
                f"{prefix}.min_examples", f"is above `max_examples` ({largest})", "lower it"
            )
        if low_high[0] > low_high[1]:
            yield problem_at(
                f"{prefix}.mask_ratio",
                f"runs from {low_high[0]} down to {low_high[1]}",
                "the smaller one first",
            )
        strategies = {name: view[f"{prefix}.strategies.{name}"] for name in Strategies.model_fields}
        if not any(strategies.values()):
            yield problem_at(
                f"{prefix}.strategies",
                "all weights are 0",
                "give at least one strategy a weight above 0",
            )
        for key, strategy in (("permute_rules", "permute"), ("mask_rules", "maskout")):
            if view[f"{prefix}.{key}"] == []:
                yield problem_at(
                    f"{prefix}.{key}",
                    "is empty",
                    f"leave it out for all rules, or give `{strategy}` the weight 0",
                )
            elif view.given(f"{prefix}.{key}") and not strategies[strategy]:
                yield problem_at(
                    f"{prefix}.{key}", f"has no effect: the weight of `{strategy}` is 0", "drop it"
                )
        if view[f"{prefix}.k_distribution"] in ("fix_max", "max_length") and view.given(
            f"{prefix}.min_examples"
        ):
            name = view[f"{prefix}.k_distribution"]
            yield problem_at(
                f"{prefix}.min_examples", f"has no effect with `k_distribution: {name}`", "drop it"
            )
        if view[f"{prefix}.compat"] == "released":
            for key in ("plain_fraction", "on_overlong", "min_examples"):
                if view.given(f"{prefix}.{key}"):
                    yield problem_at(
                        f"{prefix}.{key}",
                        "has no effect with `compat: released`",
                        "the authors' code has no such thing",
                    )
            if strategies["primary"]:
                yield problem_at(
                    f"{prefix}.strategies",
                    "`primary` is not drawn with `compat: released`",
                    "give it the weight 0",
                )

    return rule


def no_mosaics(view: RecipeView) -> RecipeProblems:
    if view["data.mosaic"] is not None:
        yield problem_at(
            "data.mosaic",
            "only `aligner sft` trains on mosaics",
            "`aligner mosaic` writes them to files",
        )


def single_turn_formats(view: RecipeView, what: str) -> RecipeProblems:
    yield from refuse_formats(
        view, SINGLE_ANSWER_FORMATS, what, "it needs questions with one answer each", "use"
    )
