"""What is not counted, by reason, and what interleaved answers count for."""

import asyncio
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from service.outcomes import outcomes as module
from service.outcomes.breakdown import Period, left_out
from service.outcomes.counts import OutcomeCounts
from service.outcomes.outcomes import Outcomes
from service.outcomes.sent_answers import SecondPart, SentAnswer
from service.stores.outcomes.answer_records import AnswerContext, AnswerRecord, SecondArm
from service.stores.outcomes.outcome_store import AnsweredItem, InterleavedCredit
from tests.service.outcomes.test_outcomes import BUNDLE, PARTS, MemoryOutcomes, Seen, entries, event, run, sent


def left_out_of(store: MemoryOutcomes) -> dict[str, dict[str, int]]:
    hours = [int(name.partition(":")[0]) for name in store.stored if name[0].isdigit()]
    return asyncio.run(left_out(store, Period(min(hours), max(hours))))  # type: ignore[arg-type]


def test_what_is_not_counted_is_counted_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 4)

    async def check(outcomes: Outcomes, store: MemoryOutcomes, seen: Seen) -> None:
        store.most = 2
        for number in range(6):  # four wait, and the first two of them leave for the others
            outcomes.answered(sent(request=f"r{number}"))
        outcomes.happened([event("a"), event("b")])
        outcomes.not_sampled()
        while seen.results["answer", "kept"] < 4:
            await asyncio.sleep(0)
        store.available = False
        outcomes.answered(sent(request="r6"))
        outcomes.happened([event("a"), event("a"), event("a")])
        while seen.results["event", "failed"] < 3:
            await asyncio.sleep(0)
        store.available = True

    store, seen = run(check)
    assert left_out_of(store) == {
        "answers": {"sampled": 1, "dropped": 2, "failed": 1, "evicted": 2}, "events": {"dropped": 2, "failed": 3},
    }  # fmt: skip
    assert dict(seen.results) == {
        ("answer", "kept"): 4, ("answer", "dropped"): 2, ("answer", "sampled"): 1, ("answer", "evicted"): 2,
        ("answer", "failed"): 1, ("event", "dropped"): 2, ("event", "failed"): 3,
    }  # fmt: skip
    assert not any(by == "left_out" for by, *_ in seen.amounts)


def test_an_answer_that_leaves_early_belongs_to_the_hour_in_which_it_was_given() -> None:
    async def check(outcomes: Outcomes, store: MemoryOutcomes, seen: Seen) -> None:
        store.most = 1
        store.answers["anna"] = [sent().record(7200.0)]
        outcomes.answered(sent())

    store, _ = run(check)
    assert store.stored["2:left_out"] == {"answers|evicted": 1}


def test_what_the_store_refuses_is_counted_as_refused_alone() -> None:
    async def check(outcomes: Outcomes, store: MemoryOutcomes, seen: Seen) -> None:
        outcomes.answered(sent())
        while not seen.results["answer", "kept"]:
            await asyncio.sleep(0)
        (record,) = store.answers["anna"]
        store.refused = {(f"{record.time // 3600}:strategy", "sequence|shown")}

    _, seen = run(check)
    assert seen.results["counts", "refused"] == 1
    assert {measure for by, _, measure in seen.amounts if by == "strategy"} == {"answers"}
    assert seen.amounts["position", "1", "shown"] == 1


def test_no_thread_is_started() -> None:
    before = threading.active_count()
    run(lambda *_: asyncio.sleep(0))
    assert threading.active_count() == before


def interleaved(request: str = "r1") -> SentAnswer:
    """Items a and c of the first arm, b of the second, of which the slots are others."""
    arm = SecondArm(AnswerContext("20261123T231500Z-aaaaaa", "similar", "e/new"), [False, True, False])
    second = SecondPart(arm, ("lists", "picture"), lambda: np.array([[0.0, 1.0]], dtype=np.float32))
    return sent(request=request, arm="e/old", contributions=lambda: PARTS[:2], second=second)


def test_an_interleaved_answer_counts_for_both_arms_and_its_items_for_their_own() -> None:
    async def check(outcomes: Outcomes, *_: Any) -> None:
        outcomes.answered(interleaved())

    store, seen = run(check)
    (record,) = store.answers["anna"]
    assert record.slots == ["image", "picture", "text"]
    assert {label: (entry["answers"], entry["shown"]) for label, entry in entries(store, "arm").items()} == {
        "e/old": (1, 2), "e/new": (1, 1),
    }  # fmt: skip
    assert {label: entry["shown"] for label, entry in entries(store, "strategy").items()} == {
        "sequence": 2, "similar": 1,
    }  # fmt: skip
    assert {label: entry["shown"] for label, entry in entries(store, "position").items()} == {"1": 1, "2": 1, "3": 1}
    assert seen.amounts["bundle", BUNDLE, "shown"] == 2


@settings(max_examples=40)
@given(some.permutations(["a", "b", "c", "d"]), some.lists(some.booleans(), min_size=4, max_size=4))
def test_wins_and_ties_are_those_of_the_clicks_whatever_their_order(clicks: list[str], gave: list[bool]) -> None:
    """After each click the counts of all clicks until then, counted by hand."""
    context = AnswerContext(BUNDLE, "sequence", "e/new")
    record = AnswerRecord(
        "anna", 0, "r1", 0, ["a", "b", "c", "d"], ["none"] * 4, AnswerContext(BUNDLE, "sequence", "e/old")
    )
    counts = OutcomeCounts(MemoryOutcomes())  # type: ignore[arg-type]
    totals: Counter[tuple[str, str]] = Counter()
    score = {False: 0, True: 0}
    for item in clicks:
        of_new = gave[record.item_ids.index(item)]
        score[of_new] += 1
        own = context if of_new else record.context
        credit = InterleavedCredit(score[of_new], score[not of_new], record.context.arm if of_new else context.arm)
        counts.attributed("anna", "click", AnsweredItem(1, "none", 0, own, credit), 0.0)
        totals.clear()
        for (name, field), amount in counts._amounts.items():
            if name == "experiment:e":
                arm, _, measure = field.split("|")
                totals[arm, measure] += amount
        assert totals["new", "wins"] == int(score[True] > score[False])
        assert totals["old", "wins"] == int(score[False] > score[True])
        assert totals["new", "ties"] == totals["old", "ties"] == int(score[True] == score[False])
