"""Defines the store of answers and outcomes as a Protocol, with its value objects."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Literal, NamedTuple, Protocol

from index.bundle.event_types import Outcome
from service.errors import OutcomesUnavailable
from service.stores.outcomes.answer_records import AnswerContext, AnswerRecord

DUPLICATE: Final = "duplicate"
"""Result of an attribution to an answer that has this outcome of this item already."""


CLOCK_TOLERANCE_S: Final = 60
"""Seconds that the clock of a client may be behind that of the service."""


@dataclass(frozen=True, slots=True)
class InterleavedCredit:
    """How many items of an interleaved answer have an outcome, right after one more has got it.

    Attributes:
        own: items of the arm that gave this item, this one included.
        other: items of the other arm.
        other_arm: experiment and arm of the other one, as in ``prices/control``.
    """

    own: int
    other: int
    other_arm: str


@dataclass(frozen=True, slots=True)
class AnsweredItem:
    """The place of an item in an answer.

    Attributes:
        position: counted from 1, over all pages.
        slot: name of the slot with the largest contribution to its score.
        time: seconds since 1970 of the answer.
        context: of the answer, or of the arm that gave the item.
        credit: of an interleaved answer; else None.
    """

    position: int
    slot: str
    time: int
    context: AnswerContext
    credit: InterleavedCredit | None = None


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """What storing an answer did.

    Attributes:
        earlier: how many answers of its owner are in the window already.
        dropped: seconds since 1970 of each answer that had to leave before its window ended, as the memory is full or
            its owner has newer ones.
        is_first: whether its owner had no answer of its experiment before, in whatever window. False where it is of no
            experiment or interleaved, and for users beyond those that are remembered.
    """

    earlier: int
    dropped: Sequence[int] = ()
    is_first: bool = False


class ItemOutcome(NamedTuple):
    """What a user did with an item that may have been answered.

    Attributes:
        owner: of the answer, see `service.stores.outcomes.answer_records.owner_of`.
        item_id: of the item.
        outcome: what happened.
        request_id: of the answer; None: the owner's newest answer with the item, of those given before ``time``.
        time: seconds since 1970 when it happened, by the clock of the client; infinite: after all answers.
    """

    owner: str
    item_id: str
    outcome: Outcome
    request_id: str | None = None
    time: float = inf

    @property
    def latest(self) -> float:
        """The last moment, in seconds since 1970, of an answer that may have led to it.

        A request id is proof enough: nobody knows it before the answer, and clocks of clients are wrong.
        """
        return inf if self.request_id is not None else self.time + CLOCK_TOLERANCE_S


@dataclass(frozen=True, slots=True)
class CountBatch:
    """Increments that are stored once, however often they are sent.

    Attributes:
        writer: random name of the process.
        number: of the batch; it grows.
        amounts: by hash and field.
    """

    writer: str
    number: int
    amounts: Mapping[tuple[str, str], int]


Attribution = AnsweredItem | Literal["duplicate"] | OutcomesUnavailable | None
"""Where an outcome was noted; None: no answer in the window shows the item to this owner."""


class OutcomeStore(Protocol):
    """Keeps answers for the attribution window, and counts.

    Every method raises `OutcomesUnavailable` when the store does not answer in its time, unless it says otherwise.
    """

    async def record(self, answers: Sequence[AnswerRecord]) -> list[RecordedAnswer | OutcomesUnavailable]:
        """Store answers together.

        Returns:
            What became of each; the error of those for which the store did not answer.
        """
        ...

    async def attribute(self, outcomes: Sequence[ItemOutcome]) -> list[Attribution]:
        """Find the answers that showed the items, and note the outcomes there, those of one owner in their order.

        Returns:
            What became of each; the error of those for which the store did not answer.
        """
        ...

    async def forget(self, owner: str) -> None:
        """Delete the answers of an owner; an unknown owner is no error."""
        ...

    async def add(self, batch: CountBatch) -> Collection[tuple[str, str]]:
        """Add to counts; a batch that was added already changes nothing.

        Returns:
            Hash and field of each count that stays as it was: it would exceed 64 bits, or another program wrote it.
        """
        ...

    async def counts(self, names: Sequence[str]) -> list[dict[str, int]]:
        """The counts in each of these hashes, by field; empty for an unknown one."""
        ...

    async def describe(self, experiment: str, definition: str) -> None:
        """Keep the definition of an experiment as long as its counts."""
        ...

    async def description(self, experiment: str) -> str | None:
        """The definition of an experiment; None if there was none of this name lately."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
