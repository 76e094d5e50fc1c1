"""Lists of looks of large catalogues: candidates from a graph of the pictures, with their cosines.

Many items may share one picture, such as "no picture yet", and a graph hides equal vectors behind each other. So it
holds each vector once, and stands for all items that have it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.lists.item_lists import LOOK, ItemList
from index.search.vector_index import nearest_of_all
from training.lists.nearest import NearestItems, joined, nearest_of

_ROWS_PER_BLOCK = 8_192


def looks_by_candidates(
    units: NDArray[np.float32], neighbours: int, *, threads: int, progress: Callable[[int], None]
) -> ItemList:
    """The list of looks with candidates from a graph.

    Args:
        units: (n, d) rows of length 1, or zero for items without a picture.
        neighbours: most entries of an item N.
        threads: that search at the same time; the result does not depend on it.
        progress: called after every block with the number of items that are done; with 0 while the graph is built and
            searched, which takes nearly all of the time.
    """
    present = np.flatnonzero(units.any(axis=1))
    vectors = _DistinctVectors.of(units, present)
    parts = list(_nearest_of_vectors(units, vectors, neighbours + 1, threads, lambda _done: progress(0)))
    of_vectors, parts = joined(LOOK, parts), []
    for start in range(0, len(present), _ROWS_PER_BLOCK):
        items = present[start : start + _ROWS_PER_BLOCK]
        owners, places = _entries(of_vectors.offsets, vectors.numbers[start : start + _ROWS_PER_BLOCK])
        near, similarities = of_vectors.rows[places], of_vectors.similarities[places]
        parts.append(nearest_of(owners, near, similarities, items, neighbours))
        progress(int(items[-1]) + 1)
    progress(len(units))  # also where no item has a picture
    made, counts = joined(LOOK, parts), np.zeros(len(units) + 1, np.int64)
    counts[present + 1] = np.diff(made.offsets)
    return ItemList(LOOK, np.cumsum(counts), made.rows, made.similarities)


@dataclass(frozen=True, eq=False)
class _DistinctVectors:
    """The vectors of m items, each once, in the order of the first item that has it.

    Attributes:
        firsts: (v,) int64 the first item with each vector.
        numbers: (m,) int64 number of the vector of each item.
        members: (m,) int64 items, sorted by vector, then by row.
        starts: (v + 1,) int64; vector v is that of the items ``members[starts[v] : starts[v + 1]]``.
    """

    firsts: NDArray[np.int64]
    numbers: NDArray[np.int64]
    members: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, units: NDArray[np.float32], present: NDArray[np.int64]) -> "_DistinctVectors":
        keys = np.ascontiguousarray(units[present]).view(np.dtype((np.void, units.itemsize * units.shape[1])))[:, 0]
        _, firsts, inverse = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        numbers = ranks[inverse]
        starts = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=len(order)))])
        return cls(present[firsts[order]], numbers, present[np.argsort(numbers, kind="stable")], starts)


def _nearest_of_vectors(
    units: NDArray[np.float32],
    vectors: _DistinctVectors,
    count: int,
    threads: int,
    report: Callable[[int], None],
) -> Iterator[NearestItems]:
    """The nearest items of each distinct vector in blocks, at most ``count``; those that have it are among them."""
    sizes = np.diff(vectors.starts)
    for found, cosines in nearest_of_all(units[vectors.firsts], count, threads=threads, added=report):
        owners, places = np.nonzero(found >= 0)
        numbers, similarities = found[owners, places], cosines[owners, places]
        pairs, members = _entries(vectors.starts, numbers, np.minimum(sizes, count))
        yield nearest_of(owners[pairs], vectors.members[members], similarities[pairs], np.full(len(found), -1), count)
        report(0)


def _entries(
    starts: NDArray[np.int64], numbers: NDArray[np.int64], lengths: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the entries of some groups one after another, and for each which of the groups it is of.

    Args:
        starts: (g + 1,) first place of each group.
        numbers: (k,) the groups.
        lengths: (g,) how many entries of a group are taken; None: all.
    """
    taken = (np.diff(starts) if lengths is None else lengths)[numbers]
    owners = np.repeat(np.arange(len(numbers)), taken)
    places = np.arange(len(owners)) + np.repeat(starts[numbers] - (np.cumsum(taken) - taken), taken)
    return owners, places
