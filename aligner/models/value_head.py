"""A critic: a model's layers under a head that says what a response is still worth before each of
its tokens.

It starts from the policy's start, with a head of its own, and shares every weight that is not
trained with the policy: under LoRA both are adapters on one base, also a 4-bit one, while in full
fine-tuning they share nothing. The modules are its own, so that no adapter is switched between a
forward pass and its backward pass: PEFT would leave the one that was switched off without a
gradient, and gradient checkpointing would compute the layers again with the wrong one.

Legend: S answers, L tokens of the longest, M places that are read, D hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aligner.models.adapter_kinds import base_under_adapter
from aligner.models.answers import answer_lengths, by_answer
from aligner.models.ema import trained_weights
from aligner.models.forward import Batch
from aligner.models.fused_head import trained_positions
from aligner.models.reward_head import Float32Linear
from aligner.models.shared_base import sharing_frozen
from aligner.models.shared_prefix import attention_of


class Critic(nn.Module):
    """Values (S, L) in float32, each read behind the token before its own.

    Args:
        policy: the model whose layers it copies, as they are.
        seed: of its head, drawn from N(0, 1/(D+1)), so that values begin near 0.
    """

    def __init__(self, policy: Any, seed: int) -> None:
        super().__init__()
        base = base_under_adapter(policy)
        self.backbone = sharing_frozen(base.base_model)
        width = int(base.config.get_text_config().hidden_size)
        self.value = Float32Linear(width, 1)
        drawn = torch.randn(1, width, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            self.value.weight.copy_(drawn / (width + 1))
            self.value.bias.zero_()

    def forward(self, batch: Batch) -> Tensor:
        """Return the value before each token of the S answers of a batch (S, L), as `stack_answers`
        lays them out; 0 behind the end of an answer."""
        if "read_from" in batch:
            places = batch["read_from"]
            mask = attention_of(self.backbone, batch["groups"], batch["branches"])
            more = {"position_ids": batch["position_ids"], "attention_mask": mask}
        else:
            places = trained_positions(batch["labels"])[0]
            more = {"attention_mask": batch["attention_mask"]}
        outputs = self.backbone(input_ids=batch["input_ids"], use_cache=False, **more)
        hidden = outputs.last_hidden_state
        picked_MD = hidden.reshape(-1, hidden.shape[-1])[places.to(hidden.device)]
        return by_answer(self.value(picked_MD)[:, 0], batch, answer_lengths(batch))

    def save(self, file: Path) -> None:
        """Write what is trained as safetensors."""
        weights = trained_weights(self).items()
        save_file({name: weight.detach().contiguous() for name, weight in weights}, str(file))

    @torch.no_grad()
    def load(self, file: Path) -> None:
        """Take over the weights in a file that `save` wrote."""
        found, mine = load_file(str(file)), trained_weights(self)
        assert found.keys() == mine.keys(), "the file holds the weights of another critic"
        for name, weight in mine.items():
            weight.copy_(found[name])
