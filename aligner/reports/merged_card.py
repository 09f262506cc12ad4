"""The model card of a merged model: that of the run of its adapter, with what merging did to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aligner.reports.charts import number
from aligner.reports.model_card import card_of
from aligner.runs.files import read_json, write_atomically

PLAIN = """\
---
library_name: transformers
tags: [aligner, merged]
---

# {title}

An adapter that was merged into `{base}`. No run of aligner made the adapter, so nothing is known
here of its training.

{merged}

License, intended use and limits are in no record, so they are not stated here.
"""


def write_merged_card(folder: Path, record: dict[str, Any], run: Path | None) -> None:
    """Write `README.md` into the folder of a merged model. `record`: what `merge.json` will say."""
    manifest = None if run is None else read_json(run, "manifest.json")
    if run is not None and manifest:
        text = card_of(run, manifest, folder, _merged(record))
    else:
        base = record["base"].replace("`", "'")
        text = PLAIN.format(title=Path(base).name, base=base, merged=_merged(record))
    write_atomically(folder / "README.md", text)


def _merged(record: dict[str, Any]) -> str:
    found, effect, what = record["verified"], record["adapter_effect"], record["compared"]
    text = (
        f"## Merged\n\nThe adapter is part of the weights, in {record['dtype']}. Read again with "
        f"transformers, this model's {what} differ from those of the adapter on its base by "
        f"{number(found['mean_difference'])} on the mean and by "
        f"{number(found['largest_difference'])} at most, on {found['positions']:,} positions of "
        f"{found['probes']} probe prompts"
    )
    if what == "logits":
        text += f"; {found['top1_agreement']:.1%} of the likeliest tokens agree"
    text += f". The adapter itself moves {what} by {number(effect['mean_difference'])} on the mean."
    packed = record.get("trained_in")
    if packed:
        text += (
            f" It was trained on the base in {packed['quantization']}; from the adapter there, "
            f"{what} differ by up to {number(packed['largest_difference'])}."
        )
    return text
