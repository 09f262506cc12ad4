#!/usr/bin/env bash
# PEFT takes weights of the base out of an adapter file without a word, and drops names that it has no place for as silently.
#
# A file of LoRA weights should hold nothing but them. Where it also holds a weight under the name that the base has (a merge gone
# wrong, a checkpoint that was saved whole), `PeftModel.from_pretrained` writes it over the base: the adapter then changes the model
# also while it is switched off, and beside other adapters on the same base. A LoRA weight whose layer does not exist is left out.
# Neither is warned of.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0" "peft==0.21.2"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import sys
import warnings
from pathlib import Path

import peft
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, logging

folder = Path(sys.argv[1])
print("peft", peft.__version__)
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder / "adapter")
file = folder / "adapter" / "adapter_model.safetensors"
weights = load_file(file)
layer = next(name for name in weights if "lora_A" in name)
weights["base_model.model.model.norm.weight"] = torch.full((32,), 7.0)
weights[layer.replace("layers.0", "layers.9").replace("layers.1", "layers.9")] = torch.ones_like(weights[layer])
save_file(weights, file)

ids = torch.arange(3, 11)[None]
before = base()(ids).logits
logging.set_verbosity_warning()
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    model = PeftModel.from_pretrained(base(), folder / "adapter").eval()
with model.disable_adapter(), torch.no_grad():
    off = float((model(ids).logits - before).abs().max())
norm = model.get_base_model().model.norm.weight
print(f"the base's norm is {float(norm.mean()):g} everywhere; it was 1")
print(f"logits with the adapter switched off differ from the base by {off:.2f}")
about = [str(one.message) for one in warned if "norm" in str(one.message) or "layers.9" in str(one.message)]
print("warnings that name either weight:", len(about))
if not bool((norm == 7.0).all()) or off < 0.1 or about:
    raise SystemExit("the behaviour has changed")
PY
