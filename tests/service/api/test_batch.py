"""Each member of a batch is answered as if alone, and fails alone."""

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.errors import EncoderError
from service.api.response_models import BatchAnswer
from service.errors import HistoriesUnavailable
from service.recommend import batching
from service.recommend.batch_histories import BatchHistories
from service.recommend.batching import THREAD_NAME, MicroBatcher
from service.recommend.engine import SearchJob, SearchResult, run_searches
from service.recommend.recommender import Recommender
from service.stores.protocols import Event, HistoryEntry, session_owner
from service.stores.redis_connection import RedisConnection
from tests.support.shops import OpenClient, metric
from tests.support.stores.item_ids import item_ids
from tests.support.stores.memory_histories import MemoryHistories


def batch(client: TestClient, *requests: Any) -> Any:
    answer = client.post("/recommend/batch", json={"requests": requests})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    BatchAnswer.model_validate(body, extra="forbid")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert len(body["answers"]) == len(requests)
    return body


def test_every_member_is_answered_as_if_alone_and_in_order(client: TestClient, bundle: Bundle) -> None:
    client.post("/events", json={"events": [{"user_id": "b", "item_id": item} for item in ("i4", "i8", "gone")]})
    requests: list[dict[str, Any]] = [
        {"user_id": "b", "k": 5, "explain": True},
        {"items": ["i1", {"item_id": "i2", "weight": -1.0}], "k": 3, "fields": ["title"]},
        {"user_id": "nobody", "k": 2},
        {"user_id": "b", "items": ["i1"], "history": "ignore", "k": 4, "slot_weights": {"image": 3.0}},
        {"user_id": "b", "filter": {"must": [{"field": "category", "eq": "hats"}]}, "diversity": 0.5},
    ]
    body = batch(client, *requests)
    assert body["bundle"] == bundle.id
    for request, answer in zip(requests, body["answers"], strict=True):
        alone = client.post("/recommend", json=request).json()
        assert answer | {"request_id": ""} == alone | {"request_id": ""}
        assert answer["request_id"] == body["request_id"]
    assert [answer["strategy"] for answer in body["answers"]] == [
        "sequence", "sequence", "popular", "sequence", "sequence",
    ]  # fmt: skip


def test_up_to_four_searches_stay_in_the_event_loop_of_a_process_with_one_core(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, bool]] = []

    def watched(of: Bundle, jobs: Sequence[SearchJob], *others: Any) -> list[SearchResult]:
        seen.append((len(jobs), threading.current_thread().name == THREAD_NAME))
        return run_searches(of, jobs, *others)

    monkeypatch.setattr(batching, "run_searches", watched)
    for cores, in_threads in ((1, {4: False, 5: True}), (4, {1: False, 4: True})):
        monkeypatch.setattr("service.settings.load.available_cores", lambda count=cores: count)
        with open_client() as client:
            for count, in_thread in in_threads.items():
                seen.clear()
                batch(client, *[{"items": ["i1"], "k": 3}] * count)
                assert seen == [(count, in_thread)], cores


def test_a_bad_member_gets_the_problem_that_it_would_get_alone(client: TestClient) -> None:
    good = {"items": ["i1"], "k": 2}
    bad: list[Any] = [
        {"items": ["i1"], "k": 0},
        {"k": 5},
        {"items": ["i1"], "colour": "red", "k": "x"},
        {"items": ["i1"], "slot_weights": {"sound": 1.0}},
        {"items": ["i1"], "filter": {"must": [{"field": "size", "eq": 1}]}},
        {"items": ["gone"], "unknown_items": "error"},
        {"items": ["i1"], "fields": ["size"]},
        "i1",
        None,
        ["i1"],
    ]
    answers = batch(client, *(part for member in bad for part in (member, good)))["answers"]
    wanted = client.post("/recommend", json=good).json()["items"]
    assert all(answer["items"] == wanted for answer in answers[1::2])
    for member, answer in zip(bad, answers[::2], strict=True):
        alone = client.post("/recommend", content=json.dumps(member), headers={"content-type": "application/json"})
        assert set(answer) == {"problem"}
        assert alone.status_code == answer["problem"]["status"] == 422
        assert answer["problem"] | {"request_id": ""} == alone.json() | {"request_id": ""}
        assert answer["problem"]["errors"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "requests"),
        ({"requests": []}, "requests"),
        ({"requests": {"0": {}}}, "requests"),
        ({"requests": [{"items": ["i1"]}] * 257}, "requests"),
        ({"requests": [{"items": ["i1"]}], "k": 5}, "k"),
        ([{"items": ["i1"]}], "body"),
    ],
)
def test_rules_of_the_whole_body(client: TestClient, body: Any, field: str) -> None:
    answer = client.post("/recommend/batch", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_the_most_at_once_read_their_histories_in_one_round_trip(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"many{number}" for number in range(128)]
    client.post("/events", json={"events": [{"user_id": user, "item_id": "i1"} for user in users]})
    reads: list[int] = []
    exchange = RedisConnection.exchange

    async def counted(wire: RedisConnection, commands: Any) -> Any:
        if all(b"LRANGE" in command for command in commands):  # the watcher's own reads are others
            reads.append(len(commands))
        return await exchange(wire, commands)

    monkeypatch.setattr(RedisConnection, "exchange", counted)
    answers = batch(client, *({"user_id": user, "k": 1} for user in users * 2))["answers"]
    assert [answer["history_used"] for answer in answers] == [1] * 256
    assert reads == [128]


def test_batches_at_once_leave_room_in_the_queue_of_reads(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches of 256 users with sessions name more than the 1024 reads that may wait for Redis."""
    begun, waiting, most = 0, 0, 0
    all_begun = asyncio.Event()

    class Begun(BatchHistories):
        def __init__(self, *given: Any) -> None:
            nonlocal begun
            super().__init__(*given)
            begun += 1
            if begun == 3:
                all_begun.set()

    async def held(owner: str) -> list[HistoryEntry]:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await all_begun.wait()
        await asyncio.sleep(0.01)  # the event may be set before the first read: the others wait beside this one
        waiting -= 1
        return [HistoryEntry("i1", 1.0)]

    monkeypatch.setattr("service.api.batch_routes.BatchHistories", Begun)
    with open_client() as client, ThreadPoolExecutor(3) as threads:
        monkeypatch.setattr(client.app.state.histories, "entries", held)  # type: ignore[attr-defined]

        def answers(number: int) -> Any:
            members = [{"user_id": f"u{number}-{n}", "session_id": f"s{number}-{n}", "k": 1} for n in range(256)]
            return batch(client, *members)["answers"]

        for found in threads.map(answers, range(3)):
            assert {(answer["history_used"], answer["degraded"]) for answer in found} == {(2, None)}
    assert most == 128


def test_a_crash_in_one_member_ends_no_other(
    client: TestClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = bundle.search

    def broken(queries: Any, k: int, **more: Any) -> Any:
        if k == 8 or len(queries) > 1:  # 7 wanted, and one that may have to be left out; or all of them together
            raise RuntimeError("secret inner workings")
        return search(queries, k, **more)

    monkeypatch.setattr(bundle, "search", broken)
    body = batch(client, *({"items": ["i1"], "k": k} for k in (6, 7, 8)))
    assert [len(answer.get("items", ())) for answer in body["answers"]] == [6, 0, 8]
    problem = body["answers"][1]["problem"]
    assert (problem["status"], problem["type"]) == (500, "urn:vlm2rec:problem:internal")
    assert problem["detail"] == f"the log has the reason under request_id {body['request_id']}"


def test_one_bundle_answers_all_of_it_even_if_another_takes_over(open_client: Any, day_bundles: list[Any]) -> None:
    other = Bundle.load(day_bundles[0])
    with open_client() as client:
        first, current = client.app.state.active_bundle.get(), client.app.state.active_bundle
        recommend = Recommender.recommend

        async def swapping(self: Recommender, bundle: Bundle, *rest: Any) -> Any:
            current.swap(other)
            return await recommend(self, bundle, *rest)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recommender, "recommend", swapping)
            body = batch(client, *[{"items": ["i1"]}] * 20)
        assert {body["bundle"], *(answer["bundle"] for answer in body["answers"])} == {first.id}
        assert client.post("/recommend", json={"items": ["i1"]}).json()["bundle"] == other.id
        scores = [answer["items"][0]["score"] for answer in body["answers"]]
        assert scores == [scores[0]] * 20


def test_members_are_at_work_at_the_same_time_but_not_all(open_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most, eight = 0, 0, asyncio.Event()
    search = MicroBatcher.search

    async def slow(self: MicroBatcher, bundle: Bundle, job: SearchJob) -> SearchResult:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        if most == 8:
            eight.set()
        async with asyncio.timeout(60):
            await eight.wait()
        await asyncio.sleep(0.001)  # a ninth would come now
        at_work -= 1
        return await search(self, bundle, job)

    monkeypatch.setattr(MicroBatcher, "search", slow)
    with open_client() as client:
        batch(client, *[{"items": ["i1"], "k": 1}] * 40)
    assert most == 8


def test_what_fails_in_the_encoder_degrades_that_member_alone(
    client: TestClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = bundle.encode

    def failing(histories: Any, *more: Any) -> Any:
        if any(2 in history for history in histories):
            raise EncoderError("not finite")
        return encode(histories, *more)

    monkeypatch.setattr(bundle, "encode", failing)
    answers = batch(client, {"items": ["i1"]}, {"items": ["i2"]})["answers"]
    assert [answer["strategy"] for answer in answers] == ["sequence", "similar"]


def test_a_second_large_batch_is_refused_where_single_requests_are_not(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, released = threading.Event(), threading.Event()

    async def held(owner: str) -> list[HistoryEntry]:
        reading.set()
        while not released.is_set():
            await asyncio.sleep(0.01)
        return [HistoryEntry("i1", 1.0)]

    with open_client(queue_bound=32, rate_limit=100, rate_burst=1000) as client, ThreadPoolExecutor(1) as threads:
        monkeypatch.setattr(client.app.state.histories, "entries", held)  # type: ignore[attr-defined]
        first = threads.submit(batch, client, *({"user_id": f"u{number}", "k": 1} for number in range(256)))
        try:
            assert reading.wait(60)
            assert client.app.state.admission.in_progress == 15  # type: ignore[attr-defined]  # not counted by the server
            single = {"items": ["i1"], "k": 1}
            refused = client.post("/recommend/batch", json={"requests": [single] * 256})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["type"] == "urn:vlm2rec:problem:queue-full"
            assert "a batch of 256 requests" in refused.json()["detail"]
            assert metric(client, "vlm2rec_shed_total", reason="refused") == 1
            assert client.post("/recommend", json=single).json()["degraded"] is None
            batch(client, single)  # a batch of one is a single request
        finally:
            released.set()
        assert len(first.result()["answers"]) == 256
        batch(client, *([single] * 256))
        assert client.app.state.admission.in_progress == 0  # type: ignore[attr-defined]


def test_a_redis_that_is_down_degrades_the_members_that_need_it(open_client: Any) -> None:
    with open_client(redis_url="redis://127.0.0.1:1/0") as client:
        answers = batch(client, {"user_id": "u", "items": ["i1"]}, {"user_id": "u"}, {"items": ["i1"]})["answers"]
    assert [(answer["strategy"], answer["degraded"]) for answer in answers] == [
        ("sequence", "history_unavailable"),
        ("popular", "history_unavailable"),
        ("sequence", None),
    ]


def test_prefetching_reads_each_user_once_and_omits_none() -> None:
    class Counting(MemoryHistories):
        asked: list[str] = []

        async def entries(self, owner: str) -> list[HistoryEntry]:
            self.asked.append(owner)
            return await super().entries(owner)

        async def merged_into(self, session_id: str) -> str | None:
            self.asked.append(f"whose {session_id} is")
            return await super().merged_into(session_id)

    async def scene() -> None:
        store = Counting()
        await store.append([Event("u", "i1", 1.0), Event("v", "i2", 2.0)])
        read = BatchHistories(store, ["u", "v", "u"], asyncio.Semaphore(8))
        first, second, third = await asyncio.gather(item_ids(read, "u"), item_ids(read, "u"), item_ids(read, "v"))
        assert (first, second, third) == (["i1"], ["i1"], ["i2"])
        (await read.entries("u")).clear()
        assert await item_ids(read, "u") == ["i1"]
        assert store.asked == ["u", "v"]
        store.asked.clear()
        BatchHistories(store, [session_owner("s")], None, ["s"])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert store.asked == [session_owner("s"), "whose s is"]  # else a merge between them would show neither
        store.available = False
        lost = BatchHistories(store, ["u"], asyncio.Semaphore(8))
        with pytest.raises(HistoriesUnavailable):
            await item_ids(lost, "u")
        BatchHistories(
            store, ["u"], asyncio.Semaphore(8)
        )  # nobody asks; under -W error a forgotten failure would end the test
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(scene())


def test_giving_up_on_a_shared_read_leaves_it_to_the_others() -> None:
    class Slow(MemoryHistories):
        async def entries(self, owner: str) -> list[HistoryEntry]:
            await asyncio.sleep(0.05)
            return await super().entries(owner)

    async def scene() -> None:
        store = Slow()
        await store.append([Event("u", "i1", 1.0)])
        read = BatchHistories(store, ["u"], asyncio.Semaphore(8))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await item_ids(read, "u")
        assert await item_ids(read, "u") == ["i1"]
        ending = BatchHistories(store, ["u"], asyncio.Semaphore(8))
        ending.close()
        with pytest.raises(asyncio.CancelledError):
            await item_ids(ending, "u")

    asyncio.run(scene())
