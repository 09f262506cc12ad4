"""One measured training, in a process of its own: `python worker.py TOOL TASK MODE FOLDER` prints a
line of JSON.

Measured is the CPU time of `Trainer.train()` over one epoch of the same rows on one thread (and,
for our DPO, of scoring the reference before it, which TRL does inside). Model loading, tokenization
and saving are not in it. Tokens are those of the rows, without padding: for pairs, prompt and both
answers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

BATCH = 8
MAX_LENGTH = 1024


def main(tool: str, task: str, mode: str, folder: Path) -> None:
    torch.set_num_threads(1)
    spent: dict[str, float] = {}
    _time_calls(spent)
    run = {"trl": _trl, "aligner": _aligner}[tool]
    tokens, steps = run(task, mode, folder)
    print(json.dumps({"tokens": tokens, "steps": steps, **spent}))


def _time_calls(spent: dict[str, float]) -> None:
    """Count the CPU seconds of training, and of scoring the reference where that is a call of its
    own."""
    import transformers

    import aligner.training.reference

    for owner, name, key in (
        (transformers.Trainer, "train", "train_cpu_s"),
        (aligner.training.reference, "with_reference", "reference_cpu_s"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), spent, key))


def _timed(function: Any, spent: dict[str, float], key: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[key] = spent.get(key, 0.0) + time.process_time() - start

    return call


def _trl(task: str, mode: str, folder: Path) -> tuple[int, int]:
    from datasets import load_dataset
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    config_class, trainer_class, data = {
        "sft": (SFTConfig, SFTTrainer, "chats"),
        "dpo": (DPOConfig, DPOTrainer, "pairs"),
    }[task]
    same: dict[str, Any] = {"gradient_checkpointing": False} if mode == "identical" else {}
    if mode == "identical" and task == "dpo":
        same["precompute_ref_log_probs"] = True
    config = config_class(
        output_dir=str(folder / "trl"),
        num_train_epochs=1,
        learning_rate=1e-4,
        report_to="none",
        save_strategy="no",
        bf16=False,
        disable_tqdm=True,
        max_length=MAX_LENGTH,
        per_device_train_batch_size=BATCH,
        **same,
    )
    rows = load_dataset(str(folder / data), split="train")
    trainer = trainer_class(model=str(folder / "model"), args=config, train_dataset=rows)
    if task == "dpo":
        tokens = sum(
            len(r["prompt_ids"]) * 2 + len(r["chosen_ids"]) + len(r["rejected_ids"])
            for r in trainer.train_dataset
        )
    else:
        tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
    trainer.train()
    return tokens, trainer.state.global_step


def _aligner(task: str, mode: str, folder: Path) -> tuple[int, int]:
    from aligner.config.load import load_recipe
    from aligner.methods.pipeline import run_recipe

    data = {"sft": "chats", "dpo": "pairs"}[task]
    settings = [
        f"model.name_or_path={folder / 'model'}",
        f"data.train={folder / data / 'train.jsonl'}",
        f"data.max_length={MAX_LENGTH}",
        f"output_dir={folder / 'aligner'}",
        "trainer.num_train_epochs=1",
        "trainer.learning_rate=1e-4",
        "trainer.save_strategy='no'",
        f"trainer.per_device_train_batch_size={BATCH}",
        "report.num_prompts=0",
    ]
    if mode == "identical":
        settings.append("trainer.train_sampling_strategy=random")
        settings += ["sft.packing=false"] if task == "sft" else []
    outcome = run_recipe(load_recipe(task, None, settings), overwrite=True)
    ledger = json.loads((outcome.run_dir / "data.json").read_text())
    return ledger["splits"]["train"]["tokens"], int(outcome.results["steps"])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
