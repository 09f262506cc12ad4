"""Use the library without the command line: a toy world, supervised fine-tuning, answers, a score.

    python examples/library.py            # about two minutes on a CPU
    python examples/library.py --quick    # a barely trained base, a few steps: shows the calls,
                                          proves nothing

Every step is a plain function call; what the command line prints comes from the same events and the
same files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import aligner
from aligner.events import Event, Metrics
from aligner.toy.world import write_world


def show(event: Event) -> None:
    """The library never prints; a listener does."""
    if isinstance(event, Metrics) and event.split == "train":
        print(
            f"step {event.step:>4} of {event.total_steps}: loss "
            f"{event.values.get('loss', float('nan')):.3f}"
        )


def gold_score(folder: Path, prompts: list[str]) -> float:
    """Sample one answer to each prompt and return the mean of the toy world's gold scores."""
    tokenizer = aligner.load_tokenizer(folder)
    model = aligner.load_model(folder, tokenizer)
    sampling = aligner.Sampling(max_new_tokens=48, seed=1)
    answers = aligner.generate(model, tokenizer, prompts, sampling, batch_size=64)
    scores = aligner.load_scorer("toy").score(prompts, [samples[0].text for samples in answers])
    return sum(scores) / len(scores)


def main(quick: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        world, run = Path(name) / "toy", Path(name) / "run"
        write_world(world, **({"steps": 10} if quick else {}))
        rows = [
            json.loads(line)
            for line in (world / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        prompts = [row["prompt"] for row in rows][: 20 if quick else 200]

        settings = {
            "model.name_or_path": world / "model",
            "data.train": world / "sft.jsonl",
            "output_dir": run,
            "trainer.learning_rate": 1e-3,
            "trainer.per_device_train_batch_size": 16,
            "trainer.max_steps": 5 if quick else 100,
        }
        before = gold_score(world / "model", prompts)
        outcome = aligner.train("sft", overrides=settings, on_event=show)
        after = gold_score(outcome.run_dir / "final", prompts)
        print(f"gold score {before:.3f} before, {after:.3f} after; the report is {outcome.report}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    main(parser.parse_args().quick)
