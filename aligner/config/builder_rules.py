"""Rules of the methods that build data, and of the search for objectives, which train no model of
their own."""

from __future__ import annotations

from aligner.config.choices import SINGLE_ANSWER_FORMATS, WRITTEN
from aligner.config.dpo_rules import objective_file
from aligner.config.hints import did_you_mean
from aligner.config.recipe import Strategies
from aligner.config.validate import show
from aligner.config.view import Findings, Rule, View, finding, refuse_formats


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
            yield from objective_file(name, "discover.start")
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


def mosaic_of(prefix: str) -> Rule:
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


def mosaic_in_sft(view: View) -> Findings:
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


def only_sft_has_mosaics(view: View) -> Findings:
    if view["data.mosaic"] is not None:
        yield finding(
            "data.mosaic",
            "only `aligner sft` trains on mosaics",
            "`aligner mosaic` writes them to files",
        )


def _single_turn_formats(view: View, what: str) -> Findings:
    yield from refuse_formats(
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


DISCOVER_RULES: tuple[Rule, ...] = (_task_has_its_parts, _start_is_known, _endpoint_is_whole)
MOSAIC_RULES: tuple[Rule, ...] = (_mosaic_files, mosaic_of("mosaic"), only_sft_has_mosaics)
SELECT_RULES: tuple[Rule, ...] = (
    _select_candidates,
    _select_data,
    _select_strategy,
    only_sft_has_mosaics,
)
