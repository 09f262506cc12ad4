#!/usr/bin/env bash
# PEFT's `unload()` gives back the base without its adapters, but with the trained copies of `modules_to_save` in it.
#
# Its documentation promises the original base model, with nothing merged. LoRA layers are taken off, and of a module that is trained
# whole (a head, embeddings) the copy that was trained stays, under the base's own name. `disable_adapter()` of the same model uses the
# original.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0" "peft==0.21.2"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PY'
import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

print("peft", peft.__version__)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
base = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
ids = torch.arange(3, 11)[None]
with torch.no_grad():
    before = base(ids).logits
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])).eval()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(1.0)
    with model.disable_adapter():
        off = float((model(ids).logits - before).abs().max())
    unloaded = float((model.unload()(ids).logits - before).abs().max())
print(f"logits with the adapter switched off differ from the base by {off:.2g}, those of what unload() returns by {unloaded:.2g}")
if off > 1e-5 or unloaded < 0.1:
    raise SystemExit("the behaviour has changed")
PY
