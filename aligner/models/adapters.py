"""Saving and merging PEFT adapters: which weights are saved, in which order, and what merging does
to tied weights."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import Lora, Model
from aligner.errors import RecipeError
from aligner.models.adapter_kinds import check_kind, is_merged, load_adapter
from aligner.models.lora_targets import targets_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_what_is_trained(adapted: Any) -> None:
    """Let an adapter be saved with what it trains and nothing else, and with its lists in order.

    PEFT would add whole embeddings where they are adapted, or where the vocabulary is larger than
    the base's. It keeps names of modules in sets, whose order differs between processes, and with
    it the bytes of adapter_config.json.
    """
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    for config in adapted.peft_config.values():
        for key, value in vars(config).items():
            if isinstance(value, set):
                setattr(config, key, sorted(value))


@contextmanager
def told_of_ties() -> Iterator[None]:
    """Keep PEFT from warning of an adapter on tied embeddings, which `untie_adapted` takes care
    of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        yield


def untie_adapted(adapted: Any) -> None:
    """Give head and embeddings a matrix each, where they share one and an adapter sits on one or
    both of them.

    Merged into a shared matrix, what was learned for one would change the other.
    """
    from torch.nn import Parameter

    base = adapted.get_base_model()
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None or not (is_adapted(embeddings) or is_adapted(head)):
        return
    inside, outside = _layer_of(embeddings), _layer_of(head)
    if outside.weight is not inside.weight:
        return
    shared = inside.weight
    outside.weight = Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
    for config in {id(c): c for c in (base.config, base.config.get_text_config())}.values():
        config.tie_word_embeddings = False
    base.all_tied_weights_keys = base.get_expanded_tied_weights_keys(all_submodels=True)


def is_adapted(module: Any) -> bool:
    """Say whether an adapter's weights sit on a module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _layer_of(module: Any) -> Any:
    """The layer below an adapter's, or below a copy that is trained whole."""
    module = getattr(module, "base_layer", module)
    return getattr(module, "original_module", module)


LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def with_saved_adapter(
    policy: PreTrainedModel,
    model: Model,
    adapter: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    trainable: bool,
    *,
    merge: bool = True,
) -> Any:
    """Put the adapter of a folder onto its base: trained further under `model.lora`, merged
    otherwise if it may be."""
    further = trainable and model.lora is not None
    if further:
        assert model.lora is not None
        _refuse_other_settings(model.lora, adapter, model.name_or_path)
        _refuse_new_rows(model, adapter, tokenizer)
    with told_of_ties():
        policy = load_adapter(policy, model.name_or_path, trainable=further)
    if further:
        _refuse_adapted_head(policy)
    show_bias(policy)
    save_what_is_trained(policy)
    if further or is_quantized(policy) or not merge or not is_merged(adapter.get("peft_type")):
        return policy
    return merge_adapter(policy)


def merge_adapter(adapted: Any) -> Any:
    """Return the model in which an adapter has become part of the weights; head and embeddings that
    share a matrix become two where one of them was adapted."""
    untie_adapted(adapted)
    # PEFT has frozen the base; now it is an ordinary model
    return adapted.merge_and_unload().requires_grad_(True)


def is_quantized(policy: Any) -> bool:
    return bool(getattr(policy, "is_quantized", False))


def _refuse_other_settings(lora: Lora, adapter: dict[str, Any], folder: str) -> None:
    """An adapter that is trained further keeps its settings, so the recipe may not say others."""
    check_kind(adapter, folder, trainable=True, further=True, answers=False)
    for key, wanted in lora.model_dump().items():
        found = adapter.get(key)
        if key == "init_lora_weights" or (key == "target_modules" and isinstance(wanted, str)):
            continue  # the first has had its effect; PEFT stores names for the second
        if key == "target_parameters" and not wanted and isinstance(lora.target_modules, str):
            continue  # they may belong to `all-linear`
        if key == "modules_to_save" and adapter.get("task_type") == "SEQ_CLS":
            found = [
                name for name in found or [] if name not in ("classifier", "score")
            ]  # PEFT adds the head by itself
        if isinstance(wanted, list) or isinstance(found, list):
            wanted, found = sorted(wanted or []), sorted(found or [])
        if wanted != found:
            raise RecipeError(
                f"model.lora.{key} is {wanted}, but the adapter in {folder} has {found}",
                f"set model.lora.{key}={json.dumps(found)}; or leave model.lora out to train the "
                "merged model",
            )


def _refuse_new_rows(
    model: Model, adapter: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """An adapter that is trained further has the rows that it was made with; a token added now
    would never be trained."""
    rows = adapter.get("trainable_token_indices") or {}
    held = {row for part in (rows.values() if isinstance(rows, dict) else [rows]) for row in part}
    absent = [
        token for token in model.new_tokens if tokenizer.convert_tokens_to_ids(token) not in held
    ]
    if absent and not adapter.get("modules_to_save"):
        raise RecipeError(
            f"model.new_tokens: the adapter in {model.name_or_path} has no row for {absent[0]!r}, "
            "so it would not be trained",
            "add tokens when the adapter is made; or leave model.lora out to train the merged "
            "model",
        )


def with_new_adapter(
    policy: PreTrainedModel,
    lora: Lora,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    task: str = "CAUSAL_LM",
) -> Any:
    """Freeze the model under a fresh adapter; the head of a reward model (`task` SEQ_CLS) is
    trained whole.

    A quantized base stays in the data type that it was loaded in. PEFT's
    `prepare_model_for_kbit_training` would turn everything that is not quantized into float32: for
    an 8B Llama 2 GB more, and logits in float32. The adapter itself is in float32 in every case.
    """
    from peft import LoraConfig, get_peft_model

    _check_modules(policy, lora)
    targets = targets_of(policy, lora)
    ends = (policy.get_input_embeddings(), policy.get_output_embeddings())
    tied = ends[1] is not None and ends[1].weight is ends[0].weight
    heads = [_name_of(policy, part) for part in ends if part is not None]
    whole = [name for name in heads if name in (lora.modules_to_save or [])]
    rows = [
        name for name in heads[: 1 if tied else 2] if name not in whole and not (tied and whole)
    ]
    new_ids = tokenizer.convert_tokens_to_ids(model.new_tokens)
    adapted = [name for name in rows if name in (lora.target_modules or [])]
    if new_ids and adapted and isinstance(lora.target_modules, list):
        raise RecipeError(
            f"model.lora.target_modules: {adapted[0]} gets rows of its own for model.new_tokens, "
            "so it cannot be adapted too",
            "drop it from the list, or train it whole with "
            f"model.lora.modules_to_save=[{adapted[0]}]",
        )
    try:
        config = LoraConfig(
            task_type=task,
            # A new token must be read and written, so its row is trained in the embeddings and in
            # the head.
            trainable_token_indices=dict.fromkeys(rows, new_ids) if new_ids and rows else None,
            ensure_weight_tying=bool(tied and whole),
            **lora.model_dump()
            | {"target_modules": targets.modules, "target_parameters": targets.parameters},
        )
        with told_of_ties():
            adapted = get_peft_model(policy, config, revision=model.revision)
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"model.lora: {error}", "check model.lora.target_modules against the model's layers"
        ) from error
    _refuse_adapted_head(adapted)
    show_bias(adapted)
    save_what_is_trained(adapted)
    return adapted


def show_bias(policy: Any) -> None:
    """Let a head with trained rows hand out its bias, as it does its weight: TRL's fused head reads
    both."""
    head = policy.get_output_embeddings()
    if head is not None and hasattr(head, "token_adapter"):
        object.__setattr__(head, "bias", head.original_module.bias)


def _name_of(policy: PreTrainedModel, part: Any) -> str:
    return next(name for name, module in policy.named_modules() if module is part).rpartition(".")[
        2
    ]


def _check_modules(policy: PreTrainedModel, lora: Lora) -> None:
    """Refuse modules that are not there, which PEFT would pass over, and an adapter that no loss
    would reach."""
    names = {name.rpartition(".")[2] for name, _ in policy.named_modules()}
    ends = (policy.get_output_embeddings(), policy.get_input_embeddings())
    for name in lora.modules_to_save or []:
        if name.rpartition(".")[2] not in names:
            raise RecipeError(
                f"model.lora.modules_to_save: the model has no module {name!r}",
                "its head and embeddings: "
                + ", ".join(repr(_name_of(policy, part)) for part in ends if part is not None),
            )
    _refuse_quantized_wholes(policy, lora)


def _refuse_adapted_head(adapted: Any) -> None:
    if not is_adapted(adapted.get_output_embeddings()):
        return
    head = _name_of(adapted, adapted.get_output_embeddings())
    raise RecipeError(
        f"model.lora.target_modules: an adapter on the head ({head}) would not be trained, since "
        "the loss is "
        "computed from the head's own weight",
        f"drop it, or train the head whole with model.lora.modules_to_save=[{head}]",
    )


def _refuse_quantized_wholes(policy: PreTrainedModel, lora: Lora) -> None:
    """Refuse to train a layer whole that is in 4 or 8 bits."""
    if not (lora.modules_to_save and getattr(policy, "is_quantized", False)):
        return
    from aligner.models.quantized import quantized_layers

    layers = quantized_layers(policy)
    for name in lora.modules_to_save:
        held = [
            layer
            for layer in layers
            if f".{layer}.".endswith(f".{name}.") or f".{name}." in f".{layer}."
        ]
        if held:
            raise RecipeError(
                f"model.lora.modules_to_save: {name} is or holds {held[0]}, which is in 4 or 8 "
                "bits and cannot be trained whole",
                "give it an adapter with model.lora.target_modules, or leave out "
                "model.quantization",
            )
