"""One frozen base in memory under several models: the policy that is trained, and reward models and
references beside it.

A model that is read from disk while a policy `offers` its base is built from that base where it is
the same one: the same weights by content, in the same data type and quantization. What comes out is
a model like any other, whose frozen tensors are the policy's own: modules, adapters and head are
its own, so no adapter is switched anywhere, and its numbers and the policy's gradients are those of
two models. An adapter is left on its base then, for merging it would change the policy too.

What would write into a shared weight is not shared: an adapter with weights of the base or biases,
one whose start changes the base (PiSSA, OLoRA), rows for new tokens. Such models are loaded whole,
and `separate` says why.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import Model
from aligner.models.adapter_kinds import base_under_adapter
from aligner.models.configs import read_config
from aligner.models.dtypes import resolve_dtype
from aligner.models.files import adapter_config, base_of
from aligner.models.fingerprint import model_parts
from aligner.models.folder_kinds import weights_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEADS = ("score", "classifier")
KEEPS_BASE = (True, False, None, "gaussian", "orthogonal")
"""Starts of an adapter that leave the base as it is."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
QUANTIZATION = ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method")


@dataclass
class SharedBase:
    """The frozen base under a policy's adapters, and what was built on it."""

    policy: PreTrainedModel
    section: Model
    shared: list[str] = field(default_factory=list)
    """Names of models that stand on it."""
    separate: dict[str, str] = field(default_factory=dict)
    """Name of a model that was loaded whole -> why, as a clause."""

    def build(
        self, model: Model, tokenizer: PreTrainedTokenizerBase, outputs: int | None = None
    ) -> Any:
        """Return the base of another model, of the policy's own tensors; `outputs`: of its head,
        for one that gives numbers. None where it has to be loaded."""
        why = self._why_not(model, len(tokenizer), outputs is not None)
        if not why:
            plain = _without_adapters(self.policy)
            held = {id(weight) for weight in self.policy.parameters()}
            assert all(id(weight) in held for weight in plain.parameters()), "the base is frozen"
            built = plain if outputs is None else _with_head(plain, model, outputs)
            if built is not None:
                self.shared.append(model.name_or_path)
                built.is_on_shared_base = True
                return built.requires_grad_(False)
            why = "its class has other layers than the policy's"
        self.separate[model.name_or_path] = why
        return None

    def _why_not(self, model: Model, tokens: int, is_classifier: bool) -> str:
        adapter = adapter_config(model.name_or_path)
        if is_classifier and adapter is None:
            return "it was trained whole"
        if not _same_weights(self.section, model):
            return "it stands on other weights"
        if _numbers_of(self.section, trainable=True) != _numbers_of(model, trainable=False):
            return "its base is kept in another data type or quantization"
        rows = self.policy.get_input_embeddings().weight.shape[0]
        if rows != read_config(self.section).get_text_config().vocab_size or tokens > rows:
            return "tokens were added"
        assert self.section.lora is not None, "a policy that is trained whole offers nothing"
        why = _why_it_writes("", self.section.lora.model_dump())
        of_policy = why or _why_it_writes(self.section.name_or_path)
        if of_policy:
            return f"the policy's adapter {of_policy}"
        why = _why_it_writes(model.name_or_path)
        return f"its adapter {why}" if why else ""


OFFERED: ContextVar[SharedBase | None] = ContextVar("offered", default=None)


@contextmanager
def offers(policy: PreTrainedModel, section: Model) -> Iterator[SharedBase]:
    """Let models that are loaded meanwhile, not to be trained, stand on the base of a policy, which
    was loaded under LoRA by `section`."""
    base = SharedBase(policy, section)
    token = OFFERED.set(base if section.lora is not None else None)
    try:
        yield base
    finally:
        OFFERED.reset(token)


def built_on_offer(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    outputs: int | None = None,
    *,
    trainable: bool,
) -> Any:
    """Return what `SharedBase.build` does, where a policy offers its base; else None."""
    base = OFFERED.get()
    return None if base is None or trainable else base.build(model, tokenizer, outputs)


def is_on_shared_base(model: Any) -> bool:
    """Say whether a model stands on tensors of another."""
    return bool(getattr(base_under_adapter(model), "is_on_shared_base", False))


def sharing_frozen(module: Any) -> Any:
    """Return a copy of a module that holds the same tensors where nothing is trained, and tensors
    of its own where something is."""
    shared: dict[int, Any] = {}
    for weight in module.parameters():
        if not weight.requires_grad:
            shared[id(weight)] = weight
    for part in module.modules():  # how 4 and 8 bits are to be read
        if (state := getattr(part, "quant_state", None)) is not None:
            shared[id(state)] = state
        for value in getattr(getattr(part, "state", None), "__dict__", {}).values():
            if hasattr(value, "data_ptr"):
                shared[id(value)] = value
    return copy.deepcopy(module, shared)


def _without_adapters(policy: Any) -> Any:
    """Return a copy of the base on the same tensors, as it was before the policy's adapters."""
    adapted = sharing_frozen(policy)
    for name, module in list(adapted.get_base_model().named_modules()):
        if hasattr(module, "modules_to_save"):  # `unload` would leave what is trained there
            parent, _, last = name.rpartition(".")
            setattr(adapted.get_base_model().get_submodule(parent), last, module.original_module)
    return adapted.unload()


def _with_head(plain: Any, model: Model, outputs: int) -> Any:
    """Put layers under a head that gives numbers; None where the class has other layers."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = read_config(model)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        return None
    config.num_labels = outputs
    with torch.device("meta"):
        built = AutoModelForSequenceClassification.from_config(
            config, dtype=plain.dtype, attn_implementation=model.attn_implementation
        )
    kinds = [type(getattr(one, one.base_model_prefix, None)) for one in (built, plain)]
    if kinds[0] is not kinds[1]:
        return None
    setattr(built, built.base_model_prefix, plain.base_model)
    plain.base_model.set_attn_implementation(built.config._attn_implementation)
    for name in HEADS:
        if (head := getattr(built, name, None)) is not None:
            head.to_empty(device=plain.device)
            for weight in head.parameters():  # the adapter brings the trained one
                torch.nn.init.zeros_(weight)
    if any(weight.is_meta for weight in built.state_dict().values()):
        return None
    for name in QUANTIZATION:
        if hasattr(plain, name):
            setattr(built, name, getattr(plain, name))
    return built.eval()


def _same_weights(one: Model, other: Model) -> bool:
    """Compare the bases of two models by the content of their files; on the hub by commit."""
    return _content(*base_of(one)) == _content(*base_of(other))


def _content(name: str, revision: str | None) -> list[tuple[str, str]]:
    parts = model_parts(name, revision)
    if not Path(name).expanduser().is_dir():
        return sorted(parts.items())
    return sorted((file.name, parts[str(file)]) for file in map(Path, parts) if _is_read(file))


def _is_read(file: Path) -> bool:
    """Whether a model's numbers follow from a file, and not a tokenizer's alone."""
    return file.name == "config.json" or file.suffix in (".safetensors", ".py")


def _numbers_of(model: Model, *, trainable: bool) -> tuple[Any, ...]:
    """How the weights of a base are kept."""
    dtypes = (resolve_dtype(model, trainable), resolve_dtype(model, trainable=False))
    if model.quantization == "none":
        return dtypes[:1]
    nested = model.double_quant if model.quantization in ("nf4", "fp4") else None
    return (*dtypes, model.quantization, nested)


def _why_it_writes(folder: str, config: Mapping[str, Any] | None = None) -> str:
    """Say what of an adapter forbids that others read its base, as a clause; or nothing. `config`
    None: that in the folder, if there is one."""
    config = (adapter_config(folder) or {}) if config is None else config
    if config.get("peft_type", "LORA") != "LORA" or config.get("target_parameters"):
        return "is of a kind that cannot share its base"
    if config.get("bias", "none") != "none" or config.get("init_lora_weights") not in KEEPS_BASE:
        return "changes weights of the base"
    if config.get("trainable_token_indices"):
        return "has rows for new tokens"
    whole = [*HEADS, *(config.get("modules_to_save") or [])]
    for key in weights_header(Path(folder).expanduser() / ADAPTER_WEIGHTS):
        if "lora_" not in key and key != "__metadata__" and not _is_of(key, whole):
            return "is saved with weights of the base"
    return ""


def _is_of(key: str, modules: Sequence[str]) -> bool:
    return any(f".{name}." in key for name in modules)
