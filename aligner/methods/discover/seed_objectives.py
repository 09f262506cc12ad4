"""Known objectives as a language model would write them: what a search starts from, and what its
prompt shows.

Each is in the language of `aligner.losses.dsl.parser`; a test holds it equal to the function of the
same name.
"""

from __future__ import annotations

_HEAD = """def {name}(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    rho = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
"""

_BODIES = {
    "sigmoid": "    return -F.logsigmoid(self.beta * rho)\n",
    "hinge": "    return torch.relu(1 - self.beta * rho)\n",
    "ipo_sum": "    return (rho - 1 / (2 * self.beta)) ** 2\n",
    "padll": "    weight = torch.where(rho < 0, 0.45, 0.9)\n    return -weight * "
    "F.logsigmoid(self.beta * rho)\n",
    "cell": """    z = self.beta * rho
    over = torch.relu(-z - 20)
    exponential = torch.exp((-z).clamp(max=20)) * (1 + over)
    return 0.5 * F.softplus(-z) + 0.5 * exponential
""",
    "discopop": """    z = self.beta * rho
    gate = z / 0.05
    return torch.sigmoid(-gate) * F.softplus(-z) + torch.exp(F.logsigmoid(gate) - z)
""",
}

_KTO = """def kto_pair(self, policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps):
    chosen = self.beta * (policy_chosen_logps - reference_chosen_logps)
    rejected = self.beta * (policy_rejected_logps - reference_rejected_logps)
    chosen_kl = chosen.mean().clamp(min=0).detach()
    rejected_kl = rejected.mean().clamp(min=0).detach()
    return 1 - 0.5 * torch.sigmoid(chosen - rejected_kl) - 0.5 * torch.sigmoid(chosen_kl - rejected)
"""

WRITTEN_SOURCES: dict[str, str] = {
    **{name: _HEAD.format(name=name) + body for name, body in _BODIES.items()},
    "kto_pair": _KTO,
}
"""Name in the catalogue -> source."""
