"""What is counted of a user: once for an experiment, no event before the answer, and nothing after an erasure."""

import asyncio
from collections.abc import Sequence
from time import time
from typing import Any

from service.outcomes.breakdown import experiment_counts
from service.outcomes.outcomes import Outcomes
from service.stores.outcomes.answer_records import AnswerRecord
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
