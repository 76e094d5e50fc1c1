"""The fault run: what it holds against answers, by hand; its balancer; and a short run of it."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bench.faults.balancer import Balancer
from bench.faults.fault_load import FaultLoad, Outcome, SentEvent, lost_and_doubled
from bench.faults.fault_setup import FaultSetup
from bench.faults.faults import FAULTS, PROCESS_KILLED, FaultPlan, Phase, run, table
from service.stores.history_keys import keys_of

KILLED, _, _, FULL, *_, RESTARTED, _ = FAULTS
EVENT = SentEvent("user-1", "item", 1)
DEGRADED_METRIC = 'vlm2rec_degraded_total{reason="history_unavailable"}'

# It went wrong at 100 and was right again at 105.
WELL = Outcome(99.0, 99.1, 200, "", None)
DEGRADED = Outcome(101.0, 101.1, 200, "history_unavailable", None)
REFUSED = Outcome(101.0, 101.1, 503, "", EVENT)


def phase(*outcomes: Outcome, fault: object = KILLED, counted: int | None = None) -> Phase:
    seen = sum(outcome.degraded == "history_unavailable" for outcome in outcomes)
    metrics = Counter({DEGRADED_METRIC: seen if counted is None else counted})
    return Phase(fault, [*outcomes], 100.0, 105.0, metrics, 0, 0, (0, 0))  # type: ignore[arg-type]


def test_what_a_fault_may_do_is_not_wrong() -> None:
    assert phase(WELL, DEGRADED, REFUSED).wrong() == []
    assert phase(WELL, REFUSED, fault=FULL).wrong() == []
    assert phase(WELL, replace(REFUSED, event=None), REFUSED, fault=RESTARTED).wrong() == []


@pytest.mark.parametrize(
    ("outcome", "fault", "reported"),
    [
        (replace(WELL, status=500), KILLED, "1 × 500 to a recommendation"),
        (replace(WELL, status=0), KILLED, "1 × 0 to a recommendation"),
        (replace(REFUSED, event=None), KILLED, "1 × 503 to a recommendation"),
        (replace(REFUSED, due=98.0, answered=98.1), KILLED, "1 × 503 to an event"),
        (replace(REFUSED, due=108.0, answered=108.1), KILLED, "1 × 503 to an event"),
        (replace(DEGRADED, due=98.0, answered=98.1), KILLED, "1 × degraded without need"),
        (replace(DEGRADED, due=108.0, answered=108.1), KILLED, "1 × degraded without need"),
        (DEGRADED, FULL, "1 × degraded without need"),
        (replace(REFUSED, status=429), RESTARTED, "1 × 429 to an event"),
    ],
)
def test_everything_else_is(outcome: Outcome, fault: object, reported: str) -> None:
    felt = [REFUSED] if fault is FULL else [DEGRADED, REFUSED] if fault is KILLED else []
    assert phase(WELL, *felt, outcome, fault=fault).wrong() == [reported]


def test_a_fault_without_effect_and_a_wrong_count_are_reported() -> None:
    assert phase(WELL).wrong() == [
        "the fault was not felt by recommendations",
        "the fault was not felt by events",
    ]
    assert phase(DEGRADED, REFUSED, counted=2).wrong() == ["2 degraded answers were counted, 1 were seen"]
    assert phase(WELL, fault=FAULTS[-1]).wrong() == ["no engine thread died"]
    assert phase(WELL, fault=PROCESS_KILLED).wrong() == ["no worker process was replaced"]
    kept = replace(phase(DEGRADED, REFUSED), unstored=3, repeated=(10, 2))
    assert kept.wrong() == ["3 events were refused for ever", "2 events were stored twice"]


def test_seconds_until_everything_is_back() -> None:
    late = replace(DEGRADED, due=105.5, answered=105.75), replace(REFUSED, due=106.0, answered=106.5)
    figures = phase(WELL, DEGRADED, REFUSED, *late).figures()
    assert (figures["histories_back_s"], figures["events_back_s"]) == (0.75, 1.5)
    assert phase(WELL, DEGRADED, REFUSED).figures()["events_back_s"] == 0.0


@asynccontextmanager
async def answering(name: bytes, ready: bytes = b"200") -> AsyncIterator[int]:
    """A server that answers every request with its name, and `/readyz` with a status."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                status = ready if b"/readyz" in head else b"200"
                writer.write(b"HTTP/1.1 %s X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(name), name))
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def test_the_balancer_asks_who_is_there_and_ready() -> None:
    async def ask(balancer: Balancer, times: int) -> Counter[bytes]:
        kept: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        answers = [await balancer._answer(b"GET / HTTP/1.1\r\n\r\n", kept) for _ in range(times)]
        for _, writer in kept.values():
            writer.close()
            await writer.wait_closed()
        return Counter(answer.rpartition(b"\n")[2] for answer in answers)

    async def check() -> None:
        async with answering(b"one") as one, answering(b"two") as two, answering(b"ill", ready=b"503") as ill:
            assert await ask(Balancer([one, two]), 10) == {b"one": 5, b"two": 5}
            balancer = Balancer([one, ill])
            await balancer._look_at(ill)
            assert await ask(balancer, 10) == {b"one": 10}
            gone = two
        async with answering(b"one") as one:
            assert await ask(Balancer([gone, one]), 10) == {b"one": 10}
        assert await ask(Balancer([gone]), 1) == {b"": 1}
        await asyncio.sleep(0.01)  # the servers notice

    asyncio.run(check())


@pytest.mark.slow
def test_a_short_run_loses_nothing(small_registry: Path, tmp_path: Path) -> None:
    plan = FaultPlan(rate=40.0, event_rate=10.0, before_s=1.0, fault_s=1.5, after_s=2.5)
    found = run(small_registry, tmp_path, plan, [FAULTS[0], FAULTS[1], FULL])
    assert json.dumps(found)
    assert (found["events_lost"], found["events_doubled"]) == (0, 0)
    assert found["events_acknowledged"] > 2000
    for name, figures in found["phases"].items():
        assert set(figures["statuses"]) <= {"200", "503"}, name
        assert figures["degraded"] == figures["degraded_counted"], name
        assert figures["events_refused"] > 0, name
        assert (figures["events_not_stored_at_last"], figures["events_stored_twice"]) == (0, 0), name
        assert figures["events_repeated"] > 0, name
    assert found["phases"][FAULTS[0].name]["degraded"] > 0
    about = {"machine": {"cpu": "made", "cores": 2}, "commit": "abc"}
    assert len(table(found | about).splitlines()) == 4 + 3


@pytest.mark.slow
def test_with_worker_processes_one_dies_unnoticed(small_registry: Path, tmp_path: Path) -> None:
    plan = FaultPlan(rate=40.0, event_rate=10.0, before_s=1.0, fault_s=2.5, after_s=2.5, workers=2)
    found = run(small_registry, tmp_path, plan, [FAULTS[-1], PROCESS_KILLED])
    assert [figures["wrong"] for figures in found["phases"].values()] == [[], []]
    assert {status for figures in found["phases"].values() for status in figures["statuses"]} == {"200"}
    assert found["phases"][FAULTS[-1].name]["engine_deaths"] > 0
    assert (found["events_lost"], found["events_doubled"]) == (0, 0)


@pytest.mark.slow
def test_a_lost_or_doubled_event_would_be_noticed(small_registry: Path, tmp_path: Path) -> None:
    load = FaultLoad(small_registry, 1.0, 1.0)
    with FaultSetup(small_registry, tmp_path) as setup:
        events = load.first_histories()[:30]
        assert setup.post("/events", {"events": [event.body() for event in events]})[0] == 200
        assert lost_and_doubled(setup, events) == ([], [])
        with setup.admin() as admin:
            admin.lpop(keys_of("vlm2rec", events[0].user_id).history)
            stream = keys_of("vlm2rec", events[-1].user_id).stream
            ((last, _fields),) = admin.xrevrange(stream, count=1)
            admin.xdel(stream, last)
            admin.delete(keys_of("vlm2rec", events[15].user_id).event_ids)
        assert setup.post("/events", events[15].body())[1]["stored"] == 1
        lost, doubled = lost_and_doubled(setup, events)
        assert lost == [events[0], events[-1]]
        assert sorted(doubled) == sorted([events[15].event_id, events[15].step])
