"""GRPO and its relatives (arXiv 2402.03300): responses to one prompt are each other's baseline, and
there is no critic.

Its losses equal TRL's on the same batch (`tests/unit/losses/test_policy.py`).

Legend: N responses, S responses of a micro-batch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from aligner.losses.policy import divided, kl_terms, policy_terms, truncated_weights
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
        mask, settings = inputs["counted"], self.settings
        old = self.old_logps(inputs, found.logps)
        terms = policy_terms(
            found.logps,
            old,
            inputs["advantages"],
            mask,
            loss=settings.loss,
            level=settings.ratio,
            clip=self.clip,
        )
        losses, noted = terms.losses, {"clip_ratio/region_mean": terms.is_clipped.float()}
        noted["sampling/kl"] = kl_terms(inputs["engine"], old, "k3")
        if settings.mismatch_cap is not None:
            losses = losses * truncated_weights(old, inputs["engine"], settings.mismatch_cap)
        if self.reference is not None:
            kl = kl_terms(found.logps, inputs["reference"], settings.kl_estimator)
            losses = losses + settings.beta * kl
            noted["kl"] = kl_terms(found.logps.detach(), inputs["reference"], "k3")
        if self.head.with_metrics:
            noted["entropy"] = found.entropies
        self._note_tokens(noted, mask)
        loss = divided(
            losses,
            mask,
            loss=settings.loss,
            step_rows=max(1.0, self._step_rows),
            step_tokens=self._step_tokens,
            max_tokens=settings.max_new_tokens,
        )
        loss = loss * self.accelerator.num_processes  # ranks average their gradients
        return (loss, None) if return_outputs else loss
