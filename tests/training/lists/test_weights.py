"""The search of weights: on planted data it finds what is known to be right, and its figure is the exact one."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from index.lists.item_lists import ItemList, ItemLists, ListWeights
from tests.support.listed_bundles import compressed
from training.data.sequences import Targets
from training.lists.list_ranker import ListRanker
from training.lists.validation_pool import MOST_WEIGHT, ScoredCandidates, ValidationPool
from training.lists.weights import choose_weights
from training.ranking import metrics
from training.ranking.ranking import rank_targets

ITEMS = 60
EVERYTHING = np.ones(ITEMS, dtype=np.bool_)


class Noise:
    """Scores without meaning, other for every newest item."""

    def __init__(self, size: float) -> None:
        self._scores = np.random.default_rng(1).normal(0, size, (ITEMS, ITEMS)).astype(np.float32)

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        return self._scores[[int(history[-1]) for history in histories]]


def following(name: str, step: int, similarity: float = 0.5) -> ItemList:
    """Each item names the one ``step`` further on."""
    return compressed(
        name,
        [(np.array([(row + step) % ITEMS], np.int32), np.array([similarity], np.float16)) for row in range(ITEMS)],
    )


def random_list(name: str, seed: int, entries: int = 8) -> ItemList:
    rng = np.random.default_rng(seed)
    lists = []
    for row in range(ITEMS):
        others = rng.permutation(np.delete(np.arange(ITEMS), row))[:entries].astype(np.int32)
        lists.append((others, np.sort(rng.random(entries).astype(np.float16) + np.float16(0.01))[::-1]))
    return compressed(name, lists)


def walks(step: int, users: int = 200) -> Targets:
    """Users whose next item is ``step`` after their newest, whatever came before."""
    rng = np.random.default_rng(2)
    histories = [rng.integers(0, ITEMS, size=rng.integers(1, 6)) for _ in range(users)]
    targets = np.array([(history[-1] + step) % ITEMS for history in histories])
    fresh = [n for n, history in enumerate(histories) if targets[n] not in history]
    return Targets([histories[n] for n in fresh], targets[fresh], [f"u{n}" for n in fresh])


def test_a_list_that_knows_the_answer_is_used_and_one_that_does_not_is_left_out() -> None:
    lists = {"co": following("co", 3), "words": following("words", 11)}
    pool = ValidationPool(Noise(0.1), walks(3), EVERYTHING, lists, 4, exclude_seen=True)
    done: list[int] = []
    chosen = choose_weights(pool, 4, progress=done.append)
    assert chosen.weights.weights["co"] > 0
    assert chosen.weights.weights["words"] == 0
    assert chosen.ndcg > 0.9 > 0.3 > chosen.ndcg_without
    assert chosen.weights.recency[0] == 1
    assert (np.diff(chosen.weights.recency) < 0).all()  # only the newest item tells the answer
    assert done == list(range(1, len(done) + 1))


def test_a_list_of_small_similarities_gets_a_large_weight() -> None:
    """At a weight of 0.3 the list changes no rank: its scores are a hundredth of the slots'."""
    lists = {"co": following("co", 3, similarity=0.02)}
    chosen = choose_weights(ValidationPool(Noise(0.5), walks(3), EVERYTHING, lists, 4, exclude_seen=True), 4)
    assert chosen.weights.weights["co"] > 20
    assert chosen.ndcg > 0.9


def test_lists_that_know_nothing_are_all_left_out() -> None:
    class Right(Noise):
        def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
            return np.eye(ITEMS, dtype=np.float32)[[(int(history[-1]) + 3) % ITEMS for history in histories]]

    pool = ValidationPool(Right(1), walks(3), EVERYTHING, {"co": following("co", 5)}, 4, exclude_seen=True)
    chosen = choose_weights(pool, 4)
    assert chosen.weights.weights == {"co": 0}
    assert chosen.ndcg == chosen.ndcg_without == 1


def test_the_lists_alone_are_weighed_without_slots() -> None:
    lists = {"co": following("co", 3), "words": random_list("words", 3)}
    chosen = choose_weights(ValidationPool(None, walks(3), EVERYTHING, lists, 4, exclude_seen=True), 4)
    assert chosen.ndcg_without == 0
    assert chosen.ndcg > 0.9


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("alone", [False, True])
def test_the_figure_is_that_of_ranking_the_whole_catalogue(exclude_seen: bool, alone: bool) -> None:
    rng = np.random.default_rng(4)
    lists = {"co": random_list("co", 5), "words": random_list("words", 6, 12)}
    findable = rng.random(ITEMS) < 0.9
    histories = [rng.integers(0, ITEMS, size=rng.integers(1, 9)) for _ in range(300)]
    validation = Targets(histories, rng.integers(0, ITEMS, size=300), [f"u{n}" for n in range(300)])
    ranker = None if alone else Noise(0.2)
    pool = ValidationPool(ranker, validation, findable, lists, 5, exclude_seen=exclude_seen)
    for recency in (0.4, 1.0):
        for weights in ((0.3, 0.0), (0.1, 0.7), (2.0, 0.5)):
            recencies = np.power(recency, np.arange(5)).astype(np.float32)
            together = ItemLists(
                ITEMS, tuple(lists.values()), ListWeights(recencies, dict(zip(lists, weights, strict=True)))
            )
            whole = ListRanker(together, ranker)
            rank = rank_targets(whole, validation, findable, exclude_seen=exclude_seen).full
            if alone:  # the lists return no item without a score
                scores = whole.scores(validation.histories)
                rank = rank.missed(scores[np.arange(300), validation.targets] <= 0)
            assert pool.scored(recency).ndcg(weights) == pytest.approx(metrics.gains(rank, 10).mean(), abs=1e-9)


@pytest.mark.parametrize("unscored_missed", [False, True])
def test_candidates_that_no_weights_bring_before_their_target_change_no_rank(unscored_missed: bool) -> None:
    rng = np.random.default_rng(11)
    lengths = rng.integers(1, 40, size=200)
    candidates = int(lengths.sum())
    targets = np.cumsum(lengths) - lengths + rng.integers(0, lengths)
    slots: NDArray[np.float32] = rng.integers(-8, 9, size=candidates).astype(np.float32) / np.float32(8)  # many ties
    slots[rng.random(candidates) < 0.2] += np.float32(1e-7)  # differences that rounding takes away
    parts = np.where(rng.random((candidates, 3)) < 0.7, 0, rng.integers(1, 5, size=(candidates, 3)) / 4)
    every = ScoredCandidates(
        slots, parts.astype(np.float32), lengths, targets, users=250, unscored_missed=unscored_missed
    )
    fewer = every.without_dominated()
    assert len(fewer) < 0.9 * len(every)
    for weights in ((0.0, 0.0, 0.0), (0.3, 0.0, 0.7), (0.0, MOST_WEIGHT, 0.0), (MOST_WEIGHT,) * 3, (0.005, 0.1, 33.3)):
        expected, found = every.ranks(weights), fewer.ranks(weights)
        np.testing.assert_array_equal(found.ahead, expected.ahead)
        np.testing.assert_array_equal(found.tied, expected.tied)
        assert fewer.ndcg(weights) == every.ndcg(weights)
        assert fewer.standard_error(weights) == every.standard_error(weights)


def test_without_a_target_in_reach_nothing_is_chosen() -> None:
    never = Targets([np.array([row]) for row in range(9)], np.arange(3, 12), [f"u{row}" for row in range(9)])
    pool = ValidationPool(None, never, EVERYTHING, {"look": following("look", 4)}, 2, exclude_seen=True)
    chosen = choose_weights(pool, 2)
    assert (chosen.ndcg, chosen.weights.weights) == (0, {"look": 0})
