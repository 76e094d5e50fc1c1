"""Backups of a Redis Cluster: made and restored while sessions are merged, after a failover, not while slots move."""

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from demo.embedded_redis import EmbeddedRedis, find_redis_server
from service.errors import BackupInterrupted, BackupRefused
from service.export.backup.create import create_backup
from service.stores.backup.redis_backup import RedisBackup
from service.stores.history_keys import bucket_of, keys_of
from service.stores.protocols import Event, session_owner
from tests.support.shops import OpenClient, Shop, eventually, serving
from tests.support.stores.backups import assert_same, fill, make, put_back, seen, silent, stored, stored_on
from tests.support.stores.exports import Shop as Events
from tests.support.stores.exports import some_events
from tests.support.stores.real_redis import connection
from tests.support.stores.redis_clusters import Cluster, redis_cluster

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster") / "nodes", program=find_redis_server()) as started:
        yield started


@pytest.fixture
def shop(tmp_path: Path, day_bundles: list[Path]) -> Shop:
    return Shop(tmp_path / "registry", day_bundles)


@pytest.fixture
def events(cluster: Cluster, tmp_path: Path) -> Events:
    return Events(cluster.url, tmp_path / "export")


def test_a_service_on_a_cluster_goes_on_from_a_restored_backup(
    open_shop: OpenClient, shop: Shop, cluster: Cluster, tmp_path: Path
) -> None:
    caps = {"history_cap": 8, "event_ids_cap": 6, "outcomes": True, "redis_url": cluster.url}
    with open_shop(redis_prefix="kept", **caps) as client:
        fill(client)
        before = seen(client)
    keys = stored_on(cluster, "kept")
    assert len({cluster.owner(f"kept:{name}") for name in keys}) == 3
    made = make(tmp_path / "backup", cluster.url, "kept", shop.registry)
    assert made.redis is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", made.redis.server)

    put_back(tmp_path / "backup", cluster.url, "other", tmp_path / "bundles")
    assert_same(keys, stored_on(cluster, "other"))
    with open_shop(redis_prefix="other", registry=str(tmp_path / "bundles"), **caps) as client:
        eventually(lambda: serving(client) == shop.ids[0])
        assert seen(client) == before
        again = client.post("/events", json={"user_id": "u1", "item_id": "i0", "event_id": "e82"})
        assert again.json()["duplicates"] == 1


def test_one_redis_and_a_cluster_restore_the_backups_of_each_other(
    cluster: Cluster, events: Events, redis_url: str, tmp_path: Path
) -> None:
    events.run(lambda histories: histories.append(some_events(60)))
    make(tmp_path / "backup", cluster.url, events.prefix)
    put_back(tmp_path / "backup", redis_url, events.prefix)
    assert_same(stored_on(cluster, events.prefix), stored(redis_url, events.prefix))
    make(tmp_path / "again", redis_url, events.prefix)
    with pytest.raises(BackupRefused, match="has keys of this prefix"):
        put_back(tmp_path / "again", cluster.url, events.prefix)
    events.run(lambda histories: histories.append(some_events(10, start=60)))
    put_back(tmp_path / "again", cluster.url, events.prefix, replace=True)
    assert_same(stored_on(cluster, events.prefix), stored(redis_url, events.prefix))


def test_a_cluster_takes_no_histories_of_the_layout_before_the_buckets(
    cluster: Cluster, events: Events, redis_url: str, tmp_path: Path
) -> None:
    async def old() -> None:
        async with Redis.from_url(redis_url) as redis:
            await redis.xadd(f"{events.prefix}:events", {"user": "u9", "item": "a"})
            await redis.rpush(f"{events.prefix}:{{u9}}:history", "1 a")

    asyncio.run(old())
    make(tmp_path / "backup", redis_url, events.prefix)
    with pytest.raises(BackupRefused, match=r"a version before the buckets.*one Redis"):
        put_back(tmp_path / "backup", cluster.url, events.prefix)
    assert not stored_on(cluster, events.prefix)
    put_back(tmp_path / "backup", redis_url, f"other-{events.prefix}")


def test_another_user_of_the_bucket_of_a_merge_is_as_the_stream_is(redis_url: str, tmp_path: Path) -> None:
    """The stream of the bucket is read again, so the users with new events in it are as well."""
    events = Events(redis_url, tmp_path / "export")
    other = next(f"v{number}" for number in range(9999) if bucket_of(f"v{number}") == bucket_of("u1"))

    class Busy(RedisBackup):
        histories: Any
        merged = False

        async def last_erasure(self) -> Any:
            found = await super().last_erasure()
            if not self.merged:
                await self.histories.merge("s1", "u1")
            return found

        async def merged_since(self, names: Any, since_ms: int) -> Any:
            if not self.merged:
                self.merged = True
                await self.histories.append([Event(other, "new", 3.0, event_id="e")])
            return await super().merged_since(names, since_ms)

    async def whole(histories: Any) -> None:
        await histories.append([Event(session_owner("s1"), "a", 1.0), Event("u1", "b", 2.0), Event(other, "old", 1.0)])
        busy = Busy(connection(redis_url, prefix=events.prefix))
        busy.histories = histories
        await create_backup(tmp_path / "backup", busy, None, silent)
        await busy.close()

    events.run(whole)
    restored = Events(redis_url, tmp_path / "other", "restored-" + events.prefix)
    put_back(tmp_path / "backup", restored.url, restored.prefix)

    async def check(histories: Any) -> None:
        assert [entry.item_id for entry in await histories.entries(other)] == ["old", "new"]
        await histories.append([Event(other, "new", 3.0, event_id="e")])
        assert [entry.item_id for entry in await histories.entries(other)] == ["old", "new"]

    restored.run(check)


@pytest.mark.parametrize("place", ["cluster", "one Redis"])
def test_a_session_that_is_merged_while_streams_are_read_is_in_its_user(
    place: str, cluster: Cluster, redis_url: str, tmp_path: Path
) -> None:
    """The user's bucket is behind and the session's ahead, so that the session alone would be read after the merge."""
    session = next(f"s{n}" for n in range(1000) if bucket_of(session_owner(f"s{n}")) > 40)
    user = next(f"u{n}" for n in range(1000) if bucket_of(f"u{n}") < 20)
    events = Events(cluster.url if place == "cluster" else redis_url, tmp_path / "export")

    class Busy(RedisBackup):
        act: Callable[[], Any]

        async def owners_since(self, bucket: int, since_ms: int) -> set[str]:
            if bucket == 30:
                await self.act()
            return await super().owners_since(bucket, since_ms)

    async def whole(histories: Any) -> None:
        await histories.append([Event(session_owner(session), "a", 1.0), Event(user, "b", 2.0)])
        busy = Busy(connection(events.url, prefix=events.prefix))
        busy.act = lambda: histories.merge(session, user)
        await create_backup(tmp_path / "backup", busy, None, silent)
        await busy.close()

    events.run(whole)
    restored = Events(events.url, tmp_path / "other", "restored-" + events.prefix)
    put_back(tmp_path / "backup", restored.url, restored.prefix)

    async def check(histories: Any) -> None:
        assert [entry.item_id for entry in await histories.entries(user)] == ["a", "b"]
        assert await histories.entries(session_owner(session)) == []
        assert await histories.merge(session, user) == 0

    restored.run(check)


def test_a_cluster_whose_slots_move_is_not_backed_up(cluster: Cluster, events: Events, tmp_path: Path) -> None:
    events.run(lambda histories: histories.append(some_events(20)))
    owner, other = cluster.nodes[:2]
    slot = 7

    class Moving(RedisBackup):
        async def _scan(self, node: Any, pattern: str) -> Any:
            async for page in super()._scan(node, pattern):
                yield page
            owner.command("CLUSTER", "SETSLOT", slot, "MIGRATING", other.name)

    async def whole(kind: type[RedisBackup]) -> None:
        redis = kind(connection(cluster.url, prefix=events.prefix))
        try:
            await create_backup(tmp_path / "backup", redis, None, silent)
        finally:
            await redis.close()

    try:
        for kind in (Moving, RedisBackup):
            with pytest.raises(BackupInterrupted, match=r"slots of the cluster were moved.*start the same command"):
                events.run(lambda _histories, kind=kind: whole(kind))  # type: ignore[misc]
            assert not (tmp_path / "backup").exists()
    finally:
        owner.command("CLUSTER", "SETSLOT", slot, "STABLE")
    events.run(lambda _histories: whole(RedisBackup))
    assert (tmp_path / "backup" / "backup.json").is_file()


@pytest.mark.slow
def test_the_documented_user_of_redis_is_enough_on_a_cluster(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "backup.md").read_text()
    (line,) = re.findall(r"^user backup .*$", text, re.MULTILINE)
    (more,) = re.findall(r"A cluster also needs `(.*?)`", text)
    with redis_cluster(tmp_path / "nodes", f"{line.replace('PASSWORD', 'secret')} {more}") as cluster:
        events = Events(cluster.url, tmp_path / "export", "vlm2rec")
        events.run(lambda histories: histories.append(some_events(20)))
        url = cluster.url.replace("://", "://backup:secret@")
        make(tmp_path / "backup", url, "vlm2rec")
        keys = stored_on(cluster, "vlm2rec")
        put_back(tmp_path / "backup", url, "vlm2rec", replace=True)
        assert_same(keys, stored_on(cluster, "vlm2rec"))


@pytest.mark.slow
def test_six_servers_are_backed_up_before_and_after_a_failover_and_restored_to_one(tmp_path: Path) -> None:
    lines = ("cluster-node-timeout 1000", "appendonly no")
    program = find_redis_server()
    with redis_cluster(tmp_path / "nodes", *lines, replicas=True, program=program) as cluster, EmbeddedRedis() as empty:
        events = Events(cluster.url, tmp_path / "export")

        async def act(histories: Any) -> None:
            await histories.append(some_events(300, users=60))
            await histories.append([Event(session_owner("s"), "x", 9.0, event_id="x")])
            await histories.merge("s", "u1")

        events.run(act)
        make(tmp_path / "before", cluster.url, events.prefix)
        killed = cluster.owner(keys_of(events.prefix, "u1").history)
        killed.kill()
        with pytest.raises(BackupInterrupted):
            make(tmp_path / "during", cluster.url, events.prefix)
        replica = cluster.nodes[cluster.masters + cluster.nodes.index(killed)]
        others = [node for node in cluster.nodes if node is not killed]
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in others)
        eventually(lambda: replica.command("ROLE")[0] == "master")
        eventually(lambda: all(node.says("cluster_state:ok") for node in others))
        make(tmp_path / "after", url, events.prefix)
        assert not (tmp_path / "during").exists()
        for name in ("before", "after"):
            put_back(tmp_path / name, empty.url, name)
        assert_same(stored(empty.url, "before"), stored(empty.url, "after"))
        assert sum(kind == "stream" for kind, _, _ in stored(empty.url, "after").values()) > 1
