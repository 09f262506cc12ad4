"""Reinforcement learning of TRL's GRPOConfig, and of Axolotl, whose `trl:` section has its names.

A batch counts responses there and prompts here.
"""

from __future__ import annotations

from typing import Any

from aligner.config.migrate.grpo_rewards import place_scorers
from aligner.config.migrate.migration import Lost, Migration, Needless, Table, apart, only

LONGEST = 512
"""Tokens of a response where `max_completion_length` is left out, in TRL 1.16."""

_BATCH = "trainer.per_device"
_LOSSES = ("dapo", "grpo", "dr_grpo", "bnpo", "cispo")
_SCALES = {True: "group", False: "none"}
_SAMPLER = Needless("responses are sampled by the trainer itself: slower, from the same policy")
_SHOWN = Needless("responses before and after are in the report")


def _loss(migration: Migration, key: str, value: Any) -> None:
    if value in _LOSSES:
        migration.rename(key, "rlhf.loss", value)
    elif value is not None:
        migration.lose(key, f"one of {', '.join(_LOSSES)}")


def _scale(migration: Migration, key: str, value: Any) -> None:
    if value is not None:
        migration.rename(key, "rlhf.scale", _SCALES.get(value, value))


def _ratio(migration: Migration, key: str, value: Any) -> None:
    if value in ("token", "sequence"):
        migration.rename(key, "rlhf.ratio", value)
    elif value is not None:
        migration.lose(key, "token or sequence")


def _masked(migration: Migration, key: str, value: Any) -> None:
    if value:
        migration.rename(key, "rlhf.truncated", "mask")


def _prompts(migration: Migration, key: str, value: Any) -> None:
    if value is not None:
        whole = value + _longest(migration)
        text = "prompt and response together; a longer prompt lost its start, and is an error here"
        migration.change(key, "data.max_length", whole, text)


def _sampled(value: Any) -> Any:
    return only(value, Lost("responses are drawn from all tokens by their probability"), "")


_SYNCED = Lost("the reference does not move")

TABLE: Table = {
    "num_generations": "rlhf.group_size",
    "num_generations_eval": only(None, Lost("held-out prompts get `rlhf.group_size` too"), ""),
    "num_iterations": "rlhf.iterations",
    "steps_per_generation": apart,
    "generation_batch_size": Lost(
        "it counts the responses of several steps there; set `rlhf.steps_per_generation`, in steps"
    ),
    "max_completion_length": "rlhf.max_new_tokens",
    "max_prompt_length": _prompts,
    "temperature": "rlhf.temperature",
    "top_p": _sampled(1.0),
    "top_k": _sampled(0),
    "min_p": _sampled(None),
    "repetition_penalty": _sampled(1.0),
    "beta": "rlhf.beta",
    "epsilon": apart,
    "epsilon_high": apart,
    "delta": apart,
    "loss_type": _loss,
    "scale_rewards": _scale,
    "importance_sampling_level": _ratio,
    "mask_truncated_completions": _masked,
    "reward_model_name_or_path": apart,
    "reward_funcs": apart,
    "reward_weights": apart,
    "multi_objective_aggregation": apart,
    "sync_ref_model": only(False, _SYNCED, ""),
    "ref_model_mixup_alpha": Needless("a setting of `sync_ref_model`"),
    "ref_model_sync_steps": Needless("a setting of `sync_ref_model`"),
    "use_vllm": only(False, _SAMPLER, _SAMPLER.text),
    **dict.fromkeys(
        (
            *("vllm_mode", "vllm_device", "vllm_dtype", "vllm_enable_prefix_caching"),
            *("vllm_gpu_memory_utilization", "vllm_max_model_len", "vllm_max_model_length"),
            *("vllm_server_base_url", "vllm_server_host", "vllm_server_port"),
            *("vllm_server_timeout", "vllm_tensor_parallel_size", "vllm_enable_sleep_mode"),
        ),
        Needless("a setting of vLLM"),
    ),
    "log_completions": _SHOWN,
    "num_completions_to_print": _SHOWN,
    "log_unique_prompts": _SHOWN,
    "ds3_gather_for_generation": Needless("weights are gathered where ZeRO-3 has cut them"),
}
"""Keys of GRPOConfig."""


def finish(migration: Migration) -> None:
    """Place what several keys say together, after the rows and the trainer's own keys."""
    place_scorers(migration)
    _batch(migration)
    _on_old_responses(migration)
    text = "TRL's default, which was 256 in its older versions; ours is 256"
    migration.fill("rlhf.max_new_tokens", LONGEST, text)
    text = "prompts have no limit there; here 2048 tokens, and a longer one is an error"
    migration.fill("data.max_length", _longest(migration) + 2048, text)


def _longest(migration: Migration) -> int:
    return int(migration.old.get("max_completion_length") or LONGEST)


# --- batches --------------------------------------------------------------------------------------


def _batch(migration: Migration) -> None:
    """Let a step have as many responses: divide what counts them by the size of a group."""
    group = int(migration.get("rlhf.group_size") or 8)
    batch = int(migration.get(f"{_BATCH}_train_batch_size") or 8)
    steps = int(migration.get("trainer.gradient_accumulation_steps") or 1)
    _steps(migration, steps)
    text = f"responses there, prompts with {group} responses each here"
    if batch % group == 0:
        _count(migration, f"{_BATCH}_train_batch_size", batch // group, text)
    elif batch * steps % group == 0:
        _count(migration, f"{_BATCH}_train_batch_size", 1, text)
        _count(migration, "trainer.gradient_accumulation_steps", batch * steps // group, text)
    else:
        text = f"{batch * steps} responses of a step on a device are no whole groups of {group}"
        migration.lose("per_device_train_batch_size", text, batch)
        migration.put(f"{_BATCH}_train_batch_size", 1)
    held_out = migration.get(f"{_BATCH}_eval_batch_size")
    if held_out is not None:
        _count(migration, f"{_BATCH}_eval_batch_size", max(1, int(held_out) // group), text)


def _count(migration: Migration, key: str, value: int, text: str) -> None:
    name = key.rpartition(".")[2]
    if name in migration.old:
        migration.change(name, key, value, text)
    else:
        migration.drop(key)
        migration.fill(key, value, text)


def _steps(migration: Migration, accumulation: int) -> None:
    asked = migration.old.get("steps_per_generation")
    if asked is None or asked == accumulation:
        return
    if asked % accumulation == 0:
        text = "micro-batches there, optimizer steps here"
        steps = asked // accumulation
        migration.change("steps_per_generation", "rlhf.steps_per_generation", steps, text)
    else:
        text = f"{asked} micro-batches are no whole steps of {accumulation}"
        migration.lose("steps_per_generation", text)


def _on_old_responses(migration: Migration) -> None:
    """Place what only counts where the policy has moved since it sampled."""
    old = migration.old
    steps = migration.get("rlhf.iterations") or 1, migration.get("rlhf.steps_per_generation") or 1
    moves = steps[0] * steps[1] > 1
    for there, here in (("epsilon", "clip_low"), ("epsilon_high", "clip_high"), ("delta", "delta")):
        if old.get(there) is None:
            continue
        if moves:
            migration.rename(there, f"rlhf.{here}", old[there])
        else:
            migration.needless(there, "with one step for each rollout the ratio is 1")
    if moves and old.get("epsilon") is not None:
        migration.fill("rlhf.clip_high", old["epsilon"], "the same as `epsilon` there")
    if moves and migration.get("model.lora.lora_dropout"):
        text = "dropout is drawn again at each step, and ratios to the first one would measure it"
        migration.drop("model.lora.lora_dropout")
        migration.fill("model.lora.lora_dropout", 0.0, text)
