"""The tokenizer as GGUF has it: tokens with their types, merges or scores, how text is split, and
which tokens begin and end. Imports nothing heavy.

Everything is read from `tokenizer.json`, which is what transformers computes with. Byte-level BPE
(Llama 3, Qwen, SmolLM) becomes llama.cpp's `gpt2` with its merges; how it splits text is a name
that llama.cpp knows, found by the pattern. BPE on characters with bytes to fall back on (Llama 2,
Mistral, Gemma) becomes `llama`, whose scores are the ranks of the merges. A tokenizer of another
kind, or one that splits text in a way without a name, is refused. One that merges nothing (a token
for each byte) is written with scores, from which transformers reads it; llama.cpp wants merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.errors import UsageError

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, as llama.cpp numbers them."""

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
UNREAD = ("smollm",)
"""Ways of splitting that transformers does not read out of a file."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer for a GGUF file. `kind`: llama.cpp's name of the algorithm; `pre`: of the way
    text is split."""

    kind: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    adds_space: bool

    def write(self, writer: GGUFWriter) -> None:
        """Write it."""
        writer.add_tokenizer_model(self.kind)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.kind == "llama":
            writer.add_add_space_prefix(self.adds_space)


def read_vocabulary(folder: Path, rows: int, pre: str | None = None) -> Vocabulary:
    """Return the tokenizer in a folder, with as many tokens as the embeddings have `rows`.

    `pre`: llama.cpp's name for how the tokenizer splits text, in place of the one that is found.

    Raises: UsageError for a tokenizer that GGUF has no form for.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UsageError(
            "the tokenizer has no tokenizer.json, from which GGUF vocabularies are made",
            "load and save it with transformers, which writes one for most",
        )
    held = json.loads(file.read_text(encoding="utf-8"))
    model = held["model"]
    if model.get("type") != "BPE":
        raise _unknown(f"is of the type {model.get('type')}")
    tokens, types = _tokens(held, rows)
    if model.get("byte_fallback"):
        return Vocabulary(
            "llama", pre or "default", tokens, types, [], _scores(model, tokens), _adds_space(held)
        )
    merges = [_merge(pair) for pair in model["merges"]]
    if not merges:  # however text is split, every byte is a token
        return Vocabulary("gpt2", pre or "gpt-2", tokens, types, [], [0.0] * rows, False)
    return Vocabulary("gpt2", pre or _split(held), tokens, types, merges, [], False)


def _unknown(what: str) -> UsageError:
    return UsageError(
        f"the tokenizer {what}, for which GGUF files have no form that we write",
        "llama.cpp's own convert_hf_to_gguf.py may know it",
    )


def _tokens(held: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Every token by its id, and its type; ids of rows that no token has are `[PAD123]`."""
    by_id = {index: token for token, index in held["model"]["vocab"].items()}
    kinds: dict[int, int] = {}
    for index, token in by_id.items():
        if held["model"].get("byte_fallback") and BYTE_TOKEN.fullmatch(token):
            kinds[index] = BYTE
        elif token == held["model"].get("unk_token"):
            kinds[index] = UNKNOWN
    for added in held["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kind = CONTROL if added["special"] else USER_DEFINED
        kinds[added["id"]] = kind if kinds.get(added["id"]) != UNKNOWN else UNKNOWN
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(rows)]
    types = [kinds.get(index, NORMAL) if index in by_id else UNUSED for index in range(rows)]
    return tokens, types


def _merge(pair: str | list[str]) -> str:
    """A merge as `left right`; a space within is written as GPT-2's letter for it."""
    if isinstance(pair, str):
        return pair
    return " ".join(part.replace(" ", "\u0120") for part in pair)


def _scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """The score of each token: minus the rank of the first merge that makes it; letters, which none
    makes, come last."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        ranks.setdefault(left + right, rank)
    last = len(model["merges"])
    return [float(-ranks.get(token, last)) for token in tokens]


def _adds_space(held: dict[str, Any]) -> bool:
    """Whether a text begins as if a space stood before it."""
    parts = [*_parts(held.get("normalizer")), *_parts(held.get("pre_tokenizer"))]
    return any(
        part["type"] == "Prepend"
        or (part["type"] == "Metaspace" and part.get("prepend_scheme") != "never")
        for part in parts
    )


def _parts(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A step of a tokenizer, or those that it is a sequence of."""
    if step is None:
        return
    inner: list[dict[str, Any]] = step.get("pretokenizers") or step.get("normalizers") or []
    yield from inner if step["type"] == "Sequence" else [step]


def _split(held: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text."""
    parts = list(_parts(held.get("pre_tokenizer")))
    kinds = [part["type"] for part in parts]
    if not parts or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        raise _unknown(f"splits text by {' and '.join(kinds) or 'nothing'}")
    by_gpt2 = parts[-1].get("use_regex", True)
    if kinds == ["ByteLevel"] and by_gpt2:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and by_gpt2 and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not by_gpt2:
        pattern = parts[0]["pattern"].get("Regex")
        found = _names().get(pattern)
        if found is not None:
            return found
    raise UsageError(
        "the tokenizer splits text in a way whose name in llama.cpp is not known here "
        f"({' and '.join(kinds)})",
        "give that name with --pre-tokenizer, if you know that they split alike",
    )


def _names() -> dict[str, str]:
    """Pattern -> llama.cpp's name, from transformers' table."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    wanted = ("llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35")
    known = {name: GGUF_PRE_TOKENIZER_SPLITS.get(name) for name in wanted}
    return {pattern: name for name, pattern in known.items() if pattern is not None}
