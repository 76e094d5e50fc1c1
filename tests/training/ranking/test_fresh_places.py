"""Ranking with places kept for new items, by hand and against the definition."""

import numpy as np
import pytest

from training.data.sequences import Targets
from training.ranking.fresh_places import FreshPlaces
from training.ranking.ranking import rank_targets


class Fixed:
    """Scores that do not depend on the history."""

    def __init__(self, scores: list[float]) -> None:
        self._scores = np.array(scores, dtype=np.float32)

    def scores(self, histories: list[np.ndarray]) -> np.ndarray:
        return np.tile(self._scores, (len(histories), 1))


def ranks_of(ranker: object, items: int, history: list[int] | None = None) -> list[float]:
    """Rank of every item as the target, 0 = best."""
    targets = np.arange(items)
    histories = [np.array(history or [], dtype=np.int64)] * items
    found = rank_targets(ranker, Targets(histories, targets, [f"u{row}" for row in targets]), np.ones(items, bool))
    return found.full.means.tolist()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_the_best_new_items_take_the_last_of_ten_places(share: float) -> None:
    new = np.zeros(20, dtype=np.bool_)
    new[[13, 15, 19]] = True
    ranks = ranks_of(FreshPlaces(Fixed([20.0 - row for row in range(20)]), new, np.ones(20, bool), share), 20)
    places = round(share * 10)
    first = np.argsort(ranks, kind="stable")[:10].tolist()
    assert first == [*range(10 - places), *[13, 15, 19][:places]]
    assert sorted(ranks) == list(range(20))


def test_new_items_among_the_first_ten_count() -> None:
    new = np.zeros(20, dtype=np.bool_)
    new[[4, 15]] = True
    plain = Fixed([20.0 - row for row in range(20)])
    assert ranks_of(FreshPlaces(plain, new, np.ones(20, bool), 0.1), 20) == ranks_of(plain, 20)
    assert ranks_of(FreshPlaces(plain, new, np.ones(20, bool), 0.2), 20)[15] == 9


def test_seen_and_unfindable_items_take_no_place() -> None:
    new = np.zeros(20, dtype=np.bool_)
    new[[13, 15, 19]] = True
    findable = np.ones(20, dtype=np.bool_)
    findable[15] = False
    ranker = FreshPlaces(Fixed([20.0 - row for row in range(20)]), new, findable, 0.1)
    assert ranks_of(ranker, 20, [0, 13])[19] == 9
    again = FreshPlaces(Fixed([20.0 - row for row in range(20)]), new, findable, 0.1, exclude_seen=False)
    assert np.argsort(-again.scores([np.array([0, 13])])[0])[:10].tolist() == [*range(9), 13]


def test_ties_stay_ties_and_scores_of_other_users_stay() -> None:
    new = np.zeros(20, dtype=np.bool_)
    new[[18, 19]] = True
    tied = FreshPlaces(Fixed([1.0] * 5 + [0.5] * 13 + [0.1] * 2), new, np.ones(20, bool), 0.2)
    scores = tied.scores([np.array([], dtype=np.int64)])[0]
    assert len(set(scores[:5].tolist())) == 1
    assert scores[18] == scores[19] < scores[:8].min()
    assert scores[8:18].max() < scores[18]
    none = FreshPlaces(Fixed([float(row) for row in range(20)]), ~new & False, np.ones(20, bool), 1.0)
    assert none.scores([np.array([], dtype=np.int64)])[0].tolist() == [float(row) for row in range(20)]
