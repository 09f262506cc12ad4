"""Names that a recipe may give (strategies, attention implementations, formats), listed without the
torch modules that define them. Those of losses stand in `loss_names.py`.
"""

from __future__ import annotations

STRATEGIES: dict[str, str] = {
    "ddp": "every process holds the whole model",
    "fsdp": "weights, gradients and optimizer state split over the processes by torch (FSDP2)",
    "fsdp1": "the same with torch's first version of it",
    "zero1": "DeepSpeed: optimizer state split",
    "zero2": "DeepSpeed: optimizer state and gradients split",
    "zero3": "DeepSpeed: optimizer state, gradients and weights split",
}
"""Strategy of `launch.strategy` -> one line about it."""

SHARDED = ("fsdp", "fsdp1", "fsdp2", "zero3")
"""Strategies under which no process holds the whole model."""

ATTENTION = (
    "eager",
    "sdpa",
    "flex_attention",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
)
"""Attention implementations by name; a hub kernel (`owner/name`) is accepted too."""

SINGLE_ANSWER_FORMATS = ("auto", "messages", "prompt_completion", "sharegpt", "alpaca")
"""Formats of rows that have a prompt and one answer."""

PREFERENCE_FORMATS = ("auto", "preference")
"""Formats of preference pairs."""

PLAIN_STARTS = (True, False, "gaussian")
"""Values of `model.lora.init_lora_weights` under which an adapter starts beside its weight, and
changes nothing of it."""
