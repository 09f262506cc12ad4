"""Rules on keys of `trainer:` that a method would not read, or that contradict what it computes."""

from __future__ import annotations

from aligner.config.choices import LABEL_SMOOTHING_LOSSES, REFERENCE_FREE_LOSSES
from aligner.config.view import Findings, Rule, View, finding

SMOOTHING: dict[str, str] = {
    "dpo": f"set `dpo.label_smoothing`, which {', '.join(LABEL_SMOOTHING_LOSSES)} read",
    "sapo": "drop it: the objectives of `sapo` take labels as they are",
    "reward": "set `reward.label_smoothing`",
}
"""Method -> what to do in the place of `trainer.label_smoothing_factor`."""


def _smoothing_is_read(view: View) -> Findings:
    """transformers smooths the targets of a next-token loss; losses of pairs have keys of their
    own."""
    method = str(view["method"])
    if view["trainer.label_smoothing_factor"] and method in SMOOTHING:
        message = f"smooths the tokens of a next-token loss, and has no effect on `{method}`"
        yield finding("trainer.label_smoothing_factor", message, SMOOTHING[method])


def _no_noise_beside_a_reference(view: View) -> Findings:
    """NEFTune's noise is in the policy alone: its rewards would measure the noise, from the first
    step on."""
    method = str(view["method"])
    alpha = view["trainer.neftune_noise_alpha"]
    if not alpha or method not in ("dpo", "sapo"):
        return
    loss = view[f"{method}.loss"]
    losses = set(loss) if isinstance(loss, dict) else {loss}
    if not losses <= set(REFERENCE_FREE_LOSSES):
        message = (
            "puts noise on the policy's embeddings, which its reference has not: rewards would "
            "measure the noise"
        )
        hint = (
            f"drop it, use it in `aligner sft`, or train {', '.join(REFERENCE_FREE_LOSSES)}, "
            "which read no reference"
        )
        yield finding("trainer.neftune_noise_alpha", message, hint)


def _something_is_trained(view: View) -> Findings:
    """transformers takes 0 steps for no limit."""
    if view["trainer.max_steps"] == 0:
        hint = (
            "`aligner eval` and `aligner generate` take a model as it is; `--dry-run` shows what "
            "would be trained"
        )
        yield finding(
            "trainer.max_steps", "0 steps train nothing, and would be taken for no limit", hint
        )


DEAD_KEY_RULES: tuple[Rule, ...] = (
    _smoothing_is_read,
    _no_noise_beside_a_reference,
    _something_is_trained,
)
