"""Rules of one method that involve several keys; `rules.py` has those of all methods."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from aligner.config.choices import (
    LABEL_SMOOTHING_LOSSES,
    LOSSES,
    NO_LOSSES_OF_PAIRS,
    OTHER_LOSS_NAMES,
    PREFERENCE_FORMATS,
    REFERENCE_FREE_LOSSES,
    REWARD_LOSSES,
    SAPO_LOSSES,
    SFT_FORMATS,
    SINGLE_ANSWER_FORMATS,
    TAU_LOSSES,
    WRITTEN,
)
from aligner.config.hints import did_you_mean
from aligner.config.recipe import Strategies
from aligner.config.validate import Finding, show
from aligner.config.view import Findings, Rule, View, finding
from aligner.errors import RecipeError


def _packing_keeps_rows_whole(view: View) -> Findings:
    if view["trainer.packing_strategy"] == "wrapped":
        yield finding(
            "trainer.packing_strategy",
            "`wrapped` cuts rows and lets them see each other",
            "use bfd",
        )


def _packing_and_lengths(view: View) -> Findings:
    if view["sft.packing"] is True and view["trainer.train_sampling_strategy"] == "group_by_length":
        message = "groups rows by length, which packed sequences no longer differ in"
        yield finding(
            "trainer.train_sampling_strategy", message, "drop it, or set `sft.packing: false`"
        )


def _sft_formats(view: View) -> Findings:
    yield from _formats(view, SFT_FORMATS, "sft", "`aligner dpo` trains on preference pairs")


def _preference_formats(view: View) -> Findings:
    yield from _formats(
        view,
        PREFERENCE_FORMATS,
        "dpo",
        "it needs `chosen` and `rejected`; `aligner sft` trains on single answers",
    )


def _formats(
    view: View, usable: tuple[str, ...], method: str, hint: str, verb: str = "train on"
) -> Findings:
    for path, source in [*view.sources("data.train"), *view.sources("data.eval")]:
        found = source.get("format", "auto")
        if found not in usable:
            yield Finding((*path, "format"), f"`{method}` cannot {verb} `{found}` rows", hint)


def _losses(view: View) -> list[str]:
    """Names and files of the objectives that `dpo.loss` asks for."""
    loss = view["dpo.loss"]
    return [str(name) for name in loss] if isinstance(loss, dict) else [str(loss)]


def _loss_exists(view: View) -> Findings:
    if not _losses(view):
        yield finding(
            "dpo.loss",
            "a mixture of no objectives",
            "write `{sigmoid: 0.8, sft: 0.2}`, for example",
        )
    for name in _losses(view):
        if name.endswith(".py"):
            yield from _objective_file(name)
        elif name not in LOSSES:
            hint = _meant_loss(name, LOSSES)
            expected = f"expected one of {', '.join(LOSSES)}, or a .py file"
            yield finding("dpo.loss", f"{expected}, found {show(name)}", hint)


def _meant_loss(name: str, known: Iterable[str]) -> str:
    """Say what a name that is not an objective's is called here, what it is, or which one is
    near."""
    if explained := NO_LOSSES_OF_PAIRS.get(name.lower()):
        return explained
    other = OTHER_LOSS_NAMES.get(name.lower())
    return f"it is called `{other}` here" if other else did_you_mean(name, known)


def _objective_file(path: str, key: str = "dpo.loss") -> Findings:
    from aligner.losses.dsl.parser import read_objective

    try:
        read_objective(Path(path).expanduser())
    except RecipeError as error:
        yield finding(key, error.message, error.hint)


def _weights_are_positive(view: View) -> Findings:
    loss = view["dpo.loss"]
    for name, weight in loss.items() if isinstance(loss, dict) else ():
        if not 1e-6 <= weight <= 1e6:
            hint = "use a number above 0 (from 1e-6 to 1e6), or drop it"
            yield finding("dpo.loss", f"the weight of `{name}` is {show(weight)}", hint)
    if "sft" in _losses(view) and view["dpo.nll_weight"]:
        hint = "keep one of the two: `sft` in the mixture is the same term"
        yield finding("dpo.nll_weight", "adds the next-token loss that `sft` is already", hint)


def _settings_of_other_losses(view: View) -> Findings:
    losses = _losses(view)
    if "exo_pair" in losses and not view["dpo.label_smoothing"]:
        yield finding(
            "dpo.label_smoothing",
            "must be above 0 for `exo_pair`, whose labels are soft",
            "0.001, for example",
        )
    if any(name not in LOSSES for name in losses):
        return
    shown = ", ".join(losses)
    smoothing = [name for name in losses if name in LABEL_SMOOTHING_LOSSES]
    if view["dpo.label_smoothing"] and not smoothing:
        hint = f"it is read by {', '.join(LABEL_SMOOTHING_LOSSES)}"
        yield finding("dpo.label_smoothing", f"has no effect on `{shown}`", hint)
    if view.given("dpo.tau") and not set(losses) & set(TAU_LOSSES):
        yield finding(
            "dpo.tau", f"has no effect on `{shown}`", f"it is read by {', '.join(TAU_LOSSES)}"
        )
    if view.given("dpo.simpo_gamma") and "simpo" not in losses:
        yield finding(
            "dpo.simpo_gamma", f"has no effect on `{shown}`", "it is the margin of `simpo`"
        )
    if set(losses) <= set(REFERENCE_FREE_LOSSES) and view["dpo.warmup_steps_dpo"]:
        hint = "drop it: without a reference there is no slope at the start that could be wrong"
        yield finding(
            "dpo.warmup_steps_dpo",
            f"trains DPO's loss, and `{shown}` has no reference for it",
            hint,
        )
    if set(losses) <= set(REFERENCE_FREE_LOSSES) and view["dpo.reference_model"] is not None:
        yield finding(
            "dpo.reference_model",
            f"is not read by `{shown}`",
            "drop it: the objective needs no reference",
        )


def _distillation(view: View) -> Findings:
    losses, models, several = (
        _losses(view),
        view["dpo.reward_models"],
        isinstance(view["dpo.loss"], dict),
    )
    distilled = [name for name in losses if name in REWARD_LOSSES]
    for name in distilled if several else ():
        message = f"`{name}` cannot stand in a mixture: its loss is in units of a reward"
        yield finding(
            "dpo.loss", message, "write it alone; `nll_weight` and `forward_kl` may be added to it"
        )
    if distilled and not models:
        hint = (
            "a list of scorers: `[toy]`, or the folder of a reward model that `aligner reward` "
            "has trained"
        )
        yield finding("dpo.reward_models", f"is missing, and `{distilled[0]}` needs it", hint)
    if not distilled:
        for key, default in (
            ("reward_models", []),
            ("reward_scale", 1.0),
            ("reward_combine", "mean"),
        ):
            if view[f"dpo.{key}"] != default:
                hint = f"it is read by {', '.join(REWARD_LOSSES)}"
                yield finding(f"dpo.{key}", f"has no effect on `{', '.join(losses)}`", hint)
        return
    yield from _family(view, models)
    if view["data.on_too_long"] == "truncate":
        message = "would cut answers whose rewards are those of the whole answers"
        yield finding("data.on_too_long", message, "use drop, or a larger data.max_length")
    if view["dpo.warmup_steps_dpo"]:
        message = f"trains on the labels, which `{distilled[0]}` does not read"
        yield finding("dpo.warmup_steps_dpo", message, "drop it: the slope at the start is right")


def _family(view: View, models: list[str]) -> Findings:
    for name in sorted({name for name in models if models.count(name) > 1}):
        yield finding(
            "dpo.reward_models", f"names {show(name)} more than once", "name each reward model once"
        )
    if view["dpo.reward_combine"] == "min" and len(models) == 1:
        yield finding(
            "dpo.reward_combine",
            "`min` chooses among several reward models, and there is one",
            "name more",
        )


def _forward_kl(view: View) -> Findings:
    losses, weight = _losses(view), view["dpo.forward_kl"]
    if weight and set(losses) <= set(REFERENCE_FREE_LOSSES):
        yield finding(
            "dpo.forward_kl",
            f"pulls towards a reference, and `{', '.join(losses)}` has none",
            "drop it",
        )
    if (
        weight is None
        and not set(losses) & set(REWARD_LOSSES)
        and view.given("dpo.forward_kl_tokens")
    ):
        yield finding(
            "dpo.forward_kl_tokens",
            "has no effect without `forward_kl`",
            "set dpo.forward_kl above 0",
        )


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
        view,
        SINGLE_ANSWER_FORMATS,
        "sapo",
        "it needs prompts with one good answer each, as `sft` does",
    )


def _sapo_parts(view: View) -> Findings:
    loss, window = view["sapo.loss"], view["sapo.window"]
    if loss not in SAPO_LOSSES:
        hint = _meant_loss(str(loss), SAPO_LOSSES)
        yield finding(
            "sapo.loss", f"expected one of {', '.join(SAPO_LOSSES)}, found {show(loss)}", hint
        )
    if window != "all" and window < 1:
        yield finding("sapo.window", f"is {window}", "a number of tokens from 1, or `all`")
    if view["sapo.window_from"] is not None and (
        window == "all" or view["sapo.window_from"] > window
    ):
        yield finding(
            "sapo.window_from",
            "must not be above `sapo.window`",
            "it is where the window begins to grow",
        )
    if 0 < view["sapo.temperature"] < 1e-3:
        yield finding(
            "sapo.temperature",
            f"is {show(view['sapo.temperature'])}",
            "0 takes the likeliest token",
        )
    if loss in REFERENCE_FREE_LOSSES:
        for key in ("reference", "reference_every"):
            if view.given(f"sapo.{key}"):
                yield finding(
                    f"sapo.{key}", f"has no effect on `{loss}`, which reads no reference", "drop it"
                )
    if view["sapo.reference"] == "fixed" and view.given("sapo.reference_every"):
        yield finding("sapo.reference_every", "has no effect with `reference: fixed`", "drop it")
    if view["sapo.temperature"] == 0 and window == "all" and view["sapo.retries"]:
        yield finding(
            "sapo.retries",
            "has no effect on whole answers at temperature 0: all are the same",
            "drop it",
        )
    for key in ("generate_every", "responses_per_prompt"):
        if view["sapo.buffer_size"] == 0 and view[f"sapo.{key}"] > 1:
            yield finding(
                f"sapo.{key}", "needs a replay buffer", "set sapo.buffer_size, or drop it"
            )
    if view["sapo.ema_decay"] == 1 and view["sapo.export"] == "ema":
        yield finding(
            "sapo.export",
            "with `ema_decay: 1` the average is what training started from",
            "use policy",
        )
    if view["data.on_too_long"] == "truncate":
        message = (
            "would cut the end off good answers, and training would then prefer answers that do "
            "not stop"
        )
        yield finding("data.on_too_long", message, "use drop")


def _reward_formats(view: View) -> Findings:
    if view["reward.kind"] == "regression":
        yield from _formats(
            view,
            SINGLE_ANSWER_FORMATS,
            "reward.kind=regression",
            "it needs prompts with one rated answer each",
        )
    else:
        yield from _formats(view, PREFERENCE_FORMATS, "reward", "it needs `chosen` and `rejected`")


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


def _reward_parts(view: View) -> Findings:
    kind, attributes = view["reward.kind"], view["reward.attributes"]
    for key, kinds in KINDS_OF_KEY.items():
        if view.given(f"reward.{key}") and kind not in kinds:
            yield finding(
                f"reward.{key}",
                f"has no effect with `kind: {kind}`",
                f"it belongs to {' and '.join(kinds)}",
            )
    if view["reward.strength"] == "weight":
        hint = "it scales a pair's loss as it is; drop it, or name another column"
        yield finding("reward.strength", "`weight` is read as the weight of a pair already", hint)
    if kind == "regression":
        if not attributes:
            yield finding(
                "reward.attributes",
                "is missing",
                "the columns that hold ratings: [helpfulness, correctness]",
            )
        for name in sorted({name for name in attributes if attributes.count(name) > 1}):
            yield finding("reward.attributes", f"names {show(name)} twice", "drop one")
        for name in view["reward.attribute_weights"]:
            if name not in attributes:
                hint = did_you_mean(name, attributes) or f"they are {', '.join(attributes)}"
                yield finding(
                    f"reward.attribute_weights.{name}", "is none of `reward.attributes`", hint
                )
    segments = view["reward.segments"] or {}
    if isinstance(segments, dict) and segments.get("rule", "entropy") != "entropy":
        for key in ("cutoff", "reference"):
            if segments.get(key) is not None:
                yield finding(
                    f"reward.segments.{key}", "has no effect without `rule: entropy`", "drop it"
                )
    strategy = view["launch.strategy"]
    if kind == "odin" and strategy in ("fsdp", "fsdp1", "fsdp2", "zero3"):
        message = f"`{strategy}` splits the two heads, and at the end one of them is taken out"
        yield finding("launch.strategy", message, "use `ddp`, `zero1` or `zero2`")


def _task_has_its_parts(view: View) -> Findings:
    task = view["discover.task"]
    for key in ("recipe", "prompts", "reward_model"):
        if task == "recipe" and view[f"discover.{key}"] is None:
            yield finding(f"discover.{key}", "is missing, and `task: recipe` needs it", _PARTS[key])
        if task != "recipe" and view.given(f"discover.{key}"):
            yield finding(
                f"discover.{key}",
                f"has no effect with `task: {task}`",
                "it belongs to `task: recipe`",
            )
    if task == "bandit" and view["discover.overrides"]:
        yield finding(
            "discover.overrides",
            "have no effect with `task: bandit`, which runs no recipe",
            "drop them",
        )


_PARTS = {
    "recipe": "a DPO recipe: a file, or a shipped name",
    "prompts": "a file of prompts that the trained model answers",
    "reward_model": "`toy`, `verifier:number`, or a function of yours, "
    "`verifier:path/to/file.py:name`",
}


def _start_is_known(view: View) -> Findings:
    for name in view["discover.start"]:
        if name.endswith(".py"):
            yield from _objective_file(name, "discover.start")
        elif name not in WRITTEN:
            hint = did_you_mean(name, WRITTEN) or "or a .py file"
            yield finding(
                "discover.start", f"expected some of {', '.join(WRITTEN)}, found {show(name)}", hint
            )


def _endpoint_is_whole(view: View) -> Findings:
    backend = view["endpoint.backend"]
    if backend == "scripted" and view["endpoint.script"] is None:
        yield finding(
            "endpoint.script",
            "is missing, and `backend: scripted` reads its replies from it",
            "name a file",
        )
    if backend != "scripted" and view.given("endpoint.script"):
        yield finding("endpoint.script", f"has no effect with `backend: {backend}`", "drop it")
    if (
        backend in ("openai", "local")
        and not view["endpoint.model"]
        and view["endpoint.replay"] is None
    ):
        yield finding(
            "endpoint.model",
            "is missing",
            "the name of the model on the server, or a folder for `local`",
        )
    if backend != "openai" and view.given("endpoint.base_url"):
        yield finding("endpoint.base_url", f"has no effect with `backend: {backend}`", "drop it")
    if view["endpoint.record"] is not None and view["endpoint.replay"] is not None:
        yield finding(
            "endpoint.replay",
            "contradicts `endpoint.record`",
            "record a new folder, or replay an old one",
        )
    prices = ("usd_per_million_prompt_tokens", "usd_per_million_completion_tokens")
    if view["endpoint.budget.usd"] is not None and not any(
        view[f"endpoint.{price}"] for price in prices
    ):
        yield finding(
            "endpoint.budget.usd",
            "needs prices to be counted with",
            f"set endpoint.{prices[0]} and the other",
        )


def _mosaic_of(prefix: str) -> Rule:
    """Rules on how mosaics are drawn, for the section below a key."""

    def rule(view: View) -> Findings:
        if view[prefix] is None:
            return
        smallest, largest, low_high = (
            view[f"{prefix}.min_members"],
            view[f"{prefix}.max_members"],
            view[f"{prefix}.mask_ratio"],
        )
        if smallest > largest:
            yield finding(
                f"{prefix}.min_members", f"is above `max_members` ({largest})", "lower it"
            )
        if low_high[0] > low_high[1]:
            yield finding(
                f"{prefix}.mask_ratio",
                f"runs from {low_high[0]} down to {low_high[1]}",
                "the smaller one first",
            )
        strategies = {name: view[f"{prefix}.strategies.{name}"] for name in Strategies.model_fields}
        if not any(strategies.values()):
            yield finding(
                f"{prefix}.strategies",
                "all weights are 0",
                "give at least one strategy a weight above 0",
            )
        for key, strategy in (("permute_rules", "permute"), ("mask_rules", "maskout")):
            if view[f"{prefix}.{key}"] == []:
                yield finding(
                    f"{prefix}.{key}",
                    "is empty",
                    f"leave it out for all rules, or give `{strategy}` the weight 0",
                )
            elif view.given(f"{prefix}.{key}") and not strategies[strategy]:
                yield finding(
                    f"{prefix}.{key}", f"has no effect: the weight of `{strategy}` is 0", "drop it"
                )
        if view[f"{prefix}.k_distribution"] in ("fix_max", "max_length") and view.given(
            f"{prefix}.min_members"
        ):
            name = view[f"{prefix}.k_distribution"]
            yield finding(
                f"{prefix}.min_members", f"has no effect with `k_distribution: {name}`", "drop it"
            )
        if view[f"{prefix}.compat"] == "released":
            for key in ("plain_fraction", "on_overlong", "min_members"):
                if view.given(f"{prefix}.{key}"):
                    yield finding(
                        f"{prefix}.{key}",
                        "has no effect with `compat: released`",
                        "the authors' code has no such thing",
                    )
            if strategies["primary"]:
                yield finding(
                    f"{prefix}.strategies",
                    "`primary` is not drawn with `compat: released`",
                    "give it the weight 0",
                )

    return rule


def _mosaic_in_sft(view: View) -> Findings:
    """A training on mosaics is one run through all its passes, so there are no ends of epochs to
    act at."""
    if view["data.mosaic"] is None:
        return
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if view[f"trainer.{key}"] == "epoch":
            yield finding(
                f"trainer.{key}",
                "cannot be `epoch` with `data.mosaic`",
                "use `steps`; a value below 1 is a share of all",
            )
    epochs, steps = view["trainer.num_train_epochs"], view["trainer.max_steps"]
    if epochs is not None and epochs <= 0 and not (steps or 0) > 0:
        yield finding(
            "trainer.num_train_epochs",
            f"is {epochs:g}, so no mosaics would be made",
            "at least a part of one",
        )
    limit, longest = view["data.mosaic.max_tokens"], view["data.max_length"]
    if limit is not None and limit > longest:
        yield finding(
            "data.mosaic.max_tokens",
            f"is above `data.max_length` ({longest})",
            "no row may be longer than that",
        )
    yield from _single_turn_formats(view, "data.mosaic")


def _only_sft_has_mosaics(view: View) -> Findings:
    if view["data.mosaic"] is not None:
        yield finding(
            "data.mosaic",
            "only `aligner sft` trains on mosaics",
            "`aligner mosaic` writes them to files",
        )


def _single_turn_formats(view: View, what: str) -> Findings:
    yield from _formats(
        view, SINGLE_ANSWER_FORMATS, what, "it needs questions with one answer each", "use"
    )


def _mosaic_files(view: View) -> Findings:
    yield from _single_turn_formats(view, "mosaic")
    if view.given("data.on_too_long"):
        yield finding("data.on_too_long", "has no effect on mosaics", "set `mosaic.on_overlong`")
    if view.given("data.control_tokens"):
        hint = "set it where they are trained on"
        yield finding(
            "data.control_tokens", "has no effect on mosaics, which are written as text", hint
        )
    if view["mosaic.chat_template"] is not None and view["mosaic.tokenizer"] is None:
        yield finding(
            "mosaic.chat_template", "has no effect without `mosaic.tokenizer`", "name the tokenizer"
        )


_OF_SAMPLING = ("num_samples", "max_new_tokens", "temperature", "top_p", "top_k")


def _select_candidates(view: View) -> Findings:
    """Answers come from a policy or from a file."""
    candidates, policy, data = view["select.candidates"], view["select.policy"], view["data"]
    if candidates is not None:
        if data is not None:
            yield finding(
                "data",
                "has no effect with `select.candidates`, which has its own prompts",
                "drop one of them",
            )
        for key in _OF_SAMPLING:
            if view.given(f"select.{key}"):
                yield finding(
                    f"select.{key}",
                    "has no effect with `select.candidates`: the answers are there",
                    "drop it",
                )
        if policy is not None and view["select.embedding"] != "policy":
            yield finding(
                "select.policy",
                "has no effect with `select.candidates`",
                "drop it, or `embedding: policy`",
            )
    elif data is None:
        yield finding(
            "data",
            "is missing",
            "give `data.train` (`--data`): prompts; or `select.candidates`: answers too",
        )
    elif policy is None:
        hint = "name it (`--model`), or give `select.candidates`: prompts with their answers"
        yield finding("select.policy", "is missing: the model whose answers are labelled", hint)
    if candidates is not None and policy is None and view["select.embedding"] == "policy":
        yield finding(
            "select.embedding", "`policy` needs `select.policy`", "name it, or use ngrams"
        )
    if isinstance(policy, dict) and policy.get("lora") is not None:
        yield finding("select.policy.lora", "has no effect: nothing is trained", "drop it")


def _select_data(view: View) -> Findings:
    if view["data.eval"] is not None:
        yield finding("data.eval", "has no effect on a selection", "drop it")
    if view.given("data.control_tokens"):
        yield finding(
            "data.control_tokens",
            "has no effect on a selection",
            "set it where its pairs are trained on",
        )
    if view["data.on_too_long"] == "truncate":
        yield finding("data.on_too_long", "a prompt that is cut asks something else", "use drop")


def _select_strategy(view: View) -> Findings:
    strategy, models = view["select.strategy"], view["select.reward_models"]
    spreads = strategy in ("diversity", "both")
    if strategy in ("uncertainty", "both") and not models:
        hint = "name one (`--reward_models`), or use `strategy: diversity`, which needs none"
        yield finding(
            "select.reward_models", f"is missing, and `strategy: {strategy}` asks them", hint
        )
    if view["select.pair"] in ("max_min", "most_uncertain") and not models:
        yield finding(
            "select.pair",
            f"`{view['select.pair']}` needs `select.reward_models`",
            "name one, or use random",
        )
    if view.given("select.uncertainty") and not models:
        yield finding(
            "select.uncertainty", "has no effect without `select.reward_models`", "drop it"
        )
    if view.given("select.pool_factor") and strategy != "both":
        yield finding(
            "select.pool_factor",
            f"has no effect with `strategy: {strategy}`",
            "it belongs to `both`",
        )
    for key in ("spread", "embedding"):
        if view.given(f"select.{key}") and not spreads:
            yield finding(
                f"select.{key}",
                f"has no effect with `strategy: {strategy}`",
                "it belongs to diversity and both",
            )


METHOD_RULES: dict[str, tuple[Rule, ...]] = {
    "sft": (
        _packing_keeps_rows_whole,
        _packing_and_lengths,
        _sft_formats,
        _mosaic_in_sft,
        _mosaic_of("data.mosaic"),
    ),
    "dpo": (
        _preference_formats,
        _loss_exists,
        _weights_are_positive,
        _settings_of_other_losses,
        _distillation,
        _forward_kl,
        _reference,
        _only_sft_has_mosaics,
    ),
    "sapo": (_single_answers, _sapo_parts, _only_sft_has_mosaics),
    "reward": (_reward_formats, _reward_parts, _only_sft_has_mosaics),
    "discover": (_task_has_its_parts, _start_is_known, _endpoint_is_whole),
    "mosaic": (_mosaic_files, _mosaic_of("mosaic"), _only_sft_has_mosaics),
    "select": (_select_candidates, _select_data, _select_strategy, _only_sft_has_mosaics),
}
"""Rules of one method."""
