"""Ranks as an answer of ten items that keeps places for new items, the best of which take the last places."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.ranking.baselines import Ranker
from training.ranking.ranking import LIST_LENGTH, mask_histories

_ROUNDING = 1e-9


class FreshPlaces:
    """The rule of `fresh_share` in docs/http.md, for the first ten places.

    Args:
        ranker: gives the scores.
        new: (n,) bool, items without training events.
        findable: (n,) bool, items that the ranker can return.
        share: of the ten places, 0 … 1.
        exclude_seen: leave out the items of the history, as the service does.
    """

    def __init__(
        self,
        ranker: Ranker,
        new: NDArray[np.bool_],
        findable: NDArray[np.bool_],
        share: float,
        *,
        exclude_seen: bool = True,
    ) -> None:
        self._ranker = ranker
        self._new, self._findable = new, findable
        self._places = int(share * LIST_LENGTH + _ROUNDING)
        self._exclude_seen = exclude_seen

    def scores(self, histories: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Scores of every item; for users whose first ten places have too few new items, their ranks with the places.

        Args:
            histories: B arrays of item rows, oldest first, at least one each.

        Returns:
            (B, n) float32, finite, higher is better; items that tie still tie.
        """
        scores = np.array(self._ranker.scores(histories), dtype=np.float32)
        seen = histories if self._exclude_seen else [history[:0] for history in histories]
        candidates = mask_histories(seen, self._findable)
        for own, allowed in zip(scores, candidates, strict=True):
            self._keep_places(own, np.flatnonzero(allowed))
        return scores

    def _keep_places(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Replace the scores of one user, (n,), in place where places are missing; ``rows`` may be returned."""
        order = rows[np.argsort(-scores[rows], kind="stable")]
        first, rest = order[:LIST_LENGTH], order[LIST_LENGTH:]
        short = self._places - int(np.count_nonzero(self._new[first]))
        placed = rest[self._new[rest]][: max(short, 0)]
        if not placed.size:
            return
        displaced = first[~self._new[first]][-placed.size :]
        scores[:] = np.unique(scores, return_inverse=True)[1]  # whole numbers below 2²⁴, exact in float32
        scores[placed] += len(scores)
        scores[np.setdiff1d(first, displaced)] += 2 * len(scores)
