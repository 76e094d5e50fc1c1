"""Choose on validation how much each item-to-item list counts beside the slots, and how recency falls.

Recency is a power of the age, ``r^age``. For each r the search climbs, scaling one weight at a time or all of them
together, from the best of a few coarse starts. A list that gains less than half a percent is left out.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from index.lists.item_lists import ListWeights
from training.lists.validation_pool import MOST_WEIGHT, ScoredCandidates, ValidationPool

RECENCIES = (0.7, 0.8, 0.9, 1.0, 0.6, 0.5, 0.3)
_STARTS = (0.0, 0.05, 0.3, 2.0)
_ENTRIES = (0.03, 0.1, 0.3, 1.0, 5.0)
"""What a weight of 0 may become."""
_SCALES = (0.3, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 3.0)
_SMALLEST = 0.005
_LEAST_GAIN = 1.005

Weights: TypeAlias = tuple[float, ...]
"""A weight for each list of a pool."""


@dataclass(frozen=True)
class ChosenWeights:
    """What the search chose.

    Attributes:
        weights: recency, and the weight of every list; 0 for a list that gains nothing.
        ndcg: NDCG@10 on validation with them.
        ndcg_without: NDCG@10 on validation of the slots with no list; 0 for lists alone.
        tried: settings that were measured.
    """

    weights: ListWeights
    ndcg: float
    ndcg_without: float
    tried: int


def choose_weights(
    pool: ValidationPool, history: int, *, progress: Callable[[int], None] = lambda _done: None
) -> ChosenWeights:
    """Search recency and weights; equal settings go to the one that was measured first.

    Args:
        pool: of the validation users.
        history: newest items of a history that count.
        progress: called after every recency with the number that are done.
    """
    best, recency, weights, tried = -1.0, RECENCIES[0], (0.0,) * len(pool.names), 0
    without = pool.slot_figures()["ndcg@10"]
    for done, candidate in enumerate(RECENCIES, start=1):
        climb = _Climb(pool.scored(candidate))
        starts = [weights] if done > 1 else [*itertools.product(_STARTS, repeat=len(pool.names))]
        value, found = climb.run(starts)
        tried += climb.tried
        if value > best:
            best, recency, weights = value, candidate, found
        progress(done)
    climb = _Climb(pool.scored(recency))
    value, weights = climb.without_idle_lists(best, weights)
    falling = np.power(recency, np.arange(history)).astype(np.float32)
    named = dict(zip(pool.names, weights, strict=True))
    return ChosenWeights(ListWeights(falling, named), value, without, tried + climb.tried)


def best_figures(pool: ValidationPool, recency: float) -> dict[str, float]:
    """``served_ndcg@10``, with the best weights for one recency, and its standard error ``served_error``.

    Args:
        pool: of the validation users.
        recency: r of ``r^age``.
    """
    candidates = pool.scored(recency)
    value, weights = _Climb(candidates).run([*itertools.product(_STARTS, repeat=len(pool.names))])
    return {"served_ndcg@10": value, "served_error": candidates.standard_error(weights)}


class _Climb:
    """Climbing for one recency."""

    def __init__(self, candidates: ScoredCandidates) -> None:
        self._candidates = candidates
        self._measured: dict[Weights, float] = {}

    @property
    def tried(self) -> int:
        """Settings that were measured."""
        return len(self._measured)

    def value(self, weights: Weights) -> float:
        """NDCG@10 of a setting, measured once."""
        if weights not in self._measured:
            self._measured[weights] = self._candidates.ndcg(weights)
        return self._measured[weights]

    def run(self, starts: Sequence[Weights]) -> tuple[float, Weights]:
        """The best setting that is reached from the best of some starts."""
        weights = max(starts, key=self.value)
        while True:
            steps = _steps(weights)
            better = max([weights, *steps], key=self.value)
            if self.value(better) <= self.value(weights):
                return self.value(weights), weights
            weights = better

    def without_idle_lists(self, value: float, weights: Weights) -> tuple[float, Weights]:
        """Set to 0 the weights of lists whose gain is below half a percent, the least useful first."""
        while any(weights):
            dropped = [
                tuple(0.0 if number == column else weight for number, weight in enumerate(weights))
                for column in range(len(weights))
                if weights[column]
            ]
            fewer = max(dropped, key=self.value)
            if value > self.value(fewer) * _LEAST_GAIN:
                break
            value, weights = self.value(fewer), fewer
        return value, weights


def _steps(weights: Weights) -> list[Weights]:
    """Settings one step away: a weight scaled, set to 0 or raised from it, or all weights scaled together."""
    steps = [_scaled(weights, scale) for scale in _SCALES]
    for column, weight in enumerate(weights):
        others = (0.0, *(weight * scale for scale in _SCALES)) if weight else _ENTRIES
        steps += [_scaled((*weights[:column], other, *weights[column + 1 :]), 1.0) for other in others]
    return steps


def _scaled(weights: Weights, scale: float) -> Weights:
    """Weights of three digits within bounds; what is too small becomes 0."""
    scaled = (float(f"{min(weight * scale, MOST_WEIGHT):.3g}") for weight in weights)
    return tuple(weight if weight >= _SMALLEST else 0.0 for weight in scaled)
