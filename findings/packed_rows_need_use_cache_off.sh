#!/usr/bin/env bash
# Packed rows see each other in a plain forward pass of transformers, unless `use_cache=False` is said.
#
# Several rows in one sequence, with positions that begin again at each row and no attention mask, are the padding-free form
# of TRL and of transformers' own collator for flattening. Since 5.x the causal mask is cut at the row borders that the
# positions show, on any attention kernel. But only where there is no cache of keys: `use_cache` is on by default, also in
# train mode, an empty cache is made for the call, and then the positions are not looked at. The rows attend to each other
# without a warning. Trainers pass `use_cache=False`; a loop of one's own, or an evaluation, often does not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=64)
sizes |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
first, second = torch.randint(3, 64, (1, 8)), torch.randint(3, 64, (1, 8))
packed = torch.cat([first, second], dim=1)
positions = torch.arange(8).repeat(1, 2)
print("transformers", transformers.__version__)
for model in (LlamaForCausalLM(LlamaConfig(**sizes)), Qwen2ForCausalLM(Qwen2Config(**sizes))):
    for mode in ("eval", "train"):
        getattr(model, mode)()
        with torch.no_grad():
            alone = model(input_ids=second, use_cache=False).logits
            off = {}
            for name, options in (("by default", {}), ("use_cache=False", {"use_cache": False})):
                logits = model(input_ids=packed, position_ids=positions, **options).logits[:, 8:]
                off[name] = float((logits - alone).abs().max())
        print(f"{type(model).__name__:17} {mode:5} logits of the second row are off by", off)
        if not (off["by default"] > 1e-2 and off["use_cache=False"] < 1e-5):
            raise SystemExit("the behaviour has changed")
print("seen: rows stay apart only without a cache")
PY
