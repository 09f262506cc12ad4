"""Keys that several tools have, since all of them hand them to transformers: warm-up, data types,
adapters, templates, held-out rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aligner.config.migrate.migration import FILE, Migration, short
from aligner.methods.catalogue import trainer_fields, trainer_of

WHOLE_RUN = 0.999999
"""A share of the steps that rounds up to all of them in every run below a million steps."""

_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
    "torch.float32": "float32",
}


def warmup_ratio(migration: Migration, key: str, value: Any) -> None:
    """`warmup_ratio` became `warmup_steps` below 1; from 1 on, that counts steps."""
    if value is None:
        return
    if isinstance(value, int | float) and value >= 1:
        text = "the whole run is warm-up; `warmup_steps: 1.0` would be a single step"
        migration.change(key, "trainer.warmup_steps", WHOLE_RUN, text)
    elif migration.old.get("warmup_steps"):
        migration.needless(key, "`warmup_steps` is given, which counts before it")
    else:
        migration.rename(key, "trainer.warmup_steps", value)


def dtype(migration: Migration, key: str, value: Any) -> None:
    """The type of the weights; null was float32 there."""
    if value is None:
        migration.change(key, "model.dtype", "float32", "null loaded the weights in float32")
    elif value == "auto":
        text = "there the type of the checkpoint; here float32, or bfloat16 for a frozen base"
        migration.change(key, "model.dtype", "auto", text)
    else:
        migration.rename(key, "model.dtype", _DTYPES.get(str(value), value))


def chat_template(migration: Migration, key: str, value: Any) -> None:
    """A template that stands in the recipe goes into a file beside it."""
    if value is None:
        return
    if isinstance(value, str) and ("{%" in value or "{{" in value):
        migration.files[".jinja"] = ("model.chat_template", value)
        text = "a template is a file, and is written beside the recipe"
        migration.change(key, "model.chat_template", FILE, text)
    else:
        migration.rename(key, "model.chat_template", value)


def four_bits(migration: Migration, key: str, value: Any) -> None:
    """Quantization to 4 bits; its constants are quantized too only where that is asked for."""
    if value:
        kind = migration.old.get("bnb_4bit_quant_type") or "nf4"
        migration.rename(key, "model.quantization", kind)


def eight_bits(migration: Migration, key: str, value: Any) -> None:
    """Quantization to 8 bits."""
    if value:
        migration.rename(key, "model.quantization", "int8")


def fill_quantization(migration: Migration, double_quant: bool, tool: str) -> None:
    """Say whether constants are quantized too, where the tool's default is not ours."""
    if migration.get("model.quantization") in ("nf4", "fp4"):
        state = "are" if double_quant else "are not"
        text = f"by default, the constants {state} quantized too in {tool}"
        migration.fill("model.double_quant", double_quant, text)
    elif migration.get("model.double_quant") is not None:
        migration.drop("model.double_quant")


_CUTS = "cuts longer rows silently; here each one lost is counted in data.json"


def cut_long_rows(
    migration: Migration, tool: str, way: str = "truncate", text: str = _CUTS
) -> None:
    """Other tools cut what is too long, or leave it out, and say nothing."""
    migration.fill("data.on_too_long", way, f"{tool} {text}")


def max_prompt_length(migration: Migration, key: str, value: Any) -> None:
    """Of pairs the end of a longer prompt is kept, there and here."""
    if value is None:
        return
    longest = migration.old.get("max_length")
    if migration.method != "dpo":
        migration.lose(key, "`data.max_length` counts prompt and answer together")
    elif longest is not None and value >= longest:
        migration.needless(key, f"`max_length: {longest}` is shorter")
    else:
        text = "a longer prompt loses its start, as there, and what is cut is counted in data.json"
        migration.change(key, "dpo.max_prompt_length", value, text)


def cpo_alpha(migration: Migration) -> None:
    """Add the next-token loss that TRL's CPO adds to each of its losses, SimPO among them."""
    weight = migration.old.get("cpo_alpha")
    text = "CPO adds a next-token loss on the chosen answer, over all tokens of a batch alike"
    if weight == 0:
        migration.needless("cpo_alpha", "nothing is added here either")
    elif weight is not None:
        migration.change("cpo_alpha", "dpo.nll_weight", weight, text)
    else:
        migration.fill("dpo.nll_weight", 1.0, text)


def fill_trainer(migration: Migration, tool: str, defaults: Mapping[str, Any]) -> None:
    """Write the tool's defaults of the trainer's keys out, where ours are others."""
    for key, value in defaults.items():
        ours = _default(migration, key)
        if ours != value:
            migration.fill(f"trainer.{key}", value, f"the default of {tool}; ours is {short(ours)}")


def _default(migration: Migration, key: str) -> Any:
    method = trainer_of(migration.method)
    own = {**method.defaults, **(method.defaults_with_lora if migration.get("model.lora") else {})}
    return own.get(key, trainer_fields(migration.method)[key]["default"])


def settle_evaluation(migration: Migration) -> None:
    """Without held-out rows nothing can be evaluated."""
    if migration.get("data.eval") is not None:
        return
    for key in ("eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end"):
        value = migration.get(f"trainer.{key}")
        if value in (None, "no", False):
            continue
        migration.drop(f"trainer.{key}")
        migration.needless(key, "no rows are held out; set `data.eval`")


def strategy_of(config: str) -> tuple[str, str]:
    """Return `launch.strategy` for a configuration file of DeepSpeed's, and what is to be said."""
    for stage in ("1", "2", "3"):
        if re.search(rf"(zero|z|stage)_?-?{stage}", config.lower()):
            return f"zero{stage}", "by the name of the file; its other settings are not read"
    return "zero2", "its name tells no stage, and its settings are not read: look at it"
