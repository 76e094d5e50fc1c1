"""ListRanker: scores of slots and item-to-item lists together, exactly, over the whole catalogue."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.lists.item_lists import ItemLists
from index.lists.list_scores import ListScores
from training.ranking.baselines import Ranker


class ListRanker:
    """What lists add to the scores of another ranker.

    Args:
        lists: of the catalogue.
        ranker: scores the slots; None for the lists alone.
    """

    def __init__(self, lists: ItemLists, ranker: Ranker | None = None) -> None:
        self._scores, self._ranker = ListScores(lists), ranker

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """(B, n) float32 scores of every item; higher is better."""
        added = self._scores.dense(histories)
        return added if self._ranker is None else np.asarray(self._ranker.scores(histories) + added, dtype=np.float32)
