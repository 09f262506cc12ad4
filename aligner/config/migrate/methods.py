"""Which tool a recipe is of, and which method it is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner.config.hints import did_you_mean
from aligner.errors import RecipeError, UsageError

TOOLS = ("alignment-handbook", "trl", "axolotl", "llama-factory", "torchtune")
"""Tools whose recipes are read."""

KINDS = ("sft", "dpo", "orpo", "simpo", "reward", "rlhf")
"""What a recipe may be for. `orpo` and `simpo` are objectives of `aligner dpo`."""

_SIGNS: dict[str, tuple[str, ...]] = {
    "rlhf": ("num_generations", "reward_funcs", "num_iterations", "epsilon_high"),
    "reward": ("center_rewards_coefficient",),
    "kto": ("desirable_weight", "undesirable_weight"),
    "sft": (
        "assistant_only_loss",
        "completion_only_loss",
        "dataset_text_field",
        "eval_packing",
        "max_seq_length",
        "packing",
        "packing_strategy",
    ),
    "dpo": ("beta", "loss_type", "max_prompt_length", "precompute_ref_log_probs", "rpo_alpha"),
}
"""Keys of TRL that only recipes of one kind have."""

_WORDS = {"cpt": "sft", "grpo": "rlhf", "rloo": "rlhf", "cpo": "simpo"}


def tool_of(old: Mapping[str, Any], asked: str, name: str) -> str:
    """Return the tool that a recipe is of: the one that is asked for, or by its keys.

    Raises: UsageError for a tool that nobody knows, RecipeError where the keys tell nothing.
    """
    if asked != "auto":
        if asked not in TOOLS:
            hint = did_you_mean(asked, TOOLS) or f"name one of auto, {', '.join(TOOLS)}"
            raise UsageError(f"no tool is called `{asked}`", hint)
        return asked
    if any(isinstance(value, dict) and "_component_" in value for value in old.values()):
        return "torchtune"
    if "base_model" in old:
        return "axolotl"
    if "stage" in old or "finetuning_type" in old:
        return "llama-factory"
    if "dataset_mixture" in old or "dataset_mixer" in old:
        return "alignment-handbook"
    if "model_name_or_path" in old:
        return "trl"
    hint = f"name the tool with --from: {', '.join(TOOLS)}"
    if "distributed_type" in old:
        hint = "a configuration of accelerate's: name the file in `launch.strategy`"
    if isinstance(old.get("model"), dict) and "method" in old:
        hint = "it looks like a recipe of ours already"
    raise RecipeError(f"{name} is of no tool that is known by its keys", hint)


def kind_of_trl(old: Mapping[str, Any], tool: str, path: str) -> str:
    """Return what a flat recipe of TRL's keys is for: by keys that only one trainer has, then by
    the names of its folders and of its result. TRL leaves it to the command.

    Raises: RecipeError where neither tells.
    """
    named = " ".join(str(old.get(key) or "") for key in ("output_dir", "hub_model_id", "run_name"))
    place = " ".join(Path(path).parts[-2:])
    words = re.split(r"[^a-z]+", f"{place} {named}".lower())
    said = next((_WORDS.get(word, word) for word in words if _WORDS.get(word, word) in KINDS), "")
    for kind, signs in _SIGNS.items():
        if not any(sign in old for sign in signs):
            continue
        if kind == "kto":
            hint = "`kto_pair` of `aligner dpo` is made of it for pairs"
            raise RecipeError("KTO, on single answers marked good or bad, is not here", hint)
        return _of_pairs(old, words) if kind == "dpo" else kind
    if said or tool == "alignment-handbook":
        return said or "sft"
    hint = f"add --method, one of {', '.join(KINDS)}"
    raise RecipeError("neither keys nor names tell what the recipe is for", hint)


def _of_pairs(old: Mapping[str, Any], words: list[str]) -> str:
    """Return which trainer of pairs; `simpo` is a loss of CPO alone."""
    named = {_WORDS.get(word, word) for word in words}
    if old.get("loss_type") == "simpo" or "simpo" in named:
        return "simpo"
    return "orpo" if "orpo" in named else "dpo"
