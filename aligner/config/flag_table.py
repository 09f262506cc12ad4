"""The flags of the training commands, and where each one goes in a recipe.

The names are those that TRL's command line made common; `_` and `-` are the same. Two kinds of flag
are not in this table because they follow from others: every key of the method's trainer class is a
flag of its own name, and every dotted key of the recipe is one too (`--model.lora.r 8`). How they
are read stands in `flags.py`.
"""

from __future__ import annotations

from aligner.config.method import ON_OFF, Flag
from aligner.methods.catalogue import METHODS, method_of, trainer_fields, trainings

MODEL = (
    Flag("model", "model.name_or_path", "Hub id or folder of the model to train."),
    Flag("model_name_or_path", "model.name_or_path", "The same as --model."),
    Flag("model_revision", "model.revision", "Branch, tag or commit on the hub."),
    Flag("dtype", "model.dtype", "Type of the weights: auto, float32, bfloat16, float16."),
    Flag("torch_dtype", "model.dtype", "The same, under its old name."),
    Flag("attn_implementation", "model.attn_implementation", "sdpa, eager, flash_attention_2, ..."),
    Flag(
        "trust_remote_code",
        "model.trust_remote_code",
        "Run code that ships with the model.",
        ON_OFF,
    ),
    Flag(
        "chat_template_path",
        "model.chat_template",
        "Jinja file, or the name of a shipped template.",
    ),
    Flag("eos_token", "model.eos_token", "Stop token, when the tokenizer's own is the wrong one."),
)

ADAPTERS = (
    Flag(
        "use_peft",
        "model.lora",
        "Train LoRA adapters, not the whole model.",
        {True: {}, False: None},
        write="model.lora: {}",
    ),
    Flag("lora_r", "model.lora.r", "Rank of the adapters."),
    Flag(
        "lora_alpha", "model.lora.lora_alpha", "Their scale: updates are multiplied by alpha / r."
    ),
    Flag("lora_dropout", "model.lora.lora_dropout", "Dropout on the adapters' input."),
    Flag(
        "lora_target_modules",
        "model.lora.target_modules",
        "Modules that get one, or all-linear.",
        many=True,
    ),
    Flag(
        "lora_target_parameters",
        "model.lora.target_parameters",
        "Weights that get one without being a layer.",
        many=True,
    ),
    Flag(
        "lora_modules_to_save",
        "model.lora.modules_to_save",
        "Modules trained whole beside them.",
        many=True,
    ),
    Flag("use_rslora", "model.lora.use_rslora", "Scale by alpha / sqrt(r).", ON_OFF),
    Flag("use_dora", "model.lora.use_dora", "Weight-decomposed adapters.", ON_OFF),
    Flag(
        "load_in_4bit",
        "model.quantization",
        "Freeze the base in 4 bits (NF4).",
        {True: "nf4", False: "none"},
        write="model.quantization: nf4",
    ),
    Flag(
        "load_in_8bit",
        "model.quantization",
        "Freeze the base in 8 bits.",
        {True: "int8", False: "none"},
        write="model.quantization: int8",
    ),
    Flag(
        "use_bnb_nested_quant",
        "model.double_quant",
        "Quantize the quantization constants too.",
        ON_OFF,
    ),
)

DATA = (
    Flag("data", "data.train", "File, folder, glob or hub id of training rows; may be repeated."),
    Flag("dataset_name", "data.train", "The same as --data."),
    Flag("dataset_config", "data.train.subset", "Configuration of a hub dataset."),
    Flag("dataset_train_split", "data.train.split", "Split to train on."),
    Flag(
        "dataset_test_split",
        "data.eval.split",
        "Split held out for evaluation.",
        write="data.eval: [{path: ..., split: test}]",
    ),
    Flag("max_length", "data.max_length", "Longest row in tokens."),
)


LAUNCH = (
    Flag("num_processes", "launch.num_processes", "Processes, one for each GPU."),
    Flag("num_machines", "launch.num_machines", "Machines that take part."),
    Flag("machine_rank", "launch.machine_rank", "This machine's number."),
    Flag("main_process_ip", "launch.main_process_ip", "Address of machine 0."),
    Flag("main_process_port", "launch.main_process_port", "Port of machine 0."),
    Flag(
        "mixed_precision",
        "launch.mixed_precision",
        "no, bf16 or fp16, over accelerate's configuration.",
    ),
    Flag(
        "accelerate_config",
        "launch.strategy",
        "ddp, fsdp, zero1, zero2, zero3, or a file of accelerate's.",
    ),
)

RUN = (
    Flag("config", "", "The recipe; the same as naming it without a flag. Short: -c."),
    Flag("output", "output_dir", "The run directory. Short: -o."),
    Flag("output_dir", "output_dir", "The same as --output."),
    Flag("seed", "seed", "Seed of sampling, shuffling and initialization."),
    Flag(
        "resume_from_checkpoint",
        "",
        "true: continue from the last complete checkpoint, as --resume does.",
    ),
    Flag(
        "dataset_num_proc",
        "",
        "Accepted and without effect: rows become tokens once, in one process.",
    ),
)

TRAINER = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "bf16",
    "fp16",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "optim",
    "eval_strategy",
    "eval_steps",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "packing_strategy",
    "use_liger_kernel",
    "report_to",
    "run_name",
    "push_to_hub",
    "hub_model_id",
)
"""The trainer's keys that help screens show; the others are flags all the same."""

WARMUP_RATIO = Flag(
    "warmup_ratio", "trainer.warmup_steps", "Share of the steps that warms up; below 1."
)

SHORT = {"c": "config", "o": "output"}

OPTIONS = ("resume", "overwrite", "dry_run", "json", "debug", "help")
"""Options of the command itself; they set no key of the recipe."""


SHARED: dict[str, Flag] = {
    flag.name: flag
    for group in (RUN, MODEL, ADAPTERS, DATA, (WARMUP_RATIO,), LAUNCH)
    for flag in group
}
"""Flags that all methods have."""

ACCELERATE_CONFIGS = {
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
    "fsdp1": "fsdp1",
    "fsdp2": "fsdp",
    "fsdp": "fsdp",
    "multi_gpu": "ddp",
    "single_gpu": "ddp",
    "ddp": "ddp",
}
"""Names of TRL's accelerate profiles -> `launch.strategy`. Anything else is a file."""


def flags_of(method: str) -> dict[str, Flag]:
    """Return the flags of a method: those that all have, and its own."""
    return SHARED | {flag.name: flag for flag in method_of(method).flags}


def all_flags() -> dict[str, Flag]:
    """Return the flags of all methods."""
    return SHARED | {flag.name: flag for name in METHODS for flag in method_of(name).flags}


def flag_groups(method: str | None = None) -> dict[str, list[Flag]]:
    """Return the flags that help screens show, by group: of one method, or of all."""
    table = trainer_fields(method or next(iter(trainings())))
    trainer = [
        Flag(name, f"trainer.{name}", table[name]["help"]) for name in TRAINER if name in table
    ]
    groups = {"Run": list(RUN), "Model": list(MODEL), "Adapters": list(ADAPTERS)}
    groups["Data"] = list(DATA)
    for name in METHODS if method is None else [method]:
        if own := method_of(name).flags:
            groups[name.upper()] = list(own)
    return {**groups, "Trainer": [*trainer, WARMUP_RATIO], "Launch": list(LAUNCH)}
