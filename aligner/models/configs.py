"""The config of a model: its sizes and its family, without its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import Model
from aligner.errors import RecipeError
from aligner.models.files import base_of
from aligner.models.folder_kinds import CONFIG_FILE
from aligner.models.gguf import source_of
from aligner.models.libraries import quick_imports
from aligner.models.load_errors import reading

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_Known = dict[tuple[str, str | None, bool, bool], "tuple[PreTrainedConfig, Mapping[str, Any]]"]
_KNOWN: ContextVar[_Known | None] = ContextVar("known configs", default=None)


@contextmanager
def configs_read_once() -> Iterator[None]:
    """In here each model's config is read once, however often it is asked for, which takes
    transformers tens of milliseconds each time. Nobody may change one meanwhile."""
    known = _KNOWN.get()
    token = _KNOWN.set({} if known is None else known)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def read_config(model: Model) -> PreTrainedConfig:
    """Return the config of a model, or of the base of its adapter.

    Raises: RecipeError when it cannot be read, or chooses a kernel of the hub by itself.
    """
    return _read(model) if _KNOWN.get() is None else _read_before(model)[0]


def config_values(model: Model) -> Mapping[str, Any]:
    """Return the values of a config, of the part that writes; `sees` says whether there is one that
    sees beside it. Raises: as `read_config`."""
    return _values_of(_read(model)) if _KNOWN.get() is None else _read_before(model)[1]


def _read_before(model: Model) -> tuple[PreTrainedConfig, Mapping[str, Any]]:
    known = _KNOWN.get()
    assert known is not None, "it is asked within `configs_read_once`"
    key = (*base_of(model), model.trust_remote_code, model.attn_implementation is None)
    if key not in known:
        config = _read(model)
        known[key] = config, _values_of(config)
    return known[key]


def _values_of(config: PreTrainedConfig) -> Mapping[str, Any]:
    values: dict[str, Any] = config.get_text_config().to_dict()
    return {**values, "sees": getattr(config, "vision_config", None) is not None}


def _read(model: Model) -> PreTrainedConfig:
    with quick_imports():
        from transformers import AutoConfig

    name, revision = base_of(model)
    source, form = source_of(name)
    # With the config comes the code of its family.
    with quick_imports(), reading(name, CONFIG_FILE):
        config = AutoConfig.from_pretrained(
            source, revision=revision, trust_remote_code=model.trust_remote_code, **form
        )
    if model.attn_implementation is None:
        _refuse_kernel(config, name)
    return config


def _refuse_kernel(config: PreTrainedConfig, name: str) -> None:
    """Refuse attention that a config takes from the hub: it is code, which transformers would
    download and run."""
    for part in (config, *vars(config).values()):
        kernel = getattr(part, "_attn_implementation", None)
        if isinstance(kernel, str) and "/" in kernel:
            raise RecipeError(
                f"model.name_or_path: {CONFIG_FILE} of {name} asks for attn_implementation "
                f"{kernel}, which is code from the hub",
                "choose with model.attn_implementation of a recipe, or take the key out of the "
                "file",
            )
