"""Rows that live in this process: lists of dicts and `datasets.Dataset`s, in place of a source.

They are read as rows of a file are: the same forms, checks, books and errors. A row's origin is the
expression that finds it, `rows[3]` or `rows["eval"][3]`, counted from 0 as Python counts. Their
fingerprint is taken over their content, so that equal rows are the same data wherever they come
from, and a run is not resumed with other ones.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

from aligner.data.checks import kind
from aligner.data.columnar import Nulls, rows_of
from aligner.data.files import Unreadable, readable
from aligner.data.ledger import FileRecord
from aligner.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

IN_MEMORY = "<rows in memory>"
"""Stands for the path of a source whose rows were given in Python."""

RowList = Union[Sequence[Mapping[str, Any]], "Dataset"]
"""Rows of one split: a list of dicts, or a dataset."""

Rows = RowList | Mapping[str, RowList]
"""Training rows, or rows of both splits: `{"train": ..., "eval": ...}`."""

ROLES = ("train", "eval")


@dataclass(frozen=True)
class MemoryRows:
    """Rows of one split; `name` is the expression that they are called by."""

    name: str
    rows: RowList

    def read(self, files: list[FileRecord], nulls: Nulls) -> Iterator[tuple[str, Any]]:
        """The rows with their origins; a record of all of them is put into `files` first.

        `nulls` counts those of a dataset that were taken as absent keys.
        """
        is_data_set = _is_data_set(self.rows)
        rows = list(decoded(self.rows, nulls) if is_data_set else map(_checked, self.rows))
        files.append(fingerprinted(self.name, rows))
        for number, row in enumerate(rows):
            yield f"{self.name}[{number}]", row


def by_role(rows: Rows | None) -> dict[str, MemoryRows]:
    """Return the given rows by the split that they are for; nothing for none.

    Raises: DataError when they are not a list of dicts, a dataset, or a mapping of these.
    """
    if rows is None:
        return {}
    if not isinstance(rows, Mapping):
        return {"train": memory_rows("rows", rows)}
    unknown = [str(key) for key in rows if key not in ROLES]
    if unknown or not rows:
        found = f"has a split `{unknown[0]}`" if unknown else "is an empty mapping"
        raise DataError(f"`rows` {found}", 'write {"train": ..., "eval": ...}')
    return {role: memory_rows(f'rows["{role}"]', rows[role]) for role in ROLES if role in rows}


def memory_rows(name: str, rows: Any) -> MemoryRows:
    """Return rows of one split under a name.

    Raises: DataError when they are neither a list of dicts nor a dataset.
    """
    if isinstance(rows, list | tuple) or _is_data_set(rows):
        return MemoryRows(name, rows)
    hint = "give a list of dicts, or a `datasets.Dataset`"
    if hasattr(rows, "to_dict"):
        hint = f'a data frame becomes a list of dicts with `{name}.to_dict("records")`'
    elif isinstance(rows, Iterable) and not isinstance(rows, str | bytes | Mapping):
        hint = f"make a list of it: `list({name})`"
    raise DataError(f"`{name}` is of the type `{type(rows).__name__}`, not a list of rows", hint)


def decoded(dataset: Any, nulls: Nulls) -> Iterator[Any]:
    """The rows of a `datasets.Dataset`, as they were before Arrow stored them; images stay
    bytes."""
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        yield from map(readable, rows_of(table, nulls))


def fingerprinted(name: str, rows: Iterable[Any]) -> FileRecord:
    """A record of rows that are in no file at hand: the digest is taken over their content."""
    digest, size = hashlib.sha256(), 0
    for row in rows:
        line = json.dumps(row, sort_keys=True, ensure_ascii=False, default=repr)
        data = line.encode("utf-8", "surrogatepass") + b"\n"
        digest.update(data)
        size += len(data)
    return FileRecord(name, digest.hexdigest(), size)


def _checked(row: Any) -> Any:
    """A copy of the row, or what stands in its place."""
    if not isinstance(row, Mapping):
        return Unreadable(f"{kind(row)}, not a dict with columns")
    odd = [key for key in row if not isinstance(key, str)]
    if odd:
        return Unreadable(f"the column name {odd[0]!r} is {kind(odd[0])}, not text")
    return dict(row)


def _is_data_set(rows: Any) -> bool:
    datasets = sys.modules.get("datasets")  # whoever holds a dataset has imported it
    return datasets is not None and isinstance(rows, datasets.Dataset)
