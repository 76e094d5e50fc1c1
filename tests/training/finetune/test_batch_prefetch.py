"""Prefetching is `map`, ahead of time and in other threads."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from training.finetune.batch_prefetch import prefetched

WORKERS = [0, 1, 4]


def threads() -> int:
    return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", WORKERS)
def test_results_come_in_the_order_of_the_inputs(workers: int) -> None:
    first = threading.Event()

    def square(number: int) -> int:
        if number == 0 and workers > 1:
            assert first.wait(10)  # the first is done last
        elif number == 1:
            first.set()
        return number * number

    assert list(prefetched(range(20), square, workers=workers)) == [n * n for n in range(20)]
    assert list(prefetched([], square, workers=workers)) == []
    assert threads() == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_no_more_is_made_ahead_than_there_are_workers(workers: int) -> None:
    begun: list[int] = []
    results = prefetched(itertools.count(), lambda number: begun.append(number) or number, workers=workers)
    for taken in range(1, 8):
        assert next(results) == taken - 1
        assert max(begun) < taken + workers
    results.close()
    assert threads() == 0


@pytest.mark.parametrize("workers", WORKERS)
def test_an_error_comes_where_the_result_would_have(workers: int) -> None:
    def refuse_3(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    results = prefetched(itertools.count(), refuse_3, workers=workers)
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert threads() == 0


@pytest.mark.parametrize("workers", [1, 3])
def test_inputs_are_read_by_the_caller_and_made_by_others(workers: int) -> None:
    readers, makers = set(), set()

    def inputs() -> Iterator[int]:
        for number in range(10):
            readers.add(threading.current_thread().name)
            yield number

    list(prefetched(inputs(), lambda _: makers.add(threading.current_thread().name), workers=workers))
    assert readers == {threading.current_thread().name}
    assert all(name.startswith("prefetch") for name in makers)
