"""Tokenizers and models: the only place that calls `from_pretrained`.

`load_policy(..., trainable=True)` gives what is trained: the whole model, or a frozen base (also in
4 or 8 bits) under LoRA adapters. A folder that holds an adapter is loaded onto the base that it
names: it is trained further when the recipe has `model.lora`, and merged into its base otherwise.
`trainable=False` gives a model for answering.

Only safetensors are read and written, and code that ships with a model runs only when
`trust_remote_code` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import Model
from aligner.errors import RecipeError, TrainingError
from aligner.launch.devices import best_device, rank_device
from aligner.models.adapter_kinds import base_under_adapter, check_kind
from aligner.models.adapters import (
    _refuse_other_settings,
    is_quantized,
    with_new_adapter,
    with_saved_adapter,
)
from aligner.models.architectures import refuse_what_writes_nothing
from aligner.models.configs import read_config
from aligner.models.dtypes import resolve_dtype
from aligner.models.files import (
    adapter_config,
    base_of,
    local_name,
    own_quantization,
    saved_outputs,
)
from aligner.models.gguf import as_ordinary, source_of
from aligner.models.left_out import SHOWN, check_left_out
from aligner.models.libraries import quick_imports
from aligner.models.load_errors import reading
from aligner.models.shared_base import built_on_offer, is_on_shared_base
from aligner.models.special_tokens import name_padding, name_padding_that_ends_nothing, tell_stops
from aligner.models.vision import auto_class_for, freeze_sight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUANTIZED = ("nf4", "fp4", "int8")


def check_policy(model: Model, *, trainable: bool, answers: bool = False) -> dict[str, Any] | None:
    """Refuse a model that writes no text, and an adapter that cannot be used as asked; return the
    adapter's config."""
    adapter = adapter_config(model.name_or_path)
    if saved_outputs(model.name_or_path) is not None:
        # With tied embeddings transformers would drop the head in silence, and write.
        what = "the adapter in" if adapter else "the model in"
        raise RecipeError(
            f"model.name_or_path: {what} {model.name_or_path} belongs to a reward model, which "
            "writes no text",
            "`aligner score --reward-model` and `aligner eval --reward-model` read it; to write, "
            "name the model that it was made from, or another one",
        )
    refuse_what_writes_nothing(read_config(model), base_of(model)[0])
    if adapter:
        further = trainable and model.lora is not None
        check_kind(
            adapter, model.name_or_path, trainable=trainable, further=further, answers=answers
        )
    return adapter


def load_policy(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trainable: bool,
    answers: bool = False,
    merge: bool = True,
) -> PreTrainedModel:
    """Load the model of a recipe: to be trained, or (with `trainable=False`) merged, in eval mode,
    on the best device.

    With `answers`, an adapter that cannot be merged is left on its base: for callers that generate
    and read `logits`. Without `merge`, every adapter is left on its base.

    Raises: RecipeError when it cannot be loaded, with transformers' reason.
    """
    adapter = check_policy(model, trainable=trainable, answers=answers)
    policy = built_on_offer(model, tokenizer, trainable=trainable)
    if policy is None:
        with quick_imports():
            auto_class = auto_class_for(read_config(model))
        policy = _from_pretrained(model, trainable, auto_class)[0]
    _name_backbone(policy)
    grow_embeddings(policy, tokenizer)
    if adapter:
        merge = merge and not is_on_shared_base(policy)
        policy = with_saved_adapter(policy, model, adapter, tokenizer, trainable, merge=merge)
    elif trainable and model.lora is not None:
        policy = with_new_adapter(policy, model.lora, model, tokenizer)
    _settle(policy, tokenizer, model)
    if not trainable:
        return policy.eval() if is_quantized(policy) else policy.to(best_device()).eval()
    if model.lora is None:
        freeze_sight(policy)
    return policy


def load_outline(
    model: Model, tokenizer: PreTrainedTokenizerBase, *, outputs: int | None = None
) -> Any:
    """Return a model that is ready to be trained, but for its weights, of which only the shapes are
    there.

    So what the recipe names in it is looked up before anything is tokenized, and weights are
    counted before they are read. `outputs`: that of a reward model's head, for a model that has
    one. None for a kind of model that is not made from a config alone.

    Raises: RecipeError for what the recipe names and the model has not, and for a head that its
    family has not.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    config = read_config(model)
    auto_class = auto_class_for(config) if outputs is None else AutoModelForSequenceClassification
    if type(config) not in auto_class._model_mapping:
        if outputs is None or getattr(config, "auto_map", None):
            return None
        raise RecipeError(
            f"model.name_or_path: transformers has no model of type {config.model_type} with a "
            "head that gives numbers",
            "set reward.kind=pairwise, which trains the model that writes, or name a model of "
            "another family",
        )
    if outputs is not None:
        config.num_labels = outputs
    with torch.device("meta"):
        with reading(model.name_or_path, "model"):
            outline = auto_class.from_config(config)
        if len(tokenizer) > outline.get_input_embeddings().num_embeddings and model.new_tokens:
            outline.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        outline.is_quantized = model.quantization in QUANTIZED
        return _outline_of_adapter(
            outline, model, tokenizer, "CAUSAL_LM" if outputs is None else "SEQ_CLS"
        )


def _outline_of_adapter(
    outline: PreTrainedModel, model: Model, tokenizer: PreTrainedTokenizerBase, task: str
) -> Any:
    """Put the recipe's adapter, or the one of its folder, on a model without weights."""
    if model.lora is None:
        freeze_sight(outline)
        return outline
    adapter = adapter_config(model.name_or_path)
    if adapter is None:
        plain = model.lora.model_copy(update={"init_lora_weights": True})  # others read the weights
        return with_new_adapter(outline, plain, model, tokenizer, task=task)
    from peft import PeftConfig, get_peft_model

    _refuse_other_settings(model.lora, adapter, model.name_or_path)
    with reading(model.name_or_path, "adapter"):
        config = PeftConfig.from_pretrained(local_name(model.name_or_path))
        config.inference_mode = False
        return get_peft_model(outline, config)


def load_reward_model(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    *,
    outputs: int | None,
    trainable: bool,
    seed: int = 0,
    merge: bool = True,
) -> PreTrainedModel:
    """Load a model with a head that gives numbers in place of one that writes: a sequence
    classification model.

    `outputs` is the number of outputs that its head gets, drawn at random with `seed`, where the
    weights have none yet; None takes what is there. A trained head is kept as it is, however many
    outputs it has. With `trainable=False` the result is merged, in eval mode, on the best device,
    and its head computes in float32. Without `merge`, an adapter is left on its base.

    Raises: RecipeError when it cannot be loaded, or has no head and none was asked for.
    """
    import torch

    from aligner.models.reward_head import init_head, keep_in_float32, read_head_again

    adapter = adapter_config(model.name_or_path)
    saved = saved_outputs(model.name_or_path)
    if saved is None and outputs is None and local_name(model.name_or_path) != model.name_or_path:
        raise RecipeError(
            f"model.name_or_path: {model.name_or_path} has no reward head",
            "train one with `aligner reward`, or check the folder",
        )
    wanted = saved if saved is not None else outputs
    policy, absent = built_on_offer(model, tokenizer, wanted or 1, trainable=trainable), [""]
    if policy is None:
        policy, absent = _load_classifier(model, trainable, wanted)
    keep_in_float32(policy)
    grow_embeddings(policy, tokenizer)
    name_padding_that_ends_nothing(policy, tokenizer)
    if not absent and not adapter:
        read_head_again(policy, model.name_or_path)
    if absent and not adapter:
        if outputs is None:
            raise RecipeError(
                f"model.name_or_path: {model.name_or_path!r} has no reward head ({absent[0]} is "
                "missing)",
                "name a reward model; a model that writes text becomes one with `aligner reward`",
            )
        init_head(policy, seed)
    if adapter:
        further = trainable and model.lora is not None
        check_kind(adapter, model.name_or_path, trainable=trainable, further=further, answers=False)
        if saved is None:
            raise RecipeError(
                f"model.name_or_path: the adapter in {model.name_or_path} belongs to a model that "
                "writes text",
                "merge it into its base first, and train the reward model from the result",
            )
        # Below float32, merging would round the sum of base and adapter once more.
        exact = policy.dtype == torch.float32 and not is_on_shared_base(policy)
        policy = with_saved_adapter(
            policy, model, adapter, tokenizer, trainable, merge=merge and (trainable or exact)
        )
    elif trainable and model.lora is not None:
        policy = with_new_adapter(policy, model.lora, model, tokenizer, task="SEQ_CLS")
    _settle(policy, tokenizer, model)
    if not trainable:
        policy = policy.eval() if is_quantized(policy) else policy.to(best_device()).eval()
    keep_in_float32(policy)
    return policy


def _load_classifier(
    model: Model, trainable: bool, outputs: int | None
) -> tuple[PreTrainedModel, list[str]]:
    """Return the base as a sequence classification model, and the names of the head's weights that
    it lacks."""
    from transformers import AutoModelForSequenceClassification

    from aligner.models.reward_head import HEADS

    further = {} if outputs is None else {"num_labels": outputs}
    return _from_pretrained(
        model, trainable, AutoModelForSequenceClassification, may_lack=HEADS, **further
    )


def _name_backbone(policy: PreTrainedModel) -> None:
    """Let `base_model` be the part below the head, also where a class calls it otherwise than it
    says (Llama 4's text model)."""
    from transformers import PreTrainedModel

    if policy.base_model is policy:
        parts = [
            name for name, part in policy.named_children() if isinstance(part, PreTrainedModel)
        ]
        if len(parts) == 1:
            policy.base_model_prefix = parts[0]


def _from_pretrained(
    model: Model,
    trainable: bool,
    auto_class: Any,
    *,
    may_lack: tuple[str, ...] = (),
    **further: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """Load the base of a model, refusing one of which more is missing than a part named in
    `may_lack`."""
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
        options["device_map"] = {"": rank_device()}
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
            f"model.name_or_path: {len(absent)} weights of {name!r} are missing or have another "
            "shape than its config.json "
            f"says ({', '.join(absent[:SHOWN])}{', ...' if len(absent) > SHOWN else ''}), and "
            "transformers would put random numbers there",
            "is the download, or the run, complete? A model with another kind of head cannot "
            "write text",
        )
    check_left_out(
        policy,
        loaded["unexpected_keys"],
        name,
        has_other_head=bool(may_lack),
        is_converted=bool(form) or is_quantized(policy),
    )
    if getattr(policy, "_hf_peft_config_loaded", False):
        raise RecipeError(
            f"model.name_or_path: {name!r} is an adapter on the hub",
            f"download it first: hf download {name} --local-dir DIR",
        )
    if getattr(policy, "is_quantized", False):
        from aligner.models.quantized import keep_steady

        keep_steady(policy)
    as_ordinary(policy, name)
    # What is masked has no gradient in any case, and the token that pads is trained where it stands
    # in a text.
    policy.get_input_embeddings().padding_idx = None
    return policy, heads


@contextmanager
def without_messages(text: str, *modules: str, library: str = "transformers") -> Iterator[None]:
    """Keep modules of a library from logging what holds `text`, where it is wrong or we report what
    matters of it ourselves."""
    loggers = [logging.getLogger(f"{library}.{name}") for name in modules]

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
        bnb_4bit_compute_dtype=resolve_dtype(
            model, trainable=False
        ),  # it is frozen, also where it is trained
    )


def load_saved_weights(policy: PreTrainedModel, folder: str) -> None:
    """Give a model the weights that it saved to a folder, through transformers' own reading.

    Some classes save under names, or in a form, that are not those of their modules (a matrix for
    each expert), so that `load_state_dict` finds them not. Raises: TrainingError when weights are
    missing.
    """
    import torch

    dtypes = {parameter.dtype for parameter in policy.parameters()}
    dtype = torch.float32 if torch.float32 in dtypes else policy.dtype
    with (
        reading(folder, "checkpoint"),
        without_messages("LOAD REPORT", "modeling_utils", "utils.loading_report"),
    ):
        saved, loaded = type(policy).from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if loaded["missing_keys"] or loaded["mismatched_keys"]:
        absent = sorted([*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])])
        raise TrainingError(
            f"the checkpoint {folder} lacks {len(absent)} weights of the model ({absent[0]})",
            "remove its folder, so that --resume continues from the one before; or start again "
            "with --overwrite",
        )
    policy.load_state_dict(saved.state_dict())


def grow_embeddings(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give every id of the tokenizer an embedding, but for padding alone, which needs none; never
    shrink.

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
    """Let the configurations say what ends an answer, and be such that they can be saved; try what
    is quantized."""
    tell_stops(policy, tokenizer, model.eos_token)
    generation = getattr(policy, "generation_config", None)
    if generation is not None:
        try:
            generation.validate(strict=True)
        except ValueError:
            # Some models ship sampling settings without sampling, which transformers loads but
            # will not save.
            generation.do_sample = True
    if is_quantized(policy):
        from aligner.models.quantized import refuse_direct_reads

        refuse_direct_reads(base_under_adapter(policy))
