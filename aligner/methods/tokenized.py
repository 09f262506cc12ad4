"""The rows of a training as token ids: by its method's encoder, packed or not, mosaics included."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligner.config.recipe import SftRecipe, TrainRecipe
from aligner.data.loading import Loaded
from aligner.events import (
    Notice,
    OnEvent,
    StageProgress,
    tell,
)
from aligner.methods.catalogue import part_of

if TYPE_CHECKING:
    from aligner.tokenization.dataset import Finding, Prepared


def tokenize(
    recipe: TrainRecipe,
    loaded: Loaded,
    tokenizer: Any,
    folder: Path,
    on_event: OnEvent | None = None,
) -> Prepared:
    """Turn the rows into columns of token ids as the method wants them, and write them to `folder`.

    Raises: DataError listing rows that cannot be used; RecipeError where the model would not keep
    packed rows apart.
    """
    from aligner.models.row_sharing import foretell_packing
    from aligner.tokenization.dataset import prepare

    if isinstance(recipe, SftRecipe) and recipe.sft.packing is True:
        _refuse_to_pack(foretell_packing(recipe.model), on_event)
    encode = part_of(recipe.method, "encode").encoder(recipe, tokenizer)
    passes = _passes(recipe, loaded, tokenizer, on_event)
    return prepare(
        recipe,
        loaded,
        tokenizer,
        encode,
        folder,
        on_event,
        passes,
        partial(foretell_packing, recipe.model),
    )


def _passes(recipe: TrainRecipe, loaded: Loaded, tokenizer: Any, on_event: OnEvent | None) -> Any:
    """Return what makes new training rows for each epoch, where the recipe asks for that."""
    if recipe.data.mosaic is None:
        return None
    from aligner.builders.mosaic.passes import MosaicPasses, mosaics_of

    total = len(loaded.train)

    def count(done: int) -> None:
        if done % 1000 == 0 or done == total:
            tell(on_event, StageProgress("measuring rows for mosaics", done, total))

    mosaics = mosaics_of(
        loaded.train,
        recipe.data.mosaic,
        tokenizer=tokenizer,
        max_tokens=recipe.data.max_length,
        seed=recipe.seed,
        on_bad_row=recipe.data.on_bad_row,
        is_too_long=recipe.data.max_length if recipe.data.on_too_long == "error" else None,
        on_progress=count,
    )
    return MosaicPasses(mosaics, len(loaded.train))


def _refuse_to_pack(finding: Finding, on_event: OnEvent | None) -> None:
    """Refuse `sft.packing: true` for a model that does not keep rows apart; where that cannot be
    told yet, say so."""
    from aligner.models.row_sharing import cannot_pack

    if finding.apart is False:
        raise cannot_pack(finding)
    if finding.apart is None:
        tell(
            on_event,
            Notice(f"sft.packing: {finding.why}; the model itself is tested once it is loaded"),
        )
