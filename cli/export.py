"""`aligner export MODEL --gguf TYPE`: a file for llama.cpp and Ollama, read back and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .console import say, say_json
from .models import AsJson, TrustRemoteCode
from .output import Overwrite

if TYPE_CHECKING:
    from aligner.export.gguf.export import Exported


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a folder (also an adapter), a hub id.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file: name.gguf.")
    ],
    gguf: Annotated[
        Literal["f32", "f16", "bf16", "q8_0"], typer.Option("--gguf", help="Type of its matrices.")
    ] = "f16",
    pre_tokenizer: Annotated[
        str | None,
        typer.Option("--pre-tokenizer", help="llama.cpp's name for how text is split."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write a GGUF file for llama.cpp and Ollama, and check it.

    Families: Llama (SmolLM, ...), Mistral, Qwen2, Qwen3, Gemma 1 to 3. An adapter is merged on
    the way. The file is read back, and its logits and token ids are compared with the model's: a
    file that is not the model is not kept. A Modelfile for Ollama is written beside it.

    Example: aligner export runs/sft --gguf q8_0 -o sft.gguf && ollama create sft -f sft.Modelfile
    """
    from .render import Screen

    with Screen() as screen:
        screen.start("checking")
        from aligner.export.gguf.export import export_gguf

        exported = export_gguf(
            model,
            output,
            kind=gguf,
            pre_tokenizer=pre_tokenizer,
            trust_remote_code=trust_remote_code,
            overwrite=overwrite,
            on_event=screen.on_event,
        )
    if as_json:
        say_json(json.dumps({"file": str(exported.file), **exported.record}, indent=2))
        return
    _show(exported)


def _show(exported: Exported) -> None:
    from .render import result_table

    record = exported.record
    conversion, rounding = record["conversion"], record["rounding"]
    say(f"{record['architecture']}, {record['type']}, {record['bytes']:,} bytes")
    say(
        f"logits read back by {record['read_by']}, at {conversion['positions']} positions of "
        f"{conversion['probes']} prompts; conversion may move one by {conversion['limit']:.1%} of "
        f"their spread; rounding to {record['type']} moved them by "
        f"{_of_spread(rounding, 'mean_difference')} of it on the mean, "
        f"{_of_spread(rounding, 'largest_difference')} at most"
    )
    say()
    results = {
        "conversion: largest difference": conversion["largest_difference"],
        f"rounding to {record['type']}: largest difference": rounding["largest_difference"],
        f"rounding to {record['type']}: mean difference": rounding["mean_difference"],
        f"rounding to {record['type']}: same likeliest token": rounding["top1_agreement"],
        "spread of the logits": conversion["spread"],
    }
    if record["adapter_effect"] is not None:
        results["moved by the adapter, mean"] = record["adapter_effect"]["mean_difference"]
    file = exported.file
    paths = {"file": file, "record": f"{file}.json", "modelfile": exported.modelfile}
    result_table(results, paths)
    say(f"try it     ollama create {file.stem} -f {exported.modelfile}")


def _of_spread(found: dict[str, float], key: str) -> str:
    return f"{found[key] / max(found['spread'], 1e-30):.2%}"
