#!/usr/bin/env bash
# transformers' Trackio callback numbers points by how often something was logged, and a resumed training logs lost steps twice.
#
# `report_to="trackio"` with a `run_name` continues the run of that name when a training is resumed. But the callback logs without a
# step, so Trackio counts logs: with an evaluation after every second step, step 6 of the training stands at step 9 of the plot. And what was
# logged between the last checkpoint and the end of the first session is logged again, further to the right, as if it were later.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0" "trackio==0.43.0"
HF_HOME="$folder/cache" TRACKIO_DIR="$folder/trackio" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import contextlib
import io
import json
import sqlite3
import sys

import torch
import trackio
import transformers
from transformers import Trainer, TrainerCallback, TrainingArguments

print("transformers", transformers.__version__, "trackio", trackio.__version__)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return {"loss": (self.weight * x).sum()}


class StopAt(TrainerCallback):
    """A session that ends a step after its checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 5


def train(resume, *callbacks):
    arguments = TrainingArguments(
        output_dir=f"{sys.argv[1]}/run", max_steps=6, per_device_train_batch_size=1, logging_steps=1, save_steps=2, save_total_limit=1,
        eval_strategy="steps", eval_steps=2, use_cpu=True, report_to="trackio", run_name="mine", project="counts", disable_tqdm=True,
        trackio_static_space_id=False,
    )
    rows = [{"x": torch.ones(1)}] * 8
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = Trainer(model=Model(), args=arguments, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=resume)


train(False, StopAt())
train(True)
with sqlite3.connect(f"{sys.argv[1]}/trackio/counts.db") as database:
    logged = [(step, json.loads(metrics)) for step, metrics in database.execute("select step, metrics from metrics order by step")]
points = [(step, metrics["train/global_step"]) for step, metrics in logged if "train/loss" in metrics]
print("(step of the plot, step of the training) of each loss:", points)
trained = [at for _, at in points]
twice = sorted({at for at in trained if trained.count(at) > 1})
print("steps of the training with two losses:", twice)
if twice != [5] or all(step == at for step, at in points):
    raise SystemExit("the behaviour has changed")
PY
