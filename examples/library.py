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

from aligner.config.load import load_recipe
from aligner.config.recipe import Model
from aligner.events import Event, Metrics
from aligner.generation.decode import Sampling, generate
from aligner.methods.pipeline import run_recipe
from aligner.models.loading import load_policy
from aligner.models.tokenizers import load_tokenizer
from aligner.reward_models.catalogue import load_scorer
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
    section = Model(name_or_path=str(folder))
    tokenizer = load_tokenizer(section)
    model = load_policy(section, tokenizer, trainable=False)
    answers = generate(
        model, tokenizer, prompts, Sampling(max_new_tokens=48, seed=1), batch_size=64
    )
    scores = load_scorer("toy").score(prompts, [samples[0].text for samples in answers])
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

        settings = [
            f"model.name_or_path={world / 'model'}",
            f"data.train={world / 'sft.jsonl'}",
            f"output_dir={run}",
            "trainer.learning_rate=1e-3",
            "trainer.per_device_train_batch_size=16",
            f"trainer.max_steps={5 if quick else 100}",
        ]
        before = gold_score(world / "model", prompts)
        outcome = run_recipe(load_recipe("sft", None, settings), on_event=show)
        after = gold_score(outcome.run_dir / "final", prompts)
        print(f"gold score {before:.3f} before, {after:.3f} after; the report is {outcome.report}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    main(parser.parse_args().quick)
