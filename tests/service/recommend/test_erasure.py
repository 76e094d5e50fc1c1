"""An erased user is nowhere, also where a request read the history before it was erased and is slow."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.errors import HistoriesUnavailable, OperatorStateUnavailable
from service.stores.redis_histories import RedisHistories
from service.stores.redis_operator_state import RedisOperatorState
from tests.support.shops import OpenClient, eventually

HISTORY = [("i7",)]


def recent_of(client: TestClient) -> list[tuple[str, ...]]:
    app: Any = client.app
    return list(app.state.watcher._loaded._recent.newest())


def store(client: TestClient, user: str = "victim", item: str = "i7") -> None:
    stored = client.post("/events", json={"user_id": user, "item_id": item})
    assert stored.status_code == 200, stored.text


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """A method that has done its work but returns only when it may: whether it has, and the leave to return."""
    real: Callable[..., Any] = getattr(owner, name)
    done, may_return = threading.Event(), threading.Event()

    async def slow(*given: Any) -> Any:
        found = await real(*given)
        done.set()
        await asyncio.to_thread(may_return.wait, 30)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, slow)
        try:
            yield done, may_return
        finally:
            may_return.set()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/recommend", {"user_id": "victim"}),
        ("/recommend/batch", {"requests": [{"user_id": "victim"}]}),
        ("/recommend/batch", {"requests": [{"user_id": "victim", "k": 1}] * 30}),
    ],
)
def test_a_request_that_read_the_history_before_adds_nothing_after(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    with open_client(shadow_histories=5) as client, ThreadPoolExecutor(1) as pool:
        store(client)
        with held(monkeypatch, RedisHistories, "entries") as (read, may_return):
            late = pool.submit(client.post, path, json=body)
            assert read.wait(30)
            assert client.delete("/users/victim").status_code == 204
            may_return.set()
            assert late.result(30).status_code == 200
        assert recent_of(client) == []


def test_a_request_answered_while_the_store_erases_leaves_nothing_behind(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read before the store erased, added after the route was entered, before it answers."""
    with open_client() as client, ThreadPoolExecutor(2) as pool:
        store(client)
        with (
            held(monkeypatch, RedisHistories, "entries") as (read, may_answer),
            held(monkeypatch, RedisHistories, "erase") as (erased, may_end),
        ):
            late = pool.submit(client.post, "/recommend", json={"user_id": "victim"})
            assert read.wait(30)
            erasing = pool.submit(client.delete, "/users/victim")
            assert erased.wait(30)
            may_answer.set()
            assert late.result(30).json()["strategy"] == "sequence"
            may_end.set()
            assert erasing.result(30).status_code == 204
        assert recent_of(client) == []


def test_what_is_asked_after_is_kept_again(open_client: OpenClient) -> None:
    with open_client(poll_ms=60_000) as client:
        store(client)
        assert client.delete("/users/victim").status_code == 204
        store(client)
        client.post("/recommend/batch", json={"requests": [{"user_id": "victim"}]})
        assert recent_of(client) == HISTORY


def test_other_replicas_forget_within_a_poll(open_shop: OpenClient) -> None:
    with open_shop() as one, open_shop() as other, open_shop() as third:
        store(one)
        for replica in (one, other, third):
            replica.post("/recommend", json={"user_id": "victim"})
            assert recent_of(replica) == HISTORY
        assert one.delete("/users/victim").status_code == 204
        assert recent_of(one) == []
        eventually(lambda: recent_of(other) == recent_of(third) == [])


def test_a_request_in_flight_on_another_replica_adds_nothing(
    open_shop: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_shop() as one, open_shop() as other, ThreadPoolExecutor(1) as pool:
        store(one)
        store(one, "another")
        with held(monkeypatch, RedisHistories, "entries") as (read, may_return):
            late = pool.submit(other.post, "/recommend", json={"user_id": "victim"})
            assert read.wait(30)
            generation = other.app.state.watcher._loaded._recent.generation  # type: ignore[attr-defined]
            assert one.delete("/users/victim").status_code == 204
            eventually(lambda: other.app.state.watcher._loaded._recent.generation > generation)  # type: ignore[attr-defined]
            may_return.set()
            assert late.result(30).status_code == 200
        assert recent_of(other) == []


def test_two_replicas_that_erase_at_once_both_forget(open_shop: OpenClient) -> None:
    """The later announcement replaces the earlier one; the replica that made it must read it as well."""
    with open_shop() as one, open_shop() as other, ThreadPoolExecutor(2) as pool:
        for turn in range(5):
            store(one, f"a{turn}")
            store(one, f"b{turn}")
            for replica in (one, other):
                for user in (f"a{turn}", f"b{turn}"):
                    replica.post("/recommend", json={"user_id": user})
            erasing = [pool.submit(one.delete, f"/users/a{turn}"), pool.submit(other.delete, f"/users/b{turn}")]
            assert [done.result(30).status_code for done in erasing] == [204, 204]
            eventually(lambda: recent_of(one) == recent_of(other) == [])


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (RedisHistories, "erase", HistoriesUnavailable),
        (RedisOperatorState, "announce_erasure", OperatorStateUnavailable),
    ],
)
def test_an_erasure_that_not_all_can_know_of_is_to_be_sent_again(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: type[Exception]
) -> None:
    async def refuses(*_: Any) -> None:
        raise error("down")

    with open_client() as client:
        store(client)
        client.post("/recommend", json={"user_id": "victim"})
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, refuses)
            answer = client.delete("/users/victim")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert recent_of(client) == []
        assert client.delete("/users/victim").status_code == 204
        assert client.get("/users/victim/history").json()["items"] == []
