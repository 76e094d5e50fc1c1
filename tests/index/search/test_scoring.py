"""Slot scores and re-ranking, by hand and against numpy in float64."""

import numpy as np

from index.items.slots import Slot, SlotLayout
from index.search.scoring import FoundVectors, gather, joined, rescore, slot_scores

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 1)))
VECTORS = np.array([[1, 0, 0], [0, 1, 2], [0, 0, 0], [1, 0, 0]], np.float16)


def test_slot_scores_by_hand():
    query = np.array([[2, 3, 5]], np.float32)
    parts = slot_scores(query, VECTORS[None].astype(np.float32), LAYOUT)
    assert parts.dtype == np.float32
    assert parts.tolist() == [[[2, 0], [3, 10], [0, 0], [2, 0]]]


def test_rescore_sorts_breaks_ties_and_pads():
    query = np.array([[2, 3, 5]], np.float32)
    rows, scores = rescore(query, np.array([[3, -1, 1, 0]]), VECTORS, 5)
    assert rows.tolist() == [[1, 0, 3, -1, -1]]
    assert scores.tolist() == [[13, 2, 2, -np.inf, -np.inf]]
    assert rescore(query, np.array([[3, 1, 0]]), VECTORS, 2)[0].tolist() == [[1, 0]]


def test_a_score_does_not_depend_on_the_other_candidates():
    rng = np.random.default_rng(0)
    layout = SlotLayout((Slot("text", 64), Slot("image", 37), Slot("behaviour", 16)))
    vectors = rng.normal(size=(500, layout.dim)).astype(np.float16)
    queries = rng.normal(size=(9, layout.dim)).astype(np.float32)
    everything = np.tile(np.arange(500), (9, 1))
    whole = slot_scores(queries, gather(vectors, everything), layout)
    for row in (0, 7, 499):
        alone = slot_scores(queries[3:4], gather(vectors, np.array([[row]])), layout)
        np.testing.assert_array_equal(alone[0, 0], whole[3, row])
    want = queries.astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_allclose(whole.sum(axis=2), want, atol=1e-4)


def test_found_vectors_come_first_and_others_are_read() -> None:
    found = FoundVectors(np.array([7, 2, 5]), np.array([[7.0, 0], [2, 0], [5, 0]], dtype=np.float32))
    read: list[list[int]] = []

    def others(rows: np.ndarray) -> np.ndarray:
        read.append(rows.tolist())
        return np.stack((rows, np.ones_like(rows)), axis=1).astype(np.float32)

    assert found.of(np.array([[2, 7], [5, 2]]), others).tolist() == [[[2, 0], [7, 0]], [[5, 0], [2, 0]]]
    assert read == []
    assert found.of(np.array([9, 5, 0]), others).tolist() == [[9, 1], [5, 0], [0, 1]]
    assert read == [[9, 0]]
    assert found.of(np.zeros(0, dtype=np.int64), others).shape == (0, 2)
    none = FoundVectors(np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.float32))
    assert none.of(np.array([3]), others).tolist() == [[3, 1]]


def test_found_vectors_are_joined() -> None:
    def vectors(*rows: int) -> FoundVectors:
        return FoundVectors(np.array(rows), np.array([[row, 1] for row in rows], dtype=np.float32))

    def others(rows: np.ndarray) -> np.ndarray:
        raise AssertionError(rows)

    whole = joined(None, vectors(7, 2), vectors(2, 9, 1), None, vectors(4))
    assert whole is not None
    assert whole.of(np.array([9, 7, 2, 1, 4]), others).tolist() == [[9, 1], [7, 1], [2, 1], [1, 1], [4, 1]]
    assert whole.has(np.array([3, 9, 2])).tolist() == [False, True, True]
    assert joined() is joined(None, None) is None
    one = vectors(3)
    assert one.joined_with(None) is joined(None, one) is one
