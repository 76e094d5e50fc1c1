"""Finds items by case-insensitive substrings of their ids and texts; a page reads a bounded amount of text.

The texts are read in position from the mapped bundle, without an index. Arrow does the matching, mostly without the
interpreter's lock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_TITLE = "title"
_IMAGE = "image"
_BLOCK_ROWS = 4096
PAGE_BYTES = 64 << 20
"""Most bytes of text that one page reads, plus at most one block."""


@dataclass(frozen=True, slots=True)
class TextPage:
    """One page of search results.

    Attributes:
        rows: found rows, in the order of the search.
        next: ``start`` of the next page; None on the last page. A page may be short or empty and still have a next one.
    """

    rows: list[int]
    next: int | None


class TextSearch:
    """Searches the ids and the text columns for a substring.

    Rows that match in id or ``title`` come first, then rows that match in any other text column; each group is in the
    order of the catalogue. ``image`` is not searched, because it names a file; neither are lists of texts.

    Args:
        ids: ``large_string``, one per row.
        metadata: the same rows, columns of a single chunk.
    """

    def __init__(self, ids: pa.Array, metadata: pa.Table) -> None:
        columns = {name: metadata.column(name).chunk(0) for name in metadata.column_names if name != _IMAGE}
        texts = {name: column for name, column in columns.items() if _is_text(column.type)}
        title = texts.pop(_TITLE, None)
        self._rows = len(ids)
        self._primary = [ids] if title is None else [ids, title]
        self._others = list(texts.values())

    def page(self, text: str, start: int, limit: int, *, most_bytes: int = PAGE_BYTES) -> TextPage:
        """Search for a text.

        Args:
            text: the substring; not empty.
            start: 0, or ``next`` of the previous page.
            limit: most rows to return, at least 1.
            most_bytes: most bytes of text to read, plus at most one block.
        """
        found: list[int] = []
        position, end, read = start, self._rows * (2 if self._others else 1), 0
        while position < end and len(found) < limit and read < most_bytes:
            second_group, row = divmod(position, self._rows)
            count = min(_BLOCK_ROWS, self._rows - row)
            matched, size = _contain(self._primary, text, row, count)
            if second_group:
                others, more = _contain(self._others, text, row, count)
                matched, size = others & ~matched, size + more
            hits = (np.flatnonzero(matched)[: limit - len(found)] + row).tolist()
            found += hits
            read += size
            position = second_group * self._rows + (hits[-1] + 1 if len(found) == limit else row + count)
        return TextPage(found, position if position < end else None)


def _contain(columns: Sequence[Any], text: str, start: int, count: int) -> tuple[NDArray[np.bool_], int]:
    """Which rows contain a text in any of the columns, (count,) bool, and the number of bytes read."""
    matched, size = np.zeros(count, dtype=np.bool_), 0
    for column in columns:
        part = column.slice(start, count)
        if pa.types.is_dictionary(part.type):
            part = part.dictionary_decode()
        size += part.nbytes
        contains = pc.fill_null(pc.match_substring(part, text, ignore_case=True), False)
        matched |= contains.to_numpy(zero_copy_only=False)
    return matched, size


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_large_string(value))
