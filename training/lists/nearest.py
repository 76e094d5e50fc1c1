"""The nearest items of blocks of rows: by the similarity as it is stored, then by row.

A list holds float16 numbers, and many similarities are equal after rounding; so equal ones go by row, and the result is
the same everywhere. Only entries that may round to one of the nearest are sorted.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from index.lists.item_lists import ItemList

_MOST_STORED = 1e4  # what a float16 holds; no similarity comes near it

_Job = TypeVar("_Job")
_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class NearestItems:
    """The nearest items of m consecutive items.

    Attributes:
        counts: (m,) int64 entries of each item.
        rows: (entries,) int32 rows of the nearest items, most similar first within an item.
        similarities: (entries,) float16, positive.
    """

    counts: NDArray[np.int64]
    rows: NDArray[np.int32]
    similarities: NDArray[np.float16]


def joined(name: str, parts: Sequence[NearestItems]) -> ItemList:
    """The list of a catalogue from its blocks in order."""
    counts = np.concatenate([np.zeros(1, np.int64), *(part.counts for part in parts)])
    rows = np.concatenate([np.zeros(0, np.int32), *(part.rows for part in parts)])
    similarities = np.concatenate([np.zeros(0, np.float16), *(part.similarities for part in parts)])
    return ItemList(name, np.cumsum(counts), rows, similarities)


def nearest_sparse(block: csr_matrix, first: int, neighbours: int) -> NearestItems:
    """The nearest of every row of a sparse block of similarities.

    Args:
        block: (m, n); its first row is item ``first``. Entries that are not stored are 0.
        first: row of the first item.
        neighbours: most entries of an item N.
    """
    lengths = np.diff(block.indptr)
    kept = np.ones(len(block.data), np.bool_)
    for number in np.flatnonzero(lengths > neighbours + 1):
        part = slice(block.indptr[number], block.indptr[number + 1])
        values = block.data[part]
        kept[part] = values >= _bound(np.partition(values, len(values) - neighbours - 1)[-neighbours - 1])
    owners = np.repeat(np.arange(len(lengths)), lengths)[kept]
    return nearest_of(owners, block.indices[kept], block.data[kept], first + np.arange(len(lengths)), neighbours)


def nearest_dense(
    block: NDArray[np.floating], items: NDArray[np.int64], others: NDArray[np.int64], neighbours: int
) -> NearestItems:
    """The nearest of every row of a block of similarities.

    Args:
        block: (m, k) similarities.
        items: (m,) the item of each row.
        others: (k,) the item of each column.
        neighbours: most entries of an item N.
    """
    kept = block > 0
    if block.shape[1] > neighbours + 1:
        least = np.partition(block, block.shape[1] - neighbours - 1, axis=1)[:, -neighbours - 1]
        kept &= block >= _bound(least)[:, None]
    owners, columns = np.nonzero(kept)
    return nearest_of(owners, others[columns], block[owners, columns], items, neighbours)


def nearest_of(
    owners: NDArray[np.int64],
    others: NDArray[np.integer],
    similarities: NDArray[np.floating],
    items: NDArray[np.int64],
    neighbours: int,
) -> NearestItems:
    """The nearest of m items among pairs.

    Args:
        owners: (pairs,) number of the item in ``items``.
        others: (pairs,) row of the other item; a pair of an item with itself is left out.
        similarities: (pairs,) those that are not positive once stored are left out.
        items: (m,) rows of the items.
        neighbours: most entries of an item N.
    """
    stored = np.minimum(similarities, _MOST_STORED).astype(np.float16)
    kept = (stored > 0) & (others != items[owners])
    owners, others, stored = owners[kept], others[kept], stored[kept]
    order = np.lexsort((others, -stored.astype(np.float32), owners))
    counts = np.bincount(owners, minlength=len(items))
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[places < neighbours]
    return NearestItems(np.minimum(counts, neighbours), others[order].astype(np.int32), stored[order])


def cost_blocks(costs: NDArray[np.integer], most: int, most_rows: int | None = None) -> Iterator[tuple[int, int]]:
    """First and last row of blocks of at most ``most`` in all, or of one item, and of at most ``most_rows`` items."""
    sums, first, items = np.cumsum(costs, dtype=np.int64), 0, len(costs)
    while first < items:
        before = int(sums[first - 1]) if first else 0
        last = int(np.searchsorted(sums, before + most, side="right"))
        last = min(max(last, first + 1), items if most_rows is None else first + most_rows, items)
        yield first, last
        first = last


def in_order(make: Callable[[_Job], _Made], jobs: Iterable[_Job], threads: int) -> Iterator[_Made]:
    """What is made of each job, in their order, by several threads; at most two of a thread wait to be taken."""
    if threads == 1:
        yield from map(make, jobs)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="lists") as pool:
        waiting: deque[Future[_Made]] = deque()
        for job in jobs:
            waiting.append(pool.submit(make, job))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _bound(least: NDArray[np.floating]) -> NDArray[np.floating]:
    """Below it no similarity is stored as one of the nearest, of which ``least`` is the last.

    Numbers that are equal as float16 differ by at most 2⁻¹⁰ of themselves, or by 2⁻²⁴ near 0.
    """
    bound: NDArray[np.floating] = np.minimum(least, _MOST_STORED) * (1 - 2.0**-9) - 2.0**-23
    return bound
