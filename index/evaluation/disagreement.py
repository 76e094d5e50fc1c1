"""Items whose text and picture disagree, told from neighbourhoods, because the two slots have no basis in common.

A cosine between a text and an image slot means nothing: each has its own projection. What can be compared is who is
near whom. If the picture of an item belongs to its text, then the items that look like it also read like it, and better
than the look-alikes of some other item do. The training loss CRTR rests on the same thought, the relational topology
of a modality (docs/method.md, "Items whose text and picture disagree").

For an item i with both slots, ``N_i`` are its k nearest by picture among such items, and ``fit(i, j)`` is the mean text
cosine of i to ``N_j`` without i. Then ``p_i`` is the share of other items j with ``fit(i, j) > fit(i, i)``, a tie
counting half: how many strangers' look-alikes read more like i than its own do. Neighbourhoods are compared with
neighbourhoods, since the members of one resemble each other and are no independent draws.

If a picture has nothing to do with its text, ``p_i`` is uniform on 0 … 1; if it belongs to it, ``p_i`` is near 0. The
share of items whose picture has nothing to do with their text is then about ``2 · #(p_i > ½) / n`` (Storey, *A direct
approach to false discovery rates*, 2002, with λ = ½), and the items with ``p_i > ½`` are the ones to look at.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.neighbours import Neighbours, unit_rows

NEAREST = 10
"""k, the neighbours by picture that are looked at."""
FEWEST_ITEMS = 50
"""With fewer items that have both slots, nothing is said."""
SUSPICIOUS = 0.5
"""λ: from here on an item is one to look at."""

_STRANGERS = 2_000
_BLOCK_ITEMS = 2_048


@dataclass(frozen=True)
class Disagreement:
    """How well picture and text go together, item by item.

    Attributes:
        rows: (s,) int64 sampled items with both slots.
        p: (s,) float64 share of strangers' look-alikes that read more like the item than its own, 0 … 1; lower is
            better.
        neighbours: (s, k) int64 the nearest by picture, best first.
        own: (s,) float64 mean text cosine to the item's own look-alikes.
        strangers: (s,) float64 mean text cosine to the look-alikes of others.
    """

    rows: NDArray[np.int64]
    p: NDArray[np.float64]
    neighbours: NDArray[np.int64]
    own: NDArray[np.float64]
    strangers: NDArray[np.float64]

    @property
    def suspects(self) -> NDArray[np.int64]:
        """Positions in the sample of the items to look at, the worst first."""
        order = np.lexsort((self.own - self.strangers, -self.p))
        return np.asarray(order[self.p[order] > SUSPICIOUS])

    @property
    def share(self) -> float:
        """Estimated share of the items whose picture has nothing to do with their text, 0 … 1."""
        return min(1.0, float((self.p > SUSPICIOUS).mean()) / (1.0 - SUSPICIOUS))


def disagreement(
    vectors: NDArray[np.floating], text: slice, both: NDArray[np.int64], neighbours: Neighbours, *, seed: int
) -> Disagreement | None:
    """Compare each item's look-alikes with those of others.

    Args:
        vectors: (n, Σd) stored vectors, may be memory-mapped.
        text: the components of the text slot.
        both: (m,) int64 rows with text and picture, ascending.
        neighbours: by the image slot, k nearest among ``both``.
        seed: of the choice of strangers, where there are many.

    Returns:
        None where fewer than :data:`FEWEST_ITEMS` have both, or were sampled.
    """
    sampled = np.flatnonzero(np.isin(neighbours.sample, both))
    if sampled.shape[0] < FEWEST_ITEMS:
        return None
    rows, nearest = neighbours.sample[sampled], neighbours.rows[sampled]
    items = unit_rows(vectors, text, rows).astype(np.float64)
    sums = unit_rows(vectors, text, nearest.ravel()).astype(np.float64).reshape(*nearest.shape, -1).sum(axis=1)
    own = np.einsum("sd,sd->s", items, sums) / nearest.shape[1]
    strangers = np.arange(rows.shape[0])
    if strangers.shape[0] > _STRANGERS:
        strangers = np.sort(np.random.default_rng(seed).choice(strangers, _STRANGERS, replace=False))
    p, mean = np.empty_like(own), np.empty_like(own)
    for start in range(0, rows.shape[0], _BLOCK_ITEMS):
        part = slice(start, start + _BLOCK_ITEMS)
        fit = _fit(items[part], rows[part], sums[strangers], nearest[strangers])
        others = rows[part, None] != rows[strangers]
        better = (fit > own[part, None]) + 0.5 * (fit == own[part, None])
        p[part] = np.where(others, better, 0.0).sum(axis=1) / others.sum(axis=1)
        mean[part] = np.where(others, fit, 0.0).sum(axis=1) / others.sum(axis=1)
    return Disagreement(rows, p, nearest, own, mean)


def _fit(
    items: NDArray[np.float64], rows: NDArray[np.int64], sums: NDArray[np.float64], nearest: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean text cosine of each item to each stranger's look-alikes, leaving itself out: (b, j)."""
    fit = items @ sums.T
    members = np.full(fit.shape, nearest.shape[1], dtype=np.float64)
    place = np.minimum(np.searchsorted(rows, nearest), rows.shape[0] - 1)
    stranger, column = np.nonzero(rows[place] == nearest)
    item = place[stranger, column]
    fit[item, stranger] -= 1.0  # its cosine to itself
    members[item, stranger] -= 1.0
    return np.asarray(fit / members)
