"""A reward of your own, in one round: answers are sampled, scored, paired, and trained on.

    aligner toy toy
    python examples/custom_reward.py toy      # about a minute on a CPU

A reward is a function of prompts, answers and right answers that returns a number for each answer.
Of the answers to a prompt, the best and the worst become a pair, unless they are equally good.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import aligner

PROMPTS = 300


def closeness(
    prompts: Sequence[Any], completions: Sequence[str], references: Sequence[str | None]
) -> list[float]:
    """How much of the right answer stands in each answer, from 0 to 1."""
    return [
        SequenceMatcher(None, completion, reference or "").ratio()
        for completion, reference in zip(completions, references)
    ]


def best_and_worst(model: Any, tokenizer: Any, rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Sample four answers to each prompt, and pair the best with the worst."""
    sampling = aligner.Sampling(max_new_tokens=32, num_samples=4)
    answers = aligner.generate(
        model, tokenizer, [row.prompt for row in rows], sampling, batch_size=64
    )
    pairs = []
    for row, samples in zip(rows, answers):
        ended = [sample.text for sample in samples if sample.finish_reason == "stop"]
        texts = [text for text in ended if text.strip()]  # an empty answer trains nothing
        scores = closeness([row.prompt] * len(texts), texts, [row.answer] * len(texts))
        ranked = sorted(zip(scores, texts))
        if len(ranked) > 1 and ranked[0][0] < ranked[-1][0]:
            pairs.append(pair(row.prompt, ranked[-1][1], ranked[0][1]))
    return pairs


def pair(prompt: list[dict[str, Any]], chosen: str, rejected: str) -> dict[str, Any]:
    """A row of the form `preference`."""
    sides = {"chosen": chosen, "rejected": rejected}
    turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": prompt, **turns}


def main(world: Path, output_dir: Path, steps: int = 40) -> tuple[float, float]:
    """Return the mean reward on held-out prompts before and after the round."""
    base = world / "model"
    model, tokenizer = aligner.load_model(base), aligner.load_tokenizer(base)
    held_out = aligner.load_rows(world / "heldout.jsonl", "prompts")[:PROMPTS]
    measure = {"task": "prompts", "scorer": closeness, "batch_size": 64}
    measure["sampling"] = aligner.Sampling(max_new_tokens=32, temperature=0.0)
    before = aligner.evaluate(model, tokenizer, held_out, **measure)

    prompts = aligner.load_rows(world / "prompts.jsonl", "prompts")[:PROMPTS]
    pairs = best_and_worst(model, tokenizer, prompts)
    overrides = {
        "model.name_or_path": base,
        "output_dir": output_dir,
        "data.max_length": 256,
        "dpo.nll_weight": 1.0,
        "trainer.learning_rate": 5e-4,
        "trainer.per_device_train_batch_size": 16,
        "trainer.max_steps": steps,
    }
    outcome = aligner.train("dpo", rows=pairs, overrides=overrides, overwrite=True)

    trained = aligner.load_model(outcome.run_dir / "final")
    after = aligner.evaluate(trained, tokenizer, held_out, **measure)
    print(f"{len(pairs)} pairs; reward {before['score']:.3f} before, {after['score']:.3f} after")
    return before["score"], after["score"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path("runs/custom-reward"))
