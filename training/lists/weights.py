"""Choose on validation how much each item-to-item list counts beside the slots, and how recency falls.

Recency is a power of the age, ``r^age``. For each r the search climbs, scaling one weight at a time or all of them
together, from the best of a few coarse starts. A list that gains less than half a percent is left out.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from index.lists.item_lists import LIST_SLOTS, ItemList, ItemLists, ListWeights
from index.lists.list_scores import ListScores
from training.data.sequences import Targets
from training.ranking import metrics
from training.ranking.baselines import Ranker
from training.ranking.ranking import mask_histories

CUT = 10
RECENCIES = (0.7, 0.8, 0.9, 1.0, 0.6, 0.5, 0.3)
_STARTS = (0.0, 0.05, 0.3)
_ENTRIES = (0.03, 0.1, 0.3)
"""What a weight of 0 may become."""
_SCALES = (0.3, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 3.0)
_SMALLEST, _LARGEST = 0.005, 100.0
_LEAST_GAIN = 1.005
_USERS_PER_BLOCK = 256
_FLOATS_PER_BLOCK = 1 << 24

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


class ValidationPool:
    """Candidates of the validation users whose target can reach the first ten, with their scores by slots and by lists.

    NDCG@10 from these candidates is exact: no list lowers a score, so an item in no list of the history reaches the
    first ten only if it is among the ten best of the slots.

    Args:
        ranker: scores the slots; None for the lists alone.
        validation: held-out targets.
        findable: (n,) bool, items that can be answered.
        lists: name → list.
        history: newest items of a history that count.
        exclude_seen: leave out what is in the history.

    Attributes:
        names: of the lists, in their order.
    """

    def __init__(
        self,
        ranker: Ranker | None,
        validation: Targets,
        findable: NDArray[np.bool_],
        lists: Mapping[str, ItemList],
        history: int,
        *,
        exclude_seen: bool,
    ) -> None:
        self.names = tuple(name for name in LIST_SLOTS if name in lists)
        self._users, self._ranker, self._findable = len(validation), ranker, findable
        self._length, self._exclude_seen = history, exclude_seen
        self._lists = tuple(lists[name] for name in self.names)
        self._histories: list[NDArray[np.int64]] = []
        self._rows: list[NDArray[np.int64]] = []
        slots: list[NDArray[np.float32]] = []
        targets: list[int] = []
        block = int(np.clip(_FLOATS_PER_BLOCK // max(len(findable), 1), 1, _USERS_PER_BLOCK))
        for start in range(0, len(validation), block):
            part = slice(start, start + block)
            self._add(validation.histories[part], validation.targets[part], slots, targets)
        lengths = np.array([len(rows) for rows in self._rows], dtype=np.int64)
        self._starts = np.cumsum(lengths) - lengths
        self._owner = np.repeat(np.arange(len(lengths)), lengths)
        self._targets = self._starts + np.array(targets, dtype=np.int64)
        self._slots = np.concatenate([np.zeros(0, np.float32), *slots])

    def parts(self, recency: float) -> NDArray[np.float32]:
        """(candidates, lists) float32: what each list adds at weight 1.

        Args:
            recency: r of ``r^age``.
        """
        scores, blocks = self._scores(recency), [np.zeros((0, len(self.names)), np.float32)]
        for start in range(0, len(self._rows), _USERS_PER_BLOCK):
            part = slice(start, start + _USERS_PER_BLOCK)
            blocks.append(scores.parts(self._histories[part], self._rows[part]).parts)
        return np.concatenate(blocks)

    def ndcg(self, parts: NDArray[np.float32], weights: Sequence[float]) -> float:
        """NDCG@10 over all validation users.

        Args:
            parts: as :meth:`parts` gives them.
            weights: one for each list.
        """
        if not len(self._targets):
            return 0.0
        scores = self._slots.copy()
        for column, weight in enumerate(weights):
            if weight:
                scores += parts[:, column] * np.float32(weight)
        own = scores[self._targets]
        compared = own[self._owner]
        ahead = np.add.reduceat((scores > compared).astype(np.int32), self._starts)
        tied = np.add.reduceat((scores == compared).astype(np.int32), self._starts) - 1
        rank = ahead + 0.5 * tied
        if self._ranker is None:
            rank = np.where(own > 0, rank, np.inf)  # tied with the whole catalogue
        return float(metrics.gains(rank, CUT).sum() / self._users)

    def _scores(self, recency: float) -> ListScores:
        falling = np.power(recency, np.arange(self._length)).astype(np.float32)
        weights = ListWeights(falling, dict.fromkeys(self.names, 1.0))
        return ListScores(ItemLists(len(self._findable), self._lists, weights))

    def _add(
        self,
        histories: Sequence[NDArray[np.int64]],
        targets: NDArray[np.int64],
        slots: list[NDArray[np.float32]],
        places: list[int],
    ) -> None:
        """Add the users of a block whose target can reach the first ten."""
        items = len(self._findable)
        found = self._scores(1.0).candidates(histories)
        scores = None if self._ranker is None else self._ranker.scores(histories)
        allowed = mask_histories(histories if self._exclude_seen else [rows[:0] for rows in histories], self._findable)
        for number, target in enumerate(targets.tolist()):
            rows, _ = found.of(number)
            if scores is not None:
                reachable = np.where(allowed[number], scores[number], -np.inf)
                rows = np.union1d(rows, np.argpartition(-reachable, min(CUT, items) - 1)[:CUT])
            rows = rows[allowed[number, rows]]
            place = int(np.searchsorted(rows, target))
            if place < len(rows) and rows[place] == target:
                self._histories.append(histories[number][-self._length :])
                self._rows.append(rows)
                slots.append(np.zeros(len(rows), np.float32) if scores is None else scores[number, rows])
                places.append(place)


def choose_weights(
    pool: ValidationPool, history: int, *, progress: Callable[[int], None] = lambda _done: None
) -> ChosenWeights:
    """Search recency and weights; equal settings go to the one that was measured first.

    Args:
        pool: of the validation users.
        history: newest items of a history that count.
        progress: called after every recency with the number that are done.
    """
    best, recency, weights, tried = -1.0, RECENCIES[0], _zeros(pool), 0
    without = pool.ndcg(np.zeros((len(pool.parts(1.0)), len(pool.names)), np.float32), weights)
    for done, candidate in enumerate(RECENCIES, start=1):
        climb = _Climb(pool, pool.parts(candidate))
        starts = [weights] if done > 1 else itertools.product(_STARTS, repeat=len(pool.names))
        value, found = climb.run([*starts])
        tried += climb.tried
        if value > best:
            best, recency, weights = value, candidate, found
        progress(done)
    climb = _Climb(pool, pool.parts(recency))
    value, weights = climb.without_idle_lists(best, weights)
    falling = np.power(recency, np.arange(history)).astype(np.float32)
    named = dict(zip(pool.names, weights, strict=True))
    return ChosenWeights(ListWeights(falling, named), value, without, tried + climb.tried)


class _Climb:
    """Climbing for one recency."""

    def __init__(self, pool: ValidationPool, parts: NDArray[np.float32]) -> None:
        self._pool, self._parts = pool, parts
        self._measured: dict[Weights, float] = {}

    @property
    def tried(self) -> int:
        """Settings that were measured."""
        return len(self._measured)

    def value(self, weights: Weights) -> float:
        """NDCG@10 of a setting, measured once."""
        if weights not in self._measured:
            self._measured[weights] = self._pool.ndcg(self._parts, weights)
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
    scaled = (float(f"{min(weight * scale, _LARGEST):.3g}") for weight in weights)
    return tuple(weight if weight >= _SMALLEST else 0.0 for weight in scaled)


def _zeros(pool: ValidationPool) -> Weights:
    return (0.0,) * len(pool.names)
