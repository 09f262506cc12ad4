"""Reference log-probabilities: computed once, kept on disk under a hash of everything they depend
on, used by later runs.

The key covers the reference's weights (files of a folder, or the hub's commit), how they are
loaded, and every token id of the pairs. So a second run on the same pairs with another objective,
beta or learning rate computes nothing, and a changed model, template or row is never mistaken for
the old one. (`aligner.runs.cache` says where.)

With several processes each scores its part. A sharded policy (FSDP, ZeRO-3) cannot: there the
launching process scores before the ranks start, and they find the cache filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file

from aligner.config.recipe import Model
from aligner.events import Event, Notice, OnEvent, StageProgress, tell
from aligner.launch.devices import best_device
from aligner.methods.dpo.recipe import DpoRecipe
from aligner.models.answers import Prefix, batched_logps
from aligner.models.fingerprint import model_fingerprint
from aligner.models.forward import Answer, eval_mode
from aligner.models.fused_head import fuse_head
from aligner.models.loading import load_policy
from aligner.runs.cache import cache_folder, check_cache, is_kept, keep
from aligner.training.prefix import first_groups, why_not

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = "2"
"""Changed when the way the numbers are computed changes, so that old ones are not used."""

PAIR_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True, slots=True)
class ReferenceScorer:
    """How the reference is computed: the model's section, the arguments of the trainer, the policy
    if it serves, and whether the answers to a prompt share a row, as `prefix` asks."""

    recipe: DpoRecipe
    tokenizer: PreTrainedTokenizerBase
    policy: Any
    batch_size: int
    bf16: bool
    on_event: OnEvent | None
    prefix: Prefix = "separate"

    def tell(self, event: Event) -> None:
        """Tell of an event, on the main process alone."""
        if PartialState().is_main_process:
            tell(self.on_event, event)


def reference_section(recipe: DpoRecipe) -> Model:
    """Return the model section of the reference: the one that training starts from, or
    `dpo.reference_model`."""
    if recipe.dpo.reference_model is None:
        return recipe.model
    return recipe.model.model_copy(
        update={"name_or_path": recipe.dpo.reference_model, "revision": None, "lora": None}
    )


def with_reference(rows: Dataset, scorer: ReferenceScorer, name: str) -> Dataset:
    """Add `reference_chosen` and `reference_rejected` (N,), summed log-probabilities, from the
    cache or computed."""
    section = reference_section(scorer.recipe)
    key = content_key(VERSION, scorer.recipe, section, scorer.bf16, rows, PAIR_COLUMNS)
    file = cache_folder("reference") / f"{key}.safetensors"
    if is_kept(file, scorer.tell):
        columns = load_file(str(file))
        text = f"reference log-probabilities of the {name} pairs: from the cache ({file})"
        scorer.tell(Notice(text))
    else:
        check_cache(file)
        columns = _compute(rows, scorer, section, name)
        if PartialState().is_main_process:
            keep(file, lambda place: save_file(columns, str(place)))
        PartialState().wait_for_everyone()
    for key in ("reference_chosen", "reference_rejected"):
        rows = rows.add_column(key, columns[key].numpy())
    return rows


def load_reference(scorer: ReferenceScorer, section: Model) -> tuple[Any, Any]:
    """Return the reference as a model with a fused head, on its device, and the autocast to compute
    under, or None."""
    model = scorer.policy
    if model is None or scorer.recipe.dpo.reference_model is not None:
        model = load_policy(section, scorer.tokenizer, trainable=False)
        fuse_head(model)
    if section.quantization == "none":
        model.to(best_device())
    autocast = torch.autocast(model.device.type, dtype=torch.bfloat16) if scorer.bf16 else None
    return model, autocast


def _compute(
    rows: Dataset, scorer: ReferenceScorer, section: Model, name: str
) -> dict[str, torch.Tensor]:
    model, autocast = load_reference(scorer, section)
    state = PartialState()
    mine = range(state.process_index, len(rows), state.num_processes)

    def on_progress(done: int, total: int) -> None:
        scorer.tell(StageProgress(f"reference log-probabilities, {name}", done, total))

    logps = reference_logps(
        model,
        rows.select(mine),
        scorer.tokenizer.pad_token_id,
        scorer.batch_size,
        prefix=_prefix_for(model, rows, scorer, autocast),
        autocast=autocast,
        on_progress=on_progress,
    )
    parts = [(row, *pair) for row, pair in zip(mine, logps)]
    parts = gather_object(parts) if state.num_processes > 1 else parts
    by_row = sorted(parts)
    return {
        "reference_chosen": torch.tensor([chosen for _, chosen, _ in by_row]),
        "reference_rejected": torch.tensor([rejected for _, _, rejected in by_row]),
    }


def _prefix_for(
    model: Any, rows: Dataset, scorer: ReferenceScorer, autocast: AbstractContextManager[Any] | None
) -> Prefix:
    """What was settled for the policy; another model is asked for itself, and the run says where it
    does not allow it."""
    if scorer.prefix == "separate" or model is scorer.policy:
        return scorer.prefix
    with eval_mode(model), autocast or nullcontext():
        why = why_not(model, first_groups(rows), rough=autocast is not None)
    if why:
        scorer.tell(Notice(f"the reference computes each answer with a prompt of its own: {why}"))
    return "separate" if why else scorer.prefix


def reference_logps(
    model: PreTrainedModel, rows: Dataset, pad_token_id: int, batch_size: int, **options: Any
) -> list[list[float]]:
    """Return the reference's summed log-probabilities of the chosen and the rejected answer of each
    pair, in the order of rows.

    Both answers of a pair share a batch, of `batch_size` pairs. `options`: `prefix`,
    `autocast` and `on_progress`, as for `aligner.models.answers.batched_logps`.
    """
    pairs = rows.select_columns(list(PAIR_COLUMNS))

    def answers_of(place: int) -> list[Answer]:
        pair = pairs[place]
        return [(pair["prompt_ids"], pair[f"{side}_ids"]) for side in ("chosen", "rejected")]

    return batched_logps(
        model,
        answers_of,
        rows["length"],
        pad_token_id=pad_token_id,
        batch_rows=batch_size,
        **options,
    )


def content_key(
    version: str,
    recipe: DpoRecipe,
    section: Model,
    bf16: bool,
    rows: Dataset,
    columns: Sequence[str],
) -> str:
    """Return a hash of a model, how it is loaded, and the token ids in some columns."""
    digest = sha256(
        f"{version} {bf16} {section.attn_implementation} {model_fingerprint(section)}".encode()
    )
    if (
        section.lora is not None and section.lora.init_lora_weights is False
    ):  # the start is random, and so the reference
        digest.update(f"{recipe.seed} {section.lora.model_dump()}".encode())
    for column in columns:
        for ids in rows.with_format("numpy")[column]:
            digest.update(len(ids).to_bytes(4, "little"))
            digest.update(ids.astype("<i4").tobytes())
    return digest.hexdigest()
