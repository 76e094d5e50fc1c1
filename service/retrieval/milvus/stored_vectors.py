"""Reads stored vectors by row: from a cache, and the others in one call of Milvus.

The encoder needs the vectors of the items in a history, and the lists those of items that no search by vectors found.
From the mapped file of the bundle they are random page reads (docs/adr/0034).
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.search.scoring import FoundVectors
from service.retrieval.guard import Guard
from service.retrieval.milvus.client import MOST_BYTES, MOST_ROWS, MilvusClient
from service.retrieval.milvus.collection_record import collection_of
from service.retrieval.milvus.row_vector_cache import RowVectorCache

MEGABYTE: Final = 1 << 20

CountVectors = Callable[[int, int], None]


class StoredVectors:
    """Vectors of the collections of bundles; any number of threads may use it.

    Args:
        client: calls Milvus.
        guard: decides whether Milvus is called; of its own, as a search may fail where this does not.
        cache_mb: bound of the cache of one bundle in MB, above 0; it is freed with the bundle.
        count: called with the number of vectors that were cached, and of those that were fetched.
    """

    def __init__(
        self, client: MilvusClient, guard: Guard, cache_mb: int, count: CountVectors = lambda *_: None
    ) -> None:
        self._client = client
        self._guard = guard
        self._most_bytes = cache_mb * MEGABYTE
        self._count = count
        self._caches: WeakKeyDictionary[Bundle, RowVectorCache] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, bundle: Bundle, rows: NDArray[np.int64]) -> FoundVectors:
        """The vectors of rows, but for those that the bundle has not indexed.

        Args:
            bundle: whose rows they are.
            rows: (r,) int64, 0 ≤ row < n, in any order, may repeat.

        Raises:
            RetrieverUnavailable: Milvus does not answer, or lacks a row.
        """
        wanted = np.unique(rows)
        wanted = wanted[bundle.indexed[wanted]]
        cache = self._cache_of(bundle)
        cached, vectors = cache.get(wanted.tolist())
        missing = wanted[~cached]
        if missing.size:
            fetched = self._fetch(bundle, missing)
            cache.put(missing.tolist(), fetched)
            known, vectors = vectors, np.empty((wanted.size, bundle.layout.dim), dtype=np.float32)
            vectors[cached], vectors[~cached] = known, fetched
        self._count(wanted.size - missing.size, missing.size)
        return FoundVectors(wanted, vectors)

    def _fetch(self, bundle: Bundle, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(r, Σd) float32 vectors of rows, in one call unless they are more than Milvus gives in one."""
        name, dim = collection_of(bundle.id), bundle.layout.dim
        most = max(1, min(MOST_ROWS, MOST_BYTES // (4 * dim)))
        parts = [rows[start : start + most] for start in range(0, rows.size, most)]
        probe = partial(self._client.vectors, name, rows[:1], dim)
        fetched = [self._guard.call(partial(self._client.vectors, name, part, dim), probe) for part in parts]
        return fetched[0] if len(fetched) == 1 else np.concatenate(fetched)

    def _cache_of(self, bundle: Bundle) -> RowVectorCache:
        with self._lock:
            cache = self._caches.get(bundle)
            if cache is None:
                cache = self._caches[bundle] = RowVectorCache(
                    min(self._most_bytes, _bytes_of_all(bundle)), bundle.layout.dim
                )
            return cache


def _bytes_of_all(bundle: Bundle) -> int:
    """Bytes that the vectors of all items of a bundle take in a cache."""
    return bundle.manifest.indexed * RowVectorCache.bytes_of(bundle.layout.dim)
