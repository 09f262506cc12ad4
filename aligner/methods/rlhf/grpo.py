"""GRPO and its relatives (arXiv 2402.03300): responses to one prompt are each other's baseline, and
there is no critic.

Its losses equal TRL's on the same batch (`tests/unit/losses/test_policy.py`).

Legend: N responses, S responses of a micro-batch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from aligner.losses.policy import kl_terms
from aligner.methods.rlhf.trainer import NO_ROW, RlhfTrainer
from aligner.models.answers import AnswerTokens


class GrpoTrainer(RlhfTrainer):
    """Trains on responses that the model samples, by what each is worth beside the others."""

    def find_advantages(self, batches: Sequence[dict[str, Any]]) -> None:
        """Add `advantages` (S, L)."""
        counted = [group[0].row != NO_ROW for group in self.groups]
        advantages_NT = self.credit.advantages(self.groups, counted)
        places = {id(one): place for place, one in enumerate(chain.from_iterable(self.groups))}
        for batch in batches:
            rows = [places[id(one)] for one in batch["responses"]]
            batch["advantages"] = advantages_NT[rows, : batch["counted"].shape[1]]

    def token_losses(
        self, inputs: dict[str, Any], found: AnswerTokens, old: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the divergence from the start to the policy's loss."""
        losses, shown = super().token_losses(inputs, found, old)
        if self.reference is not None:
            kl = kl_terms(found.logps, inputs["reference"], self.settings.kl_estimator)
            losses = losses + self.settings.beta * kl
        return losses, shown
