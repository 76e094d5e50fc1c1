"""Exact scores of slots and lists together, against brute force, and the recall of searches of known quality."""

import numpy as np
import pytest

from index.evaluation.listed_queries import with_lists
from index.evaluation.measure import PLAIN, ExactResults, kind_weights, query_kinds, result_spread
from index.items.slots import Slot, SlotLayout
from index.lists.list_scores import ListScores
from tests.support.listed_bundles import random_lists

LAYOUT = SlotLayout((Slot("text", 2), Slot("image", 2), Slot("behaviour", 2)))
ITEMS = 600
INDEXED = np.arange(ITEMS) % 10 != 0
PRESENT = {"text": ITEMS, "image": ITEMS, "behaviour": ITEMS}


class Whole:
    """Searches by brute force over slots and lists; its order can be made to ignore the lists or their slot weights."""

    def __init__(self, vectors, lists, *, ignore=None):
        self.vectors, self.lists, self.ignore = vectors, lists, ignore
        self.histories = []

    def scores(self, queries, histories, ignore=None):
        scores = (queries @ self.vectors.T).astype(np.float64)
        for number, history in enumerate(histories):
            parts = self.lists.parts([history.rows], [np.arange(ITEMS)]).parts
            scales = [history.slot_weights[LAYOUT.names.index(slot)] for slot in self.lists.lists.slots]
            factors = {None: scales, "lists": np.zeros(2), "slot weights": np.ones(2)}[ignore]
            scores[number] += parts @ factors
        return scores

    def search(self, queries, k, allowed=None, *, histories=None):
        self.histories.append(histories)
        findable = INDEXED if allowed is None else allowed.findable
        ranked = np.where(findable, self.scores(queries, histories, self.ignore), -np.inf)
        rows = np.argsort(-ranked, axis=1, kind="stable")[:, :k]
        return rows, np.take_along_axis(self.scores(queries, histories), rows, axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(ITEMS, LAYOUT.dim)).astype(np.float32)
    vectors[~INDEXED] = 0
    histories = [rng.integers(0, ITEMS, rng.integers(1, 9)) for _ in range(70)]
    queries = rng.normal(size=(70, LAYOUT.dim)).astype(np.float32)
    lists = ListScores(random_lists(ITEMS, neighbours=40, weights={"co": 3.0, "words": 2.0}), LAYOUT)
    kinds = query_kinds(queries, LAYOUT, PRESENT)
    exact = ExactResults(kinds, vectors, INDEXED, LAYOUT, 10, lambda _: None)
    return vectors, lists, with_lists(exact, histories, kind_weights(LAYOUT, PRESENT), lists, vectors, INDEXED)


def test_every_kind_has_the_kth_score_of_brute_force(made):
    vectors, lists, kinds = made
    assert {"plain", "text x3", "image alone", "filtered 1 %", "plain top 100", "nearest 1 % excluded"} <= set(kinds)
    for query_set in kinds.values():
        scores = Whole(vectors, lists).scores(query_set.queries, query_set.histories)
        for number, allowed in enumerate(query_set.filters(np.arange(len(scores)))):
            findable = INDEXED if allowed is None else allowed.findable
            best = np.sort(scores[number][findable])[::-1]
            assert query_set.min_scores[number] == pytest.approx(best[query_set.k - 1], rel=3e-5, abs=3e-5)
            assert query_set.min_scores[number] <= best[query_set.k - 1]


def test_a_search_over_everything_has_recall_1_and_others_less(made):
    vectors, lists, kinds = made
    for kind, query_set in kinds.items():
        assert query_set.recall(Whole(vectors, lists)) == 1.0, kind
    assert kinds[PLAIN].recall(Whole(vectors, lists, ignore="lists")) < 0.7
    assert kinds["text alone"].recall(Whole(vectors, lists, ignore="slot weights")) < 0.7


def test_each_query_is_searched_with_its_own_history(made):
    vectors, lists, kinds = made
    whole = Whole(vectors, lists)
    kinds[PLAIN].recall(whole, np.array([5, 2]))
    assert [history.rows.tolist() for history in whole.histories[0]] == [
        kinds[PLAIN].histories[place].rows.tolist() for place in (5, 2)
    ]
    kinds["nearest 1 % excluded"].recall(whole, np.array([7]))
    assert whole.histories[1][0] is kinds["nearest 1 % excluded"].histories[7]


def test_shares_include_the_lists_of_a_slot(made):
    vectors, lists, kinds = made
    plain, whole = kinds[PLAIN], Whole(vectors, lists)
    spread = result_spread(whole, plain, vectors, LAYOUT, lists)
    slots, listed = [], []
    rows, _ = whole.search(plain.queries, plain.k, histories=plain.histories)
    for query, history, found in zip(plain.queries, plain.histories, rows, strict=True):
        parts = dict(zip(("co", "words"), lists.parts([history.rows], [np.arange(ITEMS)]).parts.T, strict=True))
        for row in found:
            text, image, behaviour = (query * vectors[row]).reshape(3, 2).sum(axis=1)
            whole_parts = np.maximum([text + parts["words"][row], image, behaviour + parts["co"][row]], 0)
            slots.append(whole_parts / whole_parts.sum())
            listed.append([parts[name][row] / whole_parts.sum() for name in ("co", "words")])
    assert list(spread["slot_shares"].values()) == pytest.approx(np.mean(slots, axis=0), abs=1e-4)
    assert list(spread["list_shares"].values()) == pytest.approx(np.mean(listed, axis=0), abs=1e-4)
    assert list(spread["list_shares"]) == ["co", "words"]
