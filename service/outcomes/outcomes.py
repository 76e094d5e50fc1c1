"""Keeps answers and attributes events to them, after the client has its answer.

Answers and events wait in one bounded queue, so that an event never overtakes the answer before it in this process. A
task stores and attributes them and flushes the counts once a second. If Redis does not answer, answers and events are
left out and counted; no request waits or fails.
"""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from time import monotonic, time
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from structlog.typing import FilteringBoundLogger

from service.errors import OutcomesUnavailable
from service.outcomes.counts import LeftOut, OutcomeCounts, flushed
from service.outcomes.event_outcomes import OUTCOME_OF
from service.settings.groups import OutcomeSettings
from service.stores.outcomes.answer_records import MOST_ITEMS, AnswerContext, AnswerRecord, SecondArm, owner_of
from service.stores.outcomes.outcome_store import DUPLICATE, AnsweredItem, ItemOutcome, OutcomeStore
from service.stores.protocols import Event, session_owner

MOST_WAITING: Final = 10_000
"""Answers and events that may wait; further ones are left out and counted."""
NO_SLOT: Final = "none"

_TOGETHER: Final = 8  # few, as the event loop is busy meanwhile
_LONG_QUEUE: Final = 200
_TOGETHER_IN_LONG_QUEUE: Final = 64  # where Redis is slow, 8 at a time are fewer than a shop with impressions sends
_GATHER_S: Final = 0.01  # several answers share a call of Redis, and the next request finds the event loop free
_FLUSH_S: Final = 1.0
_CLOSING_S: Final = 2.0
_MOST_FORGOTTEN: Final = 1000  # erased users that are remembered for the answers in progress


Contributions = Callable[[], NDArray[np.float32]]


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
    contributions: Contributions | None


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
    """

    user_id: str | None
    request_id: str
    offset: int
    item_ids: Sequence[str]
    slots: Sequence[str]
    contributions: Contributions | None
    context: AnswerContext
    degraded: bool
    latency_us: int
    second: SecondPart | None = None
    apart: Mapping[str, bool] | None = None

    def record(self, now: float) -> AnswerRecord:
        """The answer as it is stored."""
        items = self.item_ids[:MOST_ITEMS]
        owner, second = owner_of(self.user_id, self.request_id), self.second
        arm = None if second is None else SecondArm(second.arm.context, second.arm.gave[: len(items)])
        return AnswerRecord(
            owner, int(now), self.request_id, self.offset, items, self._slots(len(items)), self.context, arm
        )

    def _slots(self, items: int) -> list[str]:
        """The dominant slots of the first items."""
        if self.second is None:
            return dominant_slots(self.slots, _computed(self.contributions), items)
        gave = self.second.arm.gave[:items]
        first = iter(dominant_slots(self.slots, _computed(self.contributions), items - sum(gave)))
        second = iter(dominant_slots(self.second.slots, _computed(self.second.contributions), sum(gave)))
        return [next(second if of_second else first) for of_second in gave]


class OutcomeObserver(Protocol):
    """Counts what is kept and attributed, as Prometheus metrics."""

    def answer(self, result: str, amount: int = 1) -> None:
        """Count answers: kept, dropped, failed, sampled or evicted."""
        ...

    def event(self, result: str, amount: int = 1) -> None:
        """Count events: attributed, duplicate, unattributed, dropped or failed."""
        ...

    def counted(self, by: str, value: str, measure: str, amount: int) -> None:
        """Add to the counts by a dimension."""
        ...


class Outcomes:
    """Answers that are kept, and the events that are attributed to them.

    Args:
        store: keeps answers and counts.
        settings: the sampling rate.
        observer: counts what happens.
        log: gets unexpected errors.

    Attributes:
        counts: what was counted.
    """

    def __init__(
        self, store: OutcomeStore, settings: OutcomeSettings, observer: OutcomeObserver, log: FilteringBoundLogger
    ) -> None:
        self._store = store
        self._sample = settings.outcomes_sample
        self._observer = observer
        self._log = log
        self._waiting: deque[SentAnswer | Event] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._forgotten: OrderedDict[str, float] = OrderedDict()
        self.counts = OutcomeCounts(store, observer.counted)

    def samples(self, user_id: str | None, request_id: str) -> bool:
        """Whether answers to a user are kept; of answers without a user each is sampled by its request id."""
        return self._sample >= 1.0 or share_of(owner_of(user_id, request_id)) < self._sample

    def answered(self, answer: SentAnswer) -> None:
        """Keep an answer that :meth:`samples`; returns at once."""
        if self._is_forgotten(answer, monotonic() - answer.latency_us / 1e6):
            return
        if not self._put(answer):
            self._leave_out("dropped")

    def not_sampled(self) -> None:
        """Count an answer that is not kept as its user is not in the sample."""
        self._leave_out("sampled")
        self._start()

    def happened(self, events: Iterable[Event]) -> None:
        """Attribute the stored events of one call; returns at once.

        They are left out together: an impression without its click would make the click rate too low.
        """
        wanted = [event for event in events if event.type in OUTCOME_OF and self._owners(event)]
        if wanted and not self._put(*wanted):
            self._observer.event("dropped", len(wanted))
            self.counts.left_out(time(), "events", "dropped", len(wanted))

    async def forget(self, user_id: str) -> None:
        """Delete the answers to a user, also those in progress in this process; their counts stay.

        Raises:
            OutcomesUnavailable: the store does not answer.
        """
        self._forgotten.pop(user_id, None)
        self._forgotten[user_id] = monotonic()
        if len(self._forgotten) > _MOST_FORGOTTEN:
            self._forgotten.popitem(last=False)
        self._waiting = deque(entry for entry in self._waiting if entry.user_id != user_id)
        await self._store.forget(user_id)

    async def close(self) -> None:
        """Store what waits, for at most two seconds, and end."""
        self._closed = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=_CLOSING_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_forgotten(self, answer: SentAnswer, began: float) -> bool:
        """Whether the user was erased since this moment, in monotonic seconds."""
        return answer.user_id is not None and began < self._forgotten.get(answer.user_id, -inf)

    def _owners(self, event: Event) -> list[str]:
        """Owners of answers that an event may be an outcome of, in the order in which they are tried."""
        owners = [event.user_id] if self.samples(event.user_id, "") else []
        if event.session_id is not None:
            # A visitor who has logged in since: the answer was to the session.
            session = session_owner(event.session_id)
            owners += [session] if session != event.user_id and self.samples(session, "") else []
        if event.request_id is not None and self.samples(None, event.request_id):
            owners.append(owner_of(None, event.request_id))
        return owners

    def _put(self, *entries: SentAnswer | Event) -> bool:
        if self._closed or len(self._waiting) + len(entries) > MOST_WAITING:
            return False
        self._waiting.extend(entries)
        self._start()
        self._wake.set()
        return True

    def _start(self) -> None:
        """Start the task that stores and counts, which ends with :meth:`close`."""
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def _leave_out(self, reason: LeftOut, seconds: float | None = None) -> None:
        """Count an answer that is not kept; of an earlier one the seconds since 1970 are given."""
        self._observer.answer(reason)
        self.counts.left_out(time() if seconds is None else seconds, "answers", reason)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + _FLUSH_S
        while not self._closed or self._waiting:
            self._wake.clear()
            if not self._waiting:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), max(due - loop.time(), 0.0))
                if not self._closed:
                    await asyncio.sleep(_GATHER_S)
            await self._store_some()
            if loop.time() >= due:
                await flushed(self.counts)
                due = loop.time() + _FLUSH_S
        await flushed(self.counts)

    async def _store_some(self) -> None:
        """Store and attribute some of what waits: the answers first, since an event follows its answer."""
        most = _TOGETHER if len(self._waiting) < _LONG_QUEUE else _TOGETHER_IN_LONG_QUEUE
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), most))]
        answers = [entry for entry in taken if isinstance(entry, SentAnswer)]
        events = [entry for entry in taken if not isinstance(entry, SentAnswer)]
        await self._together(self._keep(answer) for answer in answers)
        await self._together(self._attribute(event) for event in events)

    async def _together(self, work: Iterable[Awaitable[None]]) -> None:
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, Exception):
                self._log.error("outcome not counted", exc_info=result)

    async def _keep(self, answer: SentAnswer) -> None:
        record = answer.record(time())
        try:
            stored = await self._store.record(record)
        except OutcomesUnavailable:
            self._leave_out("failed", record.time)
            return
        self._observer.answer("kept")
        for seconds in stored.dropped:
            self._leave_out("evicted", seconds)
        self.counts.answered(
            record,
            is_visit=stored.earlier == 0,
            latency_us=answer.latency_us,
            degraded=answer.degraded,
            apart=answer.apart,
        )

    async def _attribute(self, event: Event) -> None:
        outcome = OUTCOME_OF[event.type or ""]
        try:
            for owner in self._owners(event):
                found = await self._store.attribute(ItemOutcome(owner, event.item_id, outcome, event.request_id))
                if found is not None:
                    break
            else:
                self._observer.event("unattributed")
                return
        except OutcomesUnavailable:
            self._observer.event("failed")
            self.counts.left_out(time(), "events", "failed")
            return
        if not isinstance(found, AnsweredItem):
            self._observer.event(DUPLICATE)
            return
        self._observer.event("attributed")
        self.counts.attributed(owner, outcome, found, event.value or 0.0)


def _computed(contributions: Contributions | None) -> NDArray[np.float32] | None:
    return None if contributions is None else contributions()


def dominant_slots(names: Sequence[str], contributions: NDArray[np.float32] | None, items: int) -> list[str]:
    """The name of the slot with the largest positive contribution to each score.

    Args:
        names: of the slots.
        contributions: (≥ items, slots) float32; None: there are none.
        items: how many.
    """
    if contributions is None:
        return [NO_SLOT] * items
    parts = contributions[:items]
    largest = parts.argmax(axis=1).tolist()
    positive = (parts.max(axis=1) > 0).tolist()
    return [names[slot] if found else NO_SLOT for slot, found in zip(largest, positive, strict=True)]


def share_of(owner: str) -> float:
    """A number of 0 … 1 that is always the same for an owner, by which owners are sampled."""
    return int.from_bytes(hashlib.blake2b(owner.encode(), digest_size=4, person=b"outcome-sample").digest()) / 2**32
