"""The cache of vectors: the bound in bytes, the order in which vectors leave it, and threads."""

import threading

import numpy as np

from service.retrieval.milvus.row_vector_cache import ENTRY_BYTES, RowVectorCache

DIM = 4


def vectors_of(rows: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The first number of each vector is its row."""
    return np.array([[row + part / 8 for part in range(DIM)] for row in rows], dtype=np.float32)


def cache_of(vectors: int) -> RowVectorCache:
    return RowVectorCache(vectors * (4 * DIM + ENTRY_BYTES), DIM)


def cached(cache: RowVectorCache, rows: list[int]) -> list[int]:
    found, vectors = cache.get(rows)
    there = [row for row, is_there in zip(rows, found.tolist(), strict=True) if is_there]
    assert vectors.tolist() == vectors_of(there).reshape(-1, DIM).tolist()
    return there


def test_what_was_put_comes_back() -> None:
    cache = cache_of(8)
    assert cached(cache, [3, 1]) == []
    cache.put([7, 2, 5], vectors_of([7, 2, 5]))
    assert cached(cache, [5, 1, 2, 2]) == [5, 2, 2]
    assert cached(cache, []) == []


def test_the_vectors_that_were_not_used_for_the_longest_time_leave_first() -> None:
    cache = cache_of(3)
    cache.put([1, 2, 3], vectors_of([1, 2, 3]))
    cached(cache, [1])
    cache.put([4], vectors_of([4]))
    assert cached(cache, [1, 2, 3, 4]) == [1, 3, 4]
    cache.put([3], vectors_of([3]))
    cache.put([5, 6], vectors_of([5, 6]))
    assert cached(cache, [1, 3, 4, 5, 6]) == [3, 5, 6]
    assert len(cache) == cache.capacity == 3


def test_the_bound_is_in_bytes_and_holds_one_vector_at_least() -> None:
    assert RowVectorCache(10 * RowVectorCache.bytes_of(192) + 1, 192).capacity == 10
    small = RowVectorCache(1, DIM)
    small.put([1, 2], vectors_of([1, 2]))
    assert small.capacity == 1
    assert cached(small, [1, 2]) == [1]


def test_vectors_stay_whole_while_threads_replace_them() -> None:
    cache, wrong = cache_of(16), []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            rows = np.unique(rng.integers(48, size=8)).tolist()
            found, vectors = cache.get(rows)
            there = [row for row, is_there in zip(rows, found.tolist(), strict=True) if is_there]
            if vectors.tolist() != vectors_of(there).reshape(-1, DIM).tolist():
                wrong.append(rows)
            cache.put(rows, vectors_of(rows))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cache) == 16
