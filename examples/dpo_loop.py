"""DPO as a loop of your own, on the library's parts: no recipe, no trainer, no run directory.

    aligner toy toy
    python examples/dpo_loop.py toy      # about half a minute on a CPU

What `aligner.train` would add: checks of everything before the first step, accumulation, several
processes, checkpoints, a record, a report.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch

import aligner
from aligner.launch.devices import best_device
from aligner.losses.catalogue import OBJECTIVES
from aligner.losses.types import PairLogps, Settings
from aligner.models.answers import answer_logps
from aligner.models.fused_head import fuse_head
from aligner.tokenization.encode import encode_pair
from aligner.training.preference import PairCollator

BATCH_SIZE = 16
LEARNING_RATE = 1e-3


def encoded(tokenizer: Any, file: Path) -> list[dict[str, list[int]]]:
    """Pairs of a file as token ids: `prompt_ids`, `chosen_ids`, `rejected_ids`."""
    pairs = [encode_pair(tokenizer, row) for row in aligner.load_rows(file, "preference")]
    return [
        {
            "prompt_ids": one.prompt_ids,
            "chosen_ids": one.chosen_ids,
            "rejected_ids": one.rejected_ids,
        }
        for one in pairs
    ]


def pair_logps(policy: Any, reference: Any, batch: dict[str, torch.Tensor]) -> PairLogps:
    """What both models say of the B pairs of a batch: chosen answers first, then rejected ones."""
    logps, lengths = answer_logps(policy, batch)  # (2B,), summed over the answers' tokens
    with torch.no_grad():
        reference_logps, _ = answer_logps(reference, batch)
    return PairLogps(*logps.chunk(2), *reference_logps.chunk(2), *lengths.chunk(2))


def main(world: Path, steps: int = 60, seed: int = 0) -> list[float]:
    """Train the toy model, and return the loss of each step."""
    device, draw = best_device(), random.Random(seed)
    tokenizer = aligner.load_tokenizer(world / "model")
    policy = aligner.load_model(world / "model", tokenizer, trainable=True).to(device).train()
    reference = aligner.load_model(world / "model", tokenizer)
    for model in (policy, reference):
        fuse_head(model)  # log-probabilities without the logits of a whole vocabulary in memory
    rows = encoded(tokenizer, world / "preferences.jsonl")
    collate = PairCollator(tokenizer.pad_token_id)
    objective, settings = OBJECTIVES["sigmoid"], Settings(beta=0.1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE)

    losses = []
    for step in range(1, steps + 1):
        batch = {
            name: value.to(device) for name, value in collate(draw.sample(rows, BATCH_SIZE)).items()
        }
        pairs = pair_logps(policy, reference, batch)
        loss = objective(pairs, settings).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            accuracy = (pairs.rho > 0).float().mean().item()
            print(f"step {step:>3}: loss {losses[-1]:.3f}, pairs ranked rightly {accuracy:.2f}")
    return losses


if __name__ == "__main__":
    main(Path(sys.argv[1]))
