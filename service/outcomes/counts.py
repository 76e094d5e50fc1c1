"""Counts answers and outcomes by position, bundle, arm, strategy and dominant slot, and stores the counts by hour.

A count belongs to the hour of the answer, not of the event, so that the clicks of an hour are those of its own answers.
What is counted for an experiment is also kept by groups of users: users differ, and answers to one user resemble each
other, so a variance over answers would be too small.
"""

import hashlib
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Final, Literal

from index.bundle.event_types import Outcome
from service.errors import OutcomesUnavailable
from service.stores.outcomes.answer_records import AnswerContext, AnswerRecord
from service.stores.outcomes.outcome_store import AnsweredItem, CountBatch, OutcomeStore

Dimension = Literal["position", "bundle", "arm", "strategy", "slot"]
LeftOut = Literal["sampled", "dropped", "failed", "evicted"]
LeftOutKind = Literal["answers", "events"]

DIMENSIONS: Final[tuple[Dimension, ...]] = ("position", "bundle", "arm", "strategy", "slot")
HOUR_S: Final = 3600
NO_ARM: Final = "none"
REVENUE_UNIT: Final = 0.001
"""Revenue is counted in thousandths, as whole numbers have exact sums."""
MEASURE_OF: Final[Mapping[Outcome, str]] = {
    "impression": "impressions",
    "click": "clicks",
    "conversion": "conversions",
}

LEFT_OUT: Final = "left_out"
"""Name of the counts of answers and events that are not counted otherwise, beside those by a dimension."""
WINS_OF: Final[Mapping[Outcome, tuple[str, str]]] = {
    "click": ("wins", "ties"),
    "conversion": ("conversion_wins", "conversion_ties"),
}
"""Measures of the arms of interleaved answers: in how many one has more items with the outcome, or both as many."""

_SINGLE_POSITIONS: Final = 20
_POSITION_RANGES: Final = ((50, "21-50"), (100, "51-100"))
_LAST_POSITIONS: Final = "over 100"

Observe = Callable[[str, str, str, int], None]
ObserveRefused = Callable[[int], None]


class OutcomeCounts:
    """Counts in memory until they are flushed. A failed flush loses nothing, and is repeated with the next one.

    Args:
        store: keeps the counts.
        observe: called with dimension, value, measure and amount of everything that was stored.
        observe_refused: called with the number of increments that the store refused, if there are any.
    """

    def __init__(
        self,
        store: OutcomeStore,
        observe: Observe = lambda *_: None,
        observe_refused: ObserveRefused = lambda _: None,
    ) -> None:
        self._store = store
        self._observe = observe
        self._observe_refused = observe_refused
        self._writer = uuid.uuid4().hex
        self._number = 0
        self._amounts: dict[tuple[str, str], int] = defaultdict(int)
        # Counted by few keys while they happen, and by dimension when they are stored.
        self._pages: dict[tuple[int, int, int, AnswerContext | None], int] = defaultdict(int)  # None: of two arms
        self._shown: dict[tuple[int, AnswerContext], int] = defaultdict(int)  # of answers of two arms
        self._slots: dict[tuple[int, str], int] = defaultdict(int)
        self._outcomes: dict[tuple[int, int, str, AnswerContext, str], int] = defaultdict(int)
        self._sending: CountBatch | None = None

    def answered(
        self,
        answer: AnswerRecord,
        *,
        is_visit: bool,
        is_first: bool = False,
        latency_us: int,
        degraded: bool,
        apart: Mapping[str, bool] | None = None,
    ) -> None:
        """Count a stored answer.

        Args:
            answer: as it was stored.
            is_visit: whether no other answer of its owner is in the window.
            is_first: whether its owner is to be counted as a user of the experiment.
            latency_us: microseconds from the arrival of the request to the body of its answer.
            degraded: whether it is degraded.
            apart: of an answer that should have been interleaved: by arm, whether its part was degraded or refused.
        """
        hour, second, slots = _hour(answer.time), answer.second, answer.slots
        self._pages[hour, answer.offset, len(answer.item_ids), answer.context if second is None else None] += 1
        for slot in set(slots):
            self._slots[hour, slot] += slots.count(slot)
        if second is not None:
            self._add_arms(hour, answer)
        elif not answer.context.arm and not apart:
            return
        measures = {"answers": 1, "users": int(is_first), "visits": int(is_visit), "latency_us": latency_us}
        for context, items in _parts(answer):
            of_part = {"degraded": int(degraded)} if second is None else {"shown": items}
            self._add_to_experiment(answer.owner, context.arm, measures | of_part)
        for arm, failed in (apart or {}).items():
            self._add_to_experiment(answer.owner, arm, measures | {"degraded": int(failed)})

    def _add_arms(self, hour: int, answer: AnswerRecord) -> None:
        """Count an interleaved answer for both arms, once for what they have in common."""
        parts = _parts(answer)
        for by, value in dict.fromkeys(pair for context, _ in parts for pair in _of_answer(context)):
            self._add(hour, by, value, "answers", 1)
        for context, items in parts:
            self._shown[hour, context] += items

    def left_out(self, seconds: float, what: LeftOutKind, reason: LeftOut, amount: int = 1) -> None:
        """Count what is not kept, or not as long as its window.

        Args:
            seconds: since 1970, of the answer; of events the time when they were left out.
            what: answers or events.
            reason: why.
            amount: how many.
        """
        self._add(_hour(int(seconds)), LEFT_OUT, what, reason, amount)

    def attributed(self, owner: str, outcome: Outcome, shown: AnsweredItem, value: float) -> None:
        """Count an outcome.

        Args:
            owner: of the answer.
            outcome: what happened.
            shown: the item in its answer.
            value: of a conversion; else 0.
        """
        measures = {MEASURE_OF[outcome]: 1}
        if outcome == "conversion":
            measures["revenue"] = round(value / REVENUE_UNIT)
        for measure, amount in measures.items():
            self._outcomes[_hour(shown.time), shown.position, shown.slot, shown.context, measure] += amount
        self._add_to_experiment(owner, shown.context.arm, measures)
        self._add_credit(owner, outcome, shown)

    def _add_credit(self, owner: str, outcome: Outcome, shown: AnsweredItem) -> None:
        """Count which arm of an interleaved answer leads since this outcome, in place of the one that led before."""
        credit, names = shown.credit, WINS_OF.get(outcome)
        if credit is None or names is None:
            return
        wins, ties = names
        lead, own_arm = credit.own - credit.other, shown.context.arm
        if lead == 0:  # the other arm led by one until now
            self._add_to_experiment(owner, credit.other_arm, {wins: -1, ties: 1})
            self._add_to_experiment(owner, own_arm, {ties: 1})
        elif lead == 1:
            tied = -int(credit.other > 0)
            self._add_to_experiment(owner, own_arm, {wins: 1, ties: tied})
            self._add_to_experiment(owner, credit.other_arm, {ties: tied})

    async def flush(self) -> None:
        """Store what was counted since the last flush.

        Raises:
            OutcomesUnavailable: the store does not answer; nothing is lost.
        """
        if self._sending is None:
            self._divide()
            if not self._amounts:
                return
            self._number += 1
            self._sending = CountBatch(self._writer, self._number, dict(self._amounts))
            self._amounts.clear()
        refused = await self._store.add(self._sending)
        sent, self._sending = self._sending, None
        if refused:
            self._observe_refused(len(refused))
        for (name, field), amount in sent.amounts.items():
            if name[0].isdigit() and not name.endswith(LEFT_OUT) and (name, field) not in refused:
                label, _, measure = field.rpartition("|")
                self._observe(name.partition(":")[2], label, measure, amount)

    def _divide(self) -> None:
        """Divide what was counted among the dimensions; done once for all answers and outcomes of the same kind."""
        for (hour, offset, shown, context), answers in self._pages.items():
            for position in range(offset + 1, offset + shown + 1):
                self._add(hour, "position", position_label(position), "shown", answers)
            for by, value in () if context is None else _of_answer(context):
                self._add(hour, by, value, "answers", answers)
                self._add(hour, by, value, "shown", answers * shown)
        for (hour, context), items in self._shown.items():
            for by, value in _of_answer(context):
                self._add(hour, by, value, "shown", items)
        for (hour, slot), items in self._slots.items():
            self._add(hour, "slot", slot, "shown", items)
        for (hour, position, slot, context, measure), amount in self._outcomes.items():
            self._add(hour, "position", position_label(position), measure, amount)
            self._add(hour, "slot", slot, measure, amount)
            for by, value in _of_answer(context):
                self._add(hour, by, value, measure, amount)
        for counted in (self._pages, self._shown, self._slots, self._outcomes):
            counted.clear()

    def _add(self, hour: int, by: str, value: str, measure: str, amount: int) -> None:
        if amount:
            self._amounts[hash_of(hour, by), f"{value}|{measure}"] += amount

    def _add_to_experiment(self, owner: str, label: str, measures: Mapping[str, int]) -> None:
        name, _, arm = label.partition("/")
        if not arm:
            return
        group = group_of(owner)
        for measure, amount in measures.items():
            if amount:
                self._amounts[experiment_hash(name), f"{arm}|{group}|{measure}"] += amount


async def flushed(counts: OutcomeCounts) -> bool:
    """Flush; False if the store does not answer."""
    try:
        await counts.flush()
    except OutcomesUnavailable:
        return False
    return True


def hash_of(hour: int, by: str) -> str:
    """Name of the counts of one hour by one dimension."""
    return f"{hour}:{by}"


def experiment_hash(name: str) -> str:
    """Name of the counts of an experiment."""
    return f"experiment:{name}"


def group_of(owner: str) -> int:
    """The group of a user, 0 … 255; independent of the arm that the user is in."""
    return hashlib.blake2b(owner.encode(), digest_size=1, person=b"outcome-group").digest()[0]


def position_label(position: int) -> str:
    """The label of a position, counted from 1: itself up to 20, then a range."""
    if position <= _SINGLE_POSITIONS:
        return str(position)
    return next((label for last, label in _POSITION_RANGES if position <= last), _LAST_POSITIONS)


def _hour(seconds: int) -> int:
    return seconds // HOUR_S


def _parts(answer: AnswerRecord) -> list[tuple[AnswerContext, int]]:
    """The contexts of an answer, with the number of items of each."""
    shown, second = len(answer.item_ids), answer.second
    if second is None:
        return [(answer.context, shown)]
    given = sum(second.gave)
    return [(answer.context, shown - given), (second.context, given)]


def _of_answer(context: AnswerContext) -> tuple[tuple[Dimension, str], ...]:
    return ("bundle", context.bundle), ("arm", context.arm or NO_ARM), ("strategy", context.strategy)
