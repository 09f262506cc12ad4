"""Export a model as a GGUF file for llama.cpp and Ollama, read it back, and compare.

An adapter is merged on the way, in float32, so that its weights are rounded once. A model that was
rounded to bfloat16 before loses nothing more in float16, but it is further from what was trained
(`docs/export.md` has the numbers). The file is read back through transformers, and its logits are
compared with those of the same model in memory. With
the weights rounded as the file has them they must agree to the rounding of float32: that is the
conversion. With those before rounding they show what the type of the file costs. Token ids of probe
texts must be the tokenizer's own, too. What does not agree is not kept.

transformers reads less than llama.cpp: no file of the first Gemma, which is compared tensor by
tensor through our own reading, and not every setting. Where it would lack one, it gets the config
of the model for the comparison, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aligner.errors import DataError, UsageError
from aligner.events import OnEvent, StageStarted, Warned, tell
from aligner.export.found import Found, find_model
from aligner.export.places import check_file, move, unfinished
from aligner.models.files import own_quantization, saved_outputs
from aligner.runs.files import dumps, file_sha256, write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aligner.export.gguf.families import Family
    from aligner.export.gguf.vocabulary import Vocabulary
    from aligner.export.probes import Comparison

GgufType = Literal["f32", "f16", "bf16", "q8_0"]

CONVERSION_LIMIT = 0.003
"""Largest difference of two logits that conversion may make, as a share of their spread; rounding
in float32 makes 0.0001."""
ROUNDING_LIMIT = 0.2
"""Mean difference that rounding to the type of the file may make, as a share of their spread."""

NEARER = {"f16": "f32 does not", "bf16": "f16 is nearer", "q8_0": "f16 is nearer"}
"""Type of a file -> what to say of another where rounding takes much of what was trained."""

READ = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "rope_parameters", "tie_word_embeddings", "attention_bias"),
    *("mlp_bias", "query_pre_attn_scalar"),
    *("attn_logit_softcapping", "final_logit_softcapping", "max_position_embeddings"),
)
"""Settings of a config that decide what a model computes."""
WINDOWS = ("layer_types", "sliding_window")
"""Those that say to which tokens a layer attends."""


@dataclass(frozen=True)
class Exported:
    """A GGUF file, the Modelfile beside it, and the record of what was compared."""

    file: Path
    modelfile: Path
    record: dict[str, Any]


def export_gguf(
    name: str,
    output: Path,
    *,
    kind: GgufType = "f16",
    pre_tokenizer: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
    on_event: OnEvent | None = None,
) -> Exported:
    """Write the model of a run, a folder or a hub id as a GGUF file; beside it FILE.json with what
    was compared, and FILE's name with `.Modelfile` for Ollama.

    `pre_tokenizer`: llama.cpp's name for how the tokenizer splits text, where it is not found.

    Raises: UsageError for a model that has no form in GGUF, and for a place that is taken;
    RecipeError for what cannot be loaded; DataError where the file is not the model.
    """
    if find_spec("gguf") is None:
        raise UsageError(
            "the package `gguf`, which writes these files, is not installed",
            'pip install "aligner-toolkit[gguf]"',
        )
    check_file(output, ".gguf", name, overwrite=overwrite)
    found = find_model(name)
    _check(found)
    with unfinished(output) as folder:
        work = _Work(found, kind, pre_tokenizer, trust_remote_code, on_event)
        record = work.carry_out(folder, output.name)
        beside = (output.with_name(f"{output.name}.json"), output.with_suffix(".Modelfile"))
        write_atomically(beside[0], dumps(record, indent=2) + "\n")
        write_atomically(beside[1], work.modelfile(output.name))
        move(folder / output.name, output)
    return Exported(output, beside[1], record)


def _check(found: Found) -> None:
    if saved_outputs(found.name) is not None:
        raise UsageError(
            f"{found.name} is a reward model, whose head has no place in a GGUF file that writes",
            "serve it with `aligner score`, or merge it and load it with transformers",
        )
    if packed := own_quantization(found.name):
        raise UsageError(
            f"the weights of {found.name} are stored in {packed}",
            "export the model that they were made from, or an adapter on that",
        )


class _Work:
    """One export, from the loaded model to a file that was read back."""

    def __init__(
        self,
        found: Found,
        kind: GgufType,
        pre_tokenizer: str | None,
        trust_remote_code: bool,
        on_event: OnEvent | None,
    ) -> None:
        from aligner.export.gguf.families import family_of
        from aligner.export.probes import effect_of_adapter, logits_of, probe_ids
        from aligner.models.adapters import merge_adapter
        from aligner.models.configs import read_config
        from aligner.models.files import adapter_config
        from aligner.models.loading import load_policy
        from aligner.models.tokenizers import load_tokenizer
        from aligner.tokenization.encode import stop_token_ids

        self.found, self.kind, self.pre, self.on_event = found, kind, pre_tokenizer, on_event
        self.section = found.section(dtype="float32", trust_remote_code=trust_remote_code)
        family_of(read_config(self.section), found.name)  # before weights are read
        tell(on_event, StageStarted("loading the model"))
        self.tokenizer = load_tokenizer(self.section)
        self.probes = probe_ids(self.tokenizer)
        self.model = load_policy(self.section, self.tokenizer, trainable=False, merge=False).cpu()
        self.exact = logits_of(self.model, self.probes)
        self.effect: Comparison | None = None
        if adapter_config(found.name) is not None:
            self.effect = effect_of_adapter(self.model, self.exact, self.probes)
            self.model = merge_adapter(self.model)
        self.family: Family = family_of(self.model.config, found.name)
        self.stops = stop_token_ids(self.tokenizer, self.model)

    def carry_out(self, folder: Path, name: str) -> dict[str, Any]:
        """Write the file into a folder, read it back, and return what was found."""
        from aligner.export.gguf.reading import read_logits, same_ids
        from aligner.export.probes import compare, logits_of

        probes = self.probes
        tell(self.on_event, StageStarted(f"writing {self.kind}"))
        vocabulary = self._write(folder, name)
        rounded = logits_of(self.model, probes)
        tell(self.on_event, StageStarted("reading the file back, and comparing"))
        read = read_logits(folder / name, self.model, self.family, probes, self._settings())
        self._tell_of_settings(read.lacking)
        conversion, rounding = compare(rounded, read.logits), compare(self.exact, rounded)
        self._refuse_others(conversion.largest_difference / max(conversion.spread, 1e-30))
        self._refuse_coarse(rounding.mean_share)
        self._tell_of_rounding(rounding)
        return {
            "form": 1,
            **self._origin(folder / name),
            "conversion": {**conversion.to_json(), "limit": CONVERSION_LIMIT},
            "rounding": rounding.to_json(),
            "adapter_effect": None if self.effect is None else self.effect.to_json(),
            "read_by": read.reader,
            "settings_not_read": list(read.lacking),
            "tokenizer": self._compared_ids(folder, name, vocabulary, same_ids),
        }

    def _tell_of_settings(self, lacking: Sequence[str]) -> None:
        """Say what a reader of the file does not find in it, or ignores."""
        from aligner.export.gguf.families import ignored_window

        window = ignored_window(self.model.config, self.family)
        if window is not None:
            self._warn(
                f"the model attends to the last {window:,} tokens, and llama.cpp to all of them in "
                f"this family: answers are the model's up to {window:,} tokens, prompt included"
            )
        for setting in lacking:
            self._warn(f"transformers does not read {setting} out of a GGUF file; llama.cpp does")

    def _settings(self) -> Sequence[str]:
        """What a reader must find; windows only where llama.cpp knows them."""
        windows = () if self.family.full_attention_every is None else WINDOWS
        return (*READ, *windows)

    def _write(self, folder: Path, name: str) -> Vocabulary:
        from aligner.export.gguf.vocabulary import read_vocabulary
        from aligner.export.gguf.writing import write_file
        from aligner.models.saved_tokenizer import SavedTokenizer

        saved = folder / "tokenizer"
        saved.mkdir()
        SavedTokenizer(self.tokenizer, self.section).save_pretrained(saved)
        self.model.config.save_pretrained(saved)
        rows = self.model.get_input_embeddings().num_embeddings
        vocabulary = read_vocabulary(saved, rows, self.pre)
        further = [stop for stop in self.stops if stop != self.tokenizer.eos_token_id]
        write_file(
            folder / name,
            self.model,
            self.family,
            vocabulary,
            saved,
            self.kind,
            title=_title(self.found),
            further_stop=further[0] if further else None,
            adds=_added(self.tokenizer),
        )
        return vocabulary

    def _compared_ids(self, folder: Path, name: str, vocabulary: Vocabulary, same_ids: Any) -> Any:
        """Whether texts become the same ids with the tokenizer of the file."""
        from aligner.export.gguf.vocabulary import UNREAD

        known = {"model": vocabulary.kind, "pre": vocabulary.pre}
        if vocabulary.kind == "gpt2" and not vocabulary.merges:
            text = "the tokenizer has a token for each byte and no merges: transformers reads such"
            self._warn(f"{text} a file, and llama.cpp and Ollama do not")
        if vocabulary.pre in UNREAD or self.pre is not None or not self.family.is_read:
            text = f"the way text is split ({vocabulary.pre}) was not compared"
            self._warn(f"{text}: only llama.cpp reads it")
            return {**known, "compared": False}
        different = same_ids(folder / name, self.tokenizer, vocabulary.kind)
        if different is not None:
            raise DataError(
                f"the tokenizer of the file gives other ids than the model's, for {different!r}; "
                "nothing was written",
                "give llama.cpp's name for how it splits text with --pre-tokenizer, if you know it",
            )
        return {**known, "compared": True}

    def _refuse_others(self, share: float) -> None:
        if not share <= CONVERSION_LIMIT:
            raise DataError(
                f"the file is not the model: read back, logits differ by up to {share:.2%} of "
                f"their spread, where {CONVERSION_LIMIT:.2%} is allowed; nothing was written",
                "report it with the model's config.json; serve the safetensors meanwhile",
            )

    def _refuse_coarse(self, share: float) -> None:
        if not share <= ROUNDING_LIMIT:
            raise DataError(
                f"rounding to {self.kind} moves logits by {share:.1%} of their spread on the mean, "
                f"where {ROUNDING_LIMIT:.0%} is allowed; nothing was written",
                "export another type: f32 does not round, and f16 is the finest of the others",
            )

    def _tell_of_rounding(self, rounding: Comparison) -> None:
        """Say it where rounding takes a part of what was trained."""
        from aligner.export.probes import cost_of_rounding

        if self.effect is None or self.kind not in NEARER:
            return
        text = cost_of_rounding(self.kind, rounding, self.effect)
        if text is not None:
            self._warn(f"{text}; {NEARER[self.kind]}")

    def _origin(self, file: Path) -> dict[str, Any]:
        from aligner import __version__

        return {
            "aligner": __version__,
            "type": self.kind,
            "architecture": self.family.arch,
            "model": self.found.name,
            "run": None if self.found.run is None else str(self.found.run.resolve()),
            "bytes": file.stat().st_size,
            "sha256": file_sha256(file),
            "stops": self._stop_texts(),
        }

    def _stop_texts(self) -> Sequence[str]:
        return [self.tokenizer.convert_ids_to_tokens(stop) for stop in self.stops]

    def _warn(self, text: str) -> None:
        tell(self.on_event, Warned(text))

    def modelfile(self, name: str) -> str:
        """Return the Modelfile for the file."""
        from aligner.export.gguf.modelfile import modelfile

        return modelfile(name, self.tokenizer, self.stops)


def _added(tokenizer: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Whether a tokenizer puts its start token before, and its end token behind every text."""
    ids = tokenizer("x")["input_ids"]
    return {"bos": ids[0] == tokenizer.bos_token_id, "eos": ids[-1] == tokenizer.eos_token_id}


def _title(found: Found) -> str:
    return found.run.resolve().name if found.run is not None else Path(found.name).name
