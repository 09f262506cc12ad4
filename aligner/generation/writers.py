"""From the section `generation` and a model's section to what writes: a model, or its outline, and
an engine.

Engines with weights of their own (`vllm`, `endpoint`) need no loaded model: an outline, which has a
model's config and stop ids but no weights, says how long a row may be and where an answer ends.
They are never chosen by `auto`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import Endpoint, Generation, Model
from aligner.errors import RecipeError
from aligner.events import Notice, OnEvent, tell
from aligner.generation.engines import HELD, engine_for
from aligner.generation.requests import Engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_engine(generation: Generation, model: Model) -> None:
    """Say what an engine lacks, before anything is loaded.

    Raises: RecipeError or UsageError.
    """
    if generation.engine == "vllm":
        from aligner.generation.vllm import check_installed, refuse_unfit
        from aligner.models.files import adapter_config

        check_installed()
        refuse_unfit(model, adapter_config(model.name_or_path))
    elif generation.engine == "endpoint":
        from aligner.endpoints.client import check_endpoint

        check_endpoint(_server_of(generation, model))


@contextmanager
def open_engine(
    generation: Generation,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    *,
    load: Callable[[], Any],
    batch_size: int,
    cache: Path | None = None,
    exact: bool = False,
    on_event: OnEvent | None = None,
) -> Iterator[tuple[Any, Engine]]:
    """Lend a model, or its outline, and the engine: the arguments of `aligner.generation.decode`.

    `load` is called where an engine decodes with a loaded model, at most `batch_size` rows at a
    time. `cache`: the file of a server's replies. `exact`: the ids that were drawn are needed, and
    not others of the same text.
    """
    if generation.engine in HELD:
        loaded = load()
        yield loaded, engine_for(loaded, name=generation.engine, batch_size=batch_size)
    elif generation.engine == "vllm":
        from aligner.generation.vllm import VllmEngine

        outline = outline_of(model, tokenizer)
        vllm = VllmEngine(model, options=generation.vllm)
        try:
            yield outline, vllm
        finally:
            vllm.close()
    else:
        from aligner.generation.endpoint import EndpointEngine

        section = _server_of(generation, model)
        server = EndpointEngine(section, tokenizer, cache=cache, exact=exact)
        yield outline_of(model, tokenizer), server
        if server.retokenized:
            text = f"{server.retokenized:,} answer(s) of the server: the tokenizer finds another"
            tell(on_event, Notice(f"{text} number of tokens in them than the server counts"))


def _server_of(generation: Generation, model: Model) -> Endpoint:
    """Return the endpoint, with the model's own name where the recipe has no other."""
    assert generation.endpoint is not None, "a rule asks for it"
    name = generation.endpoint.model or model.name_or_path
    return generation.endpoint.model_copy(update={"model": name})


def outline_of(model: Model, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return a model without weights, with the generation settings that its folder has.

    Raises: RecipeError for a kind of model that is not made from a config alone.
    """
    from transformers import GenerationConfig

    from aligner.models.files import base_of
    from aligner.models.loading import load_outline

    outline = load_outline(model, tokenizer)
    if outline is None:
        raise RecipeError(
            f"{model.name_or_path} runs code of its own, which another engine does not have",
            "use the engine `hf`",
        )
    name, revision = base_of(model)
    with suppress(OSError):  # without a file of them its config says where an answer ends
        outline.generation_config = GenerationConfig.from_pretrained(name, revision=revision)
    return outline
