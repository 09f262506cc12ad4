"""Rows that are trained on, whatever their form, as texts: what is asked, and what else is said.

Rows lie on disk while they are looked at; memory holds some bytes for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from aligner.config.recipe import Data, Source
from aligner.data.files import BLANK, Unreadable
from aligner.data.ledger import FileRecord
from aligner.data.loading import load_rows
from aligner.data.row_store import RowStore
from aligner.data.row_texts import LISTS, RowTexts, task_of, texts_of
from aligner.data.sources import open_source
from aligner.errors import DataError


class TrainingRows:
    """The rows of sources, in their order. `files`: what was read; `remarks`: columns that look as
    if they should have been read.

    Raises: DataError for rows that cannot be read.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.files: list[FileRecord] = []
        self.remarks: list[str] = []
        self._stores: list[tuple[RowStore, list[int]]] = []
        for source in sources:
            store = RowStore()
            loaded = load_rows(Data(train=[source]), task_of(source), 0, keep=LISTS, store=store)
            self.files += loaded.ledger.sources[0].files
            self.remarks += loaded.ledger.remarks()
            self._stores.append((store, loaded.train))

    def __len__(self) -> int:
        return sum(len(numbers) for _, numbers in self._stores)

    def __iter__(self) -> Iterator[RowTexts]:
        for store, numbers in self._stores:
            for number in numbers:
                yield texts_of(store[number])

    @property
    def sha256(self) -> str:
        """What stands for the data: the SHA-256 of a single file, or that of those of several."""
        return digest_of([file.sha256 for file in self.files])

    def without(self, origins: set[str]) -> Iterator[dict[str, Any]]:
        """The rows as they stand in their files, but for those that come from these places.

        Raises: DataError where a file changed since it was read.
        """
        found: list[FileRecord] = []
        checked = 0
        for source in self.sources:
            for origin, raw in open_source(source, found):
                if len(found) > checked:
                    self._refuse_changed(found, checked)
                    checked = len(found)
                assert not isinstance(raw, Unreadable), "all rows could be read before"
                if raw is not BLANK and origin not in origins:
                    yield raw
        self._refuse_changed(found, checked)

    def _refuse_changed(self, found: Sequence[FileRecord], checked: int) -> None:
        if list(found[checked:]) != self.files[checked : len(found)]:
            raise DataError(
                f"{found[-1].path} was changed while it was looked at", "verify it again"
            )


def digest_of(digests: Sequence[str]) -> str:
    """Return what stands for several files, in whatever order: for one, its own SHA-256."""
    if len(digests) == 1:
        return digests[0]
    return sha256("\n".join(sorted(digests)).encode()).hexdigest()
