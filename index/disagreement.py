"""Items whose text and picture disagree, told from neighbourhoods, because the two slots have no basis in common.

A cosine between a text and an image slot means nothing: each has its own projection. What can be compared is who is
near whom. If the picture of an item belongs to its text, the items that look like it also read like it, more than
items drawn at random do. The training loss CRTR rests on the same thought, the relational topology of a modality
(docs/method.md, "Items whose text and picture disagree").

For an item i with both slots, over the n such items: ``a_i`` is the mean text cosine to its k nearest by picture. Of k
others drawn at random without replacement, that mean has expectation ``μ_i`` and variance ``σ_i² / k · (n − 1 − k) /
(n − 2)``, with ``μ_i`` and ``σ_i²`` over all others, which are computed exactly. ``z_i`` is how many such standard
deviations ``a_i`` lies above ``μ_i``. Text and picture disagree when ``z_i < 1.645``: the neighbours by picture are no
more alike in text than chance would have them (one-sided, 5 %).

So an item whose picture has nothing to do with its text is found in about 95 of 100 cases. Where pictures and texts
sort the whole catalogue differently, most items are found, and none of them stands out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.neighbours import Neighbours, unit_rows

NEAREST = 10
"""k, the neighbours by picture that are looked at."""
FEWEST_ITEMS = 50
"""With fewer items that have both slots, nothing is said."""
SIGNIFICANT = 1.645
"""The 95 % quantile of the normal distribution."""

_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Disagreement:
    """How well picture and text go together, item by item.

    Attributes:
        rows: (s,) int64 sampled items with both slots.
        z: (s,) float64 standard deviations that the neighbours by picture lie above chance in text; higher is better.
        neighbours: (s, k) int64 the nearest by picture, best first.
        near: mean text cosine to the neighbours by picture, over the sample.
        random: mean text cosine to everyone else, over the sample.
    """

    rows: NDArray[np.int64]
    z: NDArray[np.float64]
    neighbours: NDArray[np.int64]
    near: float
    random: float

    @property
    def found(self) -> NDArray[np.int64]:
        """Positions in the sample of the items that disagree, the worst first."""
        order = np.argsort(self.z, kind="stable")
        return np.asarray(order[self.z[order] < SIGNIFICANT])

    @property
    def share(self) -> float:
        """Share of the items that disagree, 0 … 1."""
        return float((self.z < SIGNIFICANT).mean())


def disagreement(
    vectors: NDArray[np.floating], text: slice, both: NDArray[np.int64], neighbours: Neighbours
) -> Disagreement | None:
    """Hold the picture's neighbours of sampled items against chance.

    Args:
        vectors: (n, Σd) stored vectors, may be memory-mapped.
        text: the components of the text slot.
        both: (m,) int64 rows with text and picture, ascending.
        neighbours: by the image slot, k nearest among ``both``.

    Returns:
        None where fewer than :data:`FEWEST_ITEMS` have both.
    """
    sampled = np.flatnonzero(np.isin(neighbours.sample, both))
    if both.shape[0] < FEWEST_ITEMS or not sampled.shape[0]:
        return None
    rows, nearest = neighbours.sample[sampled], neighbours.rows[sampled]
    own = unit_rows(vectors, text, rows).astype(np.float64)
    others = unit_rows(vectors, text, nearest.ravel()).reshape(*nearest.shape, -1)
    near = np.einsum("skd,sd->s", others, own) / nearest.shape[1]
    mean, variance = _chance(vectors, text, both, own)
    population, drawn = both.shape[0] - 1, nearest.shape[1]
    deviation = np.sqrt(variance / drawn * (population - drawn) / (population - 1))
    z = np.divide(near - mean, deviation, out=np.zeros_like(near), where=deviation > 1e-6)
    return Disagreement(rows, z, nearest, float(near.mean()), float(mean.mean()))


def _chance(
    vectors: NDArray[np.floating], text: slice, both: NDArray[np.int64], own: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of the text cosine of each sampled item to one other item, (s,) each, from two moments."""
    total = np.zeros(own.shape[1])
    products = np.zeros((own.shape[1], own.shape[1]))
    for start in range(0, both.shape[0], _BLOCK_ROWS):
        block = unit_rows(vectors, text, both[start : start + _BLOCK_ROWS])
        total += block.sum(axis=0, dtype=np.float64)
        products += (block.T @ block).astype(np.float64)
    others = both.shape[0] - 1
    mean = (own @ total - 1.0) / others
    square = (np.einsum("sd,de,se->s", own, products, own, optimize=True) - 1.0) / others
    return mean, np.maximum(square - mean**2, 0.0)
