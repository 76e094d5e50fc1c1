"""k-cores of graphs with known cores, and compared with the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data_check.k_core import Core, core_of, k_core, largest_core


def pairs(*edges: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    columns = np.array(edges, dtype=np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def complete(users: int, items: int) -> list[tuple[int, int]]:
    return [(user, item) for user in range(users) for item in range(items)]


def test_a_complete_block_with_a_tail_is_its_own_core() -> None:
    users, items = pairs(*complete(3, 4), (3, 0), (3, 4), (4, 4))
    assert core_of(users, items, 1) == Core(1, 5, 5, 15)
    assert core_of(users, items, 2) == Core(2, 3, 4, 12)
    assert core_of(users, items, 3) == Core(3, 3, 4, 12)
    assert core_of(users, items, 4) == Core(4, 0, 0, 0)
    assert largest_core(users, items) == Core(3, 3, 4, 12)


def test_removal_cascades_along_a_chain() -> None:
    users, items = pairs((0, 0), (0, 1), (1, 1), (1, 2), (2, 2))
    assert core_of(users, items, 1) == Core(1, 3, 3, 5)
    assert core_of(users, items, 2) == Core(2, 0, 0, 0)


@pytest.mark.parametrize("k", [0, 1, 5])
def test_no_pairs_have_no_core(k: int) -> None:
    users, items = pairs()
    assert core_of(users, items, k) == Core(k, 0, 0, 0)
    assert largest_core(users, items) == Core(0, 0, 0, 0)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=35), st.integers(1, 4))
def test_the_core_is_closed_and_maximal(edges: set[tuple[int, int]], k: int) -> None:
    users, items = pairs(*sorted(edges))
    inside = k_core(users, items, k)
    kept = set(zip(users[inside].tolist(), items[inside].tolist(), strict=True))
    remaining = set(edges)  # the definition, one node at a time
    while True:
        weak = [
            (u, i)
            for u, i in remaining
            if sum(a == u for a, _ in remaining) < k or sum(b == i for _, b in remaining) < k
        ]
        if not weak:
            break
        remaining -= set(weak)
    assert kept == remaining
    best = largest_core(users, items)
    assert (best.k >= k) == bool(kept)
    assert not k_core(users, items, best.k + 1).any()
