#!/usr/bin/env bash
# bitsandbytes unpacks weights in 4 bits wrongly on a CPU with AVX512 where a layer's width is a multiple of 16 but not of 64.
#
# Weights are packed in blocks of 64 that run on from row to row. The kernel for AVX512 lets row n begin at block
# n * (width // 64) and takes the scales of other blocks, without a warning: at a width of 32 every row gets the first one.
# Both kinds (nf4, fp4), all data types, with and without double quantization. A model in 4 bits then computes with other weights
# than it has on a GPU or on a CPU without AVX512; so do its gradient, DoRA and what is merged. Widths that are a multiple of
# 64 (most language models; SigLIP's 4304 is none) are right, and so is a width that no 16 divides, which goes another way.
# The same numbers in rows of whole blocks come out right: `shape` says (rows * width // 64, 64) to the same kernel.
set -euo pipefail
if ! grep -qw avx512f /proc/cpuinfo 2>/dev/null; then
  echo "this processor has no AVX512, and bitsandbytes takes another way here: nothing to see"
  exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0" "bitsandbytes==0.50.2"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import bitsandbytes
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

print("bitsandbytes", bitsandbytes.__version__, "torch", torch.__version__, torch.backends.cpu.get_cpu_capability())


def error(found, wanted):
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


def by_blocks(packed, state):
    """The same weights, asked for in rows of whole blocks."""
    shape, state.shape = state.shape, torch.Size((state.shape.numel() // 64, 64))
    found = dequantize_4bit(packed, state).reshape(shape)
    state.shape = shape
    return found


for width in (32, 48, 64, 96, 100, 128):
    for kind in ("nf4", "fp4"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            torch.manual_seed(0)
            weights = torch.randn(64, width, dtype=dtype) * (torch.rand(64, 1, dtype=dtype) + 0.1)
            packed, state = quantize_4bit(weights, blocksize=64, quant_type=kind)
            found, right = error(dequantize_4bit(packed, state), weights), error(by_blocks(packed, state), weights)
            name = str(dtype).removeprefix("torch.")
            print(f"width {width:3} {kind} {name:8} off by {found:3.0%}, in rows of whole blocks by {right:.0%}")
            wrong = width % 16 == 0 and width % 64 != 0
            if (found > 0.2) != wrong or right > 0.2:
                raise SystemExit("the behaviour has changed")

sizes = dict(vocab_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64)
config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
ids = torch.arange(3, 35)[None]
for width in (64, 96):
    torch.manual_seed(0)
    plain = LlamaForCausalLM(LlamaConfig(hidden_size=width, intermediate_size=width, initializer_range=0.2, **sizes))
    plain.save_pretrained(f"{sys.argv[1]}/{width}")
    four_bits = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{width}", quantization_config=config, dtype=torch.float32)
    for name, layer in four_bits.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            plain.get_submodule(name).weight.data = by_blocks(layer.weight.data, layer.weight.quant_state)
    four_bits.train()  # in eval mode a CPU with AVX512-BF16 computes with other kernels
    with torch.no_grad():
        off = error(four_bits(input_ids=ids).logits, plain(input_ids=ids).logits)
    print(f"a Llama of width {width} in nf4: logits are off by {off:.1%} from those of its own weights")
    if (off > 0.02) != (width == 96):
        raise SystemExit("the behaviour has changed")
print("seen: widths that 16 divides and 64 does not come out wrong")
PY
