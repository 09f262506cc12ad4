"""The table of rules by method, and the rules of `sft`, `sapo` and `reward`; `rules.py` has those
of all methods."""

from __future__ import annotations

from aligner.config.builder_rules import (
    DISCOVER_RULES,
    MOSAIC_RULES,
    SELECT_RULES,
    mosaic_in_sft,
    mosaic_of,
    only_sft_has_mosaics,
)
from aligner.config.choices import (
    PREFERENCE_FORMATS,
    REFERENCE_FREE_LOSSES,
    SAPO_LOSSES,
    SFT_FORMATS,
    SINGLE_ANSWER_FORMATS,
)
from aligner.config.dpo_rules import DPO_RULES, meant_loss
from aligner.config.hints import did_you_mean
from aligner.config.validate import show
from aligner.config.view import Findings, Rule, View, finding, refuse_formats


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
    yield from refuse_formats(view, SFT_FORMATS, "sft", "`aligner dpo` trains on preference pairs")


def _preference_formats(view: View) -> Findings:
    yield from refuse_formats(
        view,
        PREFERENCE_FORMATS,
        "dpo",
        "it needs `chosen` and `rejected`; `aligner sft` trains on single answers",
    )


def _single_answers(view: View) -> Findings:
    yield from refuse_formats(
        view,
        SINGLE_ANSWER_FORMATS,
        "sapo",
        "it needs prompts with one good answer each, as `sft` does",
    )


def _sapo_parts(view: View) -> Findings:
    loss, window = view["sapo.loss"], view["sapo.window"]
    if loss not in SAPO_LOSSES:
        hint = meant_loss(str(loss), SAPO_LOSSES)
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


METHOD_RULES: dict[str, tuple[Rule, ...]] = {
    "sft": (
        _packing_keeps_rows_whole,
        _packing_and_lengths,
        _sft_formats,
        mosaic_in_sft,
        mosaic_of("data.mosaic"),
    ),
    "dpo": (_preference_formats, *DPO_RULES, only_sft_has_mosaics),
    "sapo": (_single_answers, _sapo_parts, only_sft_has_mosaics),
    "reward": (_reward_formats, _reward_parts, only_sft_has_mosaics),
    "discover": DISCOVER_RULES,
    "mosaic": MOSAIC_RULES,
    "select": SELECT_RULES,
}
"""Rules of one method."""
