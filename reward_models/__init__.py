"""Everything that hands out a score, behind one protocol. See `README.md` for the catalogue and `base.py` for the rules.

A scorer is named by a short text, `kind` or `kind:argument`, the same on the command line, in a recipe and in Python:
`load_scorer("verifier:number").score(prompts, completions, references)`. Adding a kind is one module with a factory
and one line in `KINDS`. Imports no torch until a kind that needs it is loaded.
"""

from __future__ import annotations

import difflib
import importlib

from aligner.errors import RecipeError

from .base import Prompt, Scorer

KINDS: dict[str, str] = {
    "toy": "aligner.reward_models.toy:make",
    "verifier": "aligner.reward_models.verifier:make",
}
"""Kind -> "module:factory"; the factory takes what stands after the kind's colon ("" when nothing does)."""

__all__ = ["KINDS", "Prompt", "Scorer", "load_scorer"]


def load_scorer(spec: str) -> Scorer:
    """The scorer that `spec` names; RecipeError when there is none."""
    kind, _, argument = spec.partition(":")
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        raise RecipeError(
            f"there is no scorer {spec!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
            f"The kinds are {', '.join(sorted(KINDS))}; for example `toy` or `verifier:number`.",
        )
    module, _, factory = KINDS[kind].partition(":")
    scorer: Scorer = getattr(importlib.import_module(module), factory)(argument)
    return scorer
