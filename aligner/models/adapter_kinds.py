"""Kinds of PEFT adapters: which can be merged into their base, which are used as they are, which
are refused.

LoRA and its relatives change weights, so they merge. Prompt learning (prompt tuning, prefix tuning,
p-tuning, ...) puts trained vectors in front of every text instead: nothing to merge, so such a
model answers and is measured as it is. Its logits begin with those of the vectors, or not, as the
kind has it; its positions are fewer.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from aligner.errors import RecipeError
from aligner.models.files import ADAPTER_FILE, local_name
from aligner.models.folder_kinds import weights_header
from aligner.models.load_errors import reading

PROMPTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CPT",
    "CARTRIDGE",
)
"""Put in front of a text."""
BESIDE = ("ADAPTION_PROMPT",)
"""Computed beside the base's attention."""
UNREAD = {
    "POLY": "chooses by the task of a row, which our rows do not say",
    "MULTITASK_PROMPT_TUNING": "chooses by the task of a row, which our rows do not say",
    "XLORA": "is not loaded as it was saved by PEFT",
    "MIXED": "holds several adapters at once",
}


def check_kind(
    adapter: dict[str, Any], folder: str, *, trainable: bool, further: bool, answers: bool
) -> None:
    """Refuse a kind of adapter that cannot be used as asked.

    `further`: it is trained as it is. `answers`: prompt learning is allowed, since the caller keeps
    the model whole.

    Raises: RecipeError naming the kind.
    """
    from peft import PeftType

    kind = adapter.get("peft_type")
    where = f"model.name_or_path: the adapter in {folder}"
    if kind not in [known.value for known in PeftType]:
        raise RecipeError(
            f"{where} is of a kind that PEFT does not know ({kind})",
            f"correct peft_type in its {ADAPTER_FILE}, or install the version of PEFT that made it",
        )
    if kind in UNREAD:
        raise RecipeError(
            f"{where} is of the kind {kind}, which {UNREAD[kind]}", "name another adapter"
        )
    if further and kind != "LORA":
        raise RecipeError(
            f"{where} is of the kind {kind}, and only LORA is trained further",
            "leave model.lora out to train the merged model"
            if is_merged(kind)
            else "name its base",
        )
    if not is_merged(kind) and (trainable or not answers):
        raise RecipeError(
            f"{where} is of the kind {kind}, which cannot be merged into its base: it answers and "
            "is evaluated, nothing else",
            "name its base, or an adapter of another kind",
        )


def is_merged(kind: str | None) -> bool:
    """Say whether adapters of a kind can become part of their base."""
    return kind not in PROMPTS and kind not in BESIDE


def virtual_tokens(model: Any) -> int:
    """Return how many positions of a model are taken by what an adapter puts in front of every
    text."""
    config = getattr(model, "active_peft_config", None) if hasattr(model, "peft_config") else None
    return getattr(config, "num_virtual_tokens", None) or 0


def load_adapter(policy: Any, folder: str, *, trainable: bool) -> Any:
    """Put the adapter of a folder onto its base.

    Raises: RecipeError when it cannot be loaded, or when its weights are not those that its config
    makes.
    """
    from peft import PeftModel

    with reading(folder, "adapter"):
        adapted = PeftModel.from_pretrained(policy, local_name(folder), is_trainable=trainable)
    _refuse_other_weights(adapted, folder)
    return adapted


def _refuse_other_weights(adapted: Any, folder: str) -> None:
    """PEFT passes over weights that it lacks, and over those that it has no place for."""
    from peft import get_peft_model_state_dict

    file = Path(folder).expanduser() / "adapter_model.safetensors"
    held = {key for key in weights_header(file) if key != "__metadata__"}
    made = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    prefix = getattr(adapted.base_model, "prefix", "")
    places = set(adapted.state_dict())  # weights of the base may lie beside those of the adapter
    missing, left = (
        sorted(made - held),
        sorted(
            key for key in held - made if (prefix and prefix in key) or not _has_place(key, places)
        ),
    )
    if missing or left or not made:
        found = (
            f"{len(missing)} weights are missing"
            if missing
            else f"{len(left)} weights have no place"
        )
        raise RecipeError(
            f"model.name_or_path: {file} does not fit its {ADAPTER_FILE}: {found} "
            f"({[*missing, *left, 'all'][0]})",
            "is it the adapter of this base, and the download complete?",
        )

    _warn_of_base_weights(adapted, held - made, file)


def _warn_of_base_weights(adapted: Any, others: set[str], file: Path) -> None:
    """Warn of weights of the base beside those of the adapter, which PEFT writes over the base's
    own; embeddings, heads and biases are saved with adapters on purpose."""
    whole = {getattr(adapted, f"get_{end}_embeddings")() for end in ("input", "output")}
    prefix = "base_model.model."
    saved = {name for name, module in adapted.get_base_model().named_modules() if module in whole}
    replaced = sorted(
        key
        for key in others
        if not key.endswith(".bias")
        and key.removeprefix(prefix).rpartition(".")[0].replace(".base_layer", "") not in saved
    )
    if replaced:
        number = f"{len(replaced)} weight{'s' if len(replaced) > 1 else ''}"
        warnings.warn(
            f"{file} holds {number} of the base too ({replaced[0]}): they replace the base's own, "
            "whatever the adapter does",
            stacklevel=2,
        )


def _has_place(key: str, places: set[str]) -> bool:
    module, _, kind = key.rpartition(".")
    return any(
        f"{module}{below}.{kind}" in places for below in ("", ".base_layer", ".original_module")
    )


def base_under_adapter(model: Any) -> Any:
    """Return the model in which PEFT's adapters sit, or the model itself where there are none.

    It asks for the method and not for the class: importing PEFT takes seconds, which a model
    without adapters saves.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model
