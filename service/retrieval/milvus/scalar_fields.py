"""Chooses the metadata fields that filters can use in a collection, and gives their values.

A field that is left out costs no answer: every row that a search returns is checked against the mask of allowed rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FieldKind = Literal["text", "bool", "integer", "single", "double", "texts"]

LONGEST_TEXT: Final = 1024
"""Most bytes of a text in a collection; a field with a longer one, such as a description, is left out."""
MOST_TEXTS: Final = 64
"""Most texts of one item in a field with lists."""
_MOST_FIELDS: Final = 48  # Milvus allows 64 fields in a collection


@dataclass(frozen=True, slots=True, eq=False)
class ScalarField:
    """A field of the metadata in a collection.

    Attributes:
        name: in the metadata.
        column: in the collection, as Milvus allows only letters, digits and _.
        kind: of its values.
        values: n rows.
    """

    name: str
    column: str
    kind: FieldKind
    values: pa.ChunkedArray

    def of(self, start: int, stop: int) -> list[Any]:
        """The values of rows as a collection takes them; None for null and NaN."""
        found: list[Any] = self.values.slice(start, stop - start).to_pylist()
        if self.kind in {"single", "double"}:
            return [None if value is None or value != value else float(value) for value in found]
        if self.kind == "texts":
            return [[text for text in value or () if text is not None] for value in found]
        return found


def scalar_fields(metadata: pa.Table) -> list[ScalarField]:
    """The fields of a bundle that a collection can hold."""
    chosen: list[ScalarField] = []
    for name in metadata.column_names:
        column = metadata.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = kind_of(column)
        if kind is not None and len(chosen) < _MOST_FIELDS:
            chosen.append(ScalarField(name, f"f{len(chosen)}", kind, column))
    return chosen


def kinds_of(metadata: pa.Table, fields: Mapping[str, str]) -> dict[str, FieldKind]:
    """The kind of each field by its type alone, for the fields that a record names."""
    kinds = {name: _by_type(metadata.column(name).type) for name in fields if name in metadata.column_names}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def kind_of(column: pa.ChunkedArray) -> FieldKind | None:
    """The kind of a column; None if a collection cannot hold it."""
    kind = _by_type(column.type)
    if kind == "text":
        return "text" if _longest(column) <= LONGEST_TEXT else None
    if kind == "texts":
        fits = (pc.max(pc.list_value_length(column)).as_py() or 0) <= MOST_TEXTS
        return "texts" if fits and _longest(pc.list_flatten(column)) <= LONGEST_TEXT else None
    if kind == "integer" and pa.types.is_uint64(column.type):
        return "integer" if (pc.max(column).as_py() or 0) <= np.iinfo(np.int64).max else None
    return kind


def _by_type(kind: pa.DataType) -> FieldKind | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if _is_text(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_float32(kind):
        return "single"
    if pa.types.is_float64(kind):
        return "double"
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type):
        return "texts"
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _longest(texts: pa.Array | pa.ChunkedArray) -> int:
    """Most bytes of a text."""
    return int(pc.max(pc.binary_length(texts)).as_py() or 0) if len(texts) else 0
