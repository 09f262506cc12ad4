"""Make mosaics of a few rows of one's own in Python, read one of them again, and see what a
training on them would cost.

    python examples/mosaic.py

No model, no tokenizer and no network: lengths are estimates, which is enough to look around.
"""

from __future__ import annotations

from aligner.builders.mosaic.check import check
from aligner.builders.mosaic.epochs import build
from aligner.builders.mosaic.phrasings import load_phrasings
from aligner.config.recipe import Mosaic
from aligner.data.rows import CompletionRow

CAPITALS = {
    "France": "Paris",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Japan": "Tokyo",
    "Norway": "Oslo",
    "Cuba": "Havana",
}


def rows() -> list[CompletionRow]:
    """Questions and answers as the library takes them."""
    return [
        CompletionRow(
            [{"role": "user", "content": f"{country}: which city is its capital?"}],
            [{"role": "assistant", "content": f"{city} is the capital of {country}."}],
            origin=country,
        )
        for country, city in CAPITALS.items()
    ]


def main() -> None:
    settings = Mosaic(max_examples=3, k_distribution="fix_max", plain_fraction=0.0)
    built = build(rows(), settings, epochs=3, seed=1, batch_size=2)
    for sample in built.dataset:
        print(
            f"--- {sample['strategy']} {sample['rule'] or ''}: {', '.join(sample['example_ids'])}"
        )
        print(
            sample["prompt"][-1]["content"],
            sample["completion"][0]["content"],
            sep="\n\n",
            end="\n\n",
        )

    sample = built.dataset[0]
    examples = [
        (f"{name}: which city is its capital?", f"{CAPITALS[name]} is the capital of {name}.")
        for name in sample["example_ids"]
    ]
    print(
        "read again:",
        check(
            sample["prompt"][-1]["content"],
            sample["completion"][0]["content"],
            examples,
            load_phrasings(),
        ),
    )
    print(
        f"sequences: {built.source.sequences:.0f} rows become {built.costs.sequences:.0f} samples "
        "an epoch"
    )
    print(
        f"real tokens: {built.source.real:.0f} become {built.costs.real:.0f} an epoch (estimates)"
    )


if __name__ == "__main__":
    main()
