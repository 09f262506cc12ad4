"""PPO (arXiv 1707.06347): a critic says what a response is still worth before each token, and an
advantage is how much better its token turned out.

    R_t      the reward of token t, less beta (log pi - log pi_ref)
    A_t      delta_t + gamma lambda A_{t+1},  delta_t = R_t + gamma V_{t+1} - V_t
    ret_t    A_t + V_t

pi, V and A are those at sampling, and A is whitened over all tokens of a step. A response that was
cut off is worth nothing more behind its last token, like one that ended. The first optimizer step
on a response has a ratio of exactly 1, so clipping begins with the second.

One optimizer trains policy and critic, in groups with learning rates of their own, each clipped to
the norm by itself. They share no weight that is trained (`models/value_head.py`).

Legend: S responses of a micro-batch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from aligner.losses.policy import kl_terms, value_losses
from aligner.methods.rlhf.advantages import explained_variance, gae, whiten
from aligner.methods.rlhf.recipe import CRITIC, PPO_STATE, Rlhf
from aligner.methods.rlhf.rollout import padded
from aligner.methods.rlhf.trainer import RlhfTrainer
from aligner.models.answers import answer_tokens
from aligner.models.ema import trained_weights
from aligner.models.forward import eval_mode
from aligner.models.value_head import Critic
from aligner.runs.files import dumps, parse_json, write_atomically

STOP_AT = 1.5
"""Times `target_kl` at which the policy rests."""
LARGEST_CORRECTION = 0.2
"""Most that an adaptive coefficient answers to, as a share of the divergence that is aimed at."""
CRITIC_RATE = 5.0
"""Learning rate of the critic where none is asked for, as a multiple of the policy's."""
FOUND = ("advantages", "returns", "old_values")


def adapted(beta: float, kl: float, responses: float, settings: Rlhf) -> float:
    """Return the KL coefficient after a step on whose responses policy and reference differed by
    `kl` nats each in the mean (arXiv 1909.08593, section 2.2)."""
    error = min(LARGEST_CORRECTION, max(-LARGEST_CORRECTION, kl / settings.kl_target - 1))
    return beta * (1 + error * responses / settings.kl_horizon)


class PpoTrainer(RlhfTrainer):
    """Trains a policy on responses that it samples, and a critic beside it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.critic = Critic(self.model, self.args.seed).to(self.args.device)
        if self.args.gradient_checkpointing:
            self._checkpoint_gradients()
        self.beta = self.settings.beta
        """The weight of the divergence at present."""
        self.rests = False
        """Whether the policy has moved too far to be trained on these responses further."""
        self._moved: list[Tensor] = []

    def _checkpoint_gradients(self) -> None:
        """As transformers does to the policy."""
        options = dict(self.args.gradient_checkpointing_kwargs or {})
        own = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        self.critic.backbone.activation_checkpointing_enable(options or None, **own)
        if hasattr(self.model, "get_base_model"):
            self.critic.backbone.enable_input_require_grads()

    # --- what tokens are worth --------------------------------------------------------------------

    def give_advantages(self, batches: Sequence[dict[str, Any]], counted: Sequence[bool]) -> None:
        """Add `advantages`, `returns` and `old_values`, each (S, L), found once for responses that
        are trained on for several steps."""
        if not self.groups[0][0].advantages:
            self.rests = False
            self._find(batches, counted)
            return
        for batch in batches:
            for name in FOUND:
                rows = [getattr(one, name) for one in batch["responses"]]
                batch[name] = padded(rows, batch["counted"].shape[1]).to(self.args.device)

    def _find(self, batches: Sequence[dict[str, Any]], counted: Sequence[bool]) -> None:
        silent = self.credit.silent_scores(list(chain(*compress(self.groups, counted))))
        for batch in batches:
            self._estimate(batch, silent)
        masks = [batch["counted"] for batch in batches]
        flat, returns, values = (_joined(batches, name) for name in FOUND)
        white = whiten(flat[None], torch.ones_like(flat[None]), self._add)[0]
        parts = white.split([int(mask.sum()) for mask in masks])
        for batch, mask, part in zip(batches, masks, parts):
            batch["advantages"] = torch.zeros_like(batch["returns"]).masked_scatter(mask, part)
            if self.settings.iterations > 1:
                _keep(batch)
        explained = explained_variance(returns, values, self._add)
        if explained is not None:
            self._seen["explained_variance"].append(explained)
        if self.reference is not None:
            self._adapt(batches)

    def _estimate(self, batch: dict[str, Any], silent: Mapping[str, float]) -> None:
        """Add advantages, not whitened yet, returns, and what the critic expects."""
        responses, settings = batch["responses"], self.settings
        with self._timed("time/values"), eval_mode(self.critic), self.accelerator.autocast():
            values = self.critic(batch)
        rewards = self.credit.paid(responses, silent).to(values)
        if self.reference is not None:
            self.head.with_metrics = False
            with self._timed("time/values"), self._resting():
                logps = answer_tokens(self.model, batch).logps
            batch["apart"] = kl_terms(logps, batch["reference"], "k1")
            rewards = rewards - self.beta * batch["apart"]
        lengths = torch.tensor([len(one.token_ids) for one in responses], device=values.device)
        mask = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        batch["advantages"], batch["returns"] = gae(
            rewards, values, mask, gamma=settings.gamma, lam=settings.gae_lambda
        )
        batch["old_values"] = values

    def _adapt(self, batches: Sequence[dict[str, Any]]) -> None:
        """Note the KL coefficient that these rewards had, and find the next."""
        self._seen["beta"].append(self.beta)
        if self.settings.kl == "fixed":
            return
        sums = []
        for batch in batches:
            mask = batch["counted"]
            sums.append(torch.stack([(batch["apart"] * mask).sum(), mask.any(1).sum()]).double())
        apart, responses = self._add(torch.stack(sums).sum(0)).tolist()
        self.beta = adapted(self.beta, apart / max(1.0, responses), responses, self.settings)

    # --- the loss ---------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the step's loss, of policy and critic together."""
        self.head.with_metrics = self._is_logged_next()
        found = answer_tokens(model, inputs)
        with self.accelerator.autocast():
            values = self.critic.train(model.training)(inputs)
        old, mask = self.old_logps(inputs, found.logps), inputs["counted"]
        of_policy, noted = self.policy_losses(inputs, found, old)
        of_critic = value_losses(
            values, inputs["old_values"], inputs["returns"], self.settings.value_clip
        )
        noted |= {
            "policy_loss": of_policy,
            "value_loss": of_critic,
            "approx_kl": kl_terms(old, found.logps.detach(), "k3"),
            "returns": inputs["returns"],
            "values": values,
        }
        if self.settings.value_clip is not None:
            moved = (values.detach() - inputs["old_values"]).abs()
            noted["clip_ratio/value_mean"] = (moved > self.settings.value_clip).float()
        self._note_tokens(noted, mask)
        self._moved.append(torch.stack([(noted["approx_kl"] * mask).sum(), mask.sum()]).double())
        loss = self.step_share(of_policy + of_critic, mask)
        return (loss, None) if return_outputs else loss

    # --- the optimizer ----------------------------------------------------------------------------

    @property
    def critic_rate(self) -> float:
        """The critic's learning rate; where none is asked for, a multiple of the policy's."""
        asked = self.settings.critic_learning_rate
        return CRITIC_RATE * float(self.args.learning_rate) if asked is None else asked

    def create_optimizer(self, model: Any = None) -> Any:
        """Add the critic's weights to the policy's, with a learning rate of their own."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            self.add_callback(_AroundSteps(self))  # behind those that look at all gradients
            decayed = self.get_decay_parameter_names(self.critic)
            groups: tuple[list[Any], list[Any]] = ([], [])
            for name, weight in trained_weights(self.critic).items():
                groups[name in decayed].append(weight)
            for weights, decay in zip(groups, (0.0, self.args.weight_decay)):
                optimizer.add_param_group(
                    {"params": weights, "lr": self.critic_rate, "weight_decay": decay}
                )
        return optimizer

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Average the critic's gradients over ranks at the end of a step, as is done to the
        policy's."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients and self.accelerator.num_processes > 1:
            for weight in trained_weights(self.critic).values():
                if weight.grad is None:
                    weight.grad = torch.zeros_like(weight)
                torch.distributed.all_reduce(weight.grad)
                weight.grad /= self.accelerator.num_processes
        return loss

    def before_optimizer(self) -> None:
        """Clip the critic's gradients, and leave the policy as it is while the critic warms up, and
        once it has moved too far on these responses."""
        weights = trained_weights(self.critic).values()
        norm = torch.nn.utils.clip_grad_norm_(weights, self.args.max_grad_norm or float("inf"))
        self._seen["critic_grad_norm"].append(float(norm))
        moved, self._moved = torch.stack(self._moved).sum(0), []
        if self.settings.target_kl is not None:
            total, tokens = self._add(moved).tolist()
            self.rests |= total / max(1.0, tokens) > STOP_AT * self.settings.target_kl
            self._seen["policy_rests"].append(float(self.rests))
        if self.rests or self.state.global_step < self.settings.critic_warmup:
            # Without a gradient an optimizer passes a weight over, its momentum included.
            for weight in trained_weights(self.model).values():
                weight.grad = None

    def after_optimizer(self) -> None:
        """Forget the critic's gradients; transformers forgets the policy's."""
        for weight in trained_weights(self.critic).values():
            weight.grad = None

    # --- what is kept -----------------------------------------------------------------------------

    def save_rest(self, folder: Path) -> None:
        """Write the critic, the KL coefficient, and the responses that are trained on once more."""
        super().save_rest(folder)
        if self.is_world_process_zero():
            self.critic.save(folder / CRITIC)
            state = {"beta": self.beta, "rests": self.rests}
            write_atomically(folder / PPO_STATE, dumps(state))

    def load_rest(self, folder: Path) -> None:
        """Take up what a checkpoint holds beside the policy."""
        super().load_rest(folder)
        self.critic.load(folder / CRITIC)
        state = parse_json(folder / PPO_STATE, f"delete {folder}", dict)
        self.beta, self.rests = state["beta"], state["rests"]


class _AroundSteps(TrainerCallback):
    """Calls the trainer before and after each step of the optimizer."""

    def __init__(self, trainer: PpoTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.before_optimizer()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.trainer.after_optimizer()


def _joined(batches: Sequence[dict[str, Any]], name: str) -> Tensor:
    """Return what batches hold of the tokens that are trained on (N,)."""
    return torch.cat([batch[name][batch["counted"]] for batch in batches])


def _keep(batch: Mapping[str, Any]) -> None:
    """Keep with each response what was found of it."""
    for name in FOUND:
        for one, row in zip(batch["responses"], batch[name].tolist()):
            setattr(one, name, row[: len(one.token_ids)])
