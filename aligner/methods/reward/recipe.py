"""The recipe of `aligner reward`, and what the method says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from aligner.config.choices import PREFERENCE_FORMATS, SHARDED, SINGLE_ANSWER_FORMATS
from aligner.config.dead_keys import no_smoothing_of_tokens
from aligner.config.generation_rules import writes_nothing
from aligner.config.hints import did_you_mean
from aligner.config.method import TrainingMethod, run_and_report
from aligner.config.mosaic_rules import no_mosaics
from aligner.config.recipe import Preference, Section, TrainRecipe, Weight
from aligner.config.recipe_problem import RecipeProblems, problem_at, show
from aligner.config.segments import Segments, without_effect
from aligner.config.view import RecipeView, refuse_formats


class RewardSegments(Segments):
    """How answers are cut into segments for `kind: segment` (arXiv 2501.02790)."""

    target_length: int | None = Field(None, ge=2)
    """Tokens that segments have on average: `cutoff` is then taken from the entropies of the
    training answers, of which about one in so many lies above it."""


class Reward(Section):
    """Training a reward model."""

    kind: Literal["bradley_terry", "regression", "pairwise", "segment", "odin"] = "bradley_terry"
    """`bradley_terry`: one score, from pairs; `regression`: ratings by attribute; `pairwise`: a
    language model that is asked A or B; `segment`: a value at every token, averaged over segments;
    `odin`: Bradley-Terry without the length (arXiv 2402.07319)."""
    loss: Literal["plain", "margin", "scaled"] = "plain"
    """How pairs with a strength count: all the same, as a margin (arXiv 2307.09288), or as a weight
    (arXiv 2410.01257)."""
    strength: str = "strength"
    """Column with the strength of each preference, above 0; a pair with 0 is a tie, which is left
    out and counted."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Assumed share of flipped labels."""
    center_rewards_coefficient: Weight = 0.0
    """Weight of a term that keeps the rewards of a pair around 0; 0.01 is common. TRL's name."""
    attributes: list[str] = []
    """For `regression`: columns with the ratings. A missing rating (null, NaN) counts for
    nothing."""
    attribute_weights: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]] = {}
    """Weight of each attribute in the score. Absent: all the same."""
    length_weight: Weight = 1.0
    """For `odin`: weight of the terms that keep length out of the one head and in the other."""
    orthogonality_weight: Weight = 1.0
    """For `odin`: weight of the term that keeps the two heads apart."""
    segments: RewardSegments | None = None
    """For `segment`: how answers are cut. Absent: by entropy."""


class RewardRecipe(TrainRecipe):
    """`aligner reward`: training a reward model."""

    method: Literal["reward"] = "reward"
    """What to do."""
    reward: Reward = Reward()
    """What belongs to this method alone."""
    preference: Preference = Preference()
    """How answers to one prompt are computed."""


def _reward_formats(view: RecipeView) -> RecipeProblems:
    if view["reward.kind"] == "regression":
        yield from refuse_formats(
            view,
            SINGLE_ANSWER_FORMATS,
            "reward.kind=regression",
            "it needs prompts with one rated answer each",
        )
    else:
        yield from refuse_formats(
            view, PREFERENCE_FORMATS, "reward", "it needs `chosen` and `rejected`"
        )


KINDS_OF_KEY: dict[str, tuple[str, ...]] = {
    "loss": ("bradley_terry", "odin", "segment"),
    "strength": ("bradley_terry", "odin", "segment", "pairwise"),
    "label_smoothing": ("bradley_terry", "odin", "segment"),
    "center_rewards_coefficient": ("bradley_terry", "odin", "segment"),
    "attributes": ("regression",),
    "attribute_weights": ("regression", "bradley_terry", "odin", "segment"),
    "length_weight": ("odin",),
    "orthogonality_weight": ("odin",),
    "segments": ("segment",),
}
"""Key of `reward` -> the kinds that read it."""


def _reward_parts(view: RecipeView) -> RecipeProblems:
    kind, attributes = view["reward.kind"], view["reward.attributes"]
    for key, kinds in KINDS_OF_KEY.items():
        if view.given(f"reward.{key}") and kind not in kinds:
            yield problem_at(
                f"reward.{key}",
                f"has no effect with `kind: {kind}`",
                f"it belongs to {' and '.join(kinds)}",
            )
    if view["preference.prefix"] == "shared" and kind in ("regression", "pairwise"):
        hint = "drop it: rows of this kind hold one text each"
        yield problem_at("preference.prefix", f"has no effect with `kind: {kind}`", hint)
    if view["reward.strength"] == "weight":
        hint = "it scales a pair's loss as it is; drop it, or name another column"
        yield problem_at(
            "reward.strength", "`weight` is read as the weight of a pair already", hint
        )
    if kind == "regression":
        if not attributes:
            yield problem_at(
                "reward.attributes",
                "is missing",
                "the columns that hold ratings: [helpfulness, correctness]",
            )
        for name in sorted({name for name in attributes if attributes.count(name) > 1}):
            yield problem_at("reward.attributes", f"names {show(name)} twice", "drop one")
        for name in view["reward.attribute_weights"]:
            if name not in attributes:
                hint = did_you_mean(name, attributes) or f"they are {', '.join(attributes)}"
                yield problem_at(
                    f"reward.attribute_weights.{name}", "is none of `reward.attributes`", hint
                )
    yield from _segments_parts(view)
    strategy = view["launch.strategy"]
    if kind == "odin" and strategy in SHARDED:
        message = f"`{strategy}` splits the two heads, and at the end one of them is taken out"
        yield problem_at("launch.strategy", message, "use `ddp`, `zero1` or `zero2`")


def _segments_parts(view: RecipeView) -> RecipeProblems:
    segments = view["reward.segments"]
    if not isinstance(segments, dict):
        return
    given = [key for key, value in segments.items() if value is not None]
    for key, rules in without_effect(segments.get("rule", "entropy"), given):
        yield problem_at(
            f"reward.segments.{key}", f"has no effect without `rule: {rules}`", "drop it"
        )
    shortest, longest = segments.get("min_length", 1), segments.get("max_length")
    if isinstance(shortest, int) and isinstance(longest, int) and longest < shortest:
        message = f"is {longest}, and `min_length` is {shortest}"
        yield problem_at("reward.segments.max_length", message, "the larger number here")
    if "target_length" in given and "cutoff" in given:
        yield problem_at(
            "reward.segments.target_length",
            "sets the cutoff, which is given too",
            "drop `target_length` or `cutoff`",
        )


def _in_short(reward: Reward) -> str:
    return reward.kind if reward.loss == "plain" else f"{reward.kind}, {reward.loss} loss"


def _card_note(reward: Mapping[str, Any]) -> str:
    loss = f", `{reward['loss']}` loss" if "loss" in _settings_read(reward) else ""
    return f"`{reward['kind']}`{loss}"


def _settings_read(reward: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the section that its kind reads."""
    kind = reward["kind"]
    return {key: value for key, value in reward.items() if kind in KINDS_OF_KEY.get(key, (kind,))}


def _paths(run_dir: Path) -> dict[str, object]:
    measure = f"aligner eval --reward-model {run_dir} --data PAIRS"
    return {**run_and_report(run_dir), "measure": measure}


METHOD = TrainingMethod(
    recipe=RewardRecipe,
    title="reward modelling",
    help=(
        "Train a reward model: Bradley-Terry on pairs (plain, with a margin, or scaled by the "
        "strength of a preference), a regression on ratings, a pairwise model that is asked A or "
        "B, values at the ends of segments, or ODIN, which keeps length out of the score. The "
        "result holds a card that `aligner score` and `aligner eval --reward-model` load."
    ),
    examples=(
        "aligner reward tiny/reward",
        "aligner reward --model runs/sft/final --data pairs.jsonl --output runs/reward",
        "aligner reward recipe.yaml reward.loss=scaled reward.center_rewards_coefficient=0.01",
        "aligner reward recipe.yaml reward.kind=regression 'reward.attributes=[helpfulness, "
        "correctness]'",
        "aligner eval --reward-model runs/reward --data pairs.jsonl",
    ),
    rules=(
        writes_nothing,
        _reward_formats,
        _reward_parts,
        no_mosaics,
        no_smoothing_of_tokens("set `reward.label_smoothing`"),
    ),
    trainer_class="trl.RewardConfig",
    defaults={
        "learning_rate": 1e-5,  # TRL's 1e-4 is meant for LoRA, published 8B models used 2e-6
        "num_train_epochs": 1,  # as of all published reward models; more usually overfits
    },
    defaults_with_lora={"learning_rate": 1e-4},
    settings=("kind", "loss", "label_smoothing"),
    metrics={
        "loss": False,
        "accuracy": True,
        "margin": True,
        "rewards/chosen": True,
        "rewards/rejected": False,
        "mse": False,
        "mean_absolute_error": False,
    },
    charts=(
        ("Accuracy", [("train", "accuracy", "train"), ("eval", "accuracy", "held out")]),
        ("Margin", [("train", "margin", "train"), ("eval", "margin", "held out")]),
        ("Squared error", [("train", "mse", "train"), ("eval", "mse", "held out")]),
        (
            "Correlation of reward and length",
            [("train", "length_correlation", "train"), ("eval", "length_correlation", "held out")],
        ),
        (
            "Rewards",
            [("train", "rewards/chosen", "chosen"), ("train", "rewards/rejected", "rejected")],
        ),
    ),
    in_short=_in_short,
    card_note=_card_note,
    settings_read=_settings_read,
    makes_scorer=True,
    has_head=lambda reward: reward["kind"] != "pairwise",
    paths=_paths,
)
