"""`aligner merge RUN`: an adapter and its base as one model, checked against the two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .console import say, say_json
from .models import AsJson, TrustRemoteCode
from .output import Overwrite


def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, or the folder of an adapter.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the merged model.")
    ],
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option("--dtype", help="Type of the weights. auto: that of the base."),
    ] = "auto",
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Merge an adapter into its base, and check the result.

    The base is loaded unquantized, also where the adapter was trained on 4 bits. The result is
    read again with transformers, and its logits on probe prompts are compared with those of the
    adapter on its base: one that is too far off is not kept. Numbers go to merge.json and the
    model card.

    Example: aligner merge runs/sft -o merged && aligner generate merged "Hello"
    """
    from .render import Screen

    with Screen() as screen:
        screen.start("checking")
        from aligner.export.merge import merge as merge_adapter

        merged = merge_adapter(
            adapter,
            output,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            on_event=screen.on_event,
        )
    if as_json:
        say_json(json.dumps({"folder": str(merged.folder), **merged.record}, indent=2))
        return
    _show(merged.folder, merged.record)


def _show(folder: Path, record: dict[str, Any]) -> None:
    from .render import result_table

    found, what, limit = record["verified"], record["compared"], record["verified"]["limit"]
    say(f"merged into {record['base']}, in {record['dtype']}")
    say(
        f"{what} of the merged model against those of the adapter on its base, at "
        f"{found['positions']} positions of {found['probes']} prompts; allowed in "
        f"{record['dtype']}: {limit['mean_share']:.2%} of their spread on the mean"
    )
    say()
    results = {
        "largest difference": found["largest_difference"],
        "mean difference": found["mean_difference"],
        f"spread of the {what}": found["spread"],
        "moved by the adapter, mean": record["adapter_effect"]["mean_difference"],
    }
    if what == "logits":
        results["same likeliest token"] = found["top1_agreement"]
    result_table(results, {"model": folder, "card": folder / "README.md"})
