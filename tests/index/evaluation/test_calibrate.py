"""Calibration on searchers whose quality is known."""

import numpy as np
import pytest

from index.evaluation.calibrate import calibrate
from index.evaluation.measure import ExactResults, query_kinds
from index.items.slots import Slot, SlotLayout
from index.search.query_plan import SCAN

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
    return ExactResults(kinds, vectors, np.ones(500, bool), LAYOUT, 10, lambda _: None), vectors


def test_effort_rises_only_in_bands_that_need_it(exact):
    answers, vectors = exact
    effort = calibrate("hnsw", lambda tried: Gradual(vectors, tried, (200, 40)), answers, 0.97, lambda _: None)
    assert effort.per_k == 26
    assert sum(effort.typical) == pytest.approx(1)
    assert effort.bands[0][1] == 40  # the first of 32, 36, 40 … that is at least 40
    assert effort.bands[-1] == (1.0, 218)  # … 173, 194, 218 ≥ 200
    efforts = [value for _, value in effort.bands]
    assert efforts == sorted(efforts)
    final = Gradual(vectors, effort, (200, 40))
    assert all(answers.recall(final, kind) == 1.0 for kind in answers.kinds if kind != "image alone")


def test_a_band_that_no_effort_satisfies_is_scanned(exact):
    answers, vectors = exact
    effort = calibrate("hnsw", lambda tried: Gradual(vectors, tried, (10**9, 40)), answers, 0.97, lambda _: None)
    assert effort.bands[0][1] == 40
    assert effort.bands[-1] == (1.0, SCAN)


def test_effort_rises_if_the_first_band_misses_the_target(exact):
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


def test_an_index_that_never_reaches_the_target_ends_at_scans(exact):
    answers, vectors = exact
    effort = calibrate("ivf", lambda tried: Gradual(vectors, tried, (9**9, 9**9), True), answers, 0.97, lambda _: None)
    assert {value for _, value in effort.bands} == {SCAN}


def test_flat_needs_no_effort(exact):
    answers, vectors = exact
    effort = calibrate("flat", lambda tried: Gradual(vectors, tried, (0, 0)), answers, 0.97, lambda _: None)
    assert effort.bands == ((1.0, SCAN),)


def test_growth_rises_until_filtered_queries_reach_the_target(exact):
    """Filters need 54 / 36-fold candidates at half of the rows; here only an effort of 100 finds them."""
    answers, vectors = exact

    class Deep(Gradual):
        def search(self, queries, k, allowed=None):
            rows, found = Gradual.search(self, queries, k)
            if allowed is not None:
                wider = self.effort.bands[0][1] * (108 / 36) ** self.effort.growth
                found[:, k // 2 :] = -np.inf if wider < 100 else found[:, k // 2 :]
            return rows, found

    effort = calibrate("hnsw", lambda tried: Deep(vectors, tried, (40, 40)), answers, 0.97, lambda _: None)
    assert effort.bands[0][1] == 40  # nobody pays for it who does not filter
    assert effort.growth == 0.875  # 40 × 3^.75 = 91 is too little, 40 × 3^.875 = 105 is enough
    final = Deep(vectors, effort, (40, 40))
    assert min(answers.recall(final, kind) for kind in answers.kinds) >= 0.97


def test_every_band_rises_if_growth_is_not_enough(exact):
    answers, vectors = exact

    class Stubborn(Gradual):
        def search(self, queries, k, allowed=None):
            rows, found = Gradual.search(self, queries, k)
            if allowed is not None and 0 != self.effort.bands[0][1] < 500:
                found[:, k // 2 :] = -np.inf
            return rows, found

    effort = calibrate("hnsw", lambda tried: Stubborn(vectors, tried, (40, 40)), answers, 0.97, lambda _: None)
    assert effort.growth == 1.25
    assert all(value >= 500 for _, value in effort.bands)


def test_progress_only_rises(exact):
    answers, vectors = exact
    shares = []
    calibrate("hnsw", lambda tried: Gradual(vectors, tried, (200, 40)), answers, 0.97, shares.append)
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert max(shares) < 1
