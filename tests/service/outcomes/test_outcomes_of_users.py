"""What is counted of a user: once for an experiment, no event before the answer, and nothing after an erasure."""

import asyncio
from collections.abc import Sequence
from time import time
from typing import Any

from service.outcomes.breakdown import experiment_counts
from service.outcomes.outcomes import Outcomes
from service.stores.outcomes.answer_records import AnswerRecord
from service.stores.protocols import session_owner
from tests.service.outcomes.test_outcomes import MemoryOutcomes, Seen, event, run, sent


def test_a_user_counts_once_for_an_experiment_however_often_they_return() -> None:
    async def check(outcomes: Outcomes, store: MemoryOutcomes, seen: Seen) -> None:
        for visit, user in enumerate(("anna", "bob", "anna", "anna")):
            outcomes.answered(sent(user, f"r{visit}", arm="prices/low"))
            while seen.results["answer", "kept"] <= visit:
                await asyncio.sleep(0)
            store.answers.clear()  # the next visit is in another window

    store, _ = run(check)
    counts = asyncio.run(experiment_counts(store, "prices"))  # type: ignore[arg-type]
    assert sum(entry["visits"] for entry in counts) == 4
    assert sum(entry["users"] for entry in counts) == 2


def test_an_event_that_is_filled_in_later_is_no_outcome_of_an_answer_of_today() -> None:
    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(sent())
        old = time() - 30 * 86_400
        outcomes.happened([event("a", timestamp=old), event("b", timestamp=old, request_id="r1")])

    _, seen = run(check)
    assert dict(seen.results) == {("answer", "kept"): 1, ("event", "unattributed"): 1, ("event", "attributed"): 1}


def test_a_forgotten_user_is_not_stored_from_the_queue() -> None:
    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(sent("anna"))
        outcomes.answered(sent("bob"))
        await outcomes.forget("anna")
        outcomes.answered(sent("anna", "began before", latency_us=60_000_000))

    store, _ = run(check)
    assert set(store.answers) == {"bob"}


def test_an_erasure_deletes_an_answer_that_is_being_stored() -> None:
    """The call that stores it may be sent after the one that deletes, as on a cluster, whose calls are tasks."""

    async def check(outcomes: Outcomes, store: MemoryOutcomes, _: Any) -> None:
        reached, sends, record = asyncio.Event(), asyncio.Event(), store.record

        async def held(answers: Sequence[AnswerRecord]) -> Any:
            reached.set()
            await sends.wait()
            return await record(answers)

        store.record = held  # type: ignore[method-assign]
        outcomes.answered(sent("anna"))
        outcomes.answered(sent("bob"))
        await reached.wait()
        erasure = asyncio.ensure_future(outcomes.forget("anna"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not erasure.done()
        sends.set()
        await erasure

    store, seen = run(check)
    assert set(store.answers) == {"bob"}
    assert seen.results["answer", "kept"] == 2


def test_an_event_just_before_an_answer_is_no_outcome_of_it() -> None:
    """All within one second, as fast clients do: the times of events and answers do not tell them apart."""

    async def check(outcomes: Outcomes, *_: Any) -> None:
        for user in ("anna", session_owner("s1")):
            session_id = "s1" if user != "anna" else None
            outcomes.happened([event("a", user=user, session_id=session_id)])
            outcomes.answered(sent(user, f"r-{user}"))
            outcomes.happened([event("b", user=user, session_id=session_id)])
        outcomes.happened([event("c", user="bob", session_id="s2")])  # has logged in; the session is asked for still
        outcomes.answered(sent(session_owner("s2"), "r3"))

    _, seen = run(check)
    assert dict(seen.results) == {("answer", "kept"): 3, ("event", "unattributed"): 3, ("event", "attributed"): 2}


def test_events_before_answers_of_the_same_users_are_stored_in_few_calls() -> None:
    """A click, then the next list: with a call for each, a queue that fills faster would be left out."""

    async def check(outcomes: Outcomes, *_: Any) -> None:
        for number in range(400):
            outcomes.happened([event("a", user=f"user-{number}")])
            outcomes.answered(sent(f"user-{number}", f"r{number}"))
            outcomes.happened([event("b", user=f"user-{number}")])

    store, seen = run(check)
    assert dict(seen.results) == {
        ("answer", "kept"): 400, ("event", "unattributed"): 400, ("event", "attributed"): 400,
    }  # fmt: skip
    assert len(store.calls) < 100
