"""Maximal marginal relevance: Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998.

A place of an answer is chosen among the most relevant candidates, five times as many as there are places in its stage.
The stages are fixed, so a place does not depend on the page that asks for it.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Stage(NamedTuple):
    """Some places of an answer and the candidates for them.

    Attributes:
        places: the stage ends at this place, counted from the beginning of the answer.
        pool: its places are chosen from so many of the most relevant candidates.
    """

    places: int
    pool: int


STAGES: Final = (Stage(40, 200), Stage(200, 1000), Stage(1000, 5000))


def stages_of(places: int) -> tuple[Stage, ...]:
    """The stages that an answer up to this place needs; at least one."""
    return tuple(stage for number, stage in enumerate(STAGES) if number == 0 or STAGES[number - 1].places < places)


def maximal_marginal_relevance(
    relevance: NDArray[np.floating],
    vectors: NDArray[np.float32],
    diversity: float,
    count: int,
    stages: Sequence[Stage] = STAGES,
) -> NDArray[np.int64]:
    """Order candidates by relevance and by how unlike they are to those before them.

    The next item is always the candidate with the largest ``(1 − d) · relevance − d · max_j ⟨x, x_j⟩`` over the items
    ``j`` chosen before; the first has nothing before it. Later stages add candidates to those of earlier ones.

    Args:
        relevance: (p,) cosine of query and item, −1…1: the unit of the similarity; higher is better.
        vectors: (p, Σd) float32 stored vectors, of length 1.
        diversity: d, 0 (by relevance alone) to 1.
        count: how many to choose.
        stages: which of the candidates, first ones first, may take which places; places and pools ascend, and no pool
            is smaller than its places. Behind the last stage its pool goes on.

    Returns:
        (min(count, p, last pool),) int64 positions into the candidates, first chosen first; ties go to the earlier
        candidate. A smaller count gives the beginning of what a larger one gives.
    """
    size = min(relevance.shape[0], stages[-1].pool)
    chosen = np.empty(min(count, size), dtype=np.int64)
    nearest = np.full(size, -np.inf, dtype=np.float32)
    gain = (1.0 - diversity) * relevance.astype(np.float64)
    left = np.ones(size, dtype=np.bool_)
    pool = 0
    for place in range(chosen.shape[0]):
        grown = min(next((stage.pool for stage in stages if place < stage.places), size), size)
        if grown > pool and place:
            nearest[pool:grown] = (vectors[pool:grown] @ vectors[chosen[:place]].T).max(axis=1)
        pool = grown
        penalty = diversity * nearest[:pool] if place else 0.0
        best = int(np.argmax(np.where(left[:pool], gain[:pool] - penalty, -np.inf)))
        chosen[place] = best
        left[best] = False
        np.maximum(nearest[:pool], vectors[:pool] @ vectors[best], out=nearest[:pool])
    return chosen
