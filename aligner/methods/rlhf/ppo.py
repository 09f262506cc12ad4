"""PPO (arXiv 1707.06347): a critic says what a response is still worth before each token, and an
advantage is how much better its token turned out.

    R_t      the reward of token t, less beta (log pi - log pi_ref)
    A_t      delta_t + gamma lambda A_{t+1},  delta_t = R_t + gamma V_{t+1} - V_t
    ret_t    A_t + V_t

pi, V and A are those at sampling, and A is whitened over all tokens that were sampled at once. A
response that was cut off is worth nothing more behind its last token, like one that ended. The
first optimizer step on a rollout has a ratio of exactly 1, so clipping begins with the second.

One optimizer trains policy and critic, in groups with learning rates of their own, each clipped to
the norm by itself. They share no weight that is trained (`models/value_head.py`).

Legend: S responses of a micro-batch, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from aligner.losses.policy import kl_terms, value_losses
from aligner.methods.rlhf.advantages import explained_variance, gae, whiten
from aligner.methods.rlhf.recipe import CRITIC, PPO_STATE, Rlhf
from aligner.methods.rlhf.trainer import NO_ROW, RlhfTrainer
from aligner.models.answers import AnswerTokens
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
LAMBDA = 0.95
"""`gae_lambda` where none is asked for."""
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

    def find_advantages(self, batches: Sequence[dict[str, Any]]) -> None:
        """Add `advantages`, `returns` and `old_values`, each (S, L)."""
        self.rests = False
        trained = [group for group in self.groups if group[0].row != NO_ROW]
        silent = self.credit.silent_scores(list(chain(*trained)))
        for batch in batches:
            self._estimate(batch, silent)
        masks = [batch["counted"] for batch in batches]
        flat, returns, values = (_joined(batches, name) for name in FOUND)
        white = whiten(flat[None], torch.ones_like(flat[None]), self._add)[0]
        parts = white.split([int(mask.sum()) for mask in masks])
        for batch, mask, part in zip(batches, masks, parts):
            batch["advantages"] = torch.zeros_like(batch["returns"]).masked_scatter(mask, part)
        explained = explained_variance(returns, values, self._add)
        if explained is not None:
            self.seen.number("explained_variance", explained)
        if self.reference is not None:
            self._adapt(batches)

    def _estimate(self, batch: dict[str, Any], silent: Mapping[str, float]) -> None:
        """Add advantages, not whitened yet, returns, and what the critic expects."""
        responses, settings = batch["responses"], self.settings
        with self.seen.timed("values"), eval_mode(self.critic), self.accelerator.autocast():
            values = self.critic(self._prepare_inputs(batch)).float().cpu()
        rewards = self.credit.paid(responses, silent)
        if self.reference is not None:
            with self.seen.timed("values"):
                logps = batch["old"] if "old" in batch else self.logps(batch)
            batch["apart"] = kl_terms(logps, batch["reference"], "k1")
            rewards = rewards - self.beta * batch["apart"]
        lengths = torch.tensor([len(one.token_ids) for one in responses])
        mask = torch.arange(values.shape[1]) < lengths[:, None]
        batch["advantages"], batch["returns"] = gae(
            rewards,
            values,
            mask,
            gamma=settings.gamma,
            lam=LAMBDA if settings.gae_lambda is None else settings.gae_lambda,
        )
        batch["old_values"] = values

    def _adapt(self, batches: Sequence[dict[str, Any]]) -> None:
        """Note the KL coefficient that these rewards had, and find the next."""
        self.seen.number("beta", self.beta)
        if self.settings.kl == "fixed":
            return
        sums = []
        for batch in batches:
            mask = batch["counted"]
            sums.append(torch.stack([(batch["apart"] * mask).sum(), mask.any(1).sum()]).double())
        apart, responses = self._add(torch.stack(sums).sum(0)).tolist()
        self.beta = adapted(self.beta, apart / max(1.0, responses), responses, self.settings)

    # --- the loss ---------------------------------------------------------------------------------

    def token_losses(
        self, inputs: dict[str, Any], found: AnswerTokens, old: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's loss, and what is shown of it."""
        losses, shown = super().token_losses(inputs, found, old)
        shown |= {"policy_loss": losses, "approx_kl": kl_terms(old, found.logps.detach(), "k3")}
        mask = inputs["counted"]
        self._moved.append(torch.stack([(shown["approx_kl"] * mask).sum(), mask.sum()]).double())
        return losses, shown

    def _critic_loss(self, inputs: dict[str, Any]) -> Tensor:
        """Return the critic's share of the step's loss."""
        with self.accelerator.autocast():
            values = self.critic.train()(inputs)
        bound, mask = self.settings.value_clip, inputs["counted"]
        losses = value_losses(values, inputs["old_values"], inputs["returns"], bound)
        shown = {"value_loss": losses, "returns": inputs["returns"], "values": values}
        if bound is not None:
            moved = (values.detach() - inputs["old_values"]).abs()
            shown["clip_ratio/value_mean"] = (moved > bound).float()
        self.seen.tokens(shown, mask)
        return self.step_share(losses, mask)

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

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> Tensor:
        """Train the critic, then the policy: the activations of one are gone before those of the
        other. At the end of a step average the critic's gradients over ranks, as is done to the
        policy's."""
        inputs = self._prepare_inputs(inputs)
        of_critic = self._critic_loss(inputs)
        self.accelerator.backward(of_critic)
        loss: Tensor = of_critic.detach() + super().training_step(model, inputs, *args)
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
        self.seen.number("critic_grad_norm", float(norm))
        moved, self._moved = torch.stack(self._moved).sum(0), []
        if self.settings.target_kl is not None:
            total, tokens = self._add(moved).tolist()
            self.rests |= total / max(1.0, tokens) > STOP_AT * self.settings.target_kl
            self.seen.number("policy_rests", float(self.rests))
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
        """Write the critic, the KL coefficient, and the responses that are trained on further."""
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
