"""The texts of a catalogue's items, made from its columns as they are asked for."""

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import polars as pl

NOT_BLANK = r"\S"
"""Pattern of a cell that is more than white space; to strip a long column would copy it."""
HAS_WORD = r"[\p{L}\p{N}]"
"""Pattern of a text with a word: a letter or digit of any script. A dash or dots alone say nothing of an item."""

_SLICE_ROWS = 8_192


class ItemTexts(Sequence[str | None]):
    """The text of each item: of the first column with a letter or digit in it; None where there is none.

    A large catalogue lies on disk, so no list of its texts is made.

    Args:
        columns: strings, one row an item; the first counts most.
    """

    def __init__(self, columns: pl.DataFrame) -> None:
        self._columns = columns.get_columns()
        filled = [column.str.contains(HAS_WORD).fill_null(value=False).to_numpy() for column in self._columns]
        chosen = np.full(columns.height, len(filled), dtype=np.uint8)
        for number in reversed(range(len(filled))):
            chosen[filled[number]] = number
        self._chosen = chosen

    def __len__(self) -> int:
        """Number of items."""
        return len(self._chosen)

    @overload
    def __getitem__(self, place: int) -> str | None: ...

    @overload
    def __getitem__(self, place: slice) -> list[str | None]: ...

    def __getitem__(self, place: int | slice) -> str | list[str | None] | None:
        """The text of a row, or a list of texts of a slice of rows."""
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        chosen = int(self._chosen[place])
        if chosen == len(self._columns):
            return None
        text: str = self._columns[chosen][int(place)]
        return text

    def __iter__(self) -> Iterator[str | None]:
        """The texts in order, read some thousand at a time."""
        for start in range(0, len(self), _SLICE_ROWS):
            chosen = self._chosen[start : start + _SLICE_ROWS].tolist()
            blocks = [column.slice(start, _SLICE_ROWS).to_list() for column in self._columns]
            blocks.append([None] * len(chosen))
            for row, number in enumerate(chosen):
                yield blocks[number][row]
