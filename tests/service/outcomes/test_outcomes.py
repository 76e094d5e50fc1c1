"""Answers and events through the outcomes: what is counted by which dimension, and what a dead Redis costs."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import time
from typing import Any

import numpy as np
import pytest
import structlog

from index.bundle.event_types import DEFAULT_EVENT_TYPES
from service.errors import OutcomesUnavailable
from service.outcomes import outcomes as module
from service.outcomes.breakdown import Period, breakdown, experiment_counts
from service.outcomes.counts import group_of
from service.outcomes.outcomes import Outcomes, share_of
from service.outcomes.sent_answers import SentAnswer
from service.settings.groups import OutcomeSettings
from service.stores.outcomes.answer_records import AnswerContext, AnswerRecord
from service.stores.outcomes.outcome_store import (
    DUPLICATE,
    AnsweredItem,
    Attribution,
    CountBatch,
    InterleavedCredit,
    ItemOutcome,
    RecordedAnswer,
)
from service.stores.protocols import Event, session_owner

BUNDLE = "20261122T231500Z-4f3a9c"
SLOTS = ("text", "image", "behaviour")
PARTS = np.array([[0.1, 0.3, 0.2], [0.5, 0.1, 0.0], [-1.0, -0.2, 0.0]], dtype=np.float32)


class MemoryOutcomes:
    """A store of outcomes in this process, as simple as can be: every answer of an owner, newest first."""

    def __init__(self) -> None:
        self.answers: dict[str, list[AnswerRecord]] = {}
        self.noted: set[tuple[int, str, str]] = set()
        self.users: set[tuple[str, str]] = set()
        self.stored: dict[str, Counter[str]] = {}
        self.batches: dict[str, int] = {}
        self.available = True
        self.loses_replies = False
        self.most = 20
        self.refused: set[tuple[str, str]] = set()
        self.calls: list[int] = []

    def _check(self) -> None:
        if not self.available:
            raise OutcomesUnavailable("switched off")

    async def record(self, answers: Sequence[AnswerRecord]) -> list[RecordedAnswer | OutcomesUnavailable]:
        self.calls.append(len(answers))
        return [self._record(answer) if self.available else OutcomesUnavailable("switched off") for answer in answers]

    async def attribute(self, outcomes: Sequence[ItemOutcome]) -> list[Attribution]:
        self.calls.append(len(outcomes))
        return [self._attribute(one) if self.available else OutcomesUnavailable("switched off") for one in outcomes]

    def _record(self, answer: AnswerRecord) -> RecordedAnswer:
        known = self.answers.setdefault(answer.owner, [])
        known.insert(0, answer)
        dropped, known[self.most :] = [old.time for old in known[self.most :]], []
        user = (answer.experiment, answer.owner)
        is_first = bool(answer.experiment) and not answer.is_of_nobody and user not in self.users
        self.users |= {user} if is_first else set()
        return RecordedAnswer(len(known) - 1, dropped, is_first)

    def _attribute(self, outcome: ItemOutcome) -> Attribution:
        for answer in self.answers.get(outcome.owner, ()):
            if answer.time > outcome.latest:
                continue
            if outcome.request_id in (None, answer.request_id) and outcome.item_id in answer.item_ids:
                key = (id(answer), outcome.item_id, outcome.outcome)
                if key in self.noted:
                    return DUPLICATE
                self.noted.add(key)
                place = answer.item_ids.index(outcome.item_id)
                context, credit = self._credit(answer, place, outcome.outcome)
                return AnsweredItem(answer.offset + place + 1, answer.slots[place], answer.time, context, credit)
        return None

    def _credit(self, answer: AnswerRecord, place: int, outcome: str) -> tuple[AnswerContext, InterleavedCredit | None]:
        if answer.second is None:
            return answer.context, None
        noted = [(id(answer), item, outcome) in self.noted for item in answer.item_ids]
        own = answer.second.gave[place]
        of_own = sum(gave == own for gave, there in zip(answer.second.gave, noted, strict=True) if there)
        contexts = (answer.context, answer.second.context)
        return contexts[own], InterleavedCredit(of_own, sum(noted) - of_own, contexts[1 - own].arm)

    async def forget(self, owner: str) -> None:
        self._check()
        self.answers.pop(owner, None)

    async def add(self, batch: CountBatch) -> set[tuple[str, str]]:
        self._check()
        if self.batches.get(batch.writer) != batch.number:
            self.batches[batch.writer] = batch.number
            for (name, field), amount in batch.amounts.items():
                self.stored.setdefault(name, Counter())[field] += 0 if (name, field) in self.refused else amount
        if self.loses_replies:
            raise OutcomesUnavailable("the reply is lost")
        return self.refused & batch.amounts.keys()

    async def counts(self, names: Sequence[str]) -> list[dict[str, int]]:
        self._check()
        return [dict(self.stored.get(name, {})) for name in names]

    async def close(self) -> None:
        """Nothing to close."""


class Seen:
    def __init__(self) -> None:
        self.results: Counter[tuple[str, str]] = Counter()
        self.amounts: Counter[tuple[str, str, str]] = Counter()

    def answer(self, result: str, amount: int = 1) -> None:
        self.results["answer", result] += amount

    def event(self, result: str, amount: int = 1) -> None:
        self.results["event", result] += amount

    def counted(self, by: str, value: str, measure: str, amount: int) -> None:
        self.amounts[by, value, measure] += amount

    def refused(self, amount: int) -> None:
        self.results["counts", "refused"] += amount


def sent(user: str | None = "anna", request: str = "r1", *, arm: str = "", **changes: Any) -> SentAnswer:
    context = AnswerContext(BUNDLE, "sequence", arm)
    return replace(SentAnswer(user, request, 0, ["a", "b", "c"], SLOTS, lambda: PARTS, context, False, 2500), **changes)


def event(item: str, kind: str | None = "view", user: str = "anna", **more: Any) -> Event:
    return Event(user, item, more.pop("timestamp", time()), kind, outcome=DEFAULT_EVENT_TYPES.outcome(kind), **more)


def run(check: Callable[[Outcomes, MemoryOutcomes, Seen], Any], **chosen: Any) -> tuple[MemoryOutcomes, Seen]:
    store, seen = MemoryOutcomes(), Seen()

    async def whole() -> None:
        outcomes = Outcomes(store, OutcomeSettings(**chosen), seen, structlog.get_logger())  # type: ignore[arg-type]
        await check(outcomes, store, seen)
        await outcomes.close()

    asyncio.run(whole())
    return store, seen


def entries(store: MemoryOutcomes, by: Any) -> dict[str, dict[str, Any]]:
    period = Period.of(0, 2**31)
    hours = [int(name.partition(":")[0]) for name in store.stored if name[0].isdigit()]
    period = Period(min(hours), max(hours))
    return {entry.pop("value"): entry for entry in asyncio.run(breakdown(store, period, by))}  # type: ignore[arg-type]


def test_outcomes_are_counted_by_every_dimension() -> None:
    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(sent(arm="prices/low"))
        outcomes.answered(sent("bob", "r2", contributions=None, context=AnswerContext(BUNDLE, "popular")))
        outcomes.happened([
            *(event(item, "impression") for item in "ab"), event("b", "click"), event("b", "view"),
            event("b", "purchase", value=19.99), event("b", "purchase", value=5.0), event("never"),
            event("a", "rating"),
        ])  # fmt: skip

    store, seen = run(check)
    assert dict(seen.results) == {
        ("answer", "kept"): 2, ("event", "attributed"): 4, ("event", "duplicate"): 2, ("event", "unattributed"): 1,
    }  # fmt: skip
    positions = entries(store, "position")
    assert {label: (entry["shown"], entry["impressions"]) for label, entry in positions.items()} == {
        "1": (2, 1), "2": (2, 1), "3": (2, 0),
    }  # fmt: skip
    assert (positions["2"]["clicks"], positions["2"]["conversions"], positions["2"]["revenue"]) == (1, 1, 19.99)
    assert (positions["2"]["click_rate"], positions["3"]["click_rate"]) == (1.0, 0.0)
    slots = entries(store, "slot")
    assert {label: (entry["shown"], entry["clicks"]) for label, entry in slots.items()} == {
        "image": (1, 0), "text": (1, 1), "none": (4, 0),
    }  # fmt: skip
    for by, label in (("bundle", BUNDLE), ("arm", "prices/low"), ("strategy", "sequence")):
        entry = entries(store, by)[label]
        assert (entry["answers"], entry["clicks"], entry["revenue"]) == (2 if by == "bundle" else 1, 1, 19.99)
    assert seen.amounts["slot", "text", "clicks"] == seen.amounts["arm", "prices/low", "clicks"] == 1
    assert seen.amounts["slot", "text", "revenue"] == 19_990
    (group,) = asyncio.run(experiment_counts(store, "prices"))  # type: ignore[arg-type]
    assert group == {
        "arm": "low", "group": group_of("anna"), "answers": 1, "users": 1, "visits": 1, "latency_us": 2500,
        "impressions": 2,
        "clicks": 1, "conversions": 1, "revenue": 19.99,
    }  # fmt: skip


def test_an_event_that_follows_an_answer_at_once_finds_it() -> None:
    async def check(outcomes: Outcomes, *_: Any) -> None:
        for number in range(500):
            outcomes.answered(sent(f"user-{number}", f"r{number}"))
            outcomes.happened([event("a", user=f"user-{number}", request_id=f"r{number}")])

    _, seen = run(check)
    assert dict(seen.results) == {("answer", "kept"): 500, ("event", "attributed"): 500}


def test_an_answer_whose_contributions_fail_costs_the_others_nothing() -> None:
    def fails() -> Any:
        raise ValueError("of one answer")

    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(sent("anna", "r1"))
        outcomes.answered(sent("bob", "r2", contributions=fails))
        outcomes.answered(sent("carl", "r3"))

    store, seen = run(check)
    assert dict(seen.results) == {("answer", "kept"): 2, ("answer", "failed"): 1}
    assert [store.answers[user][0].slots for user in ("anna", "carl")] == [["image", "text", "none"]] * 2


def test_an_answer_without_a_user_belongs_to_whom_names_it() -> None:
    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(sent(None, "r1"))
        outcomes.happened([event("a"), event("a", request_id="r1"), event("a", request_id="r1", user="bob")])

    _, seen = run(check)
    assert dict(seen.results) == {
        ("answer", "kept"): 1, ("event", "unattributed"): 1, ("event", "attributed"): 1, ("event", "duplicate"): 1,
    }  # fmt: skip


def test_an_answer_to_a_session_belongs_to_the_user_it_became() -> None:
    """After the login events have both ids; an event of another session or of the user alone finds nothing."""

    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(sent(session_owner("s1"), "r1"))
        outcomes.answered(sent("anna", "r2"))
        named = {"request_id": "r1"}
        outcomes.happened([
            event("a", session_id="s2", **named), event("a", **named), event("a", session_id="s1", **named),
            event("b", user=session_owner("s1"), session_id="s1"), event("c", session_id="s1"),
        ])  # fmt: skip

    store, seen = run(check)
    assert dict(seen.results) == {("answer", "kept"): 2, ("event", "unattributed"): 2, ("event", "attributed"): 3}
    by_request = {answer.request_id: answer for known in store.answers.values() for answer in known}
    noted = {
        (request, item)
        for number, item, _ in store.noted
        for request in by_request
        if id(by_request[request]) == number
    }
    assert noted == {("r1", "a"), ("r1", "b"), ("r2", "c")}  # without a request id the user's own answer goes first


def test_a_sample_is_of_users_and_leaves_the_others_out_whole() -> None:
    users = [f"user-{number}" for number in range(2000)]

    async def check(outcomes: Outcomes, *_: Any) -> None:
        for user in users:
            if outcomes.samples(user, "r"):
                outcomes.answered(sent(user))
            outcomes.happened([event("a", user=user)])

    store, seen = run(check, outcomes_sample=0.25)
    kept = seen.results["answer", "kept"]
    assert set(store.answers) == {user for user in users if share_of(user) < 0.25}
    assert 400 < kept < 600
    assert seen.results["event", "attributed"] == kept
    assert seen.results["event", "unattributed"] == 0


def test_without_redis_nothing_waits_and_what_was_counted_is_kept() -> None:
    async def check(outcomes: Outcomes, store: MemoryOutcomes, seen: Seen) -> None:
        outcomes.answered(sent(request="r1"))
        while not seen.results["answer", "kept"]:
            await asyncio.sleep(0)
        store.available = False
        outcomes.answered(sent(request="r2"))
        outcomes.happened([event("a")])
        while not seen.results["event", "failed"]:
            await asyncio.sleep(0)
        with pytest.raises(OutcomesUnavailable):
            await outcomes.counts.flush()
        store.available, store.loses_replies = True, True
        with pytest.raises(OutcomesUnavailable, match="lost"):
            await outcomes.counts.flush()
        store.loses_replies = False
        await outcomes.counts.flush()

    store, seen = run(check)
    assert dict(seen.results) == {("answer", "kept"): 1, ("answer", "failed"): 1, ("event", "failed"): 1}
    assert entries(store, "strategy")["sequence"]["answers"] == 1


def test_what_a_call_loses_by_an_unexpected_error_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> Any:
        raise ValueError("no encoding")

    async def check(outcomes: Outcomes, store: MemoryOutcomes, _: Seen) -> None:
        for name in ("record", "attribute"):
            monkeypatch.setattr(store, name, broken)
        for number in range(3):
            outcomes.answered(sent(request=f"r{number}"))
        outcomes.happened([event("a"), event("b")])

    _, seen = run(check)
    assert dict(seen.results) == {("answer", "failed"): 3, ("event", "failed"): 2}


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)

    async def check(outcomes: Outcomes, *_: Any) -> None:
        for number in range(5):
            outcomes.answered(sent(request=f"r{number}"))
        outcomes.happened([event("a"), event("b")])

    _, seen = run(check)
    assert dict(seen.results) == {("answer", "kept"): 3, ("answer", "dropped"): 2, ("event", "dropped"): 2}


def test_the_events_of_a_call_are_counted_together_or_left_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Impressions without the clicks after them would make every click rate too low."""
    monkeypatch.setattr(module, "MOST_WAITING", 4)

    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(sent())
        outcomes.happened([*(event(item, "impression") for item in "abc"), event("b", "cart"), event("b", "click")])
        outcomes.happened([event("a", "impression"), event("a", "click")])

    store, seen = run(check)
    assert dict(seen.results) == {("answer", "kept"): 1, ("event", "dropped"): 4, ("event", "attributed"): 2}
    assert {value: (entry["impressions"], entry["clicks"]) for value, entry in entries(store, "position").items()} == {
        "1": (1, 1), "2": (0, 0), "3": (0, 0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "events", "calls"), [(3, 85, [3, 85]), (0, 600, [256, 256, 88]), (20, 0, [8, 8, 4])]
)
def test_answers_and_events_that_wait_share_calls(answers: int, events: int, calls: list[int]) -> None:
    async def check(outcomes: Outcomes, *_: Any) -> None:
        for number in range(answers):
            outcomes.answered(sent(request=f"r{number}"))
        outcomes.happened([event("a", user="bob") for _ in range(events)])

    store, seen = run(check)
    assert store.calls == calls
    assert (seen.results["answer", "kept"], seen.results["event", "unattributed"]) == (answers, events)


def test_only_events_that_may_belong_to_other_answers_are_asked_about_again() -> None:
    """The user's own answers go first, then those to the session, then the one that the event names."""

    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(sent("anna", "r1"))
        outcomes.answered(sent(None, "r2"))
        outcomes.answered(sent(session_owner("s1"), "r3"))
        outcomes.happened([
            event("a", request_id="r1"), event("a", user="bob", request_id="r2"), event("b", user="bob"),
            event("a", user="bob", session_id="s1", request_id="r3"), event("c", user="bob", request_id="none"),
            event("c", user="bob", session_id="s2", request_id="r2"),
        ])  # fmt: skip

    store, seen = run(check)
    assert store.calls == [3, 6, 4, 1]
    assert (seen.results["event", "attributed"], seen.results["event", "unattributed"]) == (4, 2)


def test_what_is_left_at_the_end_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is stopped after two seconds; here at once, while Redis answers nothing."""
    monkeypatch.setattr(module, "_CLOSING_S", 0.0)
    store = MemoryOutcomes()

    async def silent(_: Any) -> Any:
        await asyncio.Event().wait()

    log = structlog.testing.CapturingLogger()

    async def check() -> None:
        outcomes = Outcomes(store, OutcomeSettings(), Seen(), log)  # type: ignore[arg-type]
        outcomes.answered(sent())
        outcomes.happened([event("a"), event("b")])
        monkeypatch.setattr(store, "record", silent)
        await asyncio.sleep(0)
        await outcomes.close()

    asyncio.run(check())
    (call,) = log.calls
    assert (call.method_name, call.args) == ("warning", ("outcomes left out at the end",))
    assert call.kwargs == {"answers": 1, "events": 2, "counts_stored": False}
