"""ValidationPool: candidates of the validation users with their scores by slots and by lists."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.lists.item_lists import LIST_SLOTS, ItemList, ItemLists, ListWeights
from index.lists.list_scores import ListScores
from training.data.sequences import Targets
from training.ranking import metrics
from training.ranking.baselines import Ranker
from training.ranking.ranking import mask_histories

CUT = 10
MOST_WEIGHT = 100.0
"""Largest weight of a list that is tried."""
_USERS_PER_BLOCK = 256
_FLOATS_PER_BLOCK = 1 << 24


class ScoredCandidates:
    """Candidates of validation users, with their scores by slots and what each list adds at one recency.

    Args:
        slots: (c,) float32 scores by slots, user after user.
        parts: (c, lists) float32, at least 0, what each list adds at weight 1.
        lengths: (u,) int64 candidates of each user, at least 1: the target is one.
        targets: (u,) int64 place of each user's target among the candidates.
        users: all validation users; the targets of those who are not here cannot reach the first ten.
        unscored_missed: a target that scores nothing is not found, as the lists alone return no such item.
    """

    def __init__(
        self,
        slots: NDArray[np.float32],
        parts: NDArray[np.float32],
        lengths: NDArray[np.int64],
        targets: NDArray[np.int64],
        *,
        users: int,
        unscored_missed: bool,
    ) -> None:
        self._slots, self._parts = slots, np.asfortranarray(parts)
        self._lengths, self._starts, self._targets = lengths, np.cumsum(lengths) - lengths, targets
        self._users, self._unscored_missed = users, unscored_missed

    def __len__(self) -> int:
        """Number of candidates."""
        return len(self._slots)

    def without_dominated(self) -> "ScoredCandidates":
        """The same without candidates that are behind their target for any weights; every figure is the same.

        No list adds more to them than to the target, and their score by slots is less by more than rounding: sums of
        float32 keep the order of what is summed, so only a tie by rounding has to be ruled out.
        """
        own = self._slots[self._targets]
        most = np.abs(own) + MOST_WEIGHT * self._parts[self._targets].sum(axis=1, dtype=np.float32)
        margin = np.float32(4 * np.finfo(np.float32).eps) * most * np.float32(1 + self._parts.shape[1])
        dominated = self._slots < np.repeat(own - margin, self._lengths)
        for column in self._parts.T:
            dominated &= column <= np.repeat(column[self._targets], self._lengths)
        kept = ~dominated
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])  # how many candidates are kept before a place
        return ScoredCandidates(
            self._slots[kept],
            self._parts[kept],
            np.diff(before[np.append(self._starts, len(self))]),
            before[self._targets],
            users=self._users,
            unscored_missed=self._unscored_missed,
        )

    def ndcg(self, weights: Sequence[float]) -> float:
        """NDCG@10 over all validation users.

        Args:
            weights: one for each list, 0 to :data:`MOST_WEIGHT`.
        """
        return float(metrics.gains(self.ranks(weights), CUT).sum() / max(self._users, 1))

    def standard_error(self, weights: Sequence[float]) -> float:
        """Standard error of :meth:`ndcg`."""
        gains = metrics.gains(self.ranks(weights), CUT)  # of all others it is 0
        mean = gains.sum() / max(self._users, 1)
        return float(np.sqrt(max((gains**2).sum() / max(self._users, 1) - mean**2, 0) / max(self._users, 1)))

    def ranks(self, weights: Sequence[float]) -> metrics.Ranks:
        """Ranks of the targets that can reach the first ten among their candidates."""
        if not len(self._targets):
            return metrics.Ranks.joined([])
        scores = self._slots.copy()
        for column, weight in zip(self._parts.T, weights, strict=True):
            if weight:
                scores += column * np.float32(weight)
        own = scores[self._targets]
        compared = np.repeat(own, self._lengths)
        ahead = np.add.reduceat(scores > compared, self._starts, dtype=np.int32)
        tied = np.add.reduceat(scores == compared, self._starts, dtype=np.int32) - 1
        found = metrics.Ranks(ahead.astype(np.float64), tied.astype(np.float64))
        return found.missed(own <= 0) if self._unscored_missed else found


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
        listed: as :func:`listed_items` gives them; None: they are computed.

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
        listed: Sequence[NDArray[np.int64]] | None = None,
    ) -> None:
        self.names = tuple(name for name in LIST_SLOTS if name in lists)
        self._users, self._ranker, self._findable = len(validation), ranker, findable
        self._length, self._exclude_seen = history, exclude_seen
        self._lists = tuple(lists[name] for name in self.names)
        self._histories: list[NDArray[np.int64]] = []
        self._rows: list[NDArray[np.int64]] = []
        slots: list[NDArray[np.float32]] = []
        targets: list[int] = []
        if listed is None:
            listed = listed_items(lists, len(findable), validation, history)
        block = int(np.clip(_FLOATS_PER_BLOCK // max(len(findable), 1), 1, _USERS_PER_BLOCK))
        for start in range(0, len(validation), block):
            part = slice(start, start + block)
            self._add(validation.histories[part], validation.targets[part], listed[part], slots, targets)
        self._lengths = np.array([len(rows) for rows in self._rows], dtype=np.int64)
        self._targets = np.cumsum(self._lengths) - self._lengths + np.array(targets, dtype=np.int64)
        self._slots = np.concatenate([np.zeros(0, np.float32), *slots])

    def scored(self, recency: float) -> "ScoredCandidates":
        """The candidates with what each list adds to them, but for those that no weights bring before their target.

        Args:
            recency: r of ``r^age``.
        """
        scores, blocks = self._scores(recency), [np.zeros((0, len(self.names)), np.float32)]
        for start in range(0, len(self._rows), _USERS_PER_BLOCK):
            part = slice(start, start + _USERS_PER_BLOCK)
            blocks.append(scores.parts(self._histories[part], self._rows[part]).parts)
        every = ScoredCandidates(
            self._slots,
            np.concatenate(blocks),
            self._lengths,
            self._targets,
            users=self._users,
            unscored_missed=self._ranker is None,
        )
        return every.without_dominated()

    def slot_figures(self) -> dict[str, float]:
        """``ndcg@10`` and ``hr@10`` of the slots without any list, over all validation users."""
        nothing = np.zeros((len(self._slots), 0), np.float32)
        missed = self._ranker is None
        slots = ScoredCandidates(
            self._slots, nothing, self._lengths, self._targets, users=self._users, unscored_missed=missed
        )
        found, users = slots.ranks(()), max(self._users, 1)
        return {"ndcg@10": slots.ndcg(()), "hr@10": float(metrics.hits(found, CUT).sum() / users)}

    def _scores(self, recency: float) -> ListScores:
        return _list_scores(self._lists, len(self._findable), self._length, recency)

    def _add(
        self,
        histories: Sequence[NDArray[np.int64]],
        targets: NDArray[np.int64],
        listed: Sequence[NDArray[np.int64]],
        slots: list[NDArray[np.float32]],
        places: list[int],
    ) -> None:
        """Add the users of a block whose target can reach the first ten."""
        items = len(self._findable)
        scores = None if self._ranker is None else self._ranker.scores(histories)
        allowed = mask_histories(histories if self._exclude_seen else [rows[:0] for rows in histories], self._findable)
        for number, target in enumerate(targets.tolist()):
            rows = listed[number]
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


def listed_items(
    lists: Mapping[str, ItemList], items: int, validation: Targets, history: int
) -> list[NDArray[np.int64]]:
    """Rows of the items in the lists of each history, ascending; no ranker changes them.

    Args:
        lists: name → list.
        items: of the catalogue.
        validation: held-out targets.
        history: newest items of a history that count.
    """
    scores = _list_scores(tuple(lists[name] for name in LIST_SLOTS if name in lists), items, history, 1.0)
    found: list[NDArray[np.int64]] = []
    for start in range(0, len(validation), _USERS_PER_BLOCK):
        block = scores.candidates(validation.histories[start : start + _USERS_PER_BLOCK])
        found += [block.of(number)[0] for number in range(len(block.offsets) - 1)]
    return found


def _list_scores(lists: tuple[ItemList, ...], items: int, history: int, recency: float) -> ListScores:
    """Scores of lists at weight 1."""
    falling = np.power(recency, np.arange(history)).astype(np.float32)
    weights = ListWeights(falling, dict.fromkeys((item_list.name for item_list in lists), 1.0))
    return ListScores(ItemLists(items, lists, weights))
