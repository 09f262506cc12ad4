"""The recipe of `aligner rlhf`, and what the method says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from aligner.config.dead_keys import no_noise_beside_a_reference, no_smoothing_of_tokens
from aligner.config.generation_rules import sampled_from_whole, written_by_the_trained
from aligner.config.method import TrainingMethod
from aligner.config.mosaic_rules import no_mosaics
from aligner.config.named import Names
from aligner.config.recipe import Preference, Section, Strength, TrainRecipe, Weight
from aligner.config.recipe_problem import RecipeProblems, problem_at
from aligner.config.reward_rules import reward_models_add_up
from aligner.config.view import RecipeView

ROLLOUT = "rollout.json"
"""What it adds to a checkpoint: responses that are trained on further."""
CRITIC = "critic.safetensors"
PPO_STATE = "ppo.json"
"""What PPO adds: the critic, and the KL coefficient."""


class Rlhf(Section):
    """Reinforcement learning on sampled responses, with a reward for each response, segment or
    token (arXiv 2402.03300, 2501.02790)."""

    algorithm: Literal["grpo", "ppo"] = "grpo"
    """`grpo`: responses to one prompt are each other's baseline; `ppo`: a critic learns what to
    expect of each token (arXiv 1707.06347)."""
    unit: Literal["sequence", "segment", "token"] = "sequence"
    """What gets a reward: the response, by `reward_models`; each of its segments, or each token, by
    `segment_model`."""
    reward_models: Annotated[list[str], Names("scorer")] = []
    """Scorers of whole responses: cards, `verifier:number`, `kind:argument`. With several, each is
    normalized before they are added up (GDPO, arXiv 2601.05242)."""
    reward_weights: list[Strength] = []
    """Weight of each of `reward_models`. Absent: all the same."""
    segment_model: Annotated[str | None, Names("scorer")] = None
    """The reward model of segments: a run of `aligner reward` with `kind: segment`, or its card."""
    credit: Literal["location", "process", "mixed"] = "location"
    """How segments become advantages. `location`: what is still to come, less what other responses
    had left at the same place; `process`: z-scores of segments, added up from each one on; `mixed`:
    the outcome by `reward_models`, and segments move credit within a response."""
    alpha: Weight = 1.0
    """`mixed`: weight of the segments."""
    interpolation: Literal["even", "last", "repeat"] = "even"
    """How a segment's reward is given to its tokens; `repeat` pays by the length."""
    aggregate: Literal["mean", "sum"] = "mean"
    """`mean`: segments count by their share of the response; `sum`, as in the paper, pays for
    more of them."""
    normalizer: Literal["weighted", "huber_groups"] = "weighted"
    """How the average of values at each location is fitted; `huber_groups` is the paper's code."""
    normalizer_samples: int = Field(512, ge=8, le=1_000_000)
    """Responses of the model that training starts from, which it is fitted to."""
    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo"] = "dapo"
    """What tokens are divided by, and for `cispo` the objective; TRL's names (`loss_type`)."""
    ratio: Literal["token", "sequence"] = "token"
    """A ratio of probabilities for each token, or one for the response (GSPO, arXiv 2507.18071)."""
    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What a response is compared with: its group's mean, or that of the others (RLOO)."""
    scale: Literal["group", "batch", "none"] = "group"
    """What advantages are divided by: the standard deviation of the group, of all that was sampled
    at once, nothing. Those of segments are divided by the second unless it is `none`."""
    group_size: int = Field(8, ge=1, le=1024)
    """Responses to each prompt, for `grpo` at least 2; TRL's `num_generations`."""
    iterations: int = Field(1, ge=1, le=100)
    """How often responses are trained on; TRL's `num_iterations`."""
    steps_per_generation: int = Field(1, ge=1, le=1000)
    """Optimizer steps whose prompts are answered at once, with one policy: each then trains on its
    part of the responses. TRL's name, which counts micro-batches there."""
    max_new_tokens: int = Field(256, ge=1, le=1_000_000)
    """Longest response; TRL's `max_completion_length`."""
    temperature: float = Field(1.0, ge=0.01, le=100.0)
    """Sampling temperature, which the policy's probabilities are then taken at."""
    generation_batch_size: int | None = Field(None, ge=1, le=65_536)
    """Responses decoded together. Absent: all of an optimizer step on this process."""
    redraws: int = Field(0, ge=0, le=100)
    """How often a group whose responses all have the same reward is sampled again, as it teaches
    nothing (dynamic sampling, arXiv 2503.14476)."""
    beta: Weight = 0.0
    """Weight of the KL divergence to the model that training starts from: in the loss, or, with
    `ppo`, in the reward of each token."""
    kl_estimator: Literal["k3", "k2"] = "k3"
    """How it is estimated: `k3` is never negative and unbiased; `k2` has the right gradient."""
    clip_low: float = Field(0.2, ge=0.0, le=1.0)
    """A ratio counts down to 1 - this; TRL's `epsilon`."""
    clip_high: float = Field(0.2, ge=0.0, le=100.0)
    """A ratio counts up to 1 + this; TRL's `epsilon_high`, 0.28 in DAPO."""
    delta: float | None = Field(None, gt=1.0, le=1e6)
    """Largest ratio for negative advantages; TRL's name. Absent: not bounded."""
    cap: float = Field(5.0, gt=0.0, le=1e6)
    """`cispo`: largest ratio that a token is weighted with."""
    mismatch_cap: float | None = Field(2.0, gt=0.0, le=1e6)
    """Where sampling computed a token's probability otherwise than training does (another kernel,
    another data type), its loss is weighted with the ratio of the two, up to this. Absent: not."""
    truncated: Literal["keep", "mask"] = "keep"
    """Responses that ended at `max_new_tokens`: trained on like others, or not at all."""
    missing_eos_penalty: Weight = 0.0
    """Taken off once from the reward of such a response."""
    overlong_buffer: int | None = Field(None, ge=1)
    """Tokens before `max_new_tokens` over which the reward falls by 1, evenly (arXiv 2503.14476,
    eq. 13)."""
    critic_learning_rate: float | None = Field(None, ge=0.0, le=1.0)
    """`ppo`: learning rate of the critic. Absent: five times `trainer.learning_rate`."""
    critic_warmup: int = Field(0, ge=0, le=1_000_000)
    """`ppo`: optimizer steps at the start that train the critic alone."""
    gamma: float = Field(1.0, gt=0.0, le=1.0)
    """`ppo`: what a reward one token later counts."""
    gae_lambda: float | None = Field(None, ge=0.0, le=1.0)
    """1 looks at all that comes, 0 at what is expected of the next token (arXiv 1506.02438): by the
    critic, or, with `credit: location`, by the group. Absent: 0.95 with `ppo`, else 1."""
    value_clip: float | None = Field(0.25, gt=0.0, le=1e6)
    """`ppo`: how far a value may move from the one at sampling; null: not bounded."""
    target_kl: float | None = Field(None, gt=0.0, le=1e6)
    """`ppo`: nats a token from the policy that sampled; at 1.5 times as many, the policy rests
    until there are new responses. Absent: it never does."""
    kl: Literal["fixed", "adaptive"] = "fixed"
    """`ppo`: whether `beta` stays, or follows `kl_target` (arXiv 1909.08593)."""
    kl_target: float = Field(6.0, gt=0.0, le=1e6)
    """`kl: adaptive`: nats between a response's policy and reference that are aimed at."""
    kl_horizon: int = Field(10_000, ge=1)
    """`kl: adaptive`: responses over which `beta` moves by at most a fifth."""

    @property
    def steps_on_rollout(self) -> int:
        """Optimizer steps on the responses of one rollout."""
        return self.steps_per_generation * self.iterations


class RlhfRecipe(TrainRecipe):
    """`aligner rlhf`: reinforcement learning on sampled responses."""

    method: Literal["rlhf"] = "rlhf"
    """What to do."""
    rlhf: Rlhf = Rlhf()
    """What belongs to this method alone."""
    preference: Preference = Preference()
    """How responses to one prompt are computed."""


TRL_NAMES = {
    "num_generations": "rlhf.group_size",
    "num_iterations": "rlhf.iterations",
    "steps_per_generation": "rlhf.steps_per_generation",
    "max_completion_length": "rlhf.max_new_tokens",
    "epsilon": "rlhf.clip_low",
    "epsilon_high": "rlhf.clip_high",
    "delta": "rlhf.delta",
    "loss_type": "rlhf.loss",
    "scale_rewards": "rlhf.scale",
    "importance_sampling_level": "rlhf.ratio",
    "mask_truncated_completions": "rlhf.truncated",
    "beta": "rlhf.beta",
    "temperature": "rlhf.temperature",
    "reward_weights": "rlhf.reward_weights",
    "reward_funcs": "rlhf.reward_models",
    "generation_batch_size": "rlhf.generation_batch_size",
}
"""Key of TRL's GRPOConfig -> what it is called here."""

OF_SEGMENTS = (
    *("segment_model", "credit", "alpha", "interpolation", "aggregate", "normalizer"),
    "normalizer_samples",
)

OF_GRPO = (
    "credit",
    "alpha",
    "loss",
    "ratio",
    "baseline",
    "scale",
    "redraws",
    "kl_estimator",
    "cap",
)
OF_PPO = (
    *("critic_learning_rate", "critic_warmup", "gamma", "value_clip", "target_kl"),
    *("kl", "kl_target", "kl_horizon"),
)


def _has_location(unit: str, credit: str) -> bool:
    return unit != "sequence" and credit == "location"


def _algorithms(view: RecipeView) -> RecipeProblems:
    algorithm = view["rlhf.algorithm"]
    other = "ppo" if algorithm == "grpo" else "grpo"
    for key in OF_PPO if algorithm == "grpo" else OF_GRPO:
        if view.given(f"rlhf.{key}"):
            message = f"has no effect with `algorithm: {algorithm}`"
            yield problem_at(f"rlhf.{key}", message, f"drop it, or set rlhf.algorithm={other}")
    if algorithm == "grpo":
        if view["rlhf.group_size"] == 1:
            hint = "use 2 or more, or rlhf.algorithm=ppo"
            yield problem_at("rlhf.group_size", "leaves a response nothing to be compared to", hint)
        if view.given("rlhf.gae_lambda") and not _has_location(
            view["rlhf.unit"], view["rlhf.credit"]
        ):
            message = "has no effect without a critic or `credit: location`"
            yield problem_at("rlhf.gae_lambda", message, "drop it, or set rlhf.algorithm=ppo")
        return
    if view["rlhf.kl"] == "adaptive" and not view["rlhf.beta"]:
        message = "is 0, and `kl: adaptive` multiplies it"
        yield problem_at("rlhf.beta", message, "give it a value to start from, such as 0.02")
    for key in ("kl_target", "kl_horizon"):
        if view["rlhf.kl"] == "fixed" and view.given(f"rlhf.{key}"):
            message = "has no effect with `kl: fixed`"
            yield problem_at(f"rlhf.{key}", message, "set rlhf.kl=adaptive")


def _units(view: RecipeView) -> RecipeProblems:
    unit, credit = view["rlhf.unit"], view["rlhf.credit"]
    if unit == "sequence":
        for key in OF_SEGMENTS:
            if view.given(f"rlhf.{key}"):
                yield problem_at(
                    f"rlhf.{key}", "has no effect with `unit: sequence`", "set rlhf.unit=segment"
                )
        if not view["rlhf.reward_models"]:
            hint = "name what scores responses: a card, a run of `aligner reward`, verifier:number"
            yield problem_at("rlhf.reward_models", "is missing", hint)
    else:
        if view["rlhf.segment_model"] is None:
            hint = "name a run of `aligner reward` with reward.kind=segment"
            yield problem_at("rlhf.segment_model", f"is missing, and `unit: {unit}` needs it", hint)
        if credit == "mixed" and not view["rlhf.reward_models"]:
            hint = "name what scores whole responses"
            yield problem_at("rlhf.reward_models", "is missing, and `credit: mixed` needs it", hint)
        if credit != "mixed":
            yield from _segments_alone(view)
        if view["rlhf.ratio"] == "sequence":
            message = "gives all tokens one ratio, and segments are to differ"
            yield problem_at("rlhf.ratio", message, "use token, or rlhf.unit=sequence")


def _segments_alone(view: RecipeView) -> RecipeProblems:
    key, hint = f"credit: {view['rlhf.credit']}", "set rlhf.credit=mixed, or drop it"
    keys = ["reward_models", "reward_weights", "overlong_buffer"]
    if view["rlhf.algorithm"] == "ppo":
        key, hint = f"unit: {view['rlhf.unit']}", "set rlhf.unit=sequence, or drop it"
    else:
        keys += ["baseline", "alpha"]
    for name in keys:
        if view.given(f"rlhf.{name}") and view[f"rlhf.{name}"]:
            message = f"has no effect with `{key}`, where segments alone count"
            yield problem_at(f"rlhf.{name}", message, hint)


def _numbers(view: RecipeView) -> RecipeProblems:
    yield from reward_models_add_up(view, "rlhf")
    if view.given("rlhf.cap") and view["rlhf.loss"] != "cispo":
        yield problem_at("rlhf.cap", "has no effect without `loss: cispo`", "drop it")
    for key in ("clip_low", "clip_high", "delta", "value_clip", "target_kl"):
        if view["rlhf.loss"] == "cispo" and view.given(f"rlhf.{key}"):
            yield problem_at(f"rlhf.{key}", "has no effect with `loss: cispo`", "use rlhf.cap")
        elif not _moves_on_rollout(view) and view.given(f"rlhf.{key}"):
            message = "has no effect on one step for each rollout: its ratio is 1"
            hint = "set rlhf.iterations or rlhf.steps_per_generation, or drop it"
            yield problem_at(f"rlhf.{key}", message, hint)
    buffer, longest = view["rlhf.overlong_buffer"], view["rlhf.max_new_tokens"]
    if buffer is not None and buffer > longest:
        yield problem_at("rlhf.overlong_buffer", f"is above `max_new_tokens` ({longest})")
    if view["rlhf.truncated"] == "mask":
        for key in ("missing_eos_penalty", "overlong_buffer"):
            if view["rlhf." + key]:
                message = "would punish what `truncated: mask` leaves out"
                yield problem_at(f"rlhf.{key}", message, "keep one of the two")


def _moves_on_rollout(view: RecipeView) -> bool:
    """Whether the policy is another by the end of a rollout than the one that sampled it."""
    return bool(view["rlhf.iterations"] * view["rlhf.steps_per_generation"] > 1)


def _noise(view: RecipeView) -> RecipeProblems:
    lora = view["model.lora"]
    if lora and lora.get("lora_dropout") and _moves_on_rollout(view):
        message = "is drawn again at each step, and ratios to the first one would measure it"
        hint = "set it to 0, or rlhf.iterations and rlhf.steps_per_generation to 1"
        yield problem_at("model.lora.lora_dropout", message, hint)


def _steps(view: RecipeView) -> RecipeProblems:
    asked, last = view["rlhf.steps_per_generation"], view["trainer.max_steps"] or 0
    if 0 < last < asked:
        message = f"is above trainer.max_steps ({last}), where training ends"
        yield problem_at("rlhf.steps_per_generation", message, "lower it, or train longer")


def _checkpoint_files(recipe: RlhfRecipe) -> Mapping[str, str]:
    files = {}
    if recipe.rlhf.steps_on_rollout > 1:
        files[ROLLOUT] = "the responses that are trained on further"
    if recipe.rlhf.algorithm == "ppo":
        files |= {CRITIC: "the critic", PPO_STATE: "the KL coefficient"}
    return files


def _in_short(rlhf: Rlhf) -> str:
    if rlhf.algorithm == "ppo":
        unit = "" if rlhf.unit == "sequence" else f", rewards by {rlhf.unit}"
        return f"ppo, {rlhf.group_size} responses to a prompt{unit}"
    unit = "" if rlhf.unit == "sequence" else f", credit by {rlhf.unit} ({rlhf.credit})"
    return f"grpo, {rlhf.loss} loss, groups of {rlhf.group_size}{unit}"


def _card_note(rlhf: Mapping[str, Any]) -> str:
    kind = "PPO" if rlhf["algorithm"] == "ppo" else f"GRPO, `{rlhf['loss']}` loss"
    return f"{kind}, rewards by {rlhf['unit']}"


def _settings_read(rlhf: Mapping[str, Any]) -> Mapping[str, Any]:
    unread: tuple[str, ...] = OF_PPO if rlhf["algorithm"] == "grpo" else OF_GRPO
    unread += OF_SEGMENTS if rlhf["unit"] == "sequence" else ()
    if rlhf["algorithm"] == "grpo" and not _has_location(rlhf["unit"], rlhf["credit"]):
        unread += ("gae_lambda",)
    return {key: value for key, value in rlhf.items() if key not in unread}


METHOD = TrainingMethod(
    recipe=RlhfRecipe,
    title="reinforcement learning",
    help=(
        "Reinforcement learning on responses that the model samples: GRPO and its relatives (Dr. "
        "GRPO, DAPO, CISPO, GSPO, RLOO), or PPO with a critic, with rewards of verifiers or "
        "reward models for whole responses, or of a segment reward model for each segment or "
        "token (arXiv 2501.02790)."
    ),
    examples=(
        "aligner rlhf tiny/rlhf-verifier",
        "aligner rlhf recipe.yaml rlhf.group_size=16 rlhf.beta=0.01",
        "aligner rlhf recipe.yaml rlhf.unit=segment rlhf.segment_model=runs/reward-segment",
        "aligner rlhf recipe.yaml rlhf.algorithm=ppo rlhf.group_size=1 rlhf.beta=0.02",
        "aligner rlhf recipe.yaml 'rlhf.reward_models=[verifier:number, runs/reward]'",
    ),
    rules=(
        _algorithms,
        _units,
        _numbers,
        _noise,
        _steps,
        written_by_the_trained("here the policy itself writes"),
        sampled_from_whole("responses are sampled from"),
        no_mosaics,
        no_smoothing_of_tokens("drop it: rewards are taken as they are"),
        no_noise_beside_a_reference("rlhf.loss"),
    ),
    has_arena=True,
    trainer_class="transformers.TrainingArguments",
    defaults={
        "learning_rate": 1e-6,  # TRL's for GRPO
        "train_sampling_strategy": "random",  # rows of one length are often of one task
    },
    defaults_with_lora={"learning_rate": 1e-5},
    scorer_key="rlhf.reward_models",
    settings=("algorithm", "unit", "loss", "group_size", "beta"),
    metrics={"loss": False, "reward": True, "completions/clipped_ratio": False},
    charts=(
        ("Reward", [("train", "reward", "train"), ("eval", "reward", "held out")]),
        ("KL to the start, nats a token", [("train", "kl", "train")]),
        ("Entropy, nats a token", [("train", "entropy", "train")]),
        (
            "Length of responses, tokens",
            [
                ("train", "completions/mean_length", "train"),
                ("eval", "completions/mean_length", "held out"),
            ],
        ),
        (
            "Share of responses cut off",
            [
                ("train", "completions/clipped_ratio", "train"),
                ("eval", "completions/clipped_ratio", "held out"),
            ],
        ),
        (
            "Share of groups without a difference",
            [("train", "frac_reward_zero_std", "train")],
        ),
        ("Clipped ratios", [("train", "clip_ratio/region_mean", "train")]),
        ("Explained variance of returns", [("train", "explained_variance", "train")]),
        ("Value loss", [("train", "value_loss", "train")]),
        (
            "Segment rewards by location, normalized",
            [
                ("train", "segments/early", "first third"),
                ("train", "segments/middle", "second"),
                ("train", "segments/late", "last"),
            ],
        ),
    ),
    in_short=_in_short,
    card_note=_card_note,
    settings_read=_settings_read,
    other_names=TRL_NAMES,
    repeats=lambda recipe: recipe.rlhf.iterations,
    checkpoint_files=_checkpoint_files,
)
