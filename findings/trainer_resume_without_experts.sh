#!/usr/bin/env bash
# transformers' Trainer resumes some models without most of their weights, and only a log line says so.
#
# Since transformers 5 several classes hold weights under other names, or in another form, than they save them (the
# experts of Mixtral are one tensor in memory and a matrix each on disk; the head of GPT-NeoX is `lm_head` here and
# `embed_out` there). `Trainer.train(resume_from_checkpoint=...)` reads a checkpoint with `load_state_dict(strict=False)`,
# by the names in memory: what is not found keeps the values of the model that was handed in, while optimizer and
# schedule go on. `load_best_model_at_end` reads in the same way. Llama is resumed rightly, for comparison.
#
# Exits 0 while the behaviour is as described, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cat > "$folder/resume.py" <<'PYTHON'
import sys
import tempfile

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM, Trainer, TrainingArguments

SIZES = dict(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=1, max_position_embeddings=32)
MODELS = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "Mixtral": lambda: MixtralForCausalLM(MixtralConfig(num_local_experts=2, **SIZES)),
}
ids = torch.randint(0, 64, (16, 8), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": row} for row in ids]


def fresh(make):
    torch.manual_seed(0)
    return make()


def trainer(make, folder, steps):
    arguments = TrainingArguments(folder, max_steps=steps, save_steps=2, per_device_train_batch_size=4, report_to="none",
                                  learning_rate=1e-2, lr_scheduler_type="constant", seed=0, use_cpu=True,
                                  disable_tqdm=True)
    return Trainer(fresh(make), arguments, train_dataset=rows)


def train(make, folder, steps, resume=None):
    """Train with a constant rate and return the weights; `resume` is a checkpoint."""
    trains = trainer(make, folder, steps)
    trains.train(resume_from_checkpoint=resume)
    return trains.model.state_dict()


def different(a, b):
    return sorted(name for name in a if not torch.equal(a[name], b[name]))


print("transformers", transformers.__version__)
found = {}
for name, make in MODELS.items():
    with tempfile.TemporaryDirectory() as folder:
        whole = train(make, f"{folder}/whole", 4)
        train(make, f"{folder}/part", 2)
        resumed = train(make, f"{folder}/part", 4, f"{folder}/part/checkpoint-2")
        reader = trainer(make, f"{folder}/read", 2)
        reader._load_from_checkpoint(f"{folder}/part/checkpoint-2")  # what `train` calls to resume
    start, read = fresh(make).state_dict(), reader.model.state_dict()
    untouched = [key for key in start if torch.equal(start[key], read[key])]
    found[name] = different(whole, resumed)
    print(f"{name}: weights that differ from the uninterrupted run: {len(found[name])} of {len(whole)}")
    print(f"{name}: weights that the checkpoint did not give back: {untouched}")
sys.exit(0 if not found["Llama"] and found["Mixtral"] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/resume.py"
