"""Keeps places of an answer for new items: those without a training event.

Of the first n places at least ⌊share · n⌋ belong to new items, if so many may be answered. Where the best n items hold
fewer, the best new items replace the known items with the lowest scores. The item of position n is the one that the
first n places have and the first n − 1 have not, so no page repeats an item of another. A page is in the order of its
scores: its new items take the last places.
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


def by_position(
    bundle: Bundle, found: SearchResult, fresh: SearchResult | None, share: float, length: int
) -> SearchResult:
    """The ranking with places for new items; the item of a position depends on that position only.

    Args:
        bundle: of the catalogue.
        found: the best items, at least ``length`` of them if there are so many.
        fresh: the best new items, at least :func:`places_for_new` of them if there are so many; None: ``found`` holds
            them.
        share: share of the places that is kept for new items, 0 … 1.
        length: number of places.

    Returns:
        At most ``length`` items. A new item that takes a kept place stands there, above items with higher scores.
    """
    if not share:
        return SearchResult(found.query, found.rows[:length], found.scores[:length], found.vectors)
    rows, scores = found.rows, found.scores
    if fresh is not None:
        unseen = ~np.isin(fresh.rows, rows)
        rows, scores = np.concatenate((rows, fresh.rows[unseen])), np.concatenate((scores, fresh.scores[unseen]))
    order = np.lexsort((rows, -scores))
    new = is_new(bundle, rows[order])
    size = min(length, order.shape[0])
    kept = (share * np.arange(1, size + 1) + _ROUNDING).astype(np.int64)
    # Of the first n items: as many new ones as rank there by themselves, at least the kept places, at most all.
    counts = np.minimum(np.maximum(kept, np.cumsum(new[:size])), np.count_nonzero(new))
    takes_new = np.diff(counts, prepend=0) == 1
    placed = np.empty(size, dtype=np.int64)
    placed[takes_new] = order[new][: np.count_nonzero(takes_new)]
    placed[~takes_new] = order[~new][: np.count_nonzero(~takes_new)]
    return SearchResult(found.query, rows[placed], scores[placed], found.vectors)


def in_score_order(found: SearchResult, start: int) -> SearchResult:
    """The items of the first ``start`` positions as they are, the others best first."""
    order = np.lexsort((found.rows[start:], -found.scores[start:])) + start
    order = np.concatenate((np.arange(min(start, found.rows.shape[0])), order))
    return SearchResult(found.query, found.rows[order], found.scores[order], found.vectors)
