"""Answers that were sent to clients, with the slot that contributes most to the score of each item."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from time import monotonic
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.stores.outcomes.answer_records import MOST_ITEMS, AnswerContext, AnswerRecord, SecondArm, owner_of

NO_SLOT: Final = "none"

PartsBySlot = Callable[[], NDArray[np.float32]]
ComputeContributions = Callable[[Sequence[PartsBySlot]], Sequence[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True, eq=False)
class SecondPart:
    """What the second arm gave to an interleaved answer.

    Attributes:
        arm: its context, and which items it gave.
        slots: names of its slots.
        contributions: of its items, as in `SentAnswer`.
    """

    arm: SecondArm
    slots: Sequence[str]
    contributions: PartsBySlot | None


@dataclass(frozen=True, slots=True, eq=False)
class SentAnswer:
    """An answer that was sent to a client.

    Attributes:
        user_id: whom it was for; None: nobody by name.
        request_id: as it was answered.
        offset: items before the first one.
        item_ids: best first.
        slots: names of the slots.
        contributions: computes the (k, slots) float32 parts of the scores by slot; None under ``popular``.
        context: what outcomes are counted by.
        degraded: whether it is degraded.
        latency_us: microseconds from the arrival of the request to its answer.
        second: of an interleaved answer, whose slots, contributions and context above are those of the items of the
            first arm; else None.
        apart: of an answer that should have been interleaved: by arm, whether its part was degraded or refused.
        sent: monotonic seconds when it was sent.
    """

    user_id: str | None
    request_id: str
    offset: int
    item_ids: Sequence[str]
    slots: Sequence[str]
    contributions: PartsBySlot | None
    context: AnswerContext
    degraded: bool
    latency_us: int
    second: SecondPart | None = None
    apart: Mapping[str, bool] | None = None
    sent: float = field(default_factory=monotonic)

    @property
    def all_contributions(self) -> list[PartsBySlot]:
        """Those of both parts that there are."""
        of_second = None if self.second is None else self.second.contributions
        return [found for found in (self.contributions, of_second) if found is not None]

    def record(self, now: float, known: Mapping[PartsBySlot, Sequence[int]] = MappingProxyType({})) -> AnswerRecord:
        """The answer as it is stored.

        Args:
            now: seconds since 1970.
            known: positions of the dominant slots by contributions, as of :func:`dominant_slots`; those of others are
                computed here.
        """
        items = self.item_ids[:MOST_ITEMS]
        owner, second = owner_of(self.user_id, self.request_id), self.second
        arm = None if second is None else SecondArm(second.arm.context, second.arm.gave[: len(items)])
        slots = self._slots(len(items), known)
        return AnswerRecord(owner, int(now), self.request_id, self.offset, items, slots, self.context, arm)

    def _slots(self, items: int, known: Mapping[PartsBySlot, Sequence[int]]) -> list[str]:
        """Names of the dominant slots of the first items."""
        first = _names(self.slots, self.contributions, known)
        if self.second is None:
            return list(islice(first, items))
        second = _names(self.second.slots, self.second.contributions, known)
        return [next(second if of_second else first) for of_second in self.second.arm.gave[:items]]


def each_alone(contributions: Sequence[PartsBySlot]) -> list[NDArray[np.float32]]:
    """Compute contributions one after the other."""
    return [one() for one in contributions]


def dominant_slots(contributions: Sequence[NDArray[np.float32]]) -> list[list[int]]:
    """The position of the slot with the largest positive contribution to each score; −1 where none is positive.

    Args:
        contributions: of several answers, (k, slots) float32 each; they are compared in one call.
    """
    if len({parts.shape[1] for parts in contributions}) > 1:  # of bundles with other slots
        return [found for parts in contributions for found in dominant_slots([parts])]
    joined = np.concatenate(contributions)
    largest = iter(np.where(joined.max(axis=1) > 0, joined.argmax(axis=1), -1).tolist())
    return [list(islice(largest, len(parts))) for parts in contributions]


def _names(
    names: Sequence[str], contributions: PartsBySlot | None, known: Mapping[PartsBySlot, Sequence[int]]
) -> Iterator[str]:
    """Names of the dominant slots of all items that have any contributions; without end where there are none."""
    if contributions is None:
        return repeat(NO_SLOT)
    found = known[contributions] if contributions in known else dominant_slots([contributions()])[0]
    return map((*names, NO_SLOT).__getitem__, found)
