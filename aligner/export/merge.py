"""Merge an adapter into its base, and prove that the result is the same model.

The base is loaded unquantized, in float32, whatever the adapter was trained on; the adapter is
merged there, where the two must agree to the rounding of float32, and the sum is rounded once, to
the type that is asked for. What was written is then read again with transformers alone, and its
logits on probe prompts are compared with those of the adapter on its base: a model that is further
off than `LIMITS` allows is not kept. `merge.json` in the folder holds the numbers, where the
adapter and its base came from, and the checksums.

The tokenizer is copied byte for byte, and the vocabulary stays as it is. Where embeddings and head
share a matrix and one of them was adapted, they become two. An adapter of a reward model is merged
with its head, and its scores are what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aligner.config.recipe import Model
from aligner.errors import DataError, UsageError
from aligner.events import Notice, OnEvent, StageStarted, Warned, tell
from aligner.export.found import Found, find_model
from aligner.export.places import check_place, move, unfinished
from aligner.models.files import adapter_config, base_of, own_quantization, saved_outputs
from aligner.runs.digests import digests_of
from aligner.runs.files import dumps, fingerprints, read_json, write_atomically
from aligner.runs.lineage import MERGE_FILE

if TYPE_CHECKING:
    import torch

    from aligner.export.probes import Comparison

MergedDtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Limit:
    """How far a merged model may be from the adapter's: the mean difference of logits as a share of
    their spread, and the least `top1_agreement`."""

    mean_share: float
    top1_agreement: float


LIMITS = {"float32": Limit(0.0005, 0.99), "bfloat16": Limit(0.15, 0.85)}
"""Data type of the merged weights -> limit. Rounding costs a share of 0.000004 in float32, and of
0.05 in bfloat16, where the limit only catches what is broken: the sum was compared in float32
before it was rounded."""

SHOWN_PROMPTS = 8
"""Held-out prompts of the run that are probed too."""


@dataclass(frozen=True)
class Merged:
    """A merged model: its folder, and what `merge.json` says."""

    folder: Path
    record: dict[str, Any]


def merge(
    name: str,
    output: Path,
    *,
    dtype: MergedDtype = "auto",
    trust_remote_code: bool = False,
    overwrite: bool = False,
    on_event: OnEvent | None = None,
) -> Merged:
    """Merge the adapter of a run or folder into its base, and write the model to `output`.

    `dtype` auto: bfloat16 where the base is stored in that, float32 elsewhere.

    Raises: UsageError for a model without an adapter, and for a place that is taken; RecipeError
    for what cannot be loaded or merged; DataError where the merged model is not the adapter's.
    """
    found = find_model(name)
    _check(found)
    check_place(output, MERGE_FILE, found.name, overwrite=overwrite)
    section = found.section(dtype="float32", trust_remote_code=trust_remote_code)
    with unfinished(output) as folder:
        work = _Work(found, section, _dtype(section, dtype), on_event)
        record = work.carry_out(folder)
        from aligner.reports.merged_card import write_merged_card

        write_merged_card(folder, record, found.run)
        record["files"] = fingerprints(folder, folder)
        write_atomically(folder / MERGE_FILE, dumps(record, indent=2) + "\n")
        move(folder, output)
    return Merged(output, record)


def _check(found: Found) -> None:
    """Refuse what has nothing to merge, or nothing to be merged into."""
    if adapter_config(found.name, "MODEL") is None:
        raise UsageError(
            f"{found.name} holds no adapter: there is nothing to merge",
            "it is a whole model already, and loads as it is",
        )
    base = base_of(found.section())[0]
    if packed := own_quantization(base):
        raise UsageError(
            f"the base of {found.name}, {base}, is itself stored in {packed}: a sum with the "
            "adapter would have to be rounded to that again",
            "write the model that it was made from as base_model_name_or_path into "
            f"{Path(found.name) / 'adapter_config.json'}",
        )


def _dtype(section: Model, wanted: MergedDtype) -> str:
    """The data type that the merged weights get."""
    import torch

    from aligner.models.configs import read_config

    if wanted != "auto":
        return wanted
    stored = read_config(section).dtype
    return "bfloat16" if stored == torch.bfloat16 else "float32"


class _Work:
    """One merge, from the adapter on its base to a folder that was read again."""

    def __init__(self, found: Found, section: Model, dtype: str, on_event: OnEvent | None) -> None:
        from aligner.models.tokenizers import load_tokenizer

        self.found, self.section, self.dtype, self.on_event = found, section, dtype, on_event
        self.has_head = saved_outputs(found.name) is not None
        tell(on_event, StageStarted("loading the adapter and its base"))
        self.tokenizer = load_tokenizer(section)

    def carry_out(self, folder: Path) -> dict[str, Any]:
        """Write the merged model into a folder, read it again, and return what was found."""
        from aligner.export.probes import compare, effect_of_adapter, logits_of, probe_ids
        from aligner.models.adapters import merge_adapter
        from aligner.models.read_back import read_back

        adapted = self._load(self.section)
        probes = probe_ids(self.tokenizer, self._prompts(), _new_ids(adapted))
        tell(self.on_event, StageStarted("probing the adapter on its base"))
        expected = logits_of(adapted, probes)
        effect = effect_of_adapter(adapted, expected, probes)
        tell(self.on_event, StageStarted(f"merging, in {self.dtype}"))
        merged = merge_adapter(adapted)
        self._refuse_drift(compare(expected, logits_of(merged, probes)), "float32")
        self._write(merged, folder)
        del adapted, merged
        tell(self.on_event, StageStarted("reading the merged model again, and comparing"))
        trusted = self.section.trust_remote_code
        again = logits_of(read_back(str(folder), trust_remote_code=trusted), probes)
        verified = compare(expected, again)
        self._refuse_drift(verified, self.dtype)
        self._tell_of_rounding(verified, effect)
        return {
            **self._origin(),
            "compared": "scores" if self.has_head else "logits",
            "verified": {**verified.to_json(), "limit": vars(LIMITS[self.dtype])},
            "adapter_effect": effect.to_json(),
            "trained_in": self._as_trained(probes, again),
        }

    def _load(self, section: Model) -> Any:
        from aligner.models.loading import load_policy, load_reward_model

        if self.has_head:
            return load_reward_model(
                section, self.tokenizer, outputs=None, trainable=False, merge=False
            )
        return load_policy(section, self.tokenizer, trainable=False, merge=False)

    def _prompts(self) -> list[Any]:
        """Held-out prompts that the run answered; a reward model has none."""
        samples = [] if self.found.run is None else read_json(self.found.run, "samples.json") or []
        prompts = [sample.get("prompt") for sample in samples[:SHOWN_PROMPTS]]
        return [prompt for prompt in prompts if prompt and isinstance(prompt, str | list)]

    def _write(self, merged: Any, folder: Path) -> None:
        from aligner.models.saved_tokenizer import SavedTokenizer

        _round(merged, self.dtype, self.has_head)
        merged.save_pretrained(folder)
        SavedTokenizer(self.tokenizer, self.section).save_pretrained(folder)
        if (Path(self.found.name) / CARD_OF_SCORER).is_file():
            _write_scorer_card(Path(self.found.name), folder, self.dtype)

    def _refuse_drift(self, found: Comparison, dtype: str) -> None:
        limit = LIMITS[dtype]
        near = found.mean_share <= limit.mean_share
        if near and (self.has_head or found.top1_agreement >= limit.top1_agreement):
            return
        other = "use it as is" if dtype == "float32" else "merge with --dtype float32, or use it so"
        what = "scores" if self.has_head else "logits"
        raise DataError(
            f"the merged model is not the adapter's: in {dtype}, {what} differ by "
            f"{found.mean_share:.2%} of their spread on the mean, where {limit.mean_share:.2%} is "
            f"allowed, and {found.top1_agreement:.1%} of the likeliest tokens agree, where "
            f"{limit.top1_agreement:.0%} must; nothing was written",
            f"{other}: an adapter on its base is what was trained",
        )

    def _tell_of_rounding(self, verified: Comparison, effect: Comparison) -> None:
        """Say it where rounding undoes a part of what was trained."""
        from aligner.export.probes import cost_of_rounding

        what = "scores" if self.has_head else "logits"
        text = cost_of_rounding(self.dtype, verified, effect, what)
        if self.dtype != "float32" and text is not None:
            tell(self.on_event, Warned(f"{text}; --dtype float32 does not"))

    def _origin(self) -> dict[str, Any]:
        from aligner import __version__

        adapter, (base, revision) = Path(self.found.name), base_of(self.section)
        files = digests_of(sorted(adapter.glob("*.safetensors")))
        return {
            "form": 1,
            "aligner": __version__,
            "dtype": self.dtype,
            "adapter": str(adapter.resolve()),
            "adapter_sha256": {file.name: digest for file, digest in files.items()},
            "base": base,
            "base_revision": revision,
            "run": None if self.found.run is None else str(self.found.run.resolve()),
        }

    def _as_trained(self, probes: Sequence[Sequence[int]], merged: list[torch.Tensor]) -> Any:
        """How far the merged model is from the adapter on the quantized base that it was trained
        on; None where that was not quantized, or is not known."""
        from aligner.export.probes import compare, logits_of

        model = self.found.recipe.get("model") or {}
        quantization = model.get("quantization") or "none"
        if quantization == "none":
            return None
        tell(self.on_event, StageStarted(f"comparing with the base in {quantization}"))
        changes = {key: model[key] for key in ("quantization", "double_quant") if key in model}
        packed = logits_of(self._load(self.section.model_copy(update=changes)), probes)
        apart = compare(packed, merged)
        text = (
            f"the adapter was trained on the base in {quantization}, which rounds the base: the "
            f"merged model's logits differ from those by up to {apart.largest_difference:.3g} "
            f"({apart.top1_agreement:.1%} of the likeliest tokens agree)"
        )
        tell(self.on_event, Notice(text))
        return {"quantization": quantization, **apart.to_json()}


def _new_ids(adapted: Any) -> list[int]:
    """The ids of tokens whose rows the adapter holds."""
    config = adapted.active_peft_config
    rows = getattr(config, "trainable_token_indices", None) or {}
    parts = rows.values() if isinstance(rows, dict) else [rows]
    return sorted({index for part in parts for index in part})


def _round(model: Any, dtype: str, has_head: bool) -> None:
    """Round the weights to the type that is saved, but for those that the model's class or ours
    keeps in float32: a router's biases, the head of a reward model."""
    import torch

    from aligner.models.reward_head import head_of

    wanted = getattr(torch, dtype)
    kept = {
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    }
    head = set(head_of(model)[2].parameters()) if has_head else set()
    for name, weight in model.named_parameters():
        if weight not in head and not any(part in name.split(".") for part in kept):
            weight.data = weight.data.to(wanted)
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.dtype = wanted


CARD_OF_SCORER = "reward_model.yaml"


def _write_scorer_card(source: Path, folder: Path, dtype: str) -> None:
    """Copy the card of a reward model; the weights beside it are no longer quantized."""
    import yaml

    from aligner.config.yaml_lines import read_value

    card = read_value((source / CARD_OF_SCORER).read_text("utf-8"))
    kept = {key: card[key] for key in card if key not in ("quantization", "double_quant")}
    text = yaml.safe_dump({**kept, "dtype": dtype}, sort_keys=False, allow_unicode=True)
    write_atomically(folder / CARD_OF_SCORER, text)
