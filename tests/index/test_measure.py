"""Calibration and measurement on searchers whose quality is known."""

import numpy as np
import pytest

from index.calibrate import calibrate
from index.measure import PLAIN, Exact, query_kinds, spread
from index.plan import SCAN
from index.slots import Slot, SlotLayout

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 2)))


class Gradual:
    """Finds the best k, but loses the last ones unless its effort reaches ``needed`` for the query's skew."""

    def __init__(self, vectors, effort, needed, hopeless=False):
        self.vectors, self.effort, self.needed, self.hopeless = vectors, effort, needed, hopeless

    def search(self, queries, k, allowed=None):
        scores = queries @ self.vectors.T
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(scores, rows, axis=1)
        image_only = np.abs(queries[:, :2]).sum(axis=1) == 0
        effort = self.effort.of(queries, LAYOUT)
        short = (effort < np.where(image_only, *self.needed)) & ((effort != SCAN) | self.hopeless)
        found[short, k // 2 :] = -np.inf
        return rows, found.astype(np.float32)


@pytest.fixture(scope="module")
def exact():
    rng = np.random.default_rng(0)
    vectors = rng.integers(-1000, 1000, (500, 4)).astype(np.float32)  # integers, so that every sum is exact
    queries = rng.integers(-1000, 1000, (200, 4)).astype(np.float32)
    kinds = query_kinds(queries, LAYOUT, {"text": 500, "image": 500})
    return Exact(kinds, vectors, np.ones(500, bool), LAYOUT, 10, lambda _: None), vectors


def test_kinds_by_hand():
    queries = np.array([[1, 2, 3, 4]], np.float32)
    kinds = query_kinds(queries, LAYOUT, {"text": 5, "image": 0})
    assert {name: asked.tolist() for name, asked in kinds.items()} == {
        "plain": [[1, 2, 3, 4]],
        "text x3": [[3, 6, 3, 4]],
        "text alone": [[1, 2, 0, 0]],
    }
    assert list(query_kinds(queries[:, :2], SlotLayout((Slot("text", 2),)), {"text": 5})) == [PLAIN]


def test_effort_rises_only_where_it_must(exact):
    answers, vectors = exact
    effort = calibrate("hnsw", lambda tried: Gradual(vectors, tried, (200, 40)), answers, 0.97, lambda _: None)
    assert effort.per_k == 26
    assert sum(effort.typical) == pytest.approx(1)
    assert effort.bands[0][1] == 40  # the first of 32, 40, 50 … that is at least 40
    assert effort.bands[-1] == (1.0, 233)  # … 150, 187, 233 ≥ 200
    efforts = [value for _, value in effort.bands]
    assert efforts == sorted(efforts)
    final = Gradual(vectors, effort, (200, 40))
    assert all(answers.recall(final, kind) == 1.0 for kind in answers.kinds if kind != "image alone")


def test_what_no_effort_reaches_is_scanned(exact):
    answers, vectors = exact
    effort = calibrate("hnsw", lambda tried: Gradual(vectors, tried, (10**9, 40)), answers, 0.97, lambda _: None)
    assert effort.bands[0][1] == 40
    assert effort.bands[-1] == (1.0, SCAN)


def test_what_the_first_band_spares_is_made_up_for(exact):
    """Here 'image x3' needs much more than plain queries of the same skew, so all bands rise together."""
    answers, vectors = exact

    class Picky(Gradual):
        def search(self, queries, k, allowed=None):
            rows, found = Gradual.search(self, queries, k)
            tripled = np.abs(queries[:, 2:]).max(axis=1) > 1000  # plain components stay below
            found[tripled & (self.effort.of(queries, LAYOUT) < 100), k // 2 :] = -np.inf
            return rows, found

    effort = calibrate("hnsw", lambda tried: Picky(vectors, tried, (40, 40)), answers, 0.97, lambda _: None)
    final = Picky(vectors, effort, (40, 40))
    assert effort.bands[0][1] >= 100
    assert min(answers.recall(final, kind) for kind in answers.kinds) >= 0.96


def test_an_index_that_never_gets_there_ends_at_scans(exact):
    answers, vectors = exact
    effort = calibrate("ivf", lambda tried: Gradual(vectors, tried, (9**9, 9**9), True), answers, 0.97, lambda _: None)
    assert {value for _, value in effort.bands} == {SCAN}


def test_flat_needs_no_effort(exact):
    answers, vectors = exact
    effort = calibrate("flat", lambda tried: Gradual(vectors, tried, (0, 0)), answers, 0.97, lambda _: None)
    assert effort.bands == ((1.0, SCAN),)


def test_recall_by_hand(exact):
    answers, vectors = exact
    effort = calibrate("flat", lambda tried: Gradual(vectors, tried, (0, 0)), answers, 0.97, lambda _: None)
    assert answers.recall(Gradual(vectors, effort, (0, 0)), PLAIN) == 1.0
    assert answers.recall(Gradual(vectors, effort, (1, 1), hopeless=True), PLAIN) == 0.5  # half of each answer is lost
    assert answers.recall(Gradual(vectors, effort, (1, 1), hopeless=True), PLAIN, np.array([3])) == 0.5


def test_equal_scores_are_not_held_against_the_index():
    vectors = np.zeros((50, 4), np.float32)
    vectors[:3, 0] = 1.0
    queries = np.array([[1, 0, 0, 0]], np.float32)
    answers = Exact({PLAIN: queries}, vectors, np.ones(50, bool), LAYOUT, 10, lambda _: None)

    class FromTheEnd:
        def search(self, queries, k, allowed=None):
            rows = np.array([[0, 1, 2, *range(49, 42, -1)]])
            return rows, (queries @ vectors.T)[:, rows[0]]

    assert answers.recall(FromTheEnd(), PLAIN) == 1.0


def test_spread_by_hand():
    vectors = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0]], np.float32)

    class First:
        def search(self, queries, k, allowed=None):
            return np.array([[2, 0, -1], [2, 1, -1]]), None

    queries = np.array([[1, 0, 1, 0], [3, 0, 1, 0]], np.float32)
    # shares of text: row 2: 1/2, row 0: 1; row 2: 3/4, row 1: 0 → mean 9/16
    assert spread(First(), queries, vectors, LAYOUT, 3) == {
        "queries": 2,
        "distinct_items": 3,
        "slot_shares": {"text": 0.5625, "image": 0.4375},
    }
