"""Histories in a real Redis Cluster: bulks by bucket, moved slots, nodes that stop."""

import asyncio
import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from service.errors import BulkPartlyStored, HistoriesUnavailable
from service.settings.redis_url import Address
from service.stores.deployment.slot_map import SlotMap, UnknownSlots, slot_of
from service.stores.history_keys import keys_of
from service.stores.protocols import Event, HistoryEntry
from service.stores.redis_client import RedisWatch
from tests.support.shops import ADMIN, OpenClient, eventually
from tests.support.stores.exports import Shop, some_events
from tests.support.stores.item_ids import item_ids
from tests.support.stores.real_redis import open_histories
from tests.support.stores.redis_clusters import Cluster, Node, opened
from tests.support.stores.redis_pairs import on_a_port


def users_of(cluster: Cluster, count: int, prefix: str = "") -> dict[Node, list[str]]:
    """Users by the node that has their bucket, in order of their numbers."""
    found: dict[Node, list[str]] = {node: [] for node in cluster.nodes}
    for number in range(count):
        found[cluster.owner(keys_of(prefix, f"u{number}").history)].append(f"u{number}")
    return found


@contextmanager
def stopped(node: Node) -> Iterator[None]:
    os.kill(node.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(node.process.pid, signal.SIGCONT)


def test_a_bulk_over_all_nodes_is_stored_and_each_user_reads_their_own(cluster: Cluster) -> None:
    async def check() -> None:
        async with opened(cluster) as store:
            users = [f"u{number}" for number in range(300)]
            assert all(users_of(cluster, 300)[node] for node in cluster.nodes)
            assert len(await store.append([Event(user, f"item of {user}", 1.0) for user in users])) == 300
            read = await asyncio.gather(*(item_ids(store, user) for user in users))
            assert read == [[f"item of {user}"] for user in users]

    asyncio.run(check())


def test_callers_that_leave_mix_up_no_replies(cluster: Cluster) -> None:
    async def check() -> None:
        async with opened(cluster) as store:
            users = [f"u{number}" for number in range(100)]
            await store.append([Event(user, f"item of {user}", 1.0) for user in users])
            for leaving in range(3):
                tasks = [asyncio.create_task(item_ids(store, user)) for user in users]
                await asyncio.sleep(0)
                for task in tasks[leaving::3]:
                    task.cancel()
                read = await asyncio.gather(*tasks, return_exceptions=True)
                stayed = [(user, found) for user, found in zip(users, read, strict=True) if isinstance(found, list)]
                assert len(stayed) >= 60
                assert all(found == [f"item of {user}"] for user, found in stayed)

    asyncio.run(check())


def test_a_node_that_stops_fails_its_own_buckets_and_the_error_lists_them(cluster: Cluster) -> None:
    nodes: list[str] = []

    async def check() -> None:
        async with opened(cluster, timeout_s=0.3, watch=RedisWatch(on_node_error=nodes.append)) as store:
            by_node = users_of(cluster, 60)
            lost, *others = by_node
            bulk = [Event(f"u{number}", "a", number, event_id=f"e{number}") for number in range(60)]
            await store.append([Event(by_node[node][0], "before", 0.0, event_id="b") for node in cluster.nodes])
            with stopped(lost):
                with pytest.raises(BulkPartlyStored, match=r"no answer within 0\.3 s") as partly:
                    await store.append(list(reversed(bulk)))
                error = partly.value
                assert error.not_stored == tuple(sorted(59 - int(user[1:]) for user in by_node[lost]))
                assert error.stored == tuple(sorted(set(range(60)).difference(error.not_stored)))
                assert error.new == error.stored
                for node in others:
                    assert (await item_ids(store, by_node[node][1])) == ["a"]
                with pytest.raises(HistoriesUnavailable):
                    await store.entries(by_node[lost][1])
                assert not await store.alive()
            assert set(nodes) == {f"127.0.0.1:{lost.port}"}
            # What arrived although it was not answered is recognised by its id.
            async with asyncio.timeout(30):
                while True:
                    with suppress(HistoriesUnavailable):
                        await store.append([bulk[int(user[1:])] for user in by_node[lost]])
                        assert len(await store.append(bulk)) == 0
                        assert [await item_ids(store, user) for user in by_node[lost][1:2]] == [["a"]]
                        assert await store.alive()
                        break
                    await asyncio.sleep(0.02)
        async with opened(cluster, store._prefix) as patient:
            for number in range(60):
                assert (await item_ids(patient, f"u{number}"))[-1] == "a"
                assert len(await item_ids(patient, f"u{number}")) <= 2

    asyncio.run(check())


def test_a_refused_part_of_a_bulk_is_in_the_answer(cluster: Cluster, open_client: OpenClient) -> None:
    prefix = f"test-{uuid.uuid4().hex}"
    with open_client(redis_url=cluster.url, redis_prefix=prefix) as client:
        assert client.get("/readyz").json()["redis"] == "up"
        broken, good = (users[0] for users in list(users_of(cluster, 50).values())[:2])
        with Redis(port=cluster.owner(keys_of(prefix, broken).history).port) as node:
            node.set(keys_of(prefix, broken).history, "no list")
        events = [
            {"user_id": broken, "item_id": "i1", "event_id": "a", "consent": False},
            {"user_id": good, "item_id": "i1", "event_id": "b"},
            {"user_id": broken, "item_id": "i2", "event_id": "c"},
            {"user_id": good, "item_id": "i2", "event_id": "d"},
        ]
        answer = client.post("/events", json={"events": events})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        problem = answer.json()
        assert problem["type"] == "urn:vlm2rec:problem:sessions-unavailable"
        assert (problem["stored"], problem["not_stored"]) == ([1, 3], [2])
        assert "WRONGTYPE" in problem["detail"]
        stored = 'vlm2rec_events_total{outcome="stored"} 2.0'
        assert stored in client.get("/metrics").text
        alone = client.post("/events", json=events[2])
        assert alone.status_code == 503
        assert "not_stored" not in alone.json()
        assert client.get(f"/users/{good}/history").json()["items"][-1]["item_id"] == "i2"
        with Redis(port=cluster.owner(keys_of(prefix, broken).history).port) as node:
            node.delete(keys_of(prefix, broken).history)
        again = client.post("/events", json={"events": [events[place] for place in problem["not_stored"]]})
        assert again.json() == {"stored": 1, "duplicates": 0, "without_consent": 0}


@contextmanager
def moving(cluster: Cluster, key: str) -> Iterator[tuple[Node, Node, int]]:
    """The slot of a key while it is moved from its node to another one, and back at the end."""
    slot, source = slot_of(key), cluster.owner(key)
    target = next(node for node in cluster.nodes if node is not source)
    target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.name)
    source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.name)
    try:
        yield source, target, slot
    finally:
        for node in (source, target):
            for stored in node.command("CLUSTER", "GETKEYSINSLOT", slot, 1000):
                with Redis(port=node.port) as client:
                    client.execute_command("ASKING")  # type: ignore[no-untyped-call]
                    client.delete(stored)
        for node in cluster.nodes:
            node.command("CLUSTER", "SETSLOT", slot, "NODE", source.name)


def test_reads_and_writes_follow_a_slot_that_moves(cluster: Cluster) -> None:
    prefix = f"{{test-{uuid.uuid4().hex}}}"  # all keys in one slot, which no other test uses

    async def check() -> None:
        async with opened(cluster, prefix, timeout_s=1.0) as store:
            await store.append([Event("u", "a", 1.0, event_id="e")])
            history = keys_of(prefix, "u").history
            with moving(cluster, history) as (source, target, slot):
                assert await item_ids(store, "u") == ["a"]
                source.command("MIGRATE", "127.0.0.1", target.port, history, 0, 5000)
                assert await item_ids(store, "u") == ["a"]  # by ASK
                with pytest.raises(HistoriesUnavailable, match=r"TRYAGAIN|slots move"):
                    await store.append([Event("u", "b", 2.0, event_id="f")])
                for key in source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                    source.command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
                for node in (target, source):
                    node.command("CLUSTER", "SETSLOT", slot, "NODE", target.name)
                new = await store.append([Event("u", "b", 2.0, event_id="f"), Event("u", "a", 1.0, event_id="e")])
                assert list(new) == [0]
                assert await store.entries("u") == [HistoryEntry("a", 1.0), HistoryEntry("b", 2.0)]  # by MOVED
                for key in target.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                    target.command("DEL", key)
                target.command("CLUSTER", "SETSLOT", slot, "MIGRATING", source.name)
                source.command("CLUSTER", "SETSLOT", slot, "IMPORTING", target.name)

    asyncio.run(check())


def test_events_are_exported_from_a_cluster_and_an_erasure_reaches_the_export(cluster: Cluster, tmp_path: Path) -> None:
    shop = Shop(cluster.url, tmp_path / "export")

    async def check(store: Any) -> None:
        await store.append(some_events(40))
        assert (await shop.export()).events == 40
        await store.append(some_events(10, start=40))
        await store.erase("u3")
        exported = await shop.export()
        assert (exported.events, exported.erasures) == (9, 1)
        assert await store.stream() == []

    shop.run(check)
    assert {row["event_id"] for row in shop.rows()} == {f"e{number}" for number in range(50) if number != 45}


def test_outcomes_and_operator_state_are_kept_in_a_cluster(cluster: Cluster, open_client: OpenClient) -> None:
    prefix = f"test-{uuid.uuid4().hex}"
    with open_client(redis_url=cluster.url, redis_prefix=prefix, outcomes=True, admin_keys=[ADMIN]) as client:
        asked = {"user_id": "anna", "items": ["i1", "i2"], "k": 5}
        answer = client.post("/recommend", json=asked).json()
        first = answer["items"][0]["item_id"]
        seen = {"user_id": "anna", "item_id": first, "type": "click", "request_id": answer["request_id"]}
        eventually(lambda: cluster.keys(f"{prefix}*answers"))
        assert client.post("/events", json=seen).json()["stored"] == 1

        def clicks() -> int:
            return sum(count["clicks"] for count in client.get("/outcomes?by=position").json()["outcomes"])

        eventually(lambda: clicks() == 1)
        hidden = client.put(f"/items/{first}/availability", json={"available": False}, headers={"X-API-Key": ADMIN})
        assert hidden.status_code == 204
        again = client.post("/recommend", json=asked).json()
        assert first not in {item["item_id"] for item in again["items"]}
        assert client.delete("/users/anna").status_code == 204
        assert client.get("/users/anna/history").json()["items"] == []
        assert not [key for key in cluster.keys(f"{prefix}*") if "anna" in key]


def test_a_cluster_that_is_none_and_nodes_that_are_gone_say_so(cluster: Cluster, tmp_path: Path) -> None:
    async def check(port: int) -> None:
        gone = open_histories("redis+cluster://127.0.0.1:1", timeout_s=1.0)
        with pytest.raises(HistoriesUnavailable, match="nothing listens at its address"):
            await gone.entries("u")
        with pytest.raises(HistoriesUnavailable, match="not asked, as no node has answered lately"):
            await gone.entries("u")
        assert not await gone.alive()
        await gone.close()
        none = open_histories(f"redis+cluster://127.0.0.1:{port}", timeout_s=5.0)
        with pytest.raises(HistoriesUnavailable, match="it is no node of a Redis Cluster"):
            await none.entries("u")
        await none.close()
        one_gone = open_histories(f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[1].port}", timeout_s=5.0)
        assert await one_gone.entries("u") == []
        await one_gone.close()

    with on_a_port(tmp_path) as port:
        asyncio.run(check(port))


def test_the_owners_of_slots_are_those_of_the_reply() -> None:
    asked = Address("seed", 1)
    reply = [[0, 99, [b"", 7000, b"id"], [b"b", 7001, b"id"]], [200, 16_383, [b"c", 7002, b"id", []]]]
    slots = SlotMap(reply, asked)
    owners = [slots.owner(slot) for slot in (0, 99, 100, 199, 200, 16_383)]
    first, last = Address("seed", 7000), Address("c", 7002)
    assert owners == [first, first, None, None, last, last]
    assert (slots.masters, slots.replicas, slots.whole) == ((first, last), (Address("b", 7001),), False)
    assert SlotMap([[0, 16_383, [b"a", 1, b""]]], asked).whole
    for rubbish in ([], [[1, 2]], [b"x"], [[b"a", b"b", [b"h", 1]]], b"text", 7):
        with pytest.raises(UnknownSlots):
            SlotMap(rubbish, asked)
