"""Mosaics for a training loop of your own: a torch IterableDataset, drawn again for each epoch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from aligner.builders.mosaic.engine import Counts, Mosaics


class MosaicIterable(IterableDataset):
    """Prompt/completion rows of one epoch; `set_epoch` chooses which.

    `rank` and `world_size` share an epoch among processes, the same number of rows for each: what
    is left over at its end (fewer than `world_size` rows) is not given. Several data-loading
    workers share the rows of their process. Each of them makes all samples and hands on its own, so
    nothing has to be divided beforehand.
    """

    def __init__(self, mosaics: Mosaics, *, rank: int = 0, world_size: int = 1) -> None:
        self.mosaics, self.rank, self.world_size = mosaics, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        samples = self.mosaics.epoch_samples(self.epoch, Counts())
        for number in count():
            together = list(islice(samples, self.world_size))
            if len(together) < self.world_size:
                return
            if number % workers == worker:
                row = together[self.rank].row
                yield {"prompt": row.prompt, "completion": row.completion}
