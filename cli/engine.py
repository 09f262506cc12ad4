"""The options that choose what writes answers: `--engine` and its server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from aligner.config.recipe import Generation, Model

EngineName = Literal["auto", "hf", "hf_cb", "vllm", "endpoint"]

EngineOption = Annotated[
    EngineName,
    typer.Option("--engine", help="What writes: see docs/generation.md; auto is hf."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", help="For --engine endpoint: a server of MODEL, .../v1."),
]
ServedModel = Annotated[
    str | None,
    typer.Option("--served-model", help="Its name on that server. None: MODEL as typed."),
]


def generation_section(
    engine: EngineName, base_url: str | None, served_model: str | None, model: Model
) -> Generation:
    """The section of a recipe, from options; what the engine lacks is said here.

    Raises: UsageError for options that do not go together, and for what is not installed.
    """
    from aligner.config.recipe import Endpoint, Generation
    from aligner.errors import UsageError
    from aligner.generation.writers import check_engine

    if engine != "endpoint" and (base_url or served_model):
        option = "--base-url" if base_url else "--served-model"
        raise UsageError(f"{option} has no effect with --engine {engine}", "add --engine endpoint")
    if engine == "endpoint" and base_url is None:
        raise UsageError(
            "--engine endpoint asks a server, and --base-url is missing",
            "add --base-url http://127.0.0.1:8000/v1",
        )
    if engine == "endpoint" and (model.dtype, model.quantization) != ("auto", "none"):
        raise UsageError(
            "--dtype and --quantization have no effect with --engine endpoint: the server has the "
            "weights",
            "leave them out",
        )
    endpoint = None
    if engine == "endpoint":
        endpoint = Endpoint(base_url=base_url, model=served_model or "")
    generation = Generation(engine=engine, endpoint=endpoint)
    check_engine(generation, model)
    return generation
