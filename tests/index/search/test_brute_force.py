"""Exact search against sorting all scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import SearchError
from index.search import brute_force
from index.search.brute_force import exact_top_k, exact_top_k_among, exact_top_k_each, recall


def sorted_by_hand(queries, vectors, k, allowed=None):
    """Every score in exact integer arithmetic, a full sort, ties by row."""
    answers = []
    for number, query in enumerate(queries):
        scored = []
        for row, vector in enumerate(vectors):
            mask = True if allowed is None else (allowed[row] if allowed.ndim == 1 else allowed[number, row])
            if mask:
                scored.append((-int(np.dot(query.astype(int), vector.astype(int))), row))
        scored.sort()
        best = [(row, -score) for score, row in scored[:k]]
        answers.append(best + [(-1, -np.inf)] * (k - len(best)))
    rows = np.array([[row for row, _ in answer] for answer in answers])
    return rows, np.array([[score for _, score in answer] for answer in answers], dtype=np.float32)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_a_full_sort_with_ties(data):
    # Small integers make the float32 sums exact and ties frequent.
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    n, queries, dim = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    vectors = rng.integers(-2, 3, (n, dim)).astype(data.draw(st.sampled_from([np.float16, np.float32])))
    queried = rng.integers(-2, 3, (queries, dim)).astype(np.float32)
    k = data.draw(st.integers(1, 60))
    shape = data.draw(st.sampled_from([None, (n,), (queries, n)]))
    allowed = None if shape is None else rng.random(shape) < data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    rows, scores = exact_top_k(queried, vectors, k, allowed=allowed)
    want_rows, want_scores = sorted_by_hand(queried, vectors, k, allowed)
    np.testing.assert_array_equal(rows, want_rows)
    np.testing.assert_array_equal(scores, want_scores)


@pytest.mark.parametrize("masked", ["none", "shared", "own"])
def test_many_blocks_and_passes_give_the_same_answer(monkeypatch, masked):
    rng = np.random.default_rng(5)
    vectors = rng.integers(-3, 4, (500, 4)).astype(np.float32)
    queried = rng.integers(-3, 4, (17, 4)).astype(np.float32)
    allowed = {"none": None, "shared": rng.random(500) < 0.3, "own": rng.random((17, 500)) < 0.3}[masked]
    whole = exact_top_k(queried, vectors, 9, allowed=allowed)
    monkeypatch.setattr(brute_force, "_BLOCK_FLOATS", 64)
    monkeypatch.setattr(brute_force, "_QUERIES_PER_PASS", 4)
    pieces = exact_top_k(queried, vectors, 9, allowed=allowed)
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_array_equal(whole[1], pieces[1])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_several_masks_at_once_and_given_rows_equal_one_mask_at_a_time(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    n, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 50))
    vectors = rng.integers(-2, 3, (n, 3)).astype(np.float16)
    queried = rng.integers(-2, 3, (4, 3)).astype(np.float32)
    masks = [None, *(rng.random(n) < share for share in (0.0, 0.2, 0.9))]
    answers = exact_top_k_each(queried, vectors, k, masks)
    for mask, (rows, scores) in zip(masks, answers, strict=True):
        want_rows, want_scores = sorted_by_hand(queried, vectors, k, mask)
        np.testing.assert_array_equal(rows, want_rows)
        np.testing.assert_array_equal(scores, want_scores)
        if mask is not None:
            among = exact_top_k_among(queried, vectors, k, np.flatnonzero(mask))
            np.testing.assert_array_equal(among[0], want_rows)
            np.testing.assert_array_equal(among[1], want_scores)


def test_several_masks_in_many_blocks_and_passes(monkeypatch):
    rng = np.random.default_rng(6)
    vectors = rng.integers(-3, 4, (500, 4)).astype(np.float16)
    queried = rng.integers(-3, 4, (17, 4)).astype(np.float32)
    masks = [rng.random(500) < 0.3, None]
    whole = exact_top_k_each(queried, vectors, 9, masks)
    monkeypatch.setattr(brute_force, "_BLOCK_FLOATS", 64)
    monkeypatch.setattr(brute_force, "_QUERIES_PER_PASS", 4)
    shares = []
    pieces = exact_top_k_each(queried, vectors, 9, masks, shares.append)
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.99 < shares[-1] < 1
    with pytest.raises(SearchError, match="allowed must be bool of shape"):
        exact_top_k_each(queried, vectors, 9, [np.ones(7, bool)])


@pytest.mark.parametrize(
    ("queries", "k", "allowed", "rule"),
    [
        (np.zeros((1, 3), np.float32), 5, None, r"queries must be \(B, 2\), got \(1, 3\)"),
        (np.zeros(2, np.float32), 5, None, "queries must be"),
        (np.zeros((1, 2), np.int64), 5, None, "floating point, got int64"),
        (np.array([[0, 0], [np.nan, 0]], np.float32), 5, None, "query 1 is not"),
        (np.array([[1e300, 0]]), 5, None, "query 0 is not"),
        (np.array([[1e20, 0]], np.float32), 5, None, "query 0 is not"),
        (np.zeros((1, 2), np.float32), 0, None, "k must be at least 1, got 0"),
        (np.zeros((1, 2), np.float32), 5, np.ones(3, bool), "allowed must be bool of shape"),
        (np.zeros((1, 2), np.float32), 5, np.ones(4, np.int8), "allowed must be bool"),
    ],
)
def test_refuses(queries, k, allowed, rule):
    with pytest.raises(SearchError, match=rule):
        exact_top_k(queries, np.zeros((4, 2), np.float32), k, allowed=allowed)


def test_refuses_flat_vectors():
    with pytest.raises(SearchError, match=r"vectors must be \(n, Σd\)"):
        exact_top_k(np.zeros((1, 2), np.float32), np.zeros(4, np.float32), 1)


def test_recall_by_hand():
    found = np.array([[1, 2, -1], [7, 8, 9]])
    wanted = np.array([[2, 3, -1], [9, 8, 7]])
    assert recall(found, wanted) == pytest.approx(4 / 5)
    assert recall(np.array([[-1]]), np.array([[-1]])) == 1.0
    with pytest.raises(SearchError, match="recall needs"):
        recall(found, wanted[:1])
