"""Restore the rows of Parquet and Arrow tables to what they were before they were stored.

Two things happen to a row on its way into such a file. Objects become structs, which have the keys
of all rows: a key that a row lacked is there as null. And what fits no column type becomes JSON
text (`datasets` makes a column of the type `Json` of values whose keys or types vary). So a null in
a struct is an absent key, at any depth; JSON is decoded, and the nulls in it stay, since somebody
wrote them; so do those in lists and maps. A whole column that is null stays null.

`datasets` writes the text "4" into a JSON column as 4, and "null" as null. Where text is likelier
than a number (in a column of the row, in the content of a turn) such a value is therefore taken as
the text that stands there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aligner.data.strict_json import RepeatedKey, decode

if TYPE_CHECKING:
    import pyarrow

Reader = Callable[[Any], Any]
"""A value that is not null, as pyarrow gives it -> the value as it was."""


TEXTS = ("", "content", "value")
"""Names of fields that hold text rather than a number; a column of the row itself has none here."""


@dataclass
class Nulls:
    """How many nulls of structs were taken as absent keys."""

    count: int = 0


class BrokenJson(ValueError):
    """A column of JSON text that holds something else."""


def repeated_name(fields: Sequence[pyarrow.Field], where: str = "") -> str | None:
    """A name that several columns, or several fields of one column, have; pyarrow would keep the
    last one. Fields are named with their column: `messages.content`."""
    import pyarrow.types as types

    names = [field.name for field in fields]
    for field in fields:
        if names.count(field.name) > 1:
            return f"{where}{field.name}"
        kind = field.type
        while hasattr(kind, "value_type") and not types.is_map(kind):
            kind = kind.value_type
        if types.is_struct(kind):
            inner = [kind.field(place) for place in range(kind.num_fields)]
            found = repeated_name(inner, f"{where}{field.name}.")
            if found is not None:
                return found
    return None


def rows_of(
    table: pyarrow.Table | pyarrow.RecordBatch, nulls: Nulls
) -> Iterator[dict[str, Any] | BrokenJson]:
    """The rows of a table as they were; the error stands in the place of a row that cannot be
    decoded."""
    features = _features(table.schema)
    readers = {
        field.name: _reader(field.type, features.get(field.name), nulls, "")
        for field in table.schema
    }
    decoded = {name: reader for name, reader in readers.items() if reader is not None}
    for row in table.to_pylist():
        try:
            yield {
                name: value if value is None or name not in decoded else decoded[name](value)
                for name, value in row.items()
            }
        except BrokenJson as error:
            yield error


def _features(schema: pyarrow.Schema) -> dict[str, Any]:
    """What `datasets` noted of the columns' types, for files whose JSON columns are plain text to
    Arrow."""
    noted = (schema.metadata or {}).get(b"huggingface")
    try:
        features = json.loads(noted)["info"]["features"] if noted else {}
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _reader(
    kind: pyarrow.DataType, feature: Any, nulls: Nulls, name: str | None = None
) -> Reader | None:
    """What turns a value of this type into what it was; None where it is that already. `name`: of
    the struct's field."""
    import pyarrow.types as types

    is_text = types.is_string(kind) or types.is_large_string(kind)
    noted_as = feature.get("_type") if isinstance(feature, dict) else None
    is_json = getattr(kind, "extension_name", "") == "arrow.json"
    if is_json or (is_text and noted_as == "Json"):
        return _text_from_json if name in TEXTS else _from_json
    if types.is_struct(kind):
        return _struct(kind, feature if isinstance(feature, dict) else {}, nulls)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        of_items = feature.get("feature") if isinstance(feature, dict) else None
        if isinstance(feature, list):
            of_items = feature[0] if feature else None
        reader = _reader(kind.value_type, of_items, nulls)
        return None if reader is None else lambda values: [_read(reader, value) for value in values]
    if types.is_map(kind):
        inner = _reader(kind.item_type, None, nulls)
        return lambda pairs: {key: _read(inner, value) for key, value in pairs}
    return None


def _read(reader: Reader | None, value: Any) -> Any:
    return value if value is None or reader is None else reader(value)


def _from_json(value: Any) -> Any:
    try:
        return decode(value)
    except RepeatedKey as error:
        raise BrokenJson(f"in a column of JSON, {error}") from None
    except (ValueError, TypeError, RecursionError):
        raise BrokenJson(f"a column of JSON holds {str(value)[:60]!r}, which is none") from None


def _text_from_json(value: Any) -> Any:
    decoded = _from_json(value)
    return decoded if isinstance(decoded, str | list | dict) else value


def _struct(kind: pyarrow.StructType, features: Mapping[str, Any], nulls: Nulls) -> Reader:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    readers = {
        field.name: _reader(field.type, features.get(field.name), nulls, field.name)
        for field in fields
    }

    def read(value: Mapping[str, Any]) -> dict[str, Any]:
        there = {key: _read(readers[key], item) for key, item in value.items() if item is not None}
        nulls.count += len(value) - len(there)
        return there

    return read
