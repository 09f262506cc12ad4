"""Models that turn texts into vectors: the mean of their last hidden states, without a head.

Encoders (BERT, GTE, E5 and their like) and the bodies of models that write are loaded alike, from a
folder on this machine; nothing is downloaded. Prefixes that some encoders want before a text
("query: ") are not added.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import Model
from aligner.errors import RecipeError
from aligner.launch.devices import best_device
from aligner.models.configs import read_config
from aligner.models.files import adapter_config, check_model_path
from aligner.models.loading import _from_pretrained
from aligner.models.positions import max_positions
from aligner.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    import numpy as np

KEY = "--embedding"

POOLER = ("pooler",)
"""A part that reads the first token alone, and which the mean does not need."""


class Encoder:
    """A model and its tokenizer. `limit`: tokens of a text that it reads, None for all; `cut`: how
    many texts were longer so far."""

    def __init__(self, folder: str) -> None:
        section = Model(name_or_path=folder, dtype="float32")
        check_encoder(folder)
        config = read_config(section)
        if getattr(config, "is_encoder_decoder", False):
            raise RecipeError(
                f"{KEY}: {folder} is an encoder with a decoder ({config.model_type})",
                "name an encoder, or a model that writes from left to right",
            )
        from transformers import AutoModel

        self.tokenizer = load_tokenizer(section)
        model, _ = _from_pretrained(section, False, AutoModel, may_lack=POOLER)
        self.model = model.to(best_device()).eval()
        positions = max_positions(self.model)
        limits = [self.tokenizer.model_max_length, *([positions] if positions else [])]
        self.limit = min(limits) if min(limits) < 1_000_000_000 else None
        self.cut = 0

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return the mean hidden state of each text, unit length, shape (N, D), float32. A longer
        text loses its end."""
        import numpy as np

        from aligner.models.forward import batched_forward

        read = self.tokenizer([text or " " for text in texts])["input_ids"]
        ids = [tokens or [self.tokenizer.pad_token_id] for tokens in read]
        if self.limit is not None:
            self.cut += sum(len(tokens) > self.limit for tokens in ids)
            ids = [self._shortened(tokens, self.limit) for tokens in ids]
        found = batched_forward(
            self.model, ids, self._means, pad_token_id=self.tokenizer.pad_token_id
        )
        return np.stack(found)

    def _shortened(self, tokens: list[int], limit: int) -> list[int]:
        """The beginning of a text, with the token that ends every text where there is one."""
        ends = tokens[-1] in self.tokenizer.all_special_ids
        return tokens if len(tokens) <= limit else [*tokens[: limit - ends], *tokens[-1:][:ends]]

    def _means(self, batch: dict[str, Any], _: Sequence[int]) -> list[np.ndarray]:
        states_BTD = self.model(**batch).last_hidden_state.float()
        mask_BT1 = batch["attention_mask"][..., None]
        mean_BD = (states_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
        unit_BD = mean_BD / mean_BD.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return list(unit_BD.cpu().numpy())


def check_encoder(folder: str) -> None:
    """Refuse what is not a folder with a whole model, before anything is loaded. Raises:
    RecipeError."""
    if not Path(folder).expanduser().is_dir():
        raise RecipeError(
            f"{KEY}: there is no folder {folder}",
            "name the folder of a model that is on this machine, or tfidf; nothing is downloaded",
        )
    check_model_path(Model(name_or_path=folder), where=KEY)
    if adapter_config(folder) is not None:
        raise RecipeError(
            f"{KEY}: {folder} holds an adapter", "merge it into its base first, or name the base"
        )
