"""Tokenizers and models: the only place that calls `from_pretrained`.

`load_policy(..., trainable=True)` gives what is trained: the whole model, or a frozen base (also in 4 or 8 bits) under
LoRA adapters. A folder that holds an adapter is loaded onto the base that it names: it is trained further when the
recipe has `model.lora`, and merged into its base otherwise. `trainable=False` gives a model for answering.

Only safetensors are read and written, and code that ships with a model runs only when `trust_remote_code` says so.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.adapter_kinds import check_kind, is_merged, load_adapter
from aligner.adapters import is_adapted, save_what_is_trained, told_of_ties, untie_adapted
from aligner.architectures import refuse_what_writes_nothing
from aligner.config.schema import Lora, Model
from aligner.errors import RecipeError, TrainingError
from aligner.folder_kinds import CONFIG_FILE
from aligner.gguf_files import as_ordinary, gguf_file, source_of
from aligner.loading import quick_imports, reading
from aligner.lora_targets import targets_of
from aligner.model_files import (
    adapter_config,
    base_of,
    check_model_path,
    has_tokenizer,
    local_name,
    own_quantization,
    read_chat_template,
    saved_outputs,
)
from aligner.special_tokens import name_padding, name_padding_that_ends_nothing, tell_stops
from aligner.vision import auto_class_for, freeze_sight

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

QUANTIZED = ("nf4", "fp4", "int8")
LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
ODD_TEXT = "a \u00e9 \u4e2d\U0001f600"


def load_tokenizer(model: Model, *, needs_model: bool = True) -> PreTrainedTokenizerBase:
    """Load the tokenizer with the recipe's template, new tokens, stop and padding tokens.

    Without `needs_model`, a folder may hold the tokenizer alone. An adapter's folder without a tokenizer has its base's.

    Raises: RecipeError when a token or template that the recipe names is not there.
    """
    if needs_model:
        check_model_path(model)
        if gguf_file(base_of(model)[0]) is None:  # where it takes seconds, and is read again below
            read_config(model)
    tokenizer = load_tokenizer_files(model)
    if model.chat_template is not None:
        tokenizer.chat_template = read_chat_template(model.chat_template)
    if model.new_tokens:
        tokenizer.add_tokens([token for token in model.new_tokens if token not in tokenizer.get_vocab()])
    for key in ("eos_token", "pad_token"):
        _set_token(tokenizer, key, getattr(model, key))
    name_padding(tokenizer)
    return tokenizer


def read_config(model: Model) -> PreTrainedConfig:
    """Return the config of a model, or of the base of its adapter. Raises: RecipeError when it cannot be read."""
    with quick_imports():
        from transformers import AutoConfig

    name, revision = base_of(model)
    source, form = source_of(name)
    with quick_imports(), reading(name, CONFIG_FILE):  # with the config comes the code of its family
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=model.trust_remote_code, **form)


def load_tokenizer_files(model: Model) -> PreTrainedTokenizerBase:
    """Load the tokenizer as its files have it, whatever else the recipe says; an adapter's folder without one has its base's."""
    from transformers import AutoTokenizer

    name, revision = model.name_or_path, model.revision
    if not has_tokenizer(name):
        name, revision = base_of(model)
    source, form = source_of(name)
    with reading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=model.trust_remote_code, **form
        )
        tokenizer(ODD_TEXT)  # a class that does not fit its files is found out by use alone
    return tokenizer


def _set_token(tokenizer: PreTrainedTokenizerBase, key: str, token: str | None) -> None:
    if token is None:
        return
    if token not in tokenizer.get_vocab():
        raise RecipeError(
            f"model.{key}: the tokenizer has no token {token!r}", f"list it in model.new_tokens too: [{token!r}]"
        )
    tokenizer.add_special_tokens({key: token})  # an attribute alone would not keep it in one piece in a text


def check_policy(model: Model, *, trainable: bool, answers: bool = False) -> dict[str, Any] | None:
    """Refuse a model that writes no text, and an adapter that cannot be used as asked; return the adapter's config."""
    adapter = adapter_config(model.name_or_path)
    if adapter and adapter.get("task_type") == "SEQ_CLS":
        raise RecipeError(
            f"model.name_or_path: the adapter in {model.name_or_path} belongs to a reward model, which writes no text",
            "name the model that it was made from, or another one",
        )
    refuse_what_writes_nothing(read_config(model), base_of(model)[0])
    if adapter:
        further = trainable and model.lora is not None
        check_kind(adapter, model.name_or_path, trainable=trainable, further=further, answers=answers)
    return adapter


def load_policy(
    model: Model, tokenizer: PreTrainedTokenizerBase, *, trainable: bool, answers: bool = False
) -> PreTrainedModel:
    """Load the model of a recipe: to be trained, or (with `trainable=False`) merged, in eval mode, on the best device.

    With `answers`, an adapter that cannot be merged is left on its base: for callers that generate and read `logits`.

    Raises: RecipeError when it cannot be loaded, with transformers' reason.
    """
    adapter = check_policy(model, trainable=trainable, answers=answers)
    policy = _load_base(model, trainable)
    grow_embeddings(policy, tokenizer)
    if adapter:
        policy = _with_saved_adapter(policy, model, adapter, tokenizer, trainable)
    elif trainable and model.lora is not None:
        policy = _with_new_adapter(policy, model.lora, model, tokenizer)
    _settle(policy, tokenizer, model)
    if not trainable:
        return policy.eval() if _is_quantized(policy) else policy.to(best_device()).eval()
    if model.lora is None:
        freeze_sight(policy)
    return policy


def load_outline(model: Model, tokenizer: PreTrainedTokenizerBase, *, outputs: int | None = None) -> Any:
    """Return a model that is ready to be trained, but for its weights, of which only the shapes are there.

    So what the recipe names in it is looked up before anything is tokenised, and weights are counted before they are read.
    `outputs`: that of a reward model's head, for a model that has one. None for a kind of model that is not made from a config alone.

    Raises: RecipeError for what the recipe names and the model has not, and for a head that its family has not.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    config = read_config(model)
    auto_class = auto_class_for(config) if outputs is None else AutoModelForSequenceClassification
    if type(config) not in auto_class._model_mapping:
        if outputs is None or getattr(config, "auto_map", None):
            return None
        raise RecipeError(
            f"model.name_or_path: transformers has no model of type {config.model_type} with a head that gives numbers",
            "set reward.kind=pairwise, which trains the model that writes, or name a model of another family",
        )
    if outputs is not None:
        config.num_labels = outputs
    with torch.device("meta"):
        with reading(model.name_or_path, "model"):
            outline = auto_class.from_config(config)
        if len(tokenizer) > outline.get_input_embeddings().num_embeddings and model.new_tokens:
            outline.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        outline.is_quantized = model.quantization in QUANTIZED
        return _outline_of_adapter(outline, model, tokenizer, "CAUSAL_LM" if outputs is None else "SEQ_CLS")


def _outline_of_adapter(outline: PreTrainedModel, model: Model, tokenizer: PreTrainedTokenizerBase, task: str) -> Any:
    """Put the recipe's adapter, or the one of its folder, on a model without weights."""
    if model.lora is None:
        freeze_sight(outline)
        return outline
    adapter = adapter_config(model.name_or_path)
    if adapter is None:
        plain = model.lora.model_copy(update={"init_lora_weights": True})  # others read the weights
        return _with_new_adapter(outline, plain, model, tokenizer, task=task)
    from peft import PeftConfig, get_peft_model

    _refuse_other_settings(model.lora, adapter, model.name_or_path)
    with reading(model.name_or_path, "adapter"):
        config = PeftConfig.from_pretrained(local_name(model.name_or_path))
        config.inference_mode = False
        return get_peft_model(outline, config)


def load_reward_model(
    model: Model, tokenizer: PreTrainedTokenizerBase, *, outputs: int | None, trainable: bool, seed: int = 0
) -> PreTrainedModel:
    """Load a model with a head that gives numbers in place of one that writes: a sequence classification model.

    `outputs` is the number of outputs that its head gets, drawn at random with `seed`, where the weights have none yet; None
    takes what is there. A trained head is kept as it is, however many outputs it has. With `trainable=False` the result
    is merged, in eval mode, on the best device, and its head computes in float32.

    Raises: RecipeError when it cannot be loaded, or has no head and none was asked for.
    """
    import torch

    from aligner.heads import draw_head, keep_in_float32, read_head_again

    adapter = adapter_config(model.name_or_path)
    saved = saved_outputs(model.name_or_path)
    if saved is None and outputs is None and local_name(model.name_or_path) != model.name_or_path:
        raise RecipeError(
            f"model.name_or_path: {model.name_or_path} has no reward head",
            "train one with `aligner reward`, or check the folder",
        )
    wanted = saved if saved is not None else outputs
    policy, absent = _load_classifier(model, trainable, wanted)
    keep_in_float32(policy)
    grow_embeddings(policy, tokenizer)
    name_padding_that_ends_nothing(policy, tokenizer)
    if not absent and not adapter:
        read_head_again(policy, model.name_or_path)
    if absent and not adapter:
        if outputs is None:
            raise RecipeError(
                f"model.name_or_path: {model.name_or_path!r} has no reward head ({absent[0]} is missing)",
                "name a reward model; a model that writes text becomes one with `aligner reward`",
            )
        draw_head(policy, seed)
    if adapter:
        further = trainable and model.lora is not None
        check_kind(adapter, model.name_or_path, trainable=trainable, further=further, answers=False)
        if saved is None:
            raise RecipeError(
                f"model.name_or_path: the adapter in {model.name_or_path} belongs to a model that writes text",
                "merge it into its base first, and train the reward model from the result",
            )
        exact = policy.dtype == torch.float32  # below that, merging would round the sum of base and adapter once more
        policy = _with_saved_adapter(policy, model, adapter, tokenizer, trainable, merge=trainable or exact)
    elif trainable and model.lora is not None:
        policy = _with_new_adapter(policy, model.lora, model, tokenizer, task="SEQ_CLS")
    _settle(policy, tokenizer, model)
    if not trainable:
        policy = policy.eval() if _is_quantized(policy) else policy.to(best_device()).eval()
    keep_in_float32(policy)
    return policy


def _load_classifier(model: Model, trainable: bool, outputs: int | None) -> tuple[PreTrainedModel, list[str]]:
    """Return the base as a sequence classification model, and the names of the head's weights that it lacks."""
    from transformers import AutoModelForSequenceClassification

    from aligner.heads import HEADS

    further = {} if outputs is None else {"num_labels": outputs}
    return _from_pretrained(model, trainable, AutoModelForSequenceClassification, may_lack=HEADS, **further)


def _load_base(model: Model, trainable: bool) -> PreTrainedModel:
    with quick_imports():
        auto_class = auto_class_for(read_config(model))
    policy = _from_pretrained(model, trainable, auto_class)[0]
    _name_backbone(policy)
    return policy


def _name_backbone(policy: PreTrainedModel) -> None:
    """Let `base_model` be the part below the head, also where a class calls it otherwise than it says (Llama 4's text model)."""
    from transformers import PreTrainedModel

    if policy.base_model is policy:
        parts = [name for name, part in policy.named_children() if isinstance(part, PreTrainedModel)]
        if len(parts) == 1:
            policy.base_model_prefix = parts[0]


def _from_pretrained(
    model: Model, trainable: bool, auto_class: Any, *, may_lack: tuple[str, ...] = (), **further: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load the base of a model, refusing one of which more is missing than a part named in `may_lack`."""
    name, revision = base_of(model)
    source, form = source_of(name)
    options: dict[str, Any] = {"dtype": resolve_dtype(model, trainable), **form, **further}
    if form:
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    if model.attn_implementation:
        options["attn_implementation"] = model.attn_implementation
    if model.quantization in QUANTIZED:
        if not form and not own_quantization(name):
            options["quantization_config"] = _quantization_config(model, may_lack)
        options["device_map"] = {"": _rank_device()}
    silent = without_messages("LOAD REPORT", "modeling_utils", "utils.loading_report")
    with quick_imports(), reading(name, "model"), silent:
        policy, loaded = auto_class.from_pretrained(
            source,
            revision=revision,
            trust_remote_code=model.trust_remote_code,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
            **options,
        )
    every = sorted([*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])])
    heads = [key for key in loaded["missing_keys"] if key.split(".")[0] in may_lack]
    absent = [key for key in every if key not in heads]
    if absent:
        raise RecipeError(
            f"model.name_or_path: {len(absent)} weights of {name!r} are missing or have another shape than its config.json "
            f"says ({absent[0]}), and transformers would put random numbers there",
            "is the download, or the run, complete? A model with another kind of head cannot write text",
        )
    _refuse_layers_left_out(policy, loaded["unexpected_keys"], name)
    if getattr(policy, "_hf_peft_config_loaded", False):
        raise RecipeError(
            f"model.name_or_path: {name!r} is an adapter on the hub",
            f"download it first: hf download {name} --local-dir DIR",
        )
    if getattr(policy, "is_quantized", False):
        from aligner.quantized import keep_steady

        keep_steady(policy)
    as_ordinary(policy, name)
    # What is masked has no gradient in any case, and the token that pads is trained where it stands in a text.
    policy.get_input_embeddings().padding_idx = None
    return policy, heads


def _refuse_layers_left_out(policy: PreTrainedModel, unexpected: Iterable[str], name: str) -> None:
    """Refuse weights of layers beyond those that the config counts, which transformers leaves out."""
    count = getattr(policy.config.get_text_config(), "num_hidden_layers", None)
    beyond = sorted(
        key for key in unexpected for number in LAYER.findall(key) if count is not None and int(number) >= count
    )
    if beyond:
        raise RecipeError(
            f"model.name_or_path: {name!r} holds weights of more layers than the {count} that its config.json counts "
            f"({beyond[0]}), and they would be left out",
            "correct num_hidden_layers there, or download the folder again",
        )


@contextmanager
def without_messages(text: str, *modules: str) -> Iterator[None]:
    """Keep modules of transformers from logging what holds `text`, where it is wrong or what matters of it is told by us."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in modules]

    def wanted(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    for logger in loggers:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(wanted)


def _quantization_config(model: Model, heads: tuple[str, ...] = ()) -> Any:
    """`heads` are left as they are: they are trained whole."""
    from transformers import BitsAndBytesConfig

    skipped = list(heads) or None
    if model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        llm_int8_skip_modules=skipped,
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=model.double_quant,
        bnb_4bit_compute_dtype=resolve_dtype(model, trainable=False),  # it is frozen, also where it is trained
    )


def _with_saved_adapter(
    policy: PreTrainedModel,
    model: Model,
    adapter: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    trainable: bool,
    *,
    merge: bool = True,
) -> Any:
    """Put the adapter of a folder onto its base: trained further under `model.lora`, merged otherwise if it may be."""
    further = trainable and model.lora is not None
    if further:
        assert model.lora is not None
        _refuse_other_settings(model.lora, adapter, model.name_or_path)
        _refuse_new_rows(model, adapter, tokenizer)
    with told_of_ties():
        policy = load_adapter(policy, model.name_or_path, trainable=further)
    if further:
        _refuse_adapted_head(policy)
    _show_bias(policy)
    save_what_is_trained(policy)
    if further or _is_quantized(policy) or not merge or not is_merged(adapter.get("peft_type")):
        return policy
    untie_adapted(policy)
    return policy.merge_and_unload().requires_grad_(True)  # PEFT has frozen the base; now it is an ordinary model


def _is_quantized(policy: Any) -> bool:
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
                f"set model.lora.{key}={json.dumps(found)}; or leave model.lora out to train the merged model",
            )


def _refuse_new_rows(model: Model, adapter: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """An adapter that is trained further has the rows that it was made with; a token added now would never be trained."""
    rows = adapter.get("trainable_token_indices") or {}
    held = {row for part in (rows.values() if isinstance(rows, dict) else [rows]) for row in part}
    absent = [token for token in model.new_tokens if tokenizer.convert_tokens_to_ids(token) not in held]
    if absent and not adapter.get("modules_to_save"):
        raise RecipeError(
            f"model.new_tokens: the adapter in {model.name_or_path} has no row for {absent[0]!r}, so it would not be trained",
            "add tokens when the adapter is made; or leave model.lora out to train the merged model",
        )


def _with_new_adapter(
    policy: PreTrainedModel, lora: Lora, model: Model, tokenizer: PreTrainedTokenizerBase, task: str = "CAUSAL_LM"
) -> Any:
    """Freeze the model under a fresh adapter; the head of a reward model (`task` SEQ_CLS) is trained whole.

    A quantized base stays in the data type that it was loaded in. PEFT's `prepare_model_for_kbit_training` would turn
    everything that is not quantized into float32: for an 8B Llama 2 GB more, and logits in float32. The adapter itself
    is in float32 in every case.
    """
    from peft import LoraConfig, get_peft_model

    _check_modules(policy, lora)
    targets = targets_of(policy, lora)
    ends = (policy.get_input_embeddings(), policy.get_output_embeddings())
    tied = ends[1] is not None and ends[1].weight is ends[0].weight
    heads = [_name_of(policy, part) for part in ends if part is not None]
    whole = [name for name in heads if name in (lora.modules_to_save or [])]
    rows = [name for name in heads[: 1 if tied else 2] if name not in whole and not (tied and whole)]
    new_ids = tokenizer.convert_tokens_to_ids(model.new_tokens)
    adapted = [name for name in rows if name in (lora.target_modules or [])]
    if new_ids and adapted and isinstance(lora.target_modules, list):
        raise RecipeError(
            f"model.lora.target_modules: {adapted[0]} gets rows of its own for model.new_tokens, so it cannot be adapted too",
            f"drop it from the list, or train it whole with model.lora.modules_to_save=[{adapted[0]}]",
        )
    try:
        config = LoraConfig(
            task_type=task,
            # A new token must be read and written, so its row is trained in the embeddings and in the head.
            trainable_token_indices=dict.fromkeys(rows, new_ids) if new_ids and rows else None,
            ensure_weight_tying=bool(tied and whole),
            **lora.model_dump() | {"target_modules": targets.modules, "target_parameters": targets.parameters},
        )
        with told_of_ties():
            adapted = get_peft_model(policy, config, revision=model.revision)
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"model.lora: {error}", "check model.lora.target_modules against the model's layers"
        ) from error
    _refuse_adapted_head(adapted)
    _show_bias(adapted)
    save_what_is_trained(adapted)
    return adapted


def _show_bias(policy: Any) -> None:
    """Let a head with trained rows hand out its bias, as it does its weight: TRL's fused head reads both."""
    head = policy.get_output_embeddings()
    if head is not None and hasattr(head, "token_adapter"):
        object.__setattr__(head, "bias", head.original_module.bias)


def _name_of(policy: PreTrainedModel, part: Any) -> str:
    return next(name for name, module in policy.named_modules() if module is part).rpartition(".")[2]


def _check_modules(policy: PreTrainedModel, lora: Lora) -> None:
    """Refuse modules that are not there, which PEFT would pass over, and an adapter that no loss would reach."""
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
        f"model.lora.target_modules: an adapter on the head ({head}) would not be trained, since the loss is "
        "computed from the head's own weight",
        f"drop it, or train the head whole with model.lora.modules_to_save=[{head}]",
    )


def _refuse_quantized_wholes(policy: PreTrainedModel, lora: Lora) -> None:
    """Refuse to train a layer whole that is in 4 or 8 bits."""
    if not (lora.modules_to_save and getattr(policy, "is_quantized", False)):
        return
    from aligner.quantized import quantized_layers

    layers = quantized_layers(policy)
    for name in lora.modules_to_save:
        held = [layer for layer in layers if f".{layer}.".endswith(f".{name}.") or f".{name}." in f".{layer}."]
        if held:
            raise RecipeError(
                f"model.lora.modules_to_save: {name} is or holds {held[0]}, which is in 4 or 8 bits and cannot be trained whole",
                "give it an adapter with model.lora.target_modules, or leave out model.quantization",
            )


def load_saved_weights(policy: PreTrainedModel, folder: str) -> None:
    """Give a model the weights that it saved to a folder, through transformers' own reading.

    Some classes save under names, or in a form, that are not those of their modules (a matrix for each expert), so that
    `load_state_dict` finds them not.
    Raises: TrainingError when weights are missing.
    """
    import torch

    dtypes = {parameter.dtype for parameter in policy.parameters()}
    dtype = torch.float32 if torch.float32 in dtypes else policy.dtype
    with reading(folder, "checkpoint"), without_messages("LOAD REPORT", "modeling_utils", "utils.loading_report"):
        saved, loaded = type(policy).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if loaded["missing_keys"] or loaded["mismatched_keys"]:
        absent = sorted([*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])])
        raise TrainingError(
            f"The checkpoint {folder} lacks {len(absent)} weights of the model ({absent[0]}).",
            "Remove its folder, so that --resume goes on from the one before; or begin again with --overwrite.",
        )
    policy.load_state_dict(saved.state_dict())


def grow_embeddings(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give every id of the tokenizer an embedding, but for padding alone, which needs none; never shrink.

    Many models have more rows than tokens. A padding id without a row becomes another, in memory.
    """
    rows = policy.get_input_embeddings().num_embeddings
    if len(tokenizer) <= rows:
        return
    own_padding = str(tokenizer.init_kwargs.get("pad_token"))
    if any(index >= rows for token, index in tokenizer.get_vocab().items() if token != own_padding):
        policy.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    else:
        name_padding(tokenizer, rows)


def _settle(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    """Let the configurations say what ends an answer, and be such that they can be saved; try what is quantized."""
    tell_stops(policy, tokenizer, model.eos_token)
    generation = getattr(policy, "generation_config", None)
    if generation is not None:
        _let_it_be_saved(generation)
    if _is_quantized(policy):
        from aligner.quantized import refuse_direct_reads

        refuse_direct_reads(base_under_adapter(policy))


def _let_it_be_saved(generation: GenerationConfig) -> None:
    """Mend what some models ship: sampling settings without sampling, which transformers loads but will not save."""
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True


def base_under_adapter(model: Any) -> Any:
    """Return the model in which PEFT's adapters sit, or the model itself where there are none.

    It asks for the method and not for the class: importing PEFT takes seconds, which a model without adapters saves.
    """
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def resolve_dtype(model: Model, trainable: bool) -> torch.dtype:
    """Return the data type of the weights; `auto` is bfloat16 where weights are frozen on a GPU that has it."""
    import torch

    if model.dtype != "auto":
        return getattr(torch, model.dtype)
    frozen = model.lora is not None or not trainable
    return torch.bfloat16 if frozen and has_bf16_gpu() else torch.float32


def has_bf16_gpu() -> bool:
    """Say whether there is a CUDA device that computes in bfloat16."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def best_device() -> str:
    """Return the device that one process works on: its CUDA device, Apple's, or the CPU."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{_local_rank()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _rank_device() -> str | int:
    import torch

    return _local_rank() if torch.cuda.is_available() else "cpu"


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def model_fingerprint(model: Model) -> str:
    """Return a hash of the weights that a recipe starts from: of the files of a folder, or of the hub's commit."""
    digest = sha256(f"{model.dtype} {model.quantization} {model.double_quant}".encode())
    path = Path(model.name_or_path).expanduser()
    gguf = gguf_file(model.name_or_path)
    if not path.is_dir() and gguf is None:
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(model.name_or_path, revision=model.revision, local_files_only=True))
        digest.update(path.name.encode())
        return digest.hexdigest()
    files = [file for form in ("*.safetensors", "*config.json", "*.py") for file in path.glob(form)]
    for file in sorted(files) if gguf is None else [gguf]:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    if adapter_config(model.name_or_path):
        name, revision = base_of(model)
        base = model.model_copy(update={"name_or_path": name, "revision": revision})
        digest.update(model_fingerprint(base).encode())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of what decides over token ids: vocabulary, rules and chat template."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(sorted(tokenizer.get_vocab().items())) if fast is None else fast.to_str()
    return sha256(json.dumps([tokenizer.chat_template, rules], sort_keys=True).encode()).hexdigest()
