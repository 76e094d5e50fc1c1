"""Checks that two implementations of the recommender return equal results for the same histories.

A result agrees with the reference if every score equals the reference's score of that item, and the item at every rank
scores at least as much as the reference's item there, both within a tolerance. Items of nearly equal scores may
therefore swap ranks, and finding a better item is not an error.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from index.errors import SearchError

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class RankedItems:
    """Recommended items of one history.

    Attributes:
        ids: item ids, best first.
        scores: one per item, never increasing beyond the tolerance.

    Raises:
        SearchError: ``ids`` and ``scores`` have different lengths.
    """

    ids: Sequence[str]
    scores: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.scores):
            raise SearchError(f"a ranking needs a score for each item, got {len(self.ids)} and {len(self.scores)}")


@dataclass(slots=True)
class ParityResult:
    """Agreement of an implementation with the reference on the histories compared so far.

    Attributes:
        name: name of the compared pair.
        tolerance: scores that differ by at most this count as equal.
        histories: number of compared histories.
        identical: number of histories with the same items in the same order.
        difference: largest difference of a score.
        wrong: one line for each history that does not agree.
    """

    name: str
    tolerance: float = TOLERANCE
    histories: int = 0
    identical: int = 0
    difference: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether at least one history was compared and all agree."""
        return self.histories > 0 and not self.wrong

    def compare(
        self, history: str, reference: RankedItems, got: RankedItems, score_of: Callable[[str], float | None]
    ) -> None:
        """Compare the results of one history.

        Args:
            history: name of the history in messages.
            reference: the correct result.
            got: the result to check.
            score_of: the reference's score of an item; None for an unknown or excluded item.
        """
        self.histories += 1
        self.identical += list(reference.ids) == list(got.ids)
        error = self._error(reference, got, score_of)
        if error is not None:
            self.wrong.append(f"{history}: {error}")

    def fail(self, history: str, error: str) -> None:
        """Count a history without a result to compare.

        Args:
            history: name of the history in messages.
            error: why there is no result.
        """
        self.histories += 1
        self.wrong.append(f"{history}: {error}")

    def _error(self, reference: RankedItems, got: RankedItems, score_of: Callable[[str], float | None]) -> str | None:
        if len(got.ids) != len(reference.ids):
            return f"{len(got.ids)} items instead of {len(reference.ids)}"
        if len(set(got.ids)) != len(got.ids):
            return "an item is repeated"
        error = None
        for rank, (item_id, score) in enumerate(zip(got.ids, got.scores, strict=True)):
            expected = score_of(item_id)
            if expected is None:
                return f"{item_id!r} at rank {rank + 1} is unknown or excluded"
            self.difference = max(self.difference, abs(score - expected))
            if not abs(score - expected) <= self.tolerance:
                error = error or f"{item_id!r} at rank {rank + 1} scores {score:.6f} instead of {expected:.6f}"
            elif score < reference.scores[rank] - self.tolerance:
                error = error or (
                    f"{item_id!r} ({score:.6f}) at rank {rank + 1} instead of {reference.ids[rank]!r} "
                    f"({reference.scores[rank]:.6f})"
                )
        return error
