"""Estimates which items have a text and a picture that disagree, by comparing neighbourhoods.

A cosine between a text slot and an image slot has no meaning, because each has its own projection. Neighbourhoods can
be compared. If the picture of an item fits its text, the items that look like it also have similar texts, more similar
than the look-alikes of another item. The training loss CRTR rests on the same idea, the relational topology of a
modality (docs/method.md, "Items whose text and picture disagree").

For an item i with both slots, ``N_i`` are its k nearest by picture among such items, and ``fit(i, j)`` is the mean text
cosine of i to ``N_j`` without i. ``p_i`` is the share of other items j with ``fit(i, j) > fit(i, i)``, where a tie
counts half: the share of strangers whose look-alikes have texts more similar to i than its own look-alikes have. Whole
neighbourhoods are compared because the members of one resemble each other and are not independent.

If a picture is unrelated to its text, ``p_i`` is uniform on 0 … 1; if it fits, ``p_i`` is near 0. The share of items
with an unrelated picture is then about ``2 · #(p_i > ½) / n`` (Storey, *A direct approach to false discovery rates*,
2002, with λ = ½), and the items with ``p_i > ½`` are the suspects.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.evaluation.neighbours import Neighbours, unit_rows

NEAREST = 10
"""k, the number of neighbours by picture."""
FEWEST_ITEMS = 50
"""Fewest items with both slots for an estimate."""
SUSPICIOUS = 0.5
"""λ: an item with a larger p is a suspect."""

_STRANGERS = 2_000
_BLOCK_ITEMS = 2_048


@dataclass(frozen=True)
class Disagreement:
    """How well the picture of each sampled item fits its text.

    Attributes:
        rows: (s,) int64 rows of the sampled items, which have both slots.
        p: (s,) float64 share of strangers whose look-alikes have more similar texts than the item's own, 0 … 1; lower
            is better.
        neighbours: (s, k) int64 rows of the nearest by picture, best first.
        own: (s,) float64 mean text cosine to the item's own look-alikes.
        strangers: (s,) float64 mean text cosine to the look-alikes of strangers.
    """

    rows: NDArray[np.int64]
    p: NDArray[np.float64]
    neighbours: NDArray[np.int64]
    own: NDArray[np.float64]
    strangers: NDArray[np.float64]

    @property
    def suspects(self) -> NDArray[np.int64]:
        """(c,) int64 positions of the suspects in the sample, the worst first."""
        order = np.lexsort((self.own - self.strangers, -self.p))
        return np.asarray(order[self.p[order] > SUSPICIOUS])

    @property
    def share(self) -> float:
        """Estimated share of items whose picture is unrelated to their text, 0 … 1."""
        return min(1.0, float((self.p > SUSPICIOUS).mean()) / (1.0 - SUSPICIOUS))


def disagreement(
    vectors: NDArray[np.floating], text: slice, both: NDArray[np.int64], neighbours: Neighbours, *, seed: int
) -> Disagreement | None:
    """Compare the texts of each item's look-alikes with those of strangers' look-alikes.

    Args:
        vectors: (n, Σd) stored vectors, may be memory-mapped.
        text: the components of the text slot.
        both: (m,) int64 rows with text and picture, ascending.
        neighbours: k nearest among ``both`` by the image slot.
        seed: seed of the sample of strangers.

    Returns:
        None if fewer than :data:`FEWEST_ITEMS` sampled items have both slots.
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
    """(b, j) float64 mean text cosine of each item to each stranger's look-alikes without the item itself."""
    fit = items @ sums.T
    members = np.full(fit.shape, nearest.shape[1], dtype=np.float64)
    position = np.minimum(np.searchsorted(rows, nearest), rows.shape[0] - 1)
    stranger, column = np.nonzero(rows[position] == nearest)
    item = position[stranger, column]
    fit[item, stranger] -= 1.0  # its cosine to itself
    members[item, stranger] -= 1.0
    return np.asarray(fit / members)
