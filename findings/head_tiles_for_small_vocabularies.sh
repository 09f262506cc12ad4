#!/usr/bin/env bash
# TRL's fused head takes 128 KiB for each token that it reads, however small the vocabulary is.
#
# The head goes through the vocabulary in tiles and keeps no logits, so one expects it to take no more than whole logits would. Its
# buffer has 32,768 columns also where the vocabulary has 256: 512 tokens take 64 MiB forward and again backward, and whole logits half a
# MiB. Estimates of memory that multiply tokens and vocabulary are wrong for small vocabularies by as much.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "accelerate==1.15.0" "trl==1.16.0"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PY'
import torch
import trl
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM
from trl.trainer.utils import add_fused_lm_head

TOKENS, WORDS = 512, 256
print("trl", trl.__version__)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4)
ids = torch.randint(3, WORDS, (1, TOKENS + 1))


def peak(fused):
    """The most bytes that a forward and a backward pass hold at once."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **sizes))
    more = {}
    if fused:
        add_fused_lm_head(model)
        more = {"fused_lm_head": True}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        model(input_ids=ids, labels=ids, **more).loss.backward()
    held = most = 0
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


whole, fused = peak(False), peak(True)
tile = TOKENS * 32768 * 4
print(f"{TOKENS} tokens, a vocabulary of {WORDS}: whole logits {whole / 2**20:.1f} MiB, fused head {fused / 2**20:.1f} MiB")
print(f"a tile of 32,768 columns is {tile / 2**20:.0f} MiB, whole logits are {TOKENS * WORDS * 4 / 2**20:.1f} MiB")
if not (fused > tile > 5 * whole):
    raise SystemExit("the behaviour has changed")
PY
