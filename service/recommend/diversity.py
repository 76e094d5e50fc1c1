"""Orders candidates by maximal marginal relevance.

Carbonell and Goldstein, "The use of MMR, diversity-based reranking", SIGIR 1998. The item of a position is chosen among
the most relevant candidates, five times as many as there are positions up to the end of its stage. The stages are
fixed, so the item of a position does not depend on the page that is requested.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.recommend.new_items import places_for_new


class DiversityStage(NamedTuple):
    """A range of positions and the number of candidates for them.

    Attributes:
        positions: the stage ends at this position, counted from the beginning of the ranking.
        pool: its items are chosen from so many of the most relevant candidates.
    """

    positions: int
    pool: int


STAGES: Final = (DiversityStage(40, 200), DiversityStage(200, 1000), DiversityStage(1000, 5000))


def stages_of(positions: int) -> tuple[DiversityStage, ...]:
    """The stages that a ranking of this length needs; at least one."""
    return tuple(
        stage for number, stage in enumerate(STAGES) if number == 0 or STAGES[number - 1].positions < positions
    )


def maximal_marginal_relevance(
    relevance: NDArray[np.floating],
    vectors: NDArray[np.float32],
    diversity: float,
    count: int,
    stages: Sequence[DiversityStage] = STAGES,
    new: NDArray[np.bool_] | None = None,
    fresh_share: float = 0.0,
) -> NDArray[np.int64]:
    """Order candidates by relevance and by their difference from the items before them.

    The next item is always the candidate with the largest ``(1 − d) · relevance − d · max_j ⟨x, x_j⟩`` over the items
    ``j`` chosen before; the first has nothing before it. Later stages add candidates to those of earlier ones.

    Args:
        relevance: (p,) cosine of query and item, −1…1: the unit of the similarity; higher is better.
        vectors: (p, Σd) float32 stored vectors, of length 1.
        diversity: d, 0 (by relevance alone) to 1.
        count: how many to choose.
        stages: which of the first candidates may take which positions; positions and pools ascend, and no pool is
            smaller than its positions. Positions after the last stage use the last pool.
        new: (p,) bool, new items; None: none is.
        fresh_share: of the first n positions at least ``places_for_new(fresh_share, n)`` get a new item, while
            candidates have any: where there would be fewer, the item of the position is chosen among the new ones.

    Returns:
        (min(count, p, last pool),) int64 positions into the candidates, first chosen first; ties go to the earlier
        candidate. A smaller count gives a prefix of what a larger one gives.
    """
    size = min(relevance.shape[0], stages[-1].pool)
    chosen = np.empty(min(count, size), dtype=np.int64)
    nearest = np.full(size, -np.inf, dtype=np.float32)
    gain = (1.0 - diversity) * relevance.astype(np.float64)
    left = np.ones(size, dtype=np.bool_)
    fresh = np.zeros(size, dtype=np.bool_) if new is None else new[:size].copy()
    taken = 0
    pool = 0
    for position in range(chosen.shape[0]):
        grown = min(next((stage.pool for stage in stages if position < stage.positions), size), size)
        if grown > pool and position:
            nearest[pool:grown] = (vectors[pool:grown] @ vectors[chosen[:position]].T).max(axis=1)
        pool = grown
        penalty = diversity * nearest[:pool] if position else 0.0
        free = left[:pool]
        if taken < places_for_new(fresh_share, position + 1) and (free & fresh[:pool]).any():
            free = free & fresh[:pool]
        best = int(np.argmax(np.where(free, gain[:pool] - penalty, -np.inf)))
        taken += int(fresh[best])
        chosen[position] = best
        left[best] = False
        np.maximum(nearest[:pool], vectors[:pool] @ vectors[best], out=nearest[:pool])
    return chosen
