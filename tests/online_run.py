"""A short run of `aligner online` in the toy world, for tests of what is shown of it."""

from __future__ import annotations

from pathlib import Path

from runner import aligner
from typer.testing import Result

SCORER = """
def score(prompt, response, answer):
    return len(set(response)) - 0.1 * len(response)
"""

ROUNDS = ("online.rounds=2", "online.num_samples=4", "online.max_new_tokens=16")


def online_run(world: Path, folder: Path, *more: str) -> Result:
    """Run two rounds with a scorer of our own into a folder."""
    scorer = folder.parent / "variety.py"
    scorer.write_text(SCORER)
    return aligner(
        *("online", "--output", folder, "--model", world / "model"),
        *("--data", world / "prompts.jsonl", "data.eval=0.25", "data.max_length=64"),
        *(f"online.reward_models=[verifier:{scorer}:score]", "online.evaluation.gold=toy"),
        *ROUNDS,
        *("trainer.learning_rate=1e-3", "trainer.logging_steps=1"),
        *more,
    )
