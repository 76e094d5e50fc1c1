"""Slot scores and re-ranking, by hand and against numpy in float64."""

import numpy as np

from index.items.slots import Slot, SlotLayout
from index.search.scoring import gather, rescore, slot_scores

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 1)))
VECTORS = np.array([[1, 0, 0], [0, 1, 2], [0, 0, 0], [1, 0, 0]], np.float16)


def test_slot_scores_by_hand():
    query = np.array([[2, 3, 5]], np.float32)
    parts = slot_scores(query, VECTORS[None].astype(np.float32), LAYOUT)
    assert parts.dtype == np.float32
    assert parts.tolist() == [[[2, 0], [3, 10], [0, 0], [2, 0]]]


def test_rescore_sorts_breaks_ties_and_pads():
    query = np.array([[2, 3, 5]], np.float32)
    rows, scores = rescore(query, np.array([[3, -1, 1, 0]]), VECTORS, LAYOUT, 5)
    assert rows.tolist() == [[1, 0, 3, -1, -1]]
    assert scores.tolist() == [[13, 2, 2, -np.inf, -np.inf]]
    assert rescore(query, np.array([[3, 1, 0]]), VECTORS, LAYOUT, 2)[0].tolist() == [[1, 0]]


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
