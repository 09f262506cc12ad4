"""Hints for unknown keys: names from other tools and older versions, and what they are called here.

Used for hints only: nothing in this file is accepted as a key. A renamed key fails, and says its
new name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

GONE: dict[str, str] = {
    "bnb_4bit_quant_type": "set `model.quantization` to `nf4` or `fp4`",
    "chat_template": "set `model.chat_template`",
    "dataset_mixer": "list the sources under `data.train`: [{path: ..., weight: 1.0}, ...]",
    "dataset_mixture": "list the sources under `data.train`: [{path: ..., weight: 1.0}, ...]",
    "datasets": "list the sources under `data.train`: [{path: ..., weight: 1.0}, ...]",
    "dataset_splits": "give each source under `data.train` and `data.eval` its `split`",
    "dataset_kwargs": "rows are turned into tokens before the trainer sees them",
    "evaluation_strategy": "it is called `trainer.eval_strategy` now",
    "group_by_length": "set `trainer.train_sampling_strategy: group_by_length`",
    "hub_model_revision": "set `trainer.hub_revision`",
    "include_inputs_for_metrics": "removed from transformers; drop it",
    "include_tokens_per_second": "tokens per second are always logged; drop it",
    "jit_mode_eval": "removed from transformers; drop it",
    "logging_dir": "metrics are in the run directory, in metrics.jsonl; drop it",
    "loss_weights": "write `dpo.loss={sigmoid: 0.8, sft: 0.2}`",
    "max_completion_length": "`data.max_length` counts prompt and answer together",
    "max_members": "it is called `max_examples` now",
    "max_prompt_length": "`data.max_length` counts prompt and answer together; of pairs, "
    "`dpo.max_prompt_length` cuts prompts",
    "max_seq_length": "it is called `data.max_length` now",
    "min_members": "it is called `min_examples` now",
    "model_init_kwargs": "set the keys of `model`: dtype, attn_implementation, quantization, "
    "revision",
    "no_cuda": "set `trainer.use_cpu: true`",
    "overwrite_output_dir": "run the command with `--overwrite`",
    "passes": "it is called `epochs` now",
    "peft_config": "write `model.lora: {r: 16, lora_alpha: 32}`",
    "per_gpu_train_batch_size": "it is called `trainer.per_device_train_batch_size` now",
    "per_gpu_eval_batch_size": "it is called `trainer.per_device_eval_batch_size` now",
    "push_to_hub_model_id": "set `trainer.hub_model_id`",
    "push_to_hub_token": "secrets come from the environment: set HF_TOKEN there",
    "ref_model": "set `dpo.reference_model`",
    "reference_free": "removed from TRL; there is always a reference",
    "rpo_alpha": "set `dpo.nll_weight`",
    "save_safetensors": "weights are always saved as safetensors; drop it",
    "style_bank": "it is called `phrasings` now",
    "test_split_size": "write `data.eval: 0.05` for a share held out, or `1000` for so many rows",
    "tokenizer_name_or_path": "the tokenizer comes with the model",
    "use_ipex": "removed from transformers; drop it",
    "warmup_ratio": "write `trainer.warmup_steps: 0.1`; a value below 1 is a share of all steps",
    "use_liger": "set `trainer.use_liger_kernel: true`",
}
"""Names that mean nothing any more, or never did here -> what to do."""

ELSEWHERE: dict[str, str] = {
    "adapter": "model.lora",
    "base_model": "model.name_or_path",
    "cutoff_len": "data.max_length",
    "dataset": "data.train",
    "dataset_path": "data.train",
    "learning_rate_scheduler": "trainer.lr_scheduler_type",
    "lora_rank": "model.lora.r",
    "lora_target": "model.lora.target_modules",
    "lr": "trainer.learning_rate",
    "lr_scheduler": "trainer.lr_scheduler_type",
    "max_samples": "data.train[].max_rows",
    "max_seq_len": "data.max_length",
    "micro_batch_size": "trainer.per_device_train_batch_size",
    "batch_size": "trainer.per_device_train_batch_size",
    "epochs": "trainer.num_train_epochs",
    "num_epochs": "trainer.num_train_epochs",
    "optimizer": "trainer.optim",
    "pref_beta": "dpo.beta",
    "pref_loss": "dpo.loss",
    "ref_model_name_or_path": "dpo.reference_model",
    "rl": "method",
    "sample_packing": "sft.packing",
    "sequence_len": "data.max_length",
    "stage": "method",
    "template": "model.chat_template",
    "train_on_inputs": "sft.loss_on",
    "val_set_size": "data.eval",
    "val_size": "data.eval",
}
"""What other tools call it -> the key here."""


def closest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `name` was probably meant to be, if one is near enough."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A hint, or nothing."""
    known = list(candidates)
    parts = [part.strip() for part in name.split(",")]
    if len(parts) > 1 and set(parts) <= set(known):
        return f"several are written as a list, where a key takes one: [{', '.join(parts)}]"
    near = closest(name, known)
    return f"did you mean `{near}`?" if near else ""
