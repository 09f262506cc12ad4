"""GRPO and its relatives (arXiv 2402.03300): responses to one prompt are each other's baseline, and
there is no critic.

Its losses equal TRL's on the same batch (`tests/unit/losses/test_policy.py`).

Legend: N responses, S responses of a micro-batch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from aligner.losses.policy import kl_terms
from aligner.methods.rlhf.trainer import RlhfTrainer
from aligner.models.answers import answer_tokens


class GrpoTrainer(RlhfTrainer):
    """Trains on responses that the model samples, by what each is worth beside the others."""

    def give_advantages(self, batches: Sequence[dict[str, Any]], counted: Sequence[bool]) -> None:
        """Add `advantages` (S, L)."""
        advantages_NT = self.credit.advantages(self.groups, counted)
        places = {id(one): place for place, one in enumerate(chain.from_iterable(self.groups))}
        for batch in batches:
            rows = [places[id(one)] for one in batch["responses"]]
            found = advantages_NT[rows, : batch["counted"].shape[1]]
            batch["advantages"] = found.to(self.args.device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss."""
        self.head.with_metrics = self._is_logged_next()
        found = answer_tokens(model, inputs)
        old, settings = self.old_logps(inputs, found.logps), self.settings
        losses, noted = self.policy_losses(inputs, found, old, settings.loss, settings.ratio)
        if self.reference is not None:
            kl = kl_terms(found.logps, inputs["reference"], settings.kl_estimator)
            losses = losses + settings.beta * kl
        self._note_tokens(noted, inputs["counted"])
        loss = self.step_share(losses, inputs["counted"], settings.loss)
        return (loss, None) if return_outputs else loss
