"""Text search over a catalogue: plain containment, whatever the case; a page reads a bounded amount of text.

The texts stay where they are, mapped from the bundle; nothing is built or kept for it. Matching is arrow's and holds
the interpreter's lock for hardly any of the time.
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
"""Text that one page reads, up to a block more."""


@dataclass(frozen=True, slots=True)
class TextPage:
    """One page of what was found.

    Attributes:
        rows: in the order of the search.
        next: where to go on; None at the end. A page may be short, even empty, and yet have a next one.
    """

    rows: list[int]
    next: int | None


class TextSearch:
    """Finds rows by a text in their id or in a column of text.

    First come the rows that have it in id or ``title``, then those that have it in any other column of text, each in
    the order of the catalogue. ``image`` is left out: it names a file. Lists of texts are no columns of text.

    Args:
        ids: ``large_string``, one a row.
        metadata: columns of a single chunk, rows alike.
    """

    def __init__(self, ids: pa.Array, metadata: pa.Table) -> None:
        columns = {name: metadata.column(name).chunk(0) for name in metadata.column_names if name != _IMAGE}
        texts = {name: column for name, column in columns.items() if _is_text(column.type)}
        title = texts.pop(_TITLE, None)
        self._rows = len(ids)
        self._first = [ids] if title is None else [ids, title]
        self._others = list(texts.values())

    def page(self, text: str, start: int, limit: int, *, most_bytes: int = PAGE_BYTES) -> TextPage:
        """Look for a text from a place on.

        Args:
            text: what a row must contain; not empty.
            start: 0, or ``next`` of the page before.
            limit: rows wanted, at least 1.
            most_bytes: text to read.
        """
        found: list[int] = []
        place, end, read = start, self._rows * (2 if self._others else 1), 0
        while place < end and len(found) < limit and read < most_bytes:
            later, row = divmod(place, self._rows)
            count = min(_BLOCK_ROWS, self._rows - row)
            matched, size = _contain(self._first, text, row, count)
            if later:
                others, more = _contain(self._others, text, row, count)
                matched, size = others & ~matched, size + more
            hits = (np.flatnonzero(matched)[: limit - len(found)] + row).tolist()
            found += hits
            read += size
            place = later * self._rows + (hits[-1] + 1 if len(found) == limit else row + count)
        return TextPage(found, place if place < end else None)


def _contain(columns: Sequence[Any], text: str, start: int, count: int) -> tuple[NDArray[np.bool_], int]:
    """Which of some rows contain a text in any of the columns, (count,) bool; and how many bytes were read."""
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
