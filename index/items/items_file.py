"""Reads and writes ``items.arrow``: the ids, popularity and metadata of a bundle's items, memory-mapped.

The file holds one uncompressed record batch in arrow's file format, so every value is used where it lies in the
mapping. Loading checks this form, every offset and every text before any value is used: a damaged byte is an error
while loading and never a crash later.
"""

import datetime as dt
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index.errors import ItemTableError
from index.items.item_ids import ItemIds
from index.items.item_table import ITEM_ID, POPULARITY


@dataclass(frozen=True)
class ItemsFile:
    """Ids, popularity and metadata of a bundle's items, row by row.

    Attributes:
        ids: item id ↔ row.
        popularity: (n,) int64 training events per item.
        metadata: n rows, one column of a single chunk per field.
        mapping: the mapped file that holds the values; None if they are in memory.
    """

    ids: ItemIds
    popularity: NDArray[np.int64]
    metadata: pa.Table
    mapping: mmap.mmap | None = None

    def save(self, path: Path) -> None:
        """Write ``items.arrow``; text and lists get 8-byte offsets, so that no column is split at 2 GiB.

        Raises:
            ItemTableError: a column has a type that a bundle cannot store, or invalid values.
        """
        columns = {ITEM_ID: self.ids.array, POPULARITY: pa.array(self.popularity, pa.int64())}
        for name in self.metadata.column_names:
            columns[name] = _stored(name, self.metadata.column(name))
        batch = pa.record_batch(columns)
        try:
            batch.validate(full=True)
        except pa.ArrowException as error:
            raise ItemTableError(f"the metadata are not valid ({error}); write the catalogue again") from error
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)

    @classmethod
    def load(cls, path: Path) -> "ItemsFile":
        """Map ``items.arrow`` and check all of it.

        Raises:
            ItemTableError: the file cannot be read, has another form, or holds an invalid value.
        """
        try:
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            batch = _only_batch(pa.py_buffer(mapping))
            rows = cls(
                ids=ItemIds(batch.column(ITEM_ID)),
                popularity=batch.column(POPULARITY).to_numpy(),
                metadata=pa.Table.from_batches([batch]).drop_columns([ITEM_ID, POPULARITY]),
                mapping=mapping,
            )
        except (OSError, ValueError, KeyError, RecursionError, MemoryError, pa.ArrowException) as error:
            raise ItemTableError(f"the items cannot be read ({error})") from error
        if int(rows.popularity.min(initial=0)) < 0:
            raise ItemTableError("popularity counts events and cannot be negative")
        return rows

    def release_pages(self) -> None:
        """Release the memory of the pages that the checks read, most of which requests rarely use."""
        if self.mapping is not None:
            self.mapping.madvise(mmap.MADV_DONTNEED)


def _only_batch(file: pa.Buffer) -> pa.RecordBatch:
    """The only batch of a file, checked: known columns, valid values, nothing copied or decompressed."""
    reader = pa.ipc.open_file(file)
    names = reader.schema.names
    if len(set(names)) != len(names):
        raise ItemTableError("the items have two columns of one name")
    for name, kind in {ITEM_ID: pa.large_string(), POPULARITY: pa.int64()}.items():
        if name not in names or reader.schema.field(name).type != kind:
            raise ItemTableError(f"the items need a column {name!r} of type {kind}")
    for field in reader.schema:
        if _storable(field.type) != field.type:
            raise ItemTableError(f"column {field.name!r} has the type {field.type}, which no bundle is built with")
    if reader.num_record_batches != 1:
        raise ItemTableError(f"the items must be one record batch, got {reader.num_record_batches}")
    batch = reader.get_batch(0)
    batch.validate(full=True)
    if batch.column(POPULARITY).null_count:
        raise ItemTableError("popularity counts events and cannot be null")
    end = file.address + file.size
    for column in batch.columns:
        for buffer in _buffers(column):
            if not file.address <= buffer.address < end:
                raise ItemTableError("the items must be uncompressed, in the byte order of this machine")
    return batch


def _buffers(array: pa.Array) -> Iterator[pa.Buffer]:
    """The non-empty buffers of an array and of its dictionary."""
    yield from (buffer for buffer in array.buffers() if buffer is not None and buffer.size)
    if pa.types.is_dictionary(array.type):
        yield from _buffers(array.dictionary)


def _stored(name: str, column: pa.ChunkedArray) -> pa.Array:
    """A metadata column as one array of a type that a bundle stores."""
    try:
        kind = _storable(column.type)
        chunks = column.cast(kind).chunks
        return pa.concat_arrays(chunks) if chunks else pa.array([], kind)
    except (ItemTableError, pa.ArrowException) as error:
        raise ItemTableError(
            f"metadata column {name!r} of type {column.type} cannot be stored ({error}); change its type or leave it "
            "out of the catalogue"
        ) from error


def _storable(kind: pa.DataType) -> pa.DataType:
    """The type under which a bundle stores a type; raises ItemTableError if there is none."""
    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.large_list(_storable_field(kind.value_field))
    if types.is_fixed_size_list(kind):
        return pa.list_(_storable_field(kind.value_field), kind.list_size)
    if types.is_struct(kind):
        return pa.struct([_storable_field(field) for field in kind])
    if types.is_dictionary(kind) and not types.is_nested(kind.value_type):
        return pa.dictionary(kind.index_type, _storable(kind.value_type), kind.ordered)
    if types.is_primitive(kind) or types.is_null(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind):
        return kind
    raise ItemTableError(f"no bundle stores {kind}")


def _storable_field(field: pa.Field) -> pa.Field:
    """As :func:`_storable` for a part of a list or struct, where a dictionary is replaced by its values."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return field.with_type(_storable(kind))


def json_value(value: Any) -> Any:  # noqa: ANN401 - any value of an arrow column
    """A metadata value as JSON can represent it.

    Args:
        value: a value of a metadata column, nested or not.

    Returns:
        Numbers, strings, booleans, lists and objects. A number that is not finite becomes None, a date or time ISO
        8601, bytes hexadecimal text, any other type its ``str``.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.floating | Decimal):
        return json_value(float(value))
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    if isinstance(value, dict):
        return {str(name): json_value(part) for name, part in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
