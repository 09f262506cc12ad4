"""Allowed values in `trainer:` beyond their types: bounds, choices, and the arguments of optimizers
and schedulers.

The classes check little of it themselves, and late: torch refuses a beta of 1.5 when the optimizer
is made, a scheduler its arguments at the first step. So what those libraries demand is written down
here, beside the table of keys; a test holds the names equal to theirs, and another trains with
every value that passes. Where they demand nothing, a bound marks what float32 can hold or what no
training needs. What only the machine knows is tried later (`aligner.training.rehearsal`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aligner.config.hints import did_you_mean

MOST = 2**31 - 1
"""Largest number of anything that is counted."""


@dataclass(frozen=True, slots=True)
class Range:
    """Where a number may lie."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        """The range as the documentation shows it; where counts end is said once, and not here."""
        signs = (("≥", self.least), (">", self.above), ("≤", self.most), ("<", self.below))
        return ", ".join(
            f"{sign} {plain_number(bound)}" for sign, bound in signs if bound not in (None, MOST)
        )

    def wrong(self, value: float) -> str:
        """Say what the value must be, where it is not; else nothing."""
        if self.least is not None and value < self.least:
            return (
                "must not be negative"
                if self.least == 0
                else f"must be at least {plain_number(self.least)}"
            )
        if self.above is not None and value <= self.above:
            return f"must be greater than {plain_number(self.above)}"
        if self.most is not None and value > self.most:
            return f"must be at most {plain_number(self.most)}"
        if self.below is not None and value >= self.below:
            return f"must be below {plain_number(self.below)}"
        return ""


def plain_number(number: float) -> str:
    """A bound as it may stand in a sentence: 65,536 or 1e-06."""
    is_short = float(number).is_integer() and abs(number) < 1e15
    return f"{int(number):,}" if is_short else f"{number:g}"


COUNT = Range(least=1, most=MOST)
STEPS = Range(above=0, most=MOST)
WEIGHT = Range(least=0, most=1e6)
SHARE = Range(least=0, below=1)

RANGES: dict[str, Range] = {
    "per_device_train_batch_size": Range(least=1, most=65_536),
    "per_device_eval_batch_size": Range(least=1, most=65_536),
    "gradient_accumulation_steps": Range(least=1, most=1_000_000),
    "num_train_epochs": Range(above=0, most=100_000),
    "max_steps": Range(least=-1, most=MOST),
    "learning_rate": Range(least=0, most=1e38),
    "warmup_steps": Range(least=0, most=MOST),
    "weight_decay": Range(least=0, most=1000),
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": Range(least=1e-30, most=1),
    "max_grad_norm": WEIGHT,
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": Range(least=0, most=1000),
    "router_aux_loss_coef": WEIGHT,
    "torch_empty_cache_steps": COUNT,
    "logging_steps": STEPS,
    "eval_steps": STEPS,
    "save_steps": STEPS,
    "eval_delay": Range(least=0, most=MOST),
    "eval_accumulation_steps": COUNT,
    "save_total_limit": COUNT,
    "dataloader_num_workers": Range(least=0, most=256),
    "dataloader_prefetch_factor": Range(least=1, most=1024),
    "pad_to_multiple_of": Range(least=1, most=4096),
    "ddp_bucket_cap_mb": Range(least=1, most=65_536),
    "ddp_timeout": Range(least=1, most=MOST),
}
"""Key -> where its number may lie."""

SHARE_OR_COUNT = ("logging_steps", "eval_steps", "save_steps", "warmup_steps")
"""Keys whose numbers are shares of all steps below 1, and whole numbers from 1 on."""

WORDS: dict[str, tuple[str, ...]] = {
    "report_to": (
        "none",
        "all",
        "azure_ml",
        "clearml",
        "codecarbon",
        "comet_ml",
        "dagshub",
        "dvclive",
        "flyte",
        "kubeflow",
        "mlflow",
        "neptune",
        "swanlab",
        "tensorboard",
        "trackio",
        "wandb",
    ),
    "debug": ("underflow_overflow", "tpu_metrics_debug"),
    "include_for_metrics": ("inputs", "loss"),
}
"""Key that holds a word, or a list of them -> the words."""

REPORTERS: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": ("kubeflow",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Word of `report_to` -> the packages that it needs."""

PACKAGES: dict[str, str] = {
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu_fused": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao",
    "adamw_torch_8bit": "torchao",
    "lomo": "lomo_optim",
    "adalomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free_radam": "schedulefree",
    "schedule_free_adamw": "schedulefree",
    "schedule_free_sgd": "schedulefree",
    "stable_adamw": "optimi",
    "galore": "galore_torch",
    "apollo": "apollo_torch",
}
"""Optimizer, or what the names of several begin with -> the package that it needs."""

BY_MODULES = ("galore", "apollo")
"""Optimizers that read `optim_target_modules`, by what their names begin with."""


def of_optimizer(table: dict[str, Any], name: str) -> Any:
    """Return the entry of an optimizer, or of the longest that its name begins with; None where
    there is none."""
    families = [family for family in table if name == family or name.startswith(f"{family}_")]
    return table[max(families, key=len)] if families else None


Kind = Range | tuple[str, ...] | type[bool]
"""What an argument may be: a number in a range, one of several words, or true or false."""

_ANY = Range(least=-1e6, most=1e6)
_WHOLE = Range(least=1, most=MOST)
_FROM_0 = Range(least=0, most=1e6)
_TO_1 = Range(least=0, most=1)

OPTIMIZER_ARGUMENTS: dict[str, dict[str, Kind]] = {
    "sgd": {"momentum": _TO_1, "dampening": _TO_1, "weight_decay": _FROM_0, "nesterov": bool},
    "adagrad": {"lr_decay": _FROM_0, "weight_decay": _FROM_0, "eps": Range(least=1e-30, most=1)},
    "rmsprop": {
        "momentum": _TO_1,
        "alpha": SHARE,
        "eps": Range(least=1e-30, most=1),
        "weight_decay": _FROM_0,
        "centered": bool,
    },
    "ademamix": {
        "beta1": SHARE,
        "beta2": SHARE,
        "beta3": SHARE,
        "alpha": _FROM_0,
        "eps": Range(least=1e-30, most=1),
        "t_alpha": _WHOLE,
        "t_beta3": _WHOLE,
    },
    "galore": {
        "rank": _WHOLE,
        "update_proj_gap": _WHOLE,
        "scale": _ANY,
        "proj_type": ("std", "reverse_std", "right", "left"),
    },
    "apollo": {
        "rank": _WHOLE,
        "proj": ("random", "svd"),
        "scale_type": ("channel", "tensor"),
        "update_proj_gap": _WHOLE,
        "scale": _ANY,
        "proj_type": ("std", "reverse_std", "right", "left"),
    },
    "adamw_anyprecision": {
        "use_kahan_summation": bool,
        "momentum_dtype": ("float32", "bfloat16", "float16"),
        "variance_dtype": ("float32", "bfloat16", "float16"),
        "compensation_buffer_dtype": ("float32", "bfloat16", "float16"),
    },
    "grokadamw": dict.fromkeys(
        ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"), _FROM_0
    ),
    "adamw_torch_4bit": {"bf16_stochastic_round": bool},
    "adamw_torch_8bit": {"bf16_stochastic_round": bool},
    "schedule_free": {"weight_lr_power": _ANY, "r": _ANY},
    "stable_adamw": {"decouple_lr": bool, "max_lr": _FROM_0, "kahan_sum": bool},
    "paged_ademamix": {},
    "rmsprop_bnb": {},
}
"""Optimizer, or what the names of several begin with -> its `optim_args`."""
OPTIMIZER_ARGUMENTS["paged_ademamix"] = OPTIMIZER_ARGUMENTS["ademamix"]

_MIN_LR: dict[str, Kind] = {"num_cycles": _FROM_0, "min_lr": _FROM_0, "min_lr_rate": _TO_1}
_SHAPES = ("linear", "cosine", "1-sqrt")

_PLATEAU: dict[str, Kind] = {
    "mode": ("min", "max"),
    "factor": Range(above=0, below=1),
    "patience": Range(least=0, most=MOST),
    "threshold": _FROM_0,
    "threshold_mode": ("rel", "abs"),
    "cooldown": Range(least=0, most=MOST),
}

SCHEDULER_ARGUMENTS: dict[str, dict[str, Kind]] = {
    "linear": {},
    "constant": {},
    "constant_with_warmup": {},
    "cosine": {"num_cycles": _FROM_0},
    "cosine_with_restarts": {"num_cycles": _WHOLE},
    "polynomial": {"lr_end": _FROM_0, "power": Range(above=0, most=1000)},
    "inverse_sqrt": {"timescale": _WHOLE},
    "cosine_with_min_lr": _MIN_LR,
    "cosine_warmup_with_min_lr": {**_MIN_LR, "warmup_lr_rate": _TO_1},
    "warmup_stable_decay": {
        "num_decay_steps": _WHOLE,
        "num_stable_steps": Range(least=0, most=MOST),
        "warmup_type": _SHAPES,
        "decay_type": _SHAPES,
        "min_lr_ratio": _TO_1,
        "num_cycles": _FROM_0,
    },
    "reduce_lr_on_plateau": {
        **_PLATEAU,
        "min_lr": _FROM_0,
        "eps": _TO_1,
    },
    "greedy": {
        **_PLATEAU,
        "warmup": Range(least=0, most=MOST),
        "min_lr": _FROM_0,
        "max_lr": _FROM_0,
        "eps": _TO_1,
        "verbose": bool,
        "smooth": bool,
        "window_size": _WHOLE,
        "reset_start": Range(least=0, most=MOST),
    },
}
"""Scheduler -> its `lr_scheduler_kwargs`."""

WHOLE_ARGUMENTS = (
    "num_cycles of cosine_with_restarts",
    "timescale",
    "num_decay_steps",
    "num_stable_steps",
    "patience",
    "cooldown",
    "warmup",
    "window_size",
    "reset_start",
    "rank",
    "update_proj_gap",
    "t_alpha",
    "t_beta3",
)
"""Arguments that are whole numbers."""

CHECKPOINTING: dict[str, Kind] = {
    "use_reentrant": bool,
    "preserve_rng_state": bool,
    "determinism_check": ("default", "none"),
    "debug": bool,
    "early_stop": bool,
}
"""Keys of `activation_checkpointing_kwargs`: arguments of torch.utils.checkpoint that a recipe can
hold."""

MAPPINGS: dict[str, dict[str, Kind]] = {
    "activation_checkpointing_kwargs": CHECKPOINTING,
    "gradient_checkpointing_kwargs": CHECKPOINTING,
    "accelerator_config": {"non_blocking": bool},
}
"""Key that holds a mapping -> its keys. Accelerate's others would deal rows to processes in another
way than ours."""


def wrong_argument(
    name: str, value: Any, arguments: dict[str, Kind], of: str = ""
) -> tuple[str, str]:
    """Say what is wrong with an argument of that name, and what to do; two empty texts where
    nothing is."""
    if name not in arguments:
        known = f"it takes: {', '.join(arguments)}" if arguments else "it takes none"
        return "unknown argument", did_you_mean(name, arguments) or known
    kind = arguments[name]
    if kind is bool:
        return ("", "") if isinstance(value, bool) else ("expected true or false", "")
    if isinstance(kind, tuple):
        return (
            ("", "")
            if value in kind
            else (f"expected one of {', '.join(kind)}", did_you_mean(str(value), kind))
        )
    assert isinstance(kind, Range)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "expected a number", ""
    is_whole = name in WHOLE_ARGUMENTS or f"{name} of {of}" in WHOLE_ARGUMENTS
    if is_whole and not float(value).is_integer():
        return "expected a whole number", ""
    return kind.wrong(value), ""
