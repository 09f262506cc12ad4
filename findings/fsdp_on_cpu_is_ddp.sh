#!/usr/bin/env bash
# `accelerate launch --use_fsdp` on a machine without a GPU trains with DDP, and nothing says so.
#
# torch's FSDP2 (`fully_shard`) works over gloo. accelerate reads the settings of FSDP, and then lets them in only on devices with a
# backend of their own: with ranks on CPU every rank keeps a whole model, its gradients and its optimizer state. The last line of the
# script shards the same model over the same ranks with torch alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "accelerate==1.15.0"
cat > "$folder/ranks.py" <<'PY'
import accelerate
import torch
from torch.distributed.fsdp import fully_shard

state = accelerate.Accelerator()
model = state.prepare(torch.nn.Linear(8, 8, bias=False))
kind = state.distributed_type.value
held = sum(weight.numel() for weight in model.parameters())
alone = torch.nn.Linear(8, 8, bias=False)
fully_shard(alone)
shard = sum(weight.to_local().numel() for weight in alone.parameters())
if state.is_main_process:
    print(f"accelerate {accelerate.__version__}: FSDP2 was asked for, found {kind}")
    print(f"of 64 weights rank 0 holds {held}; with torch's fully_shard it holds {shard}")
if kind != "MULTI_CPU" or held != 64 or shard != 32:
    raise SystemExit("the behaviour has changed")
state.end_training()
PY
OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true "$folder/venv/bin/accelerate" launch --use_fsdp --fsdp_version 2 \
  --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0 "$folder/ranks.py"
