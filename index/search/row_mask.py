"""RowMask: the rows that an answer may hold, with what a search asks of them counted once."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.search.brute_force import check_allowed

_Kind = TypeVar("_Kind", bound=np.generic)

_FEW = 8  # row numbers are kept where they take no more memory than the mask itself


@dataclass(frozen=True, eq=False)
class RowMask:
    """Rows that an answer may hold; never changes, any number of threads may read it. Make one with :meth:`of`.

    Attributes:
        mask: (n,) bool, read-only, by row of the catalogue; rows without any slot included.
        findable: (n,) bool, read-only: the allowed rows that a query can find.
        count: how many are findable.
        indexed: (n,) bool, the rows that a query can find at all.
        few: (count,) int64 the findable rows, ascending, where they are an eighth of all or fewer; else None.
        taken: how many findable rows :meth:`without` took out; these may well be the nearest of all, as the items of a
            user's own history are, so a search that over-fetches fetches as many more.
    """

    mask: NDArray[np.bool_]
    findable: NDArray[np.bool_]
    count: int
    indexed: NDArray[np.bool_]
    few: NDArray[np.int64] | None
    taken: int = 0

    @classmethod
    def of(cls, mask: NDArray[np.bool_], indexed: NDArray[np.bool_]) -> "RowMask":
        """Count a mask.

        Args:
            mask: (n,) bool by row of the catalogue, not changed afterwards.
            indexed: (n,) bool, the rows that a query can find.

        Raises:
            SearchError: a mask of another dtype or length than ``indexed``.
        """
        check_allowed(mask, -1, indexed.shape[0])
        mask = _read_only(mask)
        findable = mask if indexed.all() else _read_only(mask & indexed)
        count = int(np.count_nonzero(findable))
        few = _read_only(np.flatnonzero(findable)) if count <= mask.shape[0] // _FEW else None
        return cls(mask, findable, count, indexed, few)

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    @property
    def rows(self) -> NDArray[np.int64]:
        """(count,) int64 findable rows, ascending."""
        return self.few if self.few is not None else np.flatnonzero(self.findable)

    @cached_property
    def bitmap(self) -> NDArray[np.uint8]:
        """``findable``, one bit per row, lowest bit first, as FAISS reads it."""
        return _read_only(np.packbits(self.findable, bitorder="little"))

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, the bitmap included even where it was not asked for yet."""
        masks = len(self) * (1 if self.findable is self.mask else 2)
        return masks + len(self) // 8 + (0 if self.few is None else self.few.nbytes)

    def without(self, rows: NDArray[np.int64]) -> "RowMask":
        """These rows less some others, such as a user's history or hidden items.

        Args:
            rows: (r,) int64 in any order, each in 0 … n − 1.

        Raises:
            SearchError: a row outside the catalogue.
        """
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise SearchError(f"rows must lie in 0 … {len(self) - 1}, got {rows.min()} … {rows.max()}")
        mask = _cleared(self.mask, rows)
        findable = mask if self.findable is self.mask else _cleared(self.findable, rows)
        gone = int(np.count_nonzero(self.findable[np.unique(rows)]))
        few = None if self.few is None else _read_only(self.few[findable[self.few]])
        return RowMask(mask, findable, self.count - gone, self.indexed, few, self.taken + gone)

    def __and__(self, other: NDArray[np.bool_]) -> "RowMask":
        """The rows that a mask, (n,) bool, allows as well.

        Raises:
            SearchError: the mask is of another dtype or length.
        """
        check_allowed(other, -1, len(self))
        return RowMask.of(self.mask & other, self.indexed)


def _read_only(array: NDArray[_Kind]) -> NDArray[_Kind]:
    """A view that cannot be written to; whoever holds the array itself still can."""
    view = array.view()
    view.flags.writeable = False
    return view


def _cleared(mask: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    copy = mask.copy()
    copy[rows] = False
    return _read_only(copy)
