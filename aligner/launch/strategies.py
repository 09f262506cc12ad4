"""How a model is shared out among processes: each strategy as options of accelerate's launcher."""

from __future__ import annotations

FSDP = {
    "--fsdp_version": "2",
    "--fsdp_reshard_after_forward": "true",
    # The layers that the model class says must stay whole.
    "--fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    # Checkpoints and the result are ordinary safetensors.
    "--fsdp_state_dict_type": "FULL_STATE_DICT",
    # Rank 0 reads the weights, the others get them from it.
    "--fsdp_cpu_ram_efficient_loading": "true",
    "--fsdp_sync_module_states": "true",
    "--fsdp_offload_params": "false",
    "--fsdp_activation_checkpointing": "false",  # `trainer.gradient_checkpointing` does that
}

FSDP1 = {
    **FSDP,
    "--fsdp_version": "1",
    "--fsdp_reshard_after_forward": "FULL_SHARD",
    "--fsdp_use_orig_params": "true",  # frozen and trained weights in one layer (LoRA)
    "--fsdp_backward_prefetch": "BACKWARD_PRE",
    "--fsdp_forward_prefetch": "false",
}

DEEPSPEED = {
    "--offload_optimizer_device": "none",
    "--offload_param_device": "none",
    "--deepspeed_multinode_launcher": "standard",
    "--zero3_init_flag": "false",
}
# Accumulation and clipping are left out: unset, they are "auto", and transformers fills in those of
# `trainer`.

STRATEGIES: dict[str, tuple[str, dict[str, str]]] = {
    "ddp": ("--multi_gpu", {}),
    "fsdp": ("--use_fsdp", FSDP),
    "fsdp1": ("--use_fsdp", FSDP1),
    "zero1": ("--use_deepspeed", {**DEEPSPEED, "--zero_stage": "1"}),
    "zero2": ("--use_deepspeed", {**DEEPSPEED, "--zero_stage": "2"}),
    "zero3": (
        "--use_deepspeed",
        {
            **DEEPSPEED,
            "--zero_stage": "3",
            "--zero3_init_flag": "true",
            "--zero3_save_16bit_model": "true",
        },
    ),
}
"""Name of a strategy -> accelerate's switch for it and the settings that go with it."""

ON_CPU = ("ddp", "fsdp")
"""Strategies that work without a GPU: accelerate's FSDP1 asks for one, and so does DeepSpeed."""

TRL_NAMES = {"fsdp2": "fsdp", "multi_gpu": "ddp", "single_gpu": "ddp"}
"""What TRL's `--accelerate_config` calls them. `single_gpu` is one process, whatever the
strategy."""
