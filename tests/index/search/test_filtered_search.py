"""Properties of a built bundle's search, for every kind of index and codes, under filters of any selectivity.

The exact paths equal brute force, row for row; the others reach the recall of the gate. All return min(k, allowed)
distinct allowed rows, best first.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.bundle.bundle import Bundle
from index.bundle.manifest import Manifest
from index.search.row_mask import RowMask

pytestmark = pytest.mark.no_cover

GATE = 0.95
WAYS = [(kind, codes) for kind in ("flat", "hnsw", "ivf") for codes in ("fp32", "fp16", "sq8")]
SIZES = [1, 40, 3000]
SHARES = [0.0, 1e-9, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 0.999, 1.0]


class Opened:
    """A bundle, what it stores, and whether its index itself is exact.

    `content` is that of all bundles with the same vectors and encoder, whatever their kind.
    """

    def __init__(self, path):
        self.bundle = Bundle.load(path)
        self.vectors = np.load(path / "vectors.npy")
        self.rows = len(self.bundle)
        manifest = Manifest.read(path)
        self.content = tuple(manifest.files[name].sha256 for name in ("vectors.npy", "encoder.onnx"))
        parameters = manifest.index.parameters
        self.exact = (self.bundle.manifest.index.kind, parameters["codes"]) in {("flat", "fp16"), ("flat", "fp32")}


@pytest.fixture(scope="module")
def opened(tmp_path_factory, make_bundle):
    """Bundles by (kind, codes, items), built at first use."""
    known = {}

    def get(kind, codes, items):
        key = (kind, codes, items)
        if key not in known:
            out = tmp_path_factory.mktemp("filtered")
            with pytest.MonkeyPatch.context() as patch:  # comparing all pictures takes most of the time of a build
                patch.setattr("index.evaluation.catalogue_audit._COMPARISONS", 1)
                known[key] = Opened(make_bundle(out, kind, items=items, codes=codes, evaluation_queries=64))
        return known[key]

    return get


def queries_of(here, rng, count):
    """Queries as they are served: of histories, with the slots weighed, sometimes one alone."""
    histories = [rng.integers(0, here.rows, rng.integers(1, 6)) for _ in range(count)]
    queries = here.bundle.encode(histories)
    weights = [{}, {"text": 3.0}, {"image": 3.0}, {"text": 0.0, "image": 0.0}, {"behaviour": 0.0}]
    return queries * here.bundle.layout.weights(weights[rng.integers(len(weights))])


def a_filter(here, query, kind, share, rng):
    """Rows at random, or only those near the query, or only those far from it."""
    if kind == "random":
        return rng.random(here.rows) < max(share, 1 / here.rows if share else 0.0)
    scores = here.vectors.astype(np.float32) @ query
    order = np.argsort(-scores if kind == "near" else scores, kind="stable")
    mask = np.zeros(here.rows, bool)
    mask[order[: round(share * here.rows)]] = True
    return mask


def check_property(here, data, check_answer, brute_force):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**20), label="seed"))
    queries = queries_of(here, rng, data.draw(st.sampled_from([1, 5]), label="queries"))
    k = data.draw(st.one_of(st.integers(1, 60), st.sampled_from([200, 1000, here.rows, here.rows + 7])), label="k")
    kind = data.draw(st.sampled_from(["none", "random", "near", "far", "taken"]), label="filter")
    share = data.draw(st.sampled_from(SHARES), label="share")
    mask, allowed = np.ones(here.rows, bool), None
    if kind == "taken":  # what a user has seen: the very nearest
        base = a_filter(here, queries[0], "random", share, rng)
        nearest = np.argsort(-(here.vectors.astype(np.float32) @ queries[0]))[: rng.integers(1, 300)]
        allowed = RowMask.of(base, here.bundle.indexed).without(nearest)
        mask = allowed.mask
    elif kind != "none":
        mask = a_filter(here, queries[0], kind, share, rng)
        allowed = RowMask.of(mask, here.bundle.indexed) if rng.random() < 0.5 else mask
    found = here.bundle.search(queries, k, allowed=allowed)
    findable = mask & here.bundle.indexed
    check_answer(found.rows, found.scores, queries, here.vectors, findable, k)
    if here.exact or findable.sum() <= 20:
        want_rows, want_scores = brute_force(queries, here.vectors, here.bundle.layout, findable, k)
        np.testing.assert_array_equal(found.rows, want_rows)
        np.testing.assert_array_equal(found.scores, want_scores)


@pytest.mark.parametrize(("kind", "codes"), WAYS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_always_the_right_number_of_allowed_rows(opened, check_answer, brute_force, kind, codes, data):
    items = data.draw(st.sampled_from(SIZES), label="items")
    check_property(opened(kind, codes, items), data, check_answer, brute_force)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "codes"), WAYS)
def test_always_the_right_number_of_allowed_rows_of_20000(opened, check_answer, brute_force, kind, codes):
    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def holds(data):
        check_property(opened(kind, codes, 20_000), data, check_answer, brute_force)

    holds()


@pytest.fixture(scope="module")
def exact(brute_force):
    """Queries under a filter of their own: query, mask, how many rows it has, at most k, and the score of the last.

    Made at first use; brute force takes longer than the searches, and the kinds of an index do not change it.
    """
    known = {}

    def get(here, side, share, k, count):
        key = (here.content, side, share, k, count)
        if key not in known:
            rng = np.random.default_rng(11)
            known[key] = []
            for query in queries_of(here, rng, count):
                mask = a_filter(here, query, side, share, rng)
                findable = mask & here.bundle.indexed
                least = min(k, int(findable.sum()))
                assert least
                score = brute_force(query[None], here.vectors, here.bundle.layout, findable, least)[1][0, -1]
                known[key].append((query, mask, least, score))
        return known[key]

    return get


def recall_of(here, cases, k):
    """Mean recall@k of queries, each under its filter."""
    hits = []
    for query, mask, least, score in cases:
        found = here.bundle.search(query[None], k, allowed=mask)
        hits.append((found.scores[0, :least] >= score).mean())
    return np.mean(hits)


FILTERS = [("random", share) for share in (1.0, 0.9, 0.5, 0.2, 0.05, 0.01)]
FILTERS += [(side, share) for side in ("near", "far") for share in (0.99, 0.9, 0.5, 0.1)]


@pytest.mark.parametrize(("kind", "codes"), WAYS)
@pytest.mark.parametrize("k", [20, 200])
def test_recall_reaches_the_gate_under_every_filter(opened, exact, kind, codes, k):
    here = opened(kind, codes, 3000)
    assert min(here.bundle.manifest.index.recall.values()) >= GATE
    for side, share in FILTERS:
        found = recall_of(here, exact(here, side, share, k, 25), k)
        assert found >= GATE - 0.02, (side, share, found)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "codes"), WAYS)
@pytest.mark.parametrize("k", [20, 1000])
def test_recall_reaches_the_gate_under_every_filter_of_20000(opened, exact, kind, codes, k):
    here = opened(kind, codes, 20_000)
    for side, share in FILTERS:
        found = recall_of(here, exact(here, side, share, k, 60), k)
        assert found >= GATE - 0.02, (side, share, found)


def test_a_repeated_filter_finds_the_same_as_a_plain_mask(opened):
    here = opened("hnsw", "sq8", 3000)
    queries = queries_of(here, np.random.default_rng(0), 8)
    condition = {"must": [{"field": "category", "eq": "shoes"}], "must_not": [{"field": "price", "lt": 100}]}
    allowed = here.bundle.allowed(condition)
    assert here.bundle.allowed(condition) is allowed
    plain = np.array([row % 3 == 0 and row >= 100 for row in range(here.rows)])
    np.testing.assert_array_equal(allowed.mask, plain)
    by_cache, by_mask = (here.bundle.search(queries, 20, allowed=given) for given in (allowed, plain.copy()))
    np.testing.assert_array_equal(by_cache.rows, by_mask.rows)
    np.testing.assert_array_equal(
        here.bundle.popular(9, allowed=allowed).rows, here.bundle.popular(9, allowed=plain).rows
    )
    assert here.bundle.allowed().count == here.rows - 1  # row 3 has no slot
