"""Defines the mask of rows that a search may return, with its counts computed once."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.search.brute_force import check_allowed

_Kind = TypeVar("_Kind", bound=np.generic)

_LISTED_SHARE = 8  # row numbers are listed if they take no more memory than the mask itself


@dataclass(frozen=True, slots=True, eq=False)
class RowRule:
    """A rule that every findable row of a mask meets, for a search in a store that cannot read the mask.

    Rows that the mask excludes, such as hidden items, may meet it, too.

    Attributes:
        condition: a filter over metadata, see :mod:`index.filters.filters`; None: no filter.
        only_new: whether the rows have no training event.
        nbytes: bytes of the condition, about.
    """

    condition: Mapping[str, Any] | None = None
    only_new: bool = False
    nbytes: int = 0


@dataclass(frozen=True, eq=False)
class RowMask:
    """Rows that a search may return; immutable, any number of threads may use it. Create it with :meth:`of`.

    Attributes:
        mask: (n,) bool, read-only: the allowed rows of the catalogue, including rows without any slot.
        findable: (n,) bool, read-only: the allowed rows that are indexed.
        count: number of findable rows.
        indexed: (n,) bool, the rows in the index.
        row_list: (count,) int64 findable rows, ascending, if they are at most an eighth of all rows; else None.
        removed: number of findable rows that :meth:`without` excluded. They may be the nearest of all, like the items
            of the user's history, so a search that over-fetches takes that many more candidates.
        rule: a rule that every findable row meets; None: none is known.
    """

    mask: NDArray[np.bool_]
    findable: NDArray[np.bool_]
    count: int
    indexed: NDArray[np.bool_]
    row_list: NDArray[np.int64] | None
    removed: int = 0
    rule: RowRule | None = None

    @classmethod
    def of(cls, mask: NDArray[np.bool_], indexed: NDArray[np.bool_], rule: RowRule | None = None) -> "RowMask":
        """Create a mask and count its rows.

        Args:
            mask: (n,) bool, the allowed rows of the catalogue; must not be modified afterwards.
            indexed: (n,) bool, the rows in the index.
            rule: a rule that every row of ``mask`` meets; None: none is known.

        Raises:
            SearchError: ``mask`` is not bool or has another length than ``indexed``.
        """
        check_allowed(mask, -1, indexed.shape[0])
        mask = _read_only(mask)
        findable = mask if indexed.all() else _read_only(mask & indexed)
        count = int(np.count_nonzero(findable))
        row_list = _read_only(np.flatnonzero(findable)) if count <= mask.shape[0] // _LISTED_SHARE else None
        return cls(mask, findable, count, indexed, row_list, rule=rule)

    def __len__(self) -> int:
        return int(self.mask.shape[0])

    @property
    def rows(self) -> NDArray[np.int64]:
        """(count,) int64 findable rows, ascending."""
        return self.row_list if self.row_list is not None else np.flatnonzero(self.findable)

    @cached_property
    def bitmap(self) -> NDArray[np.uint8]:
        """``findable`` as (⌈n / 8⌉,) uint8, one bit per row, lowest bit first, as FAISS reads it."""
        return _read_only(np.packbits(self.findable, bitorder="little"))

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays, including the bitmap even before it is computed."""
        masks = len(self) * (1 if self.findable is self.mask else 2)
        rule = 0 if self.rule is None else self.rule.nbytes
        return masks + len(self) // 8 + (0 if self.row_list is None else self.row_list.nbytes) + rule

    def without(self, rows: NDArray[np.int64]) -> "RowMask":
        """The mask without some rows, such as a user's history or hidden items.

        Args:
            rows: (r,) int64 in any order, each in 0 … n − 1.

        Raises:
            SearchError: a row lies outside the catalogue.
        """
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise SearchError(f"rows must lie in 0 … {len(self) - 1}, got {rows.min()} … {rows.max()}")
        mask = _cleared(self.mask, rows)
        findable = mask if self.findable is self.mask else _cleared(self.findable, rows)
        excluded = int(np.count_nonzero(self.findable[np.unique(rows)]))
        row_list = None if self.row_list is None else _read_only(self.row_list[findable[self.row_list]])
        return RowMask(
            mask, findable, self.count - excluded, self.indexed, row_list, self.removed + excluded, self.rule
        )

    def __and__(self, other: NDArray[np.bool_]) -> "RowMask":
        """The rows that another mask, (n,) bool, allows as well.

        Raises:
            SearchError: the mask is of another dtype or length.
        """
        check_allowed(other, -1, len(self))
        return RowMask.of(self.mask & other, self.indexed, self.rule)


def _read_only(array: NDArray[_Kind]) -> NDArray[_Kind]:
    """A view that cannot be written to; the array itself stays writable."""
    view = array.view()
    view.flags.writeable = False
    return view


def _cleared(mask: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    copy = mask.copy()
    copy[rows] = False
    return _read_only(copy)
