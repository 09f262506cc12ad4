"""The recipe of `aligner online`, and what the method says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from aligner.config.method import OwnRows, TrainingMethod
from aligner.config.named import Names
from aligner.config.oracle import Oracle, oracle_of_rounds
from aligner.config.recipe import Model, Preference, Section, Strength, TrainRecipe, Weight, Whole
from aligner.config.recipe_problem import RecipeProblems, problem_at, show
from aligner.config.reward_rules import reward_models_add_up
from aligner.config.view import RecipeView
from aligner.methods.dpo.recipe import METHOD as DPO
from aligner.methods.dpo.recipe import OF_OBJECTIVES, Dpo


class Pairing(Section):
    """How the scored responses to a prompt become pairs."""

    rule: Literal["max_min", "max_random", "top_bottom", "random", "two_models", "anchored"] = (
        "max_min"
    )
    """`max_min`: the best and the worst; `max_random`: the best and any other; `top_bottom`: each
    of the `top` best with each of the `top` worst; `random`: any two; `two_models`: one of a
    stronger and one of a weaker model (delta learning, arXiv 2507.06187); `anchored`: the best, and
    the worst of the policy or of the start, whichever is worse (arXiv 2508.06026)."""
    top: int = Field(2, ge=1, le=64)
    """`top_bottom`: how many at each end."""
    max_pairs: int | None = Field(None, ge=1, le=10_000)
    """Most pairs of a prompt, those with the largest margin first. Absent: all that the rule
    makes."""
    min_margin: Weight = 0.0
    """The chosen response scores more than this above the rejected one; ties are never pairs."""
    length_penalty: Weight = 0.0
    """Taken off a score for each unit of length, before anything is chosen."""
    length_unit: Literal["tokens", "characters"] = "tokens"
    """The unit; characters in arXiv 2405.07863, with 0.001."""
    max_length_ratio: float | None = Field(None, gt=1.0, le=1e6)
    """Drop pairs whose longer response has more than this many times the tokens of the other."""
    truncated: Literal["rejected", "drop"] = "rejected"
    """Responses that ended at `max_new_tokens` are never chosen; they may be rejected, or are left
    out."""


class SelfRewarding(Section):
    """The policy of each round rates its own responses: up to five points, one for each of five
    criteria (arXiv 2401.10020). A small model is a poor judge of itself."""

    samples: int = Field(3, ge=1, le=64)
    """Ratings of each response, whose mean is its score."""
    temperature: float = Field(0.7, ge=0.01, le=100.0)
    """Sampling temperature of ratings."""
    top_p: float = Field(0.9, gt=0.0, le=1.0)
    """Nucleus sampling of ratings."""
    max_new_tokens: int = Field(512, ge=1, le=1_000_000)
    """Longest rating; one that is cut is not read."""
    rubric: Annotated[str | None, Names("file")] = None
    """A text file with five criteria, in place of ours."""


class Stop(Section):
    """When rounds end early: the last one then did not pay. Measured on the validation prompts."""

    kl: float | None = Field(None, gt=0.0, le=1e6)
    """Stop where the policy is further than this from the start, in nats a response."""
    eos_drop: float | None = Field(None, gt=0.0, le=1.0)
    """Stop where the share of responses that end by themselves fell by more than this."""
    over_optimized: bool = True
    """Stop where the reward rose and `gold` fell since the round before, each by more than two
    standard errors. Without `gold` nothing can say so."""


class Evaluation(Section):
    """What is measured after each round, on the held-out prompts (`data.eval`)."""

    num_samples: int = Field(2, ge=1, le=64)
    """Responses to each held-out prompt, sampled at temperature 1."""
    gold: Annotated[str | None, Names("scorer")] = None
    """A scorer that training does not see: a judge, a verifier, a larger reward model. Absent: win
    rates are those by `reward_models`."""
    validation: float = Field(0.5, gt=0.0, le=1.0)
    """Share of the held-out prompts that chooses the best round and stops; the others report."""


class Online(Section):
    """Online iterative preference optimization (RLHF Workflow, arXiv 2405.07863)."""

    rounds: int = Field(3, ge=1, le=1000)
    """Rounds of sampling, scoring, pairing, training and evaluation."""
    prompts_per_round: Whole | None = Field(None, ge=1)
    """Prompts of a round, none of which comes again in another. Absent: all of them, divided
    evenly."""
    num_samples: int = Field(8, ge=1, le=1024)
    """Responses to each prompt."""
    temperatures: list[Annotated[float, Field(ge=0.01, le=100.0)]] = Field([1.0, 0.7], min_length=1)
    """Sampling temperatures; each gets an even share of the responses."""
    max_new_tokens: int = Field(512, ge=1, le=1_000_000)
    """Longest response."""
    generation_batch_size: int = Field(16, ge=1, le=65_536)
    """Responses decoded together."""
    shard_size: int = Field(64, ge=1, le=1_000_000)
    """Prompts that are sampled, scored and kept together: what a kill costs."""
    reward_models: Annotated[list[str], Names("scorer")] = []
    """What scores responses: reward models, verifiers, judges; the weighted mean of several."""
    reward_weights: list[Strength] = []
    """Weight of each of `reward_models`. Absent: all the same."""
    self_rewarding: SelfRewarding | None = None
    """In place of `reward_models`: the round's own policy rates its responses. `{}` for all
    defaults."""
    oracle: Oracle | None = None
    """Ask an expensive scorer about few pairs of each round, and train the one of `reward_models`
    on what it says before it scores the round (arXiv 2407.02119)."""
    pairing: Pairing = Pairing()
    """How scored responses become pairs."""
    future: bool = False
    """Train a temporary policy on the round's pairs first; where its best response to a prompt
    scores above the chosen one it is chosen instead, and the round's policy is trained on that,
    from the round's own start (future-guided chosen, arXiv 2508.06026)."""
    stronger: Model | None = None
    """`two_models`: what writes the chosen responses."""
    weaker: Model | None = None
    """`two_models`: what writes the rejected ones."""
    train: Literal["dpo", "sft"] = "dpo"
    """`dpo`: any loss of `dpo.loss` on the pairs; `sft`: next-token loss on the best response of
    each prompt (best-of-n)."""
    start: Literal["previous", "initial"] = "previous"
    """`previous`: each round trains the last one's policy on its new pairs; `initial`: it trains
    the start on the pairs of all rounds so far."""
    reference: Literal["initial", "previous", "ema"] = "initial"
    """The reference of the loss: what the first round started from, what this round starts from, or
    a moving average of the policies."""
    ema_decay: float = Field(0.5, gt=0.0, lt=1.0)
    """`reference: ema`: weight of the old average after each round."""
    replay: float = Field(0.0, ge=0.0, le=100.0)
    """Pairs of earlier rounds that are trained on again, as a share of the round's own."""
    keep: Literal["all", "last2", "best"] = "all"
    """Rounds whose weights stay on disk; the best one's are always copied to `final/`."""
    serve: str | None = None
    """`generation.engine: endpoint`: a command that makes the server serve a new policy, run before
    it is sampled from; `{model}` stands for its folder, `{round}` for its number."""
    evaluation: Evaluation = Evaluation()
    """What is measured after each round."""
    stop: Stop = Stop()
    """When rounds end early."""


class OnlineRecipe(TrainRecipe):
    """`aligner online`: online iterative preference optimization."""

    method: Literal["online"] = "online"
    """What to do."""
    online: Online = Online()
    """What belongs to this method alone."""
    dpo: Dpo = Dpo()
    """The loss of each round, as `aligner dpo` has it."""
    preference: Preference = Preference()
    """How answers to one prompt are computed."""


OTHER_NAMES = {
    "num_generations": "online.num_samples",
    "max_new_tokens": "online.max_new_tokens",
    "temperature": "online.temperatures",
    "sft_alpha": "dpo.nll_weight",
    "rpo_alpha": "dpo.nll_weight",
    "beta": "dpo.beta",
    "loss_type": "dpo.loss",
}

OF_ROUNDS = ("reference", "reference_model", "reward_models", "forward_kl")
"""Keys of `dpo` that the rounds decide, or that ask for what is done here in another place."""


def _prompts(view: RecipeView) -> RecipeProblems:
    if view["data.eval"] is None:
        hint = "such as data.eval=0.1: rounds are compared on them"
        yield problem_at("data.eval", "is missing: there are no held-out prompts", hint)
    if view["early_stopping"] is not None:
        hint = "drop it; `online.stop` says when rounds end"
        yield problem_at("early_stopping", "has no effect: a round trains on all its pairs", hint)


def _dpo_of_rounds(view: RecipeView) -> RecipeProblems:
    for key in OF_ROUNDS:
        if view.given(f"dpo.{key}"):
            message = "is decided by the rounds"
            hint = "use online.reference, or drop it"
            yield problem_at(f"dpo.{key}", message, hint)
    if view["online.train"] == "sft":
        for key in ("dpo", "preference", "online.reference", "online.ema_decay"):
            if view.given(key):
                yield problem_at(key, "has no effect with `train: sft`", "drop it")
    elif view["online.reference"] != "ema" and view.given("online.ema_decay"):
        yield problem_at("online.ema_decay", "has no effect", "set online.reference=ema")
    if view["online.reference"] == "ema" and view["model.lora"] is not None:
        message = "is `ema`, and the mean of two adapters is not the adapter of the mean"
        yield problem_at("online.reference", message, "use initial or previous")
    if view["online.start"] == "initial" and view.given("online.replay"):
        message = "has no effect with `start: initial`, which trains on all pairs so far"
        yield problem_at("online.replay", message, "drop it")


def _sampling(view: RecipeView) -> RecipeProblems:
    samples, temperatures = view["online.num_samples"], view["online.temperatures"]
    rule = view["online.pairing.rule"]
    if rule != "two_models" and samples < 2 and view["online.train"] == "dpo":
        yield problem_at("online.num_samples", "is 1, and a pair needs two responses", "use more")
    if samples % len(temperatures):
        message = f"is {samples}, and {len(temperatures)} temperatures share them evenly"
        yield problem_at("online.num_samples", message, "use a multiple of their number")
    yield from reward_models_add_up(view, "online")
    models = view["online.reward_models"]
    gold = view["online.evaluation.gold"]
    if gold is not None and gold in models:
        message = f"is {show(gold)}, which `reward_models` names too: training sees it"
        yield problem_at("online.evaluation.gold", message, "name another scorer, or drop it")
    rates_itself = view["online.self_rewarding"] is not None
    if models and rates_itself:
        message = "and `self_rewarding` both score the responses"
        yield problem_at("online.reward_models", message, "use one of them")
    no_models = rule == "two_models" or rates_itself
    if not models and no_models and view["online.evaluation.gold"] is None:
        hint = "name what scores held-out responses"
        yield problem_at("online.evaluation.gold", "is missing: nothing compares rounds", hint)
    if not models and not no_models:
        hint = "name what scores responses: a card, a run of `aligner reward`, verifier:number"
        yield problem_at("online.reward_models", "is missing", hint)


OF_A_PAIR = ("max_length_ratio", "min_margin", "truncated")


def _pairing(view: RecipeView) -> RecipeProblems:
    rule, is_sft = view["online.pairing.rule"], view["online.train"] == "sft"
    several = {"top": ("top_bottom",), "max_pairs": ("top_bottom", "two_models")}
    for key, rules in several.items():
        if rule not in rules and view.given(f"online.pairing.{key}"):
            message = f"has no effect with `rule: {rule}`"
            yield problem_at(f"online.pairing.{key}", message, f"set rule: {rules[0]}")
    for key in ("stronger", "weaker"):
        name = f"online.{key}"
        if rule == "two_models" and view[name] is None:
            yield problem_at(name, "is missing, and `rule: two_models` needs it", "name a model")
        if rule != "two_models" and view.given(name):
            yield problem_at(name, f"has no effect with `rule: {rule}`", "set rule: two_models")
    if view.given("online.pairing.length_unit") and not view["online.pairing.length_penalty"]:
        message = "has no effect without `length_penalty`"
        yield problem_at("online.pairing.length_unit", message, "set length_penalty, or drop it")
    if is_sft and rule not in ("max_min",):
        message = f"is `{rule}`, and `train: sft` takes the best response alone"
        yield problem_at("online.pairing.rule", message, "drop it")
    for key in OF_A_PAIR:
        if is_sft and view.given(f"online.pairing.{key}"):
            message = "is about the two of a pair, and `train: sft` makes none"
            yield problem_at(f"online.pairing.{key}", message, "drop it")
    for key in ("min_margin", "length_penalty"):
        if rule == "two_models" and view.given(f"online.pairing.{key}"):
            message = "has no effect with `rule: two_models`, which compares no scores"
            yield problem_at(f"online.pairing.{key}", message, "drop it")


def _future(view: RecipeView) -> RecipeProblems:
    rule = view["online.pairing.rule"]
    if not view["online.future"]:
        return
    if view["online.train"] == "sft":
        message = "has no effect with `train: sft`, which makes no pairs"
        yield problem_at("online.future", message, "drop it")
    elif rule not in ("max_min", "max_random", "anchored"):
        message = f"replaces the best response of a prompt, and `rule: {rule}` chooses others too"
        yield problem_at("online.future", message, "set rule: anchored, as in arXiv 2508.06026")


def _engines(view: RecipeView) -> RecipeProblems:
    engine, serve = view["generation.engine"], view["online.serve"]
    if engine != "endpoint" and serve is not None:
        message = f"has no effect with `engine: {engine}`"
        yield problem_at("online.serve", message, "set generation.engine=endpoint, or drop it")
    if engine == "endpoint" and serve is None:
        message = "is missing: the server must serve each round's policy before it is sampled from"
        hint = "a command such as './serve.sh {model}', which ends once the server answers"
        yield problem_at("online.serve", message, hint)
    if engine == "endpoint" and serve is not None and "{model}" not in serve:
        message = "does not say `{model}`, where the folder of the new policy is put in"
        yield problem_at("online.serve", message, "such as './serve.sh {model}'")


def _in_short(online: Online) -> str:
    trained = "best-of-n SFT" if online.train == "sft" else "preference training"
    start = "from the last policy" if online.start == "previous" else "from the start, on all pairs"
    return f"{online.rounds} rounds, {online.num_samples} responses to a prompt, {trained} {start}"


def _card_note(online: Mapping[str, Any]) -> str:
    return f"{online['rounds']} rounds, pairs by `{online['pairing']['rule']}`"


def _summary(recipe: OnlineRecipe) -> OwnRows:
    online = recipe.online
    rows = [("pairs", online.pairing.rule.replace("_", " "), "online.pairing.rule")]
    if online.self_rewarding is not None:
        rows.append(("scored by", "the round's own policy", "online.self_rewarding"))
    else:
        scorers = ", ".join(online.reward_models) or "nobody"
        rows.append(("scored by", scorers, "online.reward_models"))
    if (oracle := online.oracle) is not None:
        asked = f"{oracle.scorer}, about {oracle.budget:,} pairs at most"
        rows.append(("refreshed by", asked, "online.oracle"))
    if online.evaluation.gold is not None:
        rows.append(("held out, by", online.evaluation.gold, "online.evaluation.gold"))
    return rows


METHOD = TrainingMethod(
    recipe=OnlineRecipe,
    title="online iterative preference optimization",
    help="Online iterative preference optimization: rounds of sampling, scoring, pairing and "
    "training.",
    examples=(
        "aligner online tiny/online",
        "aligner online recipe.yaml online.rounds=5 online.num_samples=16",
        "aligner online recipe.yaml --resume",
        "aligner online status runs/online",
    ),
    rules=(
        _prompts,
        _dpo_of_rounds,
        _sampling,
        _pairing,
        _future,
        oracle_of_rounds,
        _engines,
        *OF_OBJECTIVES,
    ),
    run="aligner.methods.online.rounds:run_online",
    trainings="aligner.methods.online.train_stage:planned",
    status="aligner.methods.online.status:status_of",
    report="aligner.methods.online.report:write_online_report",
    flags=DPO.flags,
    summary=_summary,
    continues="continues with the stage that was stopped",
    untouched="nothing was sampled and nothing was trained",
    trainer_class=DPO.trainer_class,
    # Those of arXiv 2405.07863, of each round.
    defaults={
        "learning_rate": 5e-7,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "num_train_epochs": 2,
    },
    defaults_with_lora={"learning_rate": 5e-6},
    metrics={"loss": False},
    settings=("rounds", "num_samples", "reference", "start"),
    in_short=_in_short,
    card_note=_card_note,
    card_part="aligner.methods.online.report:rounds_of_card",
    other_names=OTHER_NAMES,
    is_staged=True,
)
