"""Mosaics for a training loop of one's own: an iterable data set of torch's, drawn anew for each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from aligner.builders.mosaic.engine import Mosaics, Tally


class MosaicIterable(IterableDataset):
    """Prompt/completion rows of one pass; `set_epoch` chooses which.

    Each of several data-loading workers gives every n-th chunk; `rank` and `world_size` share a pass among processes.
    """

    def __init__(self, mosaics: Mosaics, *, rank: int = 0, world_size: int = 1) -> None:
        self.mosaics, self.rank, self.world_size = mosaics, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        first, step = self.rank * workers + worker, self.world_size * workers
        for chunk in self.mosaics.chunks(self.epoch)[first::step]:
            for sample in self.mosaics.samples(chunk, Tally()):
                yield {"prompt": sample.row.prompt, "completion": sample.row.completion}
