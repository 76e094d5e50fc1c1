"""Maximal marginal relevance: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998."""

import numpy as np
from numpy.typing import NDArray


def maximal_marginal_relevance(
    relevance: NDArray[np.floating], vectors: NDArray[np.float32], diversity: float, count: int
) -> NDArray[np.int64]:
    """Order candidates by relevance and by how unlike they are to those before them.

    The next item is always the candidate with the largest ``(1 − d) · relevance − d · max_j ⟨x, x_j⟩`` over the items
    ``j`` chosen before; the first has nothing before it.

    Args:
        relevance: (p,) cosine of query and item, −1…1: the unit of the similarity; higher is better.
        vectors: (p, Σd) float32 stored vectors, of length 1.
        diversity: d, 0 (by relevance alone) to 1.
        count: how many to choose.

    Returns:
        (min(count, p),) int64 positions into the candidates, first chosen first; ties go to the earlier candidate.
    """
    pool = relevance.shape[0]
    chosen = np.empty(min(count, pool), dtype=np.int64)
    nearest = np.full(pool, -np.inf, dtype=np.float32)
    gain = (1.0 - diversity) * relevance.astype(np.float64)
    left = np.ones(pool, dtype=np.bool_)
    for place in range(chosen.shape[0]):
        penalty = diversity * nearest if place else 0.0
        best = int(np.argmax(np.where(left, gain - penalty, -np.inf)))
        chosen[place] = best
        left[best] = False
        np.maximum(nearest, vectors @ vectors[best], out=nearest)
    return chosen
