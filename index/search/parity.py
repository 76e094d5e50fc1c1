"""Parity: whether two engines that should answer alike do, on the same histories.

An engine's ranking agrees with the reference if every score in it is the reference's own score of that item, and no
place holds a worse item than the reference has there, both within a tolerance. So items of (nearly) equal scores may
change places, and an index that happens to find a better item is not held against it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from index.errors import SearchError

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer to one history.

    Attributes:
        ids: item ids, best first.
        scores: as many, never increasing beyond the tolerance.
    """

    ids: Sequence[str]
    scores: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.scores):
            raise SearchError(f"a ranking needs a score for each item, got {len(self.ids)} and {len(self.scores)}")


@dataclass(slots=True)
class Parity:
    """How well an engine agrees with the reference so far.

    Attributes:
        name: of the pair.
        tolerance: largest difference of scores that is none.
        histories: compared so far.
        identical: of these, those with the same items in the same order.
        difference: largest difference of a score.
        wrong: what does not agree, one line a history.
    """

    name: str
    tolerance: float = TOLERANCE
    histories: int = 0
    identical: int = 0
    difference: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether something was compared and nothing differs."""
        return self.histories > 0 and not self.wrong

    def compare(self, history: str, reference: Ranking, got: Ranking, score_of: Callable[[str], float | None]) -> None:
        """Compare one history's answers.

        Args:
            history: what the history is called in a message.
            reference: the answer that is right.
            got: the answer in question.
            score_of: the reference's own score of any item; None for one that it does not know.
        """
        self.histories += 1
        self.identical += list(reference.ids) == list(got.ids)
        trouble = self._trouble(reference, got, score_of)
        if trouble is not None:
            self.wrong.append(f"{history}: {trouble}")

    def fail(self, history: str, trouble: str) -> None:
        """Count a history that has no answer to compare."""
        self.histories += 1
        self.wrong.append(f"{history}: {trouble}")

    def _trouble(self, reference: Ranking, got: Ranking, score_of: Callable[[str], float | None]) -> str | None:
        if len(got.ids) != len(reference.ids):
            return f"{len(got.ids)} items instead of {len(reference.ids)}"
        if len(set(got.ids)) != len(got.ids):
            return "an item comes twice"
        trouble = None
        for place, (item_id, score) in enumerate(zip(got.ids, got.scores, strict=True)):
            right = score_of(item_id)
            if right is None:
                return f"{item_id!r} at place {place + 1} is unknown or must not be answered"
            self.difference = max(self.difference, abs(score - right))
            if not abs(score - right) <= self.tolerance:
                trouble = trouble or f"{item_id!r} at place {place + 1} scores {score:.6f} instead of {right:.6f}"
            elif score < reference.scores[place] - self.tolerance:
                trouble = trouble or (
                    f"{item_id!r} ({score:.6f}) at place {place + 1} instead of {reference.ids[place]!r} "
                    f"({reference.scores[place]:.6f})"
                )
        return trouble
