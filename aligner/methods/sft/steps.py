"""The steps of `sft` that are its own: packing, and other mosaics in each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aligner.data.rows import Row
from aligner.events import Notice, OnEvent, StageProgress, tell
from aligner.memory.footprint import Batch, Footprint, Lengths, of_updates, single_rows
from aligner.methods.sft.recipe import SftRecipe
from aligner.methods.steps import TrainingSteps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aligner.losses.types import Objective
    from aligner.tokenization.dataset import EpochSource


class SftSteps(TrainingSteps):
    """Supervised fine-tuning."""

    task = "sft"

    def check(self, recipe: SftRecipe, objective: Objective | None) -> None:
        """Report problems of the phrasings before anything else is read."""
        if recipe.data.mosaic is not None:
            from aligner.builders.mosaic.phrasings import load_phrasings

            load_phrasings(recipe.data.mosaic.phrasings)

    def group_by(self, recipe: SftRecipe) -> str | None:
        """Return the column that keeps rows out of each other's mosaics."""
        return None if recipe.data.mosaic is None else recipe.data.mosaic.group_by

    def check_model(self, recipe: SftRecipe, on_event: OnEvent | None) -> None:
        """Refuse `sft.packing: true` for a model that does not keep rows apart; where that cannot
        be told yet, say so."""
        if recipe.sft.packing is not True:
            return
        from aligner.models.row_sharing import cannot_pack, foretell_packing

        found = foretell_packing(recipe.model)
        if found.apart is False:
            raise cannot_pack(found)
        if found.apart is None:
            text = f"sft.packing: {found.why}; the model itself is tested once it is loaded"
            tell(on_event, Notice(text))

    def memory(self, recipe: SftRecipe, lengths: Lengths) -> Footprint:
        """Return updates and evaluations on the longest rows, or on full sequences of packed
        ones."""
        return Footprint(of_updates(recipe, lambda split: _batch(recipe, lengths, split)))

    def epoch_source(
        self,
        recipe: SftRecipe,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        on_event: OnEvent | None,
    ) -> EpochSource | None:
        """Return the mosaics of the rows, other ones in each epoch."""
        if recipe.data.mosaic is None:
            return None
        from aligner.builders.mosaic.epochs import MosaicEpochs, mosaics_of

        total = len(rows)

        def count(done: int) -> None:
            if done % 1000 == 0 or done == total:
                tell(on_event, StageProgress("measuring rows for mosaics", done, total))

        data = recipe.data
        mosaics = mosaics_of(
            rows,
            recipe.data.mosaic,
            tokenizer=tokenizer,
            max_tokens=data.max_length,
            seed=recipe.seed,
            on_bad_row=data.on_bad_row,
            is_too_long=data.max_length if data.on_too_long == "error" else None,
            on_progress=count,
        )
        return MosaicEpochs(mosaics, total)


def _batch(recipe: SftRecipe, lengths: Lengths, split: str) -> Batch:
    """Return the longest batch of a split; packed rows are one sequence."""
    found = single_rows(recipe, lengths, split)
    if not lengths.is_packed or split != "train":
        return found
    packed = found.rows * recipe.data.max_length
    return Batch(1, packed, packed * found.read // found.size, "padding")


STEPS = SftSteps()
