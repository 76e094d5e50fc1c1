"""Events, histories, recommendations, erasure and availability in any order, compared with a model made of lists.

The model knows nothing of Redis: caps, the order within one call, repeated event ids, what erasing takes with it, which
items may be answered. `k` is larger than the catalogue, so that an answer must be a whole set, not merely a part of it.
"""

import asyncio
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from redis import Redis
from starlette.testclient import TestClient

from service.stores.redis_histories import RedisHistories
from service.stores.redis_operator_state import RedisOperatorState
from tests.support.shops import ADMIN, AS_ADMIN, OpenClient
from tests.support.stores.memory_histories import MemoryHistories
from tests.support.stores.memory_operator_state import MemoryOperatorState

HISTORY_CAP, EVENT_IDS_CAP, STREAM_CAP, MAX_HISTORY = 6, 3, 7, 5
ALL_ITEMS = [*(f"i{row}" for row in range(58)), "ein Tee/grün", "👟"]
NO_SLOT = "i3"
K = 100

USERS = ["anna", "b}ü{/%2F"]
users = st.sampled_from(USERS)
known_items = st.sampled_from(["i0", "i1", "i2", NO_SLOT, "i9", "ein Tee/grün", "👟"])
items = st.one_of(known_items, st.sampled_from(["gone", "i60", "{x}"]))
events = st.fixed_dictionaries(
    {"user_id": users, "item_id": items},
    optional={
        "timestamp": st.sampled_from([0.0, 1.5, 7.25, 1000.0]),
        "event_id": st.sampled_from(["e1", "e2", "e3", "e4"]),
        "type": st.sampled_from(["view", "buy"]),
    },
)


class Kept(NamedTuple):
    user_id: str
    item_id: str
    timestamp: float | None
    type: str | None


@dataclass
class Model:
    """What must be kept, in plain lists; a timestamp that was not sent is None."""

    histories: dict[str, list[Kept]] = field(default_factory=dict)
    event_ids: dict[str, list[str]] = field(default_factory=dict)
    stream: list[Kept] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)

    def store(self, sent: list[dict[str, Any]]) -> int:
        stored = 0
        for event in sorted(sent, key=lambda event: event.get("timestamp", float("inf"))):
            user, event_id = event["user_id"], event.get("event_id")
            ids = self.event_ids.setdefault(user, [])
            if event_id in ids:
                continue
            if event_id is not None:
                ids.append(event_id)
            kept = Kept(user, event["item_id"], event.get("timestamp"), event.get("type"))
            self.histories.setdefault(user, []).append(kept)
            self.stream.append(kept)
            stored += 1
        for user in {event["user_id"] for event in sent}:
            self.histories[user] = self.histories.get(user, [])[-HISTORY_CAP:]
            self.event_ids[user] = self.event_ids[user][-EVENT_IDS_CAP:]
        kept = [[entry for entry in self.stream if entry.user_id == user][-STREAM_CAP:] for user in USERS]
        self.stream = [entry for entry in self.stream if any(entry is one for of_user in kept for one in of_user)]
        return stored

    def erase(self, user: str) -> None:
        self.histories.pop(user, None)
        self.event_ids.pop(user, None)
        self.stream = [kept for kept in self.stream if kept.user_id != user]

    def items_of(self, user: str) -> list[str]:
        return [kept.item_id for kept in self.histories.get(user, [])]


def same(kept: Kept, item_id: str, timestamp: float, kind: str | None) -> bool:
    """Whether a stored event is the one of the model; without a timestamp it was stored about now."""
    in_time = timestamp > 1e9 if kept.timestamp is None else timestamp == kept.timestamp
    return in_time and (kept.item_id, kept.type) == (item_id, kind)


class Shopping(RuleBasedStateMachine):
    """Everything that users and an operator do; `client`, `stream` and `forget_all` come from the test."""

    client: TestClient
    stream: Callable[[], list[tuple[str, str, float, str | None]]]
    forget_all: Callable[[], None]

    @initialize()
    def begin(self) -> None:
        self.model = Model()
        self.is_checked = True
        type(self).forget_all()

    def teardown(self) -> None:
        for item in list(self.model.hidden) if hasattr(self, "model") else []:
            self.show(item)

    @rule(sent=st.lists(events, min_size=1, max_size=5))
    def store(self, sent: list[dict[str, Any]]) -> None:
        self.is_checked = False
        answer = self.client.post("/events", json={"events": sent})
        stored = self.model.store(sent)
        assert answer.status_code == 200
        assert answer.json().items() >= {"stored": stored, "duplicates": len(sent) - stored}.items()

    @rule(event=events)
    def store_one(self, event: dict[str, Any]) -> None:
        self.is_checked = False
        answer = self.client.post("/events", json=event)
        stored = self.model.store([event])
        assert answer.status_code == 200
        assert answer.json().items() >= {"stored": stored, "duplicates": 1 - stored}.items()

    @rule(good=events, bad=st.sampled_from([{"user_id": "anna"}, {"user_id": "anna", "item_id": ""}, {"x": 1}, None]))
    def refuse_all_for_one(self, good: dict[str, Any], bad: Any) -> None:
        self.is_checked = False
        answer = self.client.post("/events", json={"events": [good, bad]})
        assert answer.status_code == 422
        assert "events[1]" in answer.json()["detail"]

    @rule(user=users)
    def erase(self, user: str) -> None:
        self.is_checked = False
        assert self.client.delete(f"/users/{quote(user, safe='')}").status_code == 204
        self.model.erase(user)

    @rule(item=known_items)
    def hide(self, item: str) -> None:
        self._set(item, available=False)
        self.model.hidden.add(item)

    @rule(item=known_items)
    def show(self, item: str) -> None:
        self._set(item, available=True)
        self.model.hidden.discard(item)

    def _set(self, item: str, *, available: bool) -> None:
        path = f"/items/{quote(item, safe='')}/availability"
        assert self.client.put(path, json={"available": available}, headers=AS_ADMIN).status_code == 204

    @rule(item=known_items)
    def look_at(self, item: str) -> None:
        found = self.client.get(f"/items/{quote(item, safe='')}").json()
        assert (found["item_id"], found["available"]) == (item, item not in self.model.hidden)

    @rule(
        user=st.one_of(st.none(), users),
        given=st.lists(items, max_size=3),
        exclude=st.lists(known_items, max_size=2),
        exclude_seen=st.booleans(),
        history=st.sampled_from(["use", "use", "ignore"]),
        k=st.sampled_from([K, K, 2]),
    )
    def recommend(
        self, user: str | None, given: list[str], exclude: list[str], exclude_seen: bool, history: str, k: int
    ) -> None:
        body = {"items": given, "exclude": exclude, "exclude_seen": exclude_seen, "history": history, "k": k}
        answer = self.client.post("/recommend", json=body | {"user_id": user, "explain": k == K})
        assert answer.status_code == 200
        stored = self.model.items_of(user) if user is not None and history == "use" else []
        self._check_answer(answer.json(), [*stored, *given], exclude, exclude_seen=exclude_seen, k=k)

    def _check_answer(
        self, body: dict[str, Any], taken: list[str], exclude: list[str], *, exclude_seen: bool, k: int
    ) -> None:
        found = [item["item_id"] for item in body["items"]]
        usable = [item for item in taken if item in ALL_ITEMS and item != NO_SLOT]
        excluded = self.model.hidden | set(exclude) | (set(taken) if exclude_seen else set())
        expected = set(ALL_ITEMS) - excluded
        if usable:
            expected -= {NO_SLOT}  # it can only be popular
        assert body["strategy"] == ("sequence" if usable else "popular")
        assert body["degraded"] is None
        assert body["history_used"] == min(len(usable), MAX_HISTORY)
        assert body["unknown_items"] == list(dict.fromkeys(item for item in taken if item not in ALL_ITEMS))
        assert len(found) == len(set(found))
        assert set(found) <= expected
        assert len(found) == min(k, len(expected))
        scores = [item["score"] for item in body["items"]]
        assert scores == sorted(scores, reverse=True)
        for item in body["items"]:
            if item.get("contributions") is not None:
                assert abs(sum(item["contributions"].values()) - item["score"]) <= 1e-5
                assert item["nearest_history_item"] in usable[-MAX_HISTORY:]

    @rule(item=known_items.filter(lambda item: item != NO_SLOT))
    def similar(self, item: str) -> None:
        found = [one["item_id"] for one in self.client.post("/similar", json={"item_id": item, "k": K}).json()["items"]]
        assert set(found) == set(ALL_ITEMS) - self.model.hidden - {item, NO_SLOT}

    @invariant()
    def what_is_kept_is_the_models(self) -> None:
        """After every call that could change it."""
        if getattr(self, "is_checked", True):
            return
        self.is_checked = True
        for user in USERS:
            kept = self.model.histories.get(user, [])
            steps = self.client.get(f"/users/{quote(user, safe='')}/history").json()["items"]
            assert len(steps) == len(kept)
            assert all(same(one, *step.values()) for one, step in zip(kept, steps, strict=True))
        found = type(self).stream()
        assert [user for user, *_ in found] == [kept.user_id for kept in self.model.stream]
        assert all(same(kept, *rest) for kept, (_, *rest) in zip(self.model.stream, found, strict=True))


def small(examples: int) -> settings:
    """Few steps an example but many examples; the seed is fixed where the suite runs on every commit."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(
        max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=checks, database=None,
        derandomize=examples < 100,
    )  # fmt: skip


def run(client: TestClient, stream: Callable[[], list[Any]], forget_all: Callable[[], None], examples: int) -> None:
    about = {"client": client, "stream": staticmethod(stream), "forget_all": staticmethod(forget_all)}
    run_state_machine_as_test(type("Opened", (Shopping,), about), settings=small(examples))


CAPS = {
    "history_cap": HISTORY_CAP,
    "event_ids_cap": EVENT_IDS_CAP,
    "stream_cap": 64 * STREAM_CAP,
}  # the two users are of two buckets


@pytest.fixture
def with_redis(open_client: OpenClient, redis_url: str) -> Iterator[Callable[[int], None]]:
    prefix = f"machine-{uuid.uuid4().hex}"
    with open_client(redis_prefix=prefix, admin_keys=[ADMIN], **CAPS) as client, Redis.from_url(redis_url) as redis:

        def keys(pattern: str) -> Iterator[bytes]:
            """Of a Redis that has thousands of other tests: ten at a time, as is the default, would take longest."""
            return redis.scan_iter(f"{prefix}:{pattern}", count=10_000)

        def stream() -> list[tuple[str, str, float, str | None]]:
            found: Any = [entry for key in keys("*:stream") for entry in redis.xrange(key)]
            found.sort(key=lambda entry: [int(part) for part in entry[0].split(b"-")])
            texts = [[field.decode() for field in islice(fields.values(), 4)] for _, fields in found]
            return [(user, item, float(timestamp), kind or None) for user, item, timestamp, kind in texts]

        def forget_all() -> None:
            left = [key for key in keys("*") if b"{directives}" not in key]
            if left:
                redis.delete(*left)

        yield lambda examples: run(client, stream, forget_all, examples)


@pytest.mark.no_cover
def test_any_order_on_redis(with_redis: Callable[[int], None]) -> None:
    with_redis(40)


@pytest.mark.slow
def test_any_order_on_redis_at_length(with_redis: Callable[[int], None]) -> None:
    with_redis(1_000)


def put_in_place_of(store: type, instead: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever module of the service makes the store gets the other one."""
    for module in [found for name, found in sys.modules.items() if name.startswith("service.")]:
        if getattr(module, store.__name__, None) is store:
            monkeypatch.setattr(module, store.__name__, lambda *_, **__: instead)


@pytest.mark.no_cover
def test_any_order_in_memory(open_client: OpenClient, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = MemoryHistories(**CAPS)
    for store, instead in ((RedisHistories, histories), (RedisOperatorState, MemoryOperatorState())):
        put_in_place_of(store, instead, monkeypatch)

    def stream() -> list[tuple[str, str, float, str | None]]:
        events = asyncio.run(histories.stream())
        return [(event.user_id, event.item_id, event.timestamp, event.type) for event in events]

    def forget_all() -> None:
        for kept in (histories._histories, histories._event_ids, histories._expires, histories._streams):
            kept.clear()

    with open_client(admin_keys=[ADMIN]) as client:
        run(client, stream, forget_all, 40)
