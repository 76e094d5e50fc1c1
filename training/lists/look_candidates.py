"""Lists of looks of large catalogues: candidates by clusters of the pictures, then their cosines.

Pictures are put into clusters of about 512 by k-means on the sphere. The items of a cluster are compared with those of
the clusters that most of them are near to, as one product of matrices: each with at most 65,536 others, fewer if the
vectors are longer than 512.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from index.lists.item_lists import LOOK, ItemList
from training.lists.nearest import NearestItems, in_order, nearest_dense

_ITEMS_PER_CLUSTER = 512
_SAMPLE_PER_CLUSTER = 64
_ROUNDS = 6
_NEAR_CLUSTERS = 8  # of an item; their counts order the clusters that its own is compared with
_MOST_CANDIDATES = 1 << 16
_NUMBERS_OF_CANDIDATES = 1 << 25  # so fewer candidates where vectors are longer than 512
_LEAST_CANDIDATES = 1 << 12
_ROWS_PER_BLOCK = 512
_ROWS_PER_PRODUCT = 128
_SEED = 0

Progress = Callable[[int], None]


def looks_by_candidates(units: NDArray[np.float32], neighbours: int, *, threads: int, progress: Progress) -> ItemList:
    """The list of looks with candidates by clusters.

    Args:
        units: (n, d) rows of length 1, or zero for items without a picture.
        neighbours: most entries of an item N.
        threads: that make blocks at the same time; the result does not depend on it.
        progress: called after every block with the number of items that are done.
    """
    found = _FoundItems.empty(len(units), neighbours)
    with threadpool_limits(1, user_api="blas"):  # the sums of a product may depend on its threads
        present = np.flatnonzero(units.any(axis=1))
        done = len(units) - len(present)
        clusters = _Clusters.of(units, present, threads, lambda: progress(0))

        def block(job: tuple[NDArray[np.int64], NDArray[np.int64]]) -> list[tuple[NDArray[np.int64], NearestItems]]:
            items, others = job
            columns, parts = units[others].T, []
            for first in range(0, len(items), _ROWS_PER_PRODUCT):
                rows = items[first : first + _ROWS_PER_PRODUCT]
                parts.append((rows, nearest_dense(units[rows] @ columns, rows, others, neighbours)))
            return parts

        for parts in in_order(block, clusters.blocks(_most_candidates(units.shape[1])), threads):
            for items, part in parts:
                found.put(items, part)
                done += len(items)
            progress(done)
    progress(len(units))  # also where no item has a picture
    return found.joined()


@dataclass(frozen=True, eq=False)
class _Clusters:
    """Clusters of the items with a picture.

    Attributes:
        members: (m,) int64 items, sorted by cluster, then by row.
        starts: (clusters + 1,) int64; cluster c has the members ``starts[c] : starts[c + 1]``.
        near: (m, 8) int32 the clusters that each member is nearest to.
    """

    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    near: NDArray[np.int32]

    @classmethod
    def of(
        cls, units: NDArray[np.float32], present: NDArray[np.int64], threads: int, report: Callable[[], None]
    ) -> "_Clusters":
        """Find them, calling ``report`` after every block."""
        if not len(present):
            return cls(present, np.zeros(1, np.int64), np.zeros((0, 1), np.int32))
        centres = _centres(units, present, threads, report)
        near = _nearest_centres(units, present, centres, min(_NEAR_CLUSTERS, len(centres)), threads, report)
        order = np.argsort(near[:, 0], kind="stable")
        counts = np.bincount(near[:, 0], minlength=len(centres))
        return cls(present[order], np.concatenate([[0], np.cumsum(counts)]), near[order])

    def blocks(self, most: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Items of one cluster, and the items that they are compared with, at most ``most``."""
        for cluster in range(len(self.starts) - 1):
            first, last = int(self.starts[cluster]), int(self.starts[cluster + 1])
            if first == last:
                continue
            others = self._candidates(cluster, most)
            for start in range(first, last, _ROWS_PER_BLOCK):
                yield self.members[start : min(start + _ROWS_PER_BLOCK, last)], others

    def _candidates(self, cluster: int, most: int) -> NDArray[np.int64]:
        """Items of the cluster itself, then of those that most of its members are near to; equal ones by number."""
        votes = np.bincount(self.near[self.starts[cluster] : self.starts[cluster + 1]].ravel())
        votes[cluster] = len(self.near) + 1
        chosen = np.argsort(-votes, kind="stable")[: np.count_nonzero(votes)]
        sizes = np.cumsum(self.starts[chosen + 1] - self.starts[chosen])
        chosen = chosen[: int(np.searchsorted(sizes, most)) + 1]
        parts = [self.members[self.starts[other] : self.starts[other + 1]] for other in chosen]
        return np.concatenate(parts)[:most]


@dataclass(frozen=True, eq=False)
class _FoundItems:
    """The nearest items of a catalogue, which are found in any order.

    Attributes:
        counts: (n,) int64.
        rows: (n, N) int32, of which the first of each item count.
        similarities: (n, N) float16.
    """

    counts: NDArray[np.int64]
    rows: NDArray[np.int32]
    similarities: NDArray[np.float16]

    @classmethod
    def empty(cls, items: int, neighbours: int) -> "_FoundItems":
        shape = (items, neighbours)
        return cls(np.zeros(items, np.int64), np.zeros(shape, np.int32), np.zeros(shape, np.float16))

    def put(self, items: NDArray[np.int64], part: NearestItems) -> None:
        owners = np.repeat(items, part.counts)
        places = np.arange(len(owners)) - np.repeat(np.cumsum(part.counts) - part.counts, part.counts)
        self.counts[items] = part.counts
        self.rows[owners, places] = part.rows
        self.similarities[owners, places] = part.similarities

    def joined(self) -> ItemList:
        kept = np.arange(self.rows.shape[1]) < self.counts[:, None]
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        return ItemList(LOOK, offsets, self.rows[kept], self.similarities[kept])


def _most_candidates(dim: int) -> int:
    """Most items that an item is compared with, for vectors of a length."""
    return max(_LEAST_CANDIDATES, min(_MOST_CANDIDATES, _NUMBERS_OF_CANDIDATES // dim))


def _centres(
    units: NDArray[np.float32], present: NDArray[np.int64], threads: int, report: Callable[[], None]
) -> NDArray[np.float32]:
    """(clusters, d) directions of the means of clusters, by k-means on a sample."""
    rng = np.random.default_rng(_SEED)
    count = max(1, len(present) // _ITEMS_PER_CLUSTER)
    sample = np.sort(rng.permutation(present)[: count * _SAMPLE_PER_CLUSTER])
    centres: NDArray[np.float32] = units[np.sort(rng.permutation(sample)[:count])]
    for _ in range(_ROUNDS):
        near = _nearest_centres(units, sample, centres, 1, threads, report)[:, 0]
        sums = np.asarray(_membership(near, count) @ units[sample])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centres)  # an empty one stays
    return centres


def _membership(near: NDArray[np.int32], count: int) -> csr_matrix:
    """(count, m) 1 where a row belongs to a cluster."""
    entries = (np.ones(len(near), np.float32), (near, np.arange(len(near))))
    return csr_matrix(entries, shape=(count, len(near)))


def _nearest_centres(
    units: NDArray[np.float32],
    rows: NDArray[np.int64],
    centres: NDArray[np.float32],
    count: int,
    threads: int,
    report: Callable[[], None],
) -> NDArray[np.int32]:
    """(m, count) the nearest centres of rows, the nearest one first, the others in no order."""

    def block(first: int) -> NDArray[np.int32]:
        cosines = units[rows[first : first + _ROWS_PER_BLOCK]] @ centres.T
        near = np.empty((len(cosines), count), np.int32)
        near[:, 0] = cosines.argmax(axis=1)
        if count > 1:
            cosines[np.arange(len(near)), near[:, 0]] = -np.inf  # it stands first
            near[:, 1:] = np.argpartition(-cosines, count - 2, axis=1)[:, : count - 1]
        return near

    parts = []
    for part in in_order(block, range(0, len(rows), _ROWS_PER_BLOCK), threads):
        parts.append(part)
        report()
    return np.concatenate(parts)
