"""The nearest of blocks against a sort of all entries, with many that are equal once stored."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from training.lists.nearest import NearestItems, cost_blocks, in_order, nearest_dense, nearest_sparse


def sorted_entries(block: NDArray[np.floating], first: int, neighbours: int) -> list[list[tuple[int, float]]]:
    """The nearest of every row, by a sort of all pairs in Python."""
    lists = []
    for row, similarities in enumerate(block, start=first):
        stored = np.minimum(similarities, 1e4).astype(np.float16)
        others = [other for other in np.flatnonzero(stored > 0).tolist() if other != row]
        order = sorted(others, key=lambda other, stored=stored: (-stored[other], other))
        lists.append([(other, float(stored[other])) for other in order[:neighbours]])
    return lists


def entries(found: NearestItems) -> list[list[tuple[int, float]]]:
    pairs = [*zip(found.rows.tolist(), [float(value) for value in found.similarities], strict=True)]
    ends = np.cumsum(found.counts).tolist()
    return [pairs[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def values(kind: str, rng: np.random.Generator) -> NDArray[np.floating]:
    """(40, 200) similarities."""
    made: dict[str, NDArray[np.floating]] = {
        "spread": rng.standard_normal((40, 200)),
        "equal after rounding": 0.5 + rng.integers(0, 9, (40, 200)) * 2.0**-14,
        "half are zero": np.maximum(rng.standard_normal((40, 200)), 0),
        "near zero": rng.integers(-3, 40, (40, 200)) * 2.0**-26,
        "larger than stored": rng.integers(9_990, 10_010, (40, 200)).astype(float),
        "negative": -rng.random((40, 200)),
    }
    return made[kind]


KINDS = ["spread", "equal after rounding", "half are zero", "near zero", "larger than stored", "negative"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neighbours", [1, 7, 199, 200, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_nearest_are_those_of_a_sort_of_all(kind: str, neighbours: int, dtype: type) -> None:
    block = values(kind, np.random.default_rng(4)).astype(dtype)
    right = sorted_entries(block, 30, neighbours)
    assert entries(nearest_dense(block, np.arange(30, 70), np.arange(200), neighbours)) == right
    assert entries(nearest_sparse(csr_matrix(block), 30, neighbours)) == right


def test_columns_may_be_any_items() -> None:
    block = np.array([[0.5, 0.9, 0.5, 0.25]], np.float32)
    found = nearest_dense(block, np.array([8]), np.array([9, 8, 3, 4]), 2)
    assert entries(found) == [[(3, 0.5), (9, 0.5)]]


def test_blocks_by_cost_hold_every_row_once() -> None:
    assert [*cost_blocks(np.array([3, 3, 9, 0, 0, 1, 1]), 6)] == [(0, 2), (2, 3), (3, 7)]
    assert [*cost_blocks(np.array([3, 3, 9, 0, 0, 1, 1]), 6, 2)] == [(0, 2), (2, 3), (3, 5), (5, 7)]
    assert [*cost_blocks(np.zeros(0, np.int64), 6)] == []


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_jobs(threads: int) -> None:
    def late(job: int) -> int:
        time.sleep(0.002 * (job % 3 == 0))
        return job * 10

    assert [*in_order(late, range(20), threads)] == [job * 10 for job in range(20)]


def test_few_results_wait_to_be_taken() -> None:
    started: list[int] = []
    made = in_order(started.append, range(100), 2)
    next(made)
    assert len(started) <= 5


def test_an_error_of_a_job_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        [*in_order(lambda job: 1 // job, [1, 0, 1], 2)]
