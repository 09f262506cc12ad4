"""The recipe of `aligner data select`, and what the builder says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from aligner.config.generation_rules import engine_has_its_parts
from aligner.config.method import Flag, Method, OwnRows
from aligner.config.mosaic_rules import no_mosaics
from aligner.config.named import Names
from aligner.config.recipe import BuilderRecipe, Data, Generation, Model, Section, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.view import RecipeView


def _as_model(value: Any) -> Any:
    """Allow `policy: runs/sft/final` for the everyday case."""
    return {"name_or_path": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]


class Select(Section):
    """Active labelling (arXiv 2407.02119): which pairs of responses are worth an expert's label."""

    policy: (
        Annotated[Model, BeforeValidator(_as_model, json_schema_input_type=str | Model)] | None
    ) = None
    """The model whose responses are labelled: a hub id or folder, or a section with the keys of
    `model`. It answers the prompts of `data.train`."""
    candidates: str | None = None
    """In place of a policy: file, folder, glob or hub id of prompts with their responses
    (`responses`, or preference pairs)."""
    reward_models: Annotated[Texts, Names("scorer")] = []
    """Reward models whose doubts decide: cards, or `kind:argument`. The members of an ensemble's
    card count one by one."""
    labelled: Texts = []
    """What is labelled already: files of preference rows, or run directories of earlier selections.
    Never picked again; picks are spread away from it."""
    budget: Whole = Field(200, ge=1)
    """Pairs to be labelled."""
    strategy: Literal["random", "uncertainty", "diversity", "both"] = "both"
    """`uncertainty`: the pairs that the reward models are least sure of; `diversity`: pairs spread
    over all there are; `both`: spread over the most uncertain ones; `random`: any, to compare
    with."""
    pool_factor: float = Field(4.0, ge=1.0, le=1e6)
    """For `both`: picks are spread over so many times `budget` of the most uncertain pairs."""
    uncertainty: Literal["auto", "entropy", "variance", "bald"] = "auto"
    """Entropy of the preference, variance of it between models, or the mutual information of label
    and model (BALD, arXiv 1112.5745). `auto`: `bald` with several reward models, `entropy` with
    one."""
    pair: Literal["auto", "max_min", "most_uncertain", "random"] = "auto"
    """Which pair of a prompt's responses: the best and the worst by the reward models, the most
    uncertain, or any. `auto`: `max_min` with a reward model, `random` without."""
    spread: Literal["k_center", "k_means"] = "k_center"
    """For `diversity` and `both`: greedy k-centre (arXiv 1708.00489), or the seeding of k-means++
    (as in arXiv 1906.03671)."""
    embedding: Literal["ngrams", "policy"] = "ngrams"
    """For `diversity` and `both`: what tells pairs apart, n-grams of their texts (TF-IDF) or mean
    hidden states of `policy`."""
    num_samples: int = Field(4, ge=2, le=10_000)
    """Responses of the policy to each prompt."""
    max_new_tokens: Whole = Field(256, ge=1)
    """Longest such response, in tokens."""
    temperature: float = Field(1.0, ge=1e-3, le=100.0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample from the likeliest tokens that hold this share."""
    top_k: Whole = Field(0, ge=0)
    """Sample from the k likeliest tokens; 0: from all."""
    keep_unfinished: bool = False
    """Also ask about responses that were cut off at the longest length. Trained on, they would
    teach to stop there."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Responses decoded together."""


class SelectRecipe(BuilderRecipe):
    """`aligner data select`: choose the pairs that are worth a label."""

    method: Literal["select"] = "select"
    """What to do."""
    data: Data | None = None
    """Where the prompts come from. Absent with `select.candidates`."""
    generation: Generation = Generation()
    """What writes the responses."""
    select: Select = Select()
    """What belongs to this method alone."""


_OF_SAMPLING = ("num_samples", "max_new_tokens", "temperature", "top_p", "top_k")
_OF_WRITING = (*(f"select.{key}" for key in _OF_SAMPLING), "generation.engine")


def _select_candidates(view: RecipeView) -> RecipeProblems:
    """Responses come from a policy or from a file."""
    candidates, policy, data = view["select.candidates"], view["select.policy"], view["data"]
    if candidates is not None:
        if data is not None:
            yield problem_at(
                "data",
                "has no effect with `select.candidates`, which has its own prompts",
                "drop one of them",
            )
        for key in _OF_WRITING:
            if view.given(key):
                yield problem_at(
                    key,
                    "has no effect with `select.candidates`: the responses are there",
                    "drop it",
                )
        if policy is not None and view["select.embedding"] != "policy":
            yield problem_at(
                "select.policy",
                "has no effect with `select.candidates`",
                "drop it, or `embedding: policy`",
            )
    elif data is None:
        yield problem_at(
            "data",
            "is missing",
            "give `data.train` (`--data`): prompts; or `select.candidates`: responses too",
        )
    elif policy is None:
        hint = "name it (`--model`), or give `select.candidates`: prompts with their responses"
        yield problem_at(
            "select.policy", "is missing: the model whose responses are labelled", hint
        )
    if candidates is not None and policy is None and view["select.embedding"] == "policy":
        yield problem_at(
            "select.embedding", "`policy` needs `select.policy`", "name it, or use ngrams"
        )
    if isinstance(policy, dict) and policy.get("lora") is not None:
        yield problem_at("select.policy.lora", "has no effect: nothing is trained", "drop it")


def _select_data(view: RecipeView) -> RecipeProblems:
    if view["data.eval"] is not None:
        yield problem_at("data.eval", "has no effect on a selection", "drop it")
    if view.given("data.control_tokens"):
        yield problem_at(
            "data.control_tokens",
            "has no effect on a selection",
            "set it where its pairs are trained on",
        )
    if view["data.on_too_long"] == "truncate":
        yield problem_at("data.on_too_long", "a prompt that is cut asks something else", "use drop")


def _select_strategy(view: RecipeView) -> RecipeProblems:
    strategy, models = view["select.strategy"], view["select.reward_models"]
    spreads = strategy in ("diversity", "both")
    if strategy in ("uncertainty", "both") and not models:
        hint = "name one (`--reward_models`), or use `strategy: diversity`, which needs none"
        yield problem_at(
            "select.reward_models", f"is missing, and `strategy: {strategy}` asks them", hint
        )
    if view["select.pair"] in ("max_min", "most_uncertain") and not models:
        yield problem_at(
            "select.pair",
            f"`{view['select.pair']}` needs `select.reward_models`",
            "name one, or use random",
        )
    if view.given("select.uncertainty") and not models:
        yield problem_at(
            "select.uncertainty", "has no effect without `select.reward_models`", "drop it"
        )
    if view.given("select.pool_factor") and strategy != "both":
        yield problem_at(
            "select.pool_factor",
            f"has no effect with `strategy: {strategy}`",
            "it belongs to `both`",
        )
    for key in ("spread", "embedding"):
        if view.given(f"select.{key}") and not spreads:
            yield problem_at(
                f"select.{key}",
                f"has no effect with `strategy: {strategy}`",
                "it belongs to diversity and both",
            )


FLAGS = (
    Flag(
        "candidates",
        "select.candidates",
        "File of prompts with their responses, in place of --model.",
    ),
    Flag("reward_models", "select.reward_models", "Reward models whose doubts decide.", many=True),
    Flag(
        "labelled", "select.labelled", "Files, or earlier selections, of labelled pairs.", many=True
    ),
)


def _summary(recipe: SelectRecipe) -> OwnRows:
    settings = recipe.select
    responses = settings.candidates
    if responses is None:
        assert recipe.data is not None, "a rule asks for it"
        assert settings.policy is not None, "a rule asks for it"
        policy = settings.policy.name_or_path
        responses = f"{settings.num_samples} of {policy} to each prompt of {recipe.data.in_short()}"
    return [
        ("method", f"select ({settings.strategy})", ""),
        ("responses", responses, ""),
        ("judged by", ", ".join(settings.reward_models) or "nobody", "select.reward_models"),
        ("budget", f"{settings.budget:,} pairs", "select.budget"),
    ]


def _paths(run_dir: Path) -> dict[str, object]:
    read = f"aligner data select {run_dir} --labels FILE"
    return {"label": run_dir / "to_label.jsonl", "report": run_dir / "report.html", "then": read}


METHOD = Method(
    recipe=SelectRecipe,
    help=(
        "Active labelling (arXiv 2407.02119): the policy answers prompts, reward models say where "
        "they are unsure, and a budget of pairs is written to a file to be labelled. With --labels "
        "or --oracle, labels are read back for the recipe or its run directory. Common flags: "
        "--data, --model, --candidates, --reward_models, --labelled, --output, --seed."
    ),
    examples=(
        "aligner data select tiny/select",
        "aligner data select --model runs/sft/final --data prompts.jsonl --reward_models "
        "runs/reward --output runs/select",
        "aligner data select recipe.yaml select.budget=500 select.strategy=uncertainty",
        "aligner data select runs/select --labels to_label.jsonl",
        "aligner data select runs/select --oracle judge.yaml",
    ),
    rules=(_select_candidates, _select_data, _select_strategy, engine_has_its_parts, no_mosaics),
    flags=FLAGS,
    model_section="select.policy",
    run="aligner.builders.select.build:run_select",
    summary=_summary,
    untouched="nothing was asked and nothing was chosen",
    paths=_paths,
    report="aligner.builders.select.report:write_select_report",
)
