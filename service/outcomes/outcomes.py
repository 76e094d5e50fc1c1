"""Keeps answers and attributes events to them, after the client has its answer.

Answers and events wait in one bounded queue, so that an event never overtakes the answer before it in this process. A
task stores and attributes them and flushes the counts once a second. If Redis does not answer, answers and events are
left out and counted; no request waits or fails.
"""

import asyncio
import hashlib
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from math import inf
from time import monotonic, time
from typing import Final, Protocol, TypeVar

from structlog.typing import FilteringBoundLogger

from service.errors import OutcomesUnavailable
from service.outcomes.counts import LeftOut, LeftOutKind, OutcomeCounts, flushed
from service.outcomes.sent_answers import (
    ComputeContributions,
    PartsBySlot,
    SentAnswer,
    dominant_slots,
    each_alone,
)
from service.settings.groups import OutcomeSettings
from service.stores.outcomes.answer_records import AnswerRecord, owner_of
from service.stores.outcomes.outcome_store import DUPLICATE, AnsweredItem, Attribution, ItemOutcome, OutcomeStore
from service.stores.protocols import Event, session_owner

MOST_WAITING: Final = 10_000
"""Answers and events that may wait; further ones are left out and counted."""

_ANSWERS_TOGETHER: Final = 8  # few, as the event loop is busy meanwhile
_LONG_QUEUE: Final = 200
_ANSWERS_TOGETHER_IN_LONG_QUEUE: Final = 64
_EVENTS_TOGETHER: Final = 256  # a call of Redis for each would cost more than storing the event
_GATHER_S: Final = 0.01  # answers and events of so long share a call, and the next request finds the event loop free
_FLUSH_S: Final = 1.0
_CLOSING_S: Final = 2.0
_MOST_FORGOTTEN: Final = 1000  # erased users that are remembered for the answers in progress


_Entry = TypeVar("_Entry")


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

    def refused(self, amount: int) -> None:
        """Count increments that the store refused."""
        ...


class Outcomes:
    """Answers that are kept, and the events that are attributed to them.

    Args:
        store: keeps answers and counts.
        settings: the sampling rate.
        observer: counts what happens.
        log: gets unexpected errors.
        compute: computes the contributions of several answers, in less time than one after the other.

    Attributes:
        counts: what was counted.
    """

    def __init__(
        self,
        store: OutcomeStore,
        settings: OutcomeSettings,
        observer: OutcomeObserver,
        log: FilteringBoundLogger,
        compute: ComputeContributions = each_alone,
    ) -> None:
        self._store = store
        self._sample = settings.outcomes_sample
        self._observer = observer
        self._log = log
        self._compute = compute
        self._waiting: deque[SentAnswer | Event] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._counts_are_stored = False
        self._forgotten: OrderedDict[str, float] = OrderedDict()
        self._recording = asyncio.Lock()  # held while answers are being stored
        self.counts = OutcomeCounts(store, observer.counted, observer.refused)

    def samples(self, user_id: str | None, request_id: str) -> bool:
        """Whether answers to a user are kept; of answers without a user each is sampled by its request id."""
        return self._sample >= 1.0 or share_of(owner_of(user_id, request_id)) < self._sample

    def answered(self, answer: SentAnswer) -> None:
        """Keep an answer that :meth:`samples`; returns at once."""
        if not self._is_forgotten(answer) and not self._put(answer):
            self._leave_out("dropped")

    def not_sampled(self) -> None:
        """Count an answer that is not kept as its user is not in the sample."""
        self._leave_out("sampled")
        self._start()

    def happened(self, events: Iterable[Event]) -> None:
        """Attribute the stored events of one call; returns at once."""
        wanted = [
            event for event in events if event.outcome is not None and (self._sample >= 1.0 or self._owners(event))
        ]
        if wanted and not self._put(*wanted):  # all or none: an impression without its click lowers the click rate
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
        async with self._recording:  # what is being stored does not know of this erasure
            pass
        await self._store.forget(user_id)

    async def close(self) -> None:
        """Store what waits, for at most two seconds, and end."""
        self._closed = True
        self._wake.set()
        if self._task is None:
            return
        await asyncio.wait({self._task}, timeout=_CLOSING_S)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._waiting or not self._counts_are_stored:
            answers = sum(isinstance(entry, SentAnswer) for entry in self._waiting)
            self._log.warning(
                "outcomes left out at the end",
                answers=answers,
                events=len(self._waiting) - answers,
                counts_stored=self._counts_are_stored,
            )

    def _is_forgotten(self, answer: SentAnswer) -> bool:
        """Whether the user was erased since the request arrived."""
        began = answer.sent - answer.latency_us / 1e6
        return answer.user_id is not None and began < self._forgotten.get(answer.user_id, -inf)

    def _owners(self, event: Event) -> list[str]:
        """Owners of answers that an event may be an outcome of, in the order in which they are tried."""
        if self._sample >= 1.0 and event.session_id is None and event.request_id is None:
            return [event.user_id]
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
        due, gathers = loop.time() + _FLUSH_S, True
        while not self._closed or self._waiting:
            self._wake.clear()
            if not self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self._wake.wait()
            if gathers and not self._closed:
                await asyncio.sleep(_GATHER_S)
            gathers = await self._store_some()
            if loop.time() >= due:
                await flushed(self.counts)
                due = loop.time() + _FLUSH_S
        self._counts_are_stored = await flushed(self.counts)

    async def _store_some(self) -> bool:
        """Store and attribute some of what waits, the answers first; returns whether that was all.

        An answer to a user waits for the events before it, which are no outcomes of it, and events for that answer.
        """
        most_answers = _ANSWERS_TOGETHER if len(self._waiting) < _LONG_QUEUE else _ANSWERS_TOGETHER_IN_LONG_QUEUE
        answers: list[SentAnswer] = []
        events: list[Event] = []
        later: list[SentAnswer | Event] = []
        users: set[str | None] = set()  # with an event before
        waits: set[str | None] = set()  # with an answer that waits for an event
        # Without an answer among so many no event waits, and nothing needs to be known of its users.
        mixed = any(isinstance(entry, SentAnswer) for entry in islice(self._waiting, _EVENTS_TOGETHER))
        while self._waiting and len(answers) < most_answers and len(events) < _EVENTS_TOGETHER:
            if not isinstance(entry := self._waiting.popleft(), SentAnswer):
                if not mixed:
                    events.append(entry)
                    continue
                own = {entry.user_id, session_owner(entry.session_id) if entry.session_id else entry.user_id}
                users |= own
                (later if own & waits else events).append(entry)
            elif entry.user_id in users:
                waits.add(entry.user_id)
                later.append(entry)
            else:
                answers.append(entry)
        self._waiting.extendleft(reversed(later))
        is_all = not self._waiting
        try:
            await self._logged(self._keep, answers, "answers")
            answers = []
            await self._logged(self._attribute, events, "events")
        except asyncio.CancelledError:
            self._waiting.extendleft((*reversed(events), *reversed(answers)))
            raise
        return is_all

    async def _logged(
        self, work: Callable[[Sequence[_Entry]], Awaitable[None]], entries: Sequence[_Entry], kind: LeftOutKind
    ) -> None:
        """Do it; if it fails unexpectedly, count the entries as left out and go on with what waits."""
        try:
            if entries:
                await work(entries)
        except Exception as error:  # noqa: BLE001 - what waits is stored nevertheless
            self._log.error("outcomes not counted", exc_info=error)
            tell = self._observer.answer if kind == "answers" else self._observer.event
            tell("failed", len(entries))
            self.counts.left_out(time(), kind, "failed", len(entries))

    async def _keep(self, answers: Sequence[SentAnswer]) -> None:
        now, kept = time(), 0
        async with self._recording:
            # An erasure that marks its user after this line waits for the lock, and deletes what is stored here.
            wanted = [answer for answer in answers if not self._is_forgotten(answer)]
            known = self._dominant_slots(wanted)
            recorded = [(one, record) for one in wanted if (record := self._record(one, now, known)) is not None]
            results = await self._store.record([record for _, record in recorded])
        for (answer, record), stored in zip(recorded, results, strict=True):
            if isinstance(stored, OutcomesUnavailable):
                self._leave_out("failed", record.time)
                continue
            kept += 1
            for seconds in stored.dropped:
                self._leave_out("evicted", seconds)
            self.counts.answered(
                record,
                is_visit=stored.earlier == 0,
                is_first=stored.is_first,
                latency_us=answer.latency_us,
                degraded=answer.degraded,
                apart=answer.apart,
            )
        if kept:
            self._observer.answer("kept", kept)

    def _dominant_slots(self, answers: Sequence[SentAnswer]) -> dict[PartsBySlot, list[int]]:
        """Those of all answers; none if any contributions fail, so that those of each answer are computed alone."""
        wanted = [found for answer in answers for found in answer.all_contributions]
        try:
            return dict(zip(wanted, dominant_slots(self._compute(wanted)), strict=True)) if wanted else {}
        except Exception:  # noqa: BLE001 - `_record` logs the error with the answer that it is of
            return {}

    def _record(
        self, answer: SentAnswer, now: float, known: Mapping[PartsBySlot, Sequence[int]]
    ) -> AnswerRecord | None:
        try:
            return answer.record(now, known)
        except Exception as error:  # noqa: BLE001 - the others are stored nevertheless
            self._log.error("answer not kept", request_id=answer.request_id, exc_info=error)
            self._leave_out("failed", now)
            return None

    async def _attribute(self, events: Sequence[Event]) -> None:
        """Attribute each event to the first of its owners whose answers show the item."""
        waiting, tried = [(event, kind, self._owners(event)) for event in events if (kind := event.outcome)], 0
        results: Counter[str] = Counter()
        while waiting:
            outcomes = [
                # One without a time follows all answers, whose replica's clock may be ahead.
                ItemOutcome(
                    owners[tried], event.item_id, kind, event.request_id, event.timestamp if event.is_timed else inf
                )
                for event, kind, owners in waiting
            ]
            found = await self._store.attribute(outcomes)
            further = []
            for entry, outcome, shown in zip(waiting, outcomes, found, strict=True):
                event, kind, owners = entry
                if shown is None:  # most events are of no answer
                    if len(owners) > tried + 1:
                        further.append(entry)
                    continue
                results[_result(shown)] += 1
                if isinstance(shown, AnsweredItem):
                    self.counts.attributed(outcome.owner, kind, shown, event.value or 0.0)
            results["unattributed"] += found.count(None) - len(further)
            waiting, tried = further, tried + 1
        for result, amount in (+results).items():
            self._observer.event(result, amount)
        if failed := results["failed"]:
            self.counts.left_out(time(), "events", "failed", failed)


def _result(shown: Attribution) -> str:
    """What became of an event about which an answer or the store says something, as it is counted."""
    if isinstance(shown, OutcomesUnavailable):
        return "failed"
    return DUPLICATE if shown == DUPLICATE else "attributed"


def share_of(owner: str) -> float:
    """A number of 0 … 1 that is always the same for an owner, by which owners are sampled."""
    return int.from_bytes(hashlib.blake2b(owner.encode(), digest_size=4, person=b"outcome-sample").digest()) / 2**32
