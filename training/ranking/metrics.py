"""Computes ranking metrics from ranks: hit rate, NDCG, coverage, and paired bootstrap intervals."""

# A rank is the number of candidates ahead of the target, so 0 is the best. Every user has one target, so the hit rate
# is the recall, and NDCG@k is 1 / log2(rank + 2) inside the first k (Järvelin and Kekäläinen, 2002, with one relevant
# item). A target that ties with others has the expectation over all orders of the tied items. Higher is better for
# every metric.

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import EvaluationError

_RESAMPLES_PER_BLOCK = 64


@dataclass(frozen=True)
class Ranks:
    """Ranks of targets, with their ties.

    Attributes:
        ahead: (users,) float64 candidates with a higher score, 0 = best; infinite if the target cannot be returned.
        tied: (users,) float64 other candidates with the same score; 0 where ``ahead`` is infinite.
    """

    ahead: NDArray[np.float64]
    tied: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.ahead)

    @classmethod
    def of_means(cls, means: NDArray[np.float64], tied: NDArray[np.float64] | None = None) -> "Ranks":
        """Ranks in which a tie counts half.

        Args:
            means: (users,) candidates ahead and half of those tied.
            tied: (users,) candidates tied; None where that was not stored: the mean then counts as the rank.
        """
        known = np.zeros(len(means)) if tied is None else np.where(np.isinf(means), 0.0, tied)
        return cls(np.asarray(means - 0.5 * known, dtype=np.float64), np.asarray(known, dtype=np.float64))

    @classmethod
    def joined(cls, parts: Sequence["Ranks"]) -> "Ranks":
        """Ranks of several blocks of users, in order; no block gives no ranks."""
        nothing = [np.zeros(0)]
        return cls(
            np.concatenate(nothing + [part.ahead for part in parts]),
            np.concatenate(nothing + [part.tied for part in parts]),
        )

    @property
    def means(self) -> NDArray[np.float64]:
        """(users,) float64 mean rank over all orders of the tied items."""
        return self.ahead + 0.5 * self.tied

    def only(self, chosen: NDArray[np.bool_]) -> "Ranks":
        """The ranks of chosen users.

        Args:
            chosen: (users,) bool.
        """
        return Ranks(self.ahead[chosen], self.tied[chosen])

    def missed(self, unreachable: NDArray[np.bool_]) -> "Ranks":
        """The same, infinite where a target cannot be returned.

        Args:
            unreachable: (users,) bool.
        """
        return Ranks(np.where(unreachable, np.inf, self.ahead), np.where(unreachable, 0.0, self.tied))


def ranks(
    scores: NDArray[np.floating],
    targets: NDArray[np.int64],
    candidates: NDArray[np.bool_],
) -> Ranks:
    """Count the candidates ahead of each target, and those tied with it.

    Args:
        scores: (B, n), higher is better; only those of candidates and targets are read.
        targets: (B,) int64 rows.
        candidates: (B, n) bool, items that compete with the target; the target's own entry is ignored.

    Raises:
        EvaluationError: the score of a candidate or a target is not finite.
    """
    users = np.arange(len(targets))
    rivals = candidates.copy()
    rivals[users, targets] = False
    own = scores[users, targets]
    broken = (rivals & ~np.isfinite(scores)).any(axis=1) | ~np.isfinite(own)
    if broken.any():
        raise EvaluationError(
            f"scores must be finite, {int(broken.sum())} of {len(targets)} users have one that is not; "
            "check the training run for a diverged loss"
        )
    ahead = np.count_nonzero(rivals & (scores > own[:, None]), axis=1)
    tied = np.count_nonzero(rivals & (scores == own[:, None]), axis=1)
    return Ranks(ahead.astype(np.float64), tied.astype(np.float64))


def hits(found: Ranks, k: int) -> NDArray[np.float64]:
    """The probability that the target is among the first k, over all orders of the tied items.

    Without a tie it is 1 or 0. With t tied candidates it is the share of the t + 1 positions that are among the first
    k. If all n candidates tie it is k / n: a constant score is exactly as good as chance.

    Args:
        found: ranks of the targets.
        k: length of the list, at least 1.

    Returns:
        (users,) float64; the mean is HR@k.
    """
    shared = np.clip(k - found.ahead, 0, found.tied + 1) / (found.tied + 1)
    return np.where(found.tied > 0, shared, found.ahead < k)


def gains(found: Ranks, k: int) -> NDArray[np.float64]:
    """The expectation of ``1 / log2(rank + 2)`` inside the first k, over all orders of the tied items.

    With t tied candidates it is the mean over the t + 1 positions.

    Args:
        found: ranks of the targets.
        k: length of the list, at least 1.

    Returns:
        (users,) float64; the mean is NDCG@k.
    """
    summed = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])
    first = np.minimum(found.ahead, k).astype(np.int64)
    last = np.minimum(found.ahead + found.tied + 1, k).astype(np.int64)
    shared = (summed[last] - summed[first]) / (found.tied + 1)
    return np.where(found.tied > 0, shared, np.where(found.ahead < k, 1.0 / np.log2(found.ahead + 2.0), 0.0))


def coverage(lists: Sequence[NDArray[np.int64]], items: int) -> float:
    """Share of the catalogue that occurs in at least one list.

    Args:
        lists: arrays of item rows, −1 for an empty position.
        items: size of the catalogue, at least 1.
    """
    seen = np.zeros(items, dtype=np.bool_)
    for rows in lists:
        seen[rows[rows >= 0]] = True
    return float(seen.mean())


def share_in_lists(lists: Sequence[NDArray[np.int64]], items: NDArray[np.bool_]) -> float:
    """Share of the filled positions of all lists that have an item of a set; 0 if no position is filled.

    Args:
        lists: arrays of item rows, −1 for an empty position.
        items: (n,) bool.
    """
    filled = np.concatenate([rows[rows >= 0] for rows in lists])
    return float(items[filled].mean()) if len(filled) else 0.0


@dataclass(frozen=True)
class Interval:
    """A ratio of two means with its 95 % bootstrap interval.

    Attributes:
        ratio: mean of one system over mean of the baseline; NaN if the baseline's mean is 0.
        low: 2.5 % quantile over resamples of the users.
        high: 97.5 % quantile.
    """

    ratio: float
    low: float
    high: float


def resampled_means(values: NDArray[np.float64], *, resamples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Means over users resampled with replacement (the bootstrap, Efron and Tibshirani, 1993).

    The same users are drawn for every column, so that columns stay paired.

    Args:
        values: (users, columns) per-user metrics.
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        (resamples, columns) float64.

    Raises:
        EvaluationError: there are no users.
    """
    users = len(values)
    if users < 1:
        raise EvaluationError("an interval needs at least one user, got none")
    generator = np.random.default_rng(seed)
    share = np.full(users, 1.0 / users)
    blocks = []
    for start in range(0, resamples, _RESAMPLES_PER_BLOCK):
        counts = generator.multinomial(users, share, size=min(_RESAMPLES_PER_BLOCK, resamples - start))
        blocks.append(counts.astype(np.float64) @ values / users)
    return np.concatenate(blocks)


def ratio_interval(
    values: NDArray[np.float64],
    baseline: NDArray[np.float64],
    drawn: NDArray[np.float64],
    drawn_baseline: NDArray[np.float64],
) -> Interval:
    """The ratio of a system's mean to a baseline's, with its paired 95 % interval.

    Args:
        values: (users,) metric of the system.
        baseline: (users,) the same metric of the baseline, users in the same order.
        drawn: (resamples,) column of the system from :func:`resampled_means`.
        drawn_baseline: (resamples,) column of the baseline from the same call; resamples in which it is 0 are left out.
    """
    ratio = float(values.mean() / baseline.mean()) if baseline.any() else float("nan")
    usable = drawn_baseline > 0
    if not usable.any():
        return Interval(ratio, float("nan"), float("nan"))
    low, high = np.quantile(drawn[usable] / drawn_baseline[usable], [0.025, 0.975])
    return Interval(ratio, float(low), float(high))
