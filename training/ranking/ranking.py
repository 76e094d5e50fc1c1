"""Ranks the whole catalogue for held-out targets, in blocks of bounded memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.sequences import Targets
from training.errors import EvaluationError
from training.ranking import metrics
from training.ranking.baselines import Ranker

LIST_LENGTH = 10
_FLOATS_PER_BLOCK = 1 << 24
_MOST_USERS = 512


@dataclass(frozen=True)
class TargetRanks:
    """The result of one ranker for every user.

    Attributes:
        full: rank of each target among all items that may be returned; infinite if it may not.
        sampled: rank among the sampled negatives; infinite if the target may not be returned; empty without
            negatives.
        lists: (users, 10) int64, the first items; −1 for an empty position.
    """

    full: metrics.Ranks
    sampled: metrics.Ranks
    lists: NDArray[np.int64]


def rank_targets(
    ranker: Ranker,
    targets: Targets,
    findable: NDArray[np.bool_],
    *,
    negatives: NDArray[np.int64] | None = None,
    exclude_seen: bool = True,
    advance: Callable[[int], None] = lambda _users: None,
) -> TargetRanks:
    """Rank every user's target against the catalogue, as the service does.

    Args:
        ranker: gives the scores.
        targets: held-out events with their histories.
        findable: (n,) bool, items that the ranker can return.
        exclude_seen: mask the whole prior history; a target that occurs in it then has an infinite rank, because the
            service would not return it.
        negatives: (users, m) int64 rows for the sampled protocol, neither the target nor in the history; −1 for none.
        advance: called with the number of users done.

    Raises:
        EvaluationError: no targets, or a score that is not finite.
    """
    if not len(targets):
        raise EvaluationError("nothing to rank: no user has a held-out event; users need at least 3 interactions")
    items = len(findable)
    block = int(np.clip(_FLOATS_PER_BLOCK // items, 1, _MOST_USERS))
    full: list[metrics.Ranks] = []
    sampled: list[metrics.Ranks] = []
    lists: list[NDArray[np.int64]] = []
    for start in range(0, len(targets), block):
        part = slice(start, start + block)
        histories, rows = targets.histories[part], targets.targets[part]
        scores = ranker.scores(histories)
        candidates = mask_histories(histories, findable) if exclude_seen else np.tile(findable, (len(rows), 1))
        reachable = candidates[np.arange(len(rows)), rows]
        full.append(metrics.ranks(scores, rows, candidates).missed(~reachable))
        if negatives is not None:
            few = _only(negatives[part], items) & findable
            sampled.append(metrics.ranks(scores, rows, few).missed(~reachable))
        lists.append(_first(scores, candidates))
        advance(len(rows))
    return TargetRanks(metrics.Ranks.joined(full), metrics.Ranks.joined(sampled), np.concatenate(lists))


def mask_histories(histories: Sequence[NDArray[np.int64]], findable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(B, n) bool: items that can be returned and are not in the history."""
    candidates = np.tile(findable, (len(histories), 1))
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    if len(users):
        candidates[users, np.concatenate(histories)] = False
    return candidates


def sample_negatives(targets: Targets, items: int, count: int, *, seed: int) -> NDArray[np.int64]:
    """Items without an event of the user, drawn uniformly without repetition.

    Args:
        targets: held-out events with their histories.
        items: size of the catalogue.
        count: negatives per user.
        seed: of the draw; the same for every ranker, so that they stay paired.

    Returns:
        (users, count) int64; −1 at the end if there are fewer such items.
    """
    drawn = np.full((len(targets), count), -1, dtype=np.int64)
    rng = np.random.default_rng(seed)
    for row, history, target in zip(drawn, targets.histories, targets.targets, strict=True):
        touched = np.union1d(history, [target])
        free = items - len(touched)
        # Draw a number among the remaining items, then shift it past the touched rows below it.
        numbers = rng.choice(free, size=min(count, free), replace=False)
        row[: len(numbers)] = numbers + np.searchsorted(touched - np.arange(len(touched)), numbers, side="right")
    return drawn


def _only(rows: NDArray[np.int64], items: int) -> NDArray[np.bool_]:
    chosen = np.zeros((len(rows), items), dtype=np.bool_)
    users, columns = np.nonzero(rows >= 0)
    chosen[users, rows[users, columns]] = True
    return chosen


def _first(scores: NDArray[np.floating], candidates: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(B, 10) rows of the best candidates in any order, −1 where there are fewer."""
    length = min(LIST_LENGTH, scores.shape[1])
    allowed = np.where(candidates, scores, -np.inf)
    rows = np.argpartition(-allowed, length - 1, axis=1)[:, :length].astype(np.int64)
    found = np.take_along_axis(candidates, rows, axis=1)
    padded = np.full((len(rows), LIST_LENGTH), -1, dtype=np.int64)
    padded[:, :length] = np.where(found, rows, -1)
    return padded
