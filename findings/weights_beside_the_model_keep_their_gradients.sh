#!/usr/bin/env bash
# transformers' Trainer never clears the gradients of weights that its optimizer holds and its model does not.
#
# A critic, a loss with weights of its own or a second head can be trained by one optimizer: override `create_optimizer` and add a
# group of parameters. The training loop clears `model.zero_grad()` and not the optimizer's gradients, so those of the added weights
# add up from step to step: with a loss that is the weight itself, the gradient should be 1 at each step and is 1, 2, 3, ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import torch
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

print("transformers", transformers.__version__)
inside, beside = [], []


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.weight * x.sum()


class Beside(Trainer):
    extra = torch.nn.Parameter(torch.zeros(1))

    def compute_loss(self, model, inputs, *args, **kwargs):
        return (model(inputs["x"]) + self.extra).sum()

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        optimizer.add_param_group({"params": [self.extra], "lr": 0.1})
        return optimizer


class Look(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        inside.append(float(model.weight.grad))
        beside.append(float(Beside.extra.grad))


arguments = TrainingArguments(
    output_dir=sys.argv[1], max_steps=4, per_device_train_batch_size=1, learning_rate=0.1, max_grad_norm=0.0,
    gradient_accumulation_steps=1, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
)
rows = [{"x": torch.ones(1)}] * 8
Beside(model=Model(), args=arguments, train_dataset=rows, callbacks=[Look()]).train()
print("gradient of the model's weight at each step:", inside)
print("gradient of the weight beside it:", beside)
if inside != [1.0] * 4 or beside != [1.0, 2.0, 3.0, 4.0]:
    raise SystemExit("the behaviour has changed")
PY
