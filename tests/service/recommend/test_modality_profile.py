"""Profiles against brute force and sample users, and the executor that computes them."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.errors import EncoderError
from service.errors import QueueFull
from service.recommend.contributions import MAX_STEPS, profile_of
from service.runtime.bounded_executor import BoundedExecutor

SLOTS = {"text": slice(0, 6), "image": slice(6, 10), "behaviour": slice(10, 12)}


def brute_force(oracle: Any, items: list[str]) -> tuple[int, dict[str, float]]:
    """Step by step in float64: the query of all before it, times the stored vector of what came, slot by slot."""
    usable = [item for item in items if oracle.table.ids.row(item) is not None and item != "i3"]
    sums = dict.fromkeys(SLOTS, 0.0)
    steps = list(range(1, len(usable)))[-64:]
    for step in steps:
        query = oracle.encoded(usable[:step])
        target = oracle.vectors[oracle.row(usable[step])]
        for slot, part in SLOTS.items():
            sums[slot] += max(0.0, float(query[part] @ target[part]))
    return len(steps), {slot: value / sum(sums.values()) for slot, value in sums.items()}


@pytest.mark.parametrize("length", [2, 3, 6, 7, 40, 65, 66, 150])
def test_shares_are_those_of_brute_force(bundle: Bundle, oracle: Any, length: int) -> None:
    rng = np.random.default_rng(length)
    items = [f"i{row}" for row in rng.choice(np.delete(np.arange(58), 3), size=length)]
    profile = profile_of(bundle, items)
    steps, shares = brute_force(oracle, items)
    assert profile.steps == steps == min(length - 1, MAX_STEPS)
    assert profile.shares == pytest.approx(shares, abs=1e-5)
    assert sum(profile.shares.values()) == pytest.approx(1.0)


def test_items_that_say_nothing_are_left_out(bundle: Bundle) -> None:
    assert profile_of(bundle, ["gone", "i1", "i3", "i2", "i4", "gone"]) == profile_of(bundle, ["i1", "i2", "i4"])


@pytest.mark.parametrize("items", [[], ["i1"], ["gone", "i1"], ["i1", "i3"]])
def test_too_short_a_history_has_no_profile(bundle: Bundle, items: list[str]) -> None:
    profile = profile_of(bundle, items)
    assert (profile.steps, profile.shares) == (0, None)


def test_a_slot_that_the_items_lack_has_no_share(bundle: Bundle) -> None:
    shares = profile_of(bundle, ["i7", "i14", "i21", "i28", "i35"]).shares  # none of them has a picture
    assert shares is not None
    assert shares["image"] == 0.0


def test_without_positive_contributions_there_is_no_profile(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bundle, "contributions", lambda queries, rows, _histories: -np.ones((len(rows), 1, 3), dtype=np.float32)
    )
    profile = profile_of(bundle, ["i1", "i2", "i4"])
    assert (profile.steps, profile.shares) == (2, None)


def test_over_http(client: TestClient, bundle: Bundle, oracle: Any) -> None:
    items = ["i1", "i2", "gone", "i4", "i8", "i16", "i32"]
    events = [{"user_id": "p/q", "item_id": item, "timestamp": at} for at, item in enumerate(items)]
    client.post("/events", json={"events": events})
    answer = client.get("/users/p%2Fq/profile")
    assert answer.status_code == 200
    body = answer.json()
    assert body.pop("shares") == pytest.approx(brute_force(oracle, items)[1], abs=1e-5)
    assert body == {"user_id": "p/q", "bundle": bundle.id, "steps": 5}
    assert client.get("/users/nobody/profile").json() == {
        "user_id": "nobody",
        "bundle": bundle.id,
        "steps": 0,
        "shares": None,
    }
    assert client.get("/users/%00/profile").status_code == 422
    assert client.get("/users/u/profile?k=1").status_code == 422


def test_without_histories_there_is_no_profile(open_client: Any) -> None:
    with open_client(redis_url="redis://127.0.0.1:1/0") as client:
        answer = client.get("/users/u/profile")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_an_encoder_that_fails_gives_no_profile(
    client: TestClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_histories: Any) -> Any:
        raise EncoderError("not finite")

    client.post("/events", json={"events": [{"user_id": "e", "item_id": item} for item in ("i1", "i2")]})
    monkeypatch.setattr(bundle, "encode", failing)
    body = client.get("/users/e/profile").json()
    assert (body["steps"], body["shares"]) == (0, None)


def test_it_is_computed_beside_the_event_loop(
    client: TestClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    encode = bundle.encode

    def noting(histories: Any) -> Any:
        names.append(threading.current_thread().name)
        return encode(histories)

    client.post("/events", json={"events": [{"user_id": "t", "item_id": item} for item in ("i1", "i2")]})
    monkeypatch.setattr(bundle, "encode", noting)
    client.get("/users/t/profile")
    assert [name.startswith("bounded-executor") for name in names] == [True]


def test_the_executor_refuses_calls_that_would_wait_too_long() -> None:
    async def scene() -> None:
        lane, go_on = BoundedExecutor(threads=1, bound=2), threading.Event()
        first = asyncio.ensure_future(lane.run(lambda: go_on.wait(10)))
        second = asyncio.ensure_future(lane.run(lambda: "done"))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="at most 2 requests"):
            await lane.run(lambda: "never")
        go_on.set()
        assert (await first, await second) == (True, "done")
        assert await lane.run(lambda: "again") == "again"

        def failing() -> None:
            raise ValueError("comes through")

        for _ in range(3):
            with pytest.raises(ValueError, match="comes through"):
                await lane.run(failing)
        lane.close()

    asyncio.run(scene())


def test_a_full_executor_is_429_with_a_time(open_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(_lane: BoundedExecutor, _call: Any) -> Any:
        raise QueueFull("at most 64 requests of this kind may wait at the same time; try again later")

    monkeypatch.setattr(BoundedExecutor, "run", full)
    with open_client(retry_after_s=3) as client:
        answer = client.get("/items?q=a")
    assert (answer.status_code, answer.json()["type"]) == (429, "urn:vlm2rec:problem:queue-full")
    assert answer.headers["retry-after"] == "3"


def test_sample_users_are_those_of_the_evaluation_queries(client: TestClient, bundle: Bundle) -> None:
    body = client.get("/users/samples").json()
    assert body["bundle"] == bundle.id

    def named(row: int) -> dict[str, Any]:
        return {"item_id": f"i{row}", "title": f"Item number {row}" if row != 5 else None}

    assert body["samples"] == [
        {"history": [named(1), named(2), named(4)], "target": named(5)},
        {"history": [named(10), named(11)], "target": named(12)},
        {"history": [named(20)], "target": named(21)},
    ]
    assert client.delete("/users/samples").status_code == 204  # a user of that name can still be erased
