"""Keeps places of an answer for new items: those without a training event.

Of the first n places at least ⌊share · n⌋ belong to new items, if so many may be answered. Where the best n items hold
fewer, the best new items replace the known items with the lowest scores. The n items keep the order of their scores, so
the new ones take the last places. The first n places are always among the first n + 1: pages do not repeat items.
"""

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.search.row_mask import RowMask, RowRule
from service.recommend.engine import SearchResult

_MOST_MASKS = 8  # combined masks that are kept; one of a million rows takes 2 MB
_ROUNDING = 1e-9  # .29 · 100 is 28.999999999999996


def places_for_new(share: float, length: int) -> int:
    """⌊share · length⌋: how many of the first places are kept for new items.

    Args:
        share: 0 … 1.
        length: number of places.
    """
    return int(share * length + _ROUNDING)


def is_new(bundle: Bundle, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which items have no training event.

    Args:
        bundle: of the catalogue.
        rows: (k,) int64.

    Returns:
        (k,) bool.
    """
    return np.asarray(bundle.popularity[rows] == 0)


class NewItems:
    """The new items that may be recommended, as masks for a search; to be used in the event loop."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[Bundle, RowMask] = WeakKeyDictionary()
        self._among: WeakKeyDictionary[RowMask, RowMask] = WeakKeyDictionary()

    def among(self, bundle: Bundle, allowed: RowMask | None) -> RowMask:
        """The new items among the allowed rows.

        Args:
            bundle: of the catalogue.
            allowed: the rows that may be recommended; None: all.
        """
        mask = self._of.get(bundle)
        if mask is None:
            rule = RowRule(only_new=True)
            mask = self._of[bundle] = RowMask.of(np.asarray(bundle.popularity == 0), bundle.indexed, rule)
        if allowed is None:
            return mask
        combined = self._among.get(allowed)
        if combined is None:
            if len(self._among) >= _MOST_MASKS:
                self._among.clear()
            rule = RowRule(None if allowed.rule is None else allowed.rule.condition, only_new=True)
            combined = RowMask.of(mask.mask & allowed.mask, bundle.indexed, rule)
            self._among[allowed] = combined
        return combined


def first_places(
    bundle: Bundle, found: SearchResult, fresh: SearchResult | None, share: float, length: int
) -> SearchResult:
    """The items of the first places.

    Args:
        bundle: of the catalogue.
        found: the best items, at least ``length`` of them if there are so many.
        fresh: the best new items, at least :func:`places_for_new` of them if there are so many; None: ``found`` holds
            them.
        share: share of the places that is kept for new items, 0 … 1.
        length: number of places.

    Returns:
        At most ``length`` items, best first.
    """
    rows, scores = found.rows[:length], found.scores[:length]
    if not share:
        return SearchResult(found.query, rows, scores, found.vectors)
    new = is_new(bundle, rows)
    short = places_for_new(share, length) - int(np.count_nonzero(new))
    if short <= 0:
        return SearchResult(found.query, rows, scores, found.vectors)
    others, their_scores = found.rows[length:], found.scores[length:]
    if fresh is not None:
        unseen = ~np.isin(fresh.rows, found.rows)
        others = np.concatenate((others, fresh.rows[unseen]))
        their_scores = np.concatenate((their_scores, fresh.scores[unseen]))
    order = np.lexsort((others, -their_scores))
    best = order[is_new(bundle, others[order])][:short]
    kept = np.delete(np.arange(rows.shape[0]), np.flatnonzero(~new)[::-1][: best.shape[0]])
    rows, scores = np.concatenate((rows[kept], others[best])), np.concatenate((scores[kept], their_scores[best]))
    order = np.lexsort((rows, -scores))
    return SearchResult(found.query, rows[order], scores[order], found.vectors)
