"""Backups that are made, restored, and compared with the keys that they are of."""

import asyncio
from pathlib import Path
from typing import Any

import redis as redis_py
from starlette.testclient import TestClient

from index.bundle.registries import AnyRegistry
from service.export.backup.create import create_backup
from service.export.backup.manifest import BackupManifest
from service.export.backup.registry_copy import Report, RestoredRegistry, RestoredStoreRegistry
from service.export.backup.restore import restore_backup
from service.stores.backup.redis_backup import RedisBackup
from tests.support.shops import AS_ADMIN, serving
from tests.support.stores.real_redis import connection
from tests.support.stores.redis_clusters import Cluster

SECOND_MS = 1000


def silent(step: str, done: int, every: int | None) -> None:
    """Report nothing."""


def fill(client: TestClient) -> None:
    """Histories over their cap, impressions, a session that was merged and one that was not, pin, hidden items."""
    bulk = [{"user_id": f"u{n % 9}", "item_id": f"i{n % 50}", "event_id": f"e{n}"} for n in range(90)]
    bulk += [{"user_id": "u1", "item_id": f"i{n}", "type": "impression"} for n in range(5)]
    bulk += [{"session_id": f"s{n % 2}", "item_id": f"i{n}", "type": "cart"} for n in range(4)]
    assert client.post("/events", json={"events": bulk}).status_code == 200
    assert client.post("/users/u2/merge", json={"session_id": "s1"}).json()["moved"] == 2
    assert client.put("/items/i7/availability", json={"available": False}, headers=AS_ADMIN).status_code == 204
    arms = {"arms": [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5, "defaults": {"diversity": 0.9}}]}
    assert client.put("/experiments/two", json=arms, headers=AS_ADMIN).status_code == 200
    assert client.delete("/users/u3").status_code == 204


def seen(client: TestClient) -> dict[str, Any]:
    histories = {user: client.get(f"/users/{user}/history").json()["items"] for user in ("u1", "u2", "u3")}
    answer = client.post("/recommend", json={"session_id": "s0", "k": 10}).json()
    return histories | {
        "session": [item["item_id"] for item in answer["items"]],
        "bundle": serving(client),
        "pin": client.get("/bundle").json()["swap"]["pin"],
        "experiment": client.get("/experiments/two", headers=AS_ADMIN).json(),
    }


def stored_on(cluster: Cluster, prefix: str) -> dict[str, tuple[str, Any, int]]:
    """The same as :func:`stored` of the masters of a cluster."""
    found: dict[str, tuple[str, Any, int]] = {}
    for node in cluster.nodes[: cluster.masters]:
        found |= stored(f"redis://127.0.0.1:{node.port}", prefix)
    return found


def stored(url: str, prefix: str) -> dict[str, tuple[str, Any, int]]:
    """Type, value and remaining milliseconds of every key, by its name without the prefix."""
    read = {
        "list": lambda client, key: client.lrange(key, 0, -1),
        "hash": lambda client, key: client.hgetall(key),
        "zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
        "stream": lambda client, key: (client.xrange(key), client.xinfo_stream(key)["last-generated-id"]),
    }
    found = {}
    with redis_py.Redis.from_url(url, decode_responses=True, encoding_errors="backslashreplace") as client:
        for key in client.scan_iter(f"{prefix}:*"):
            kind = client.type(key)
            found[key.removeprefix(f"{prefix}:")] = (kind, read[kind](client, key), client.pttl(key))
    return found


def assert_same(one: dict[str, tuple[str, Any, int]], other: dict[str, tuple[str, Any, int]]) -> None:
    assert {name: part[:2] for name, part in one.items()} == {name: part[:2] for name, part in other.items()}
    for name, (_, _, left) in one.items():
        assert (left == -1) == (other[name][2] == -1), name
        assert abs(left - other[name][2]) < 60 * SECOND_MS, name  # a run of the test apart, of days


def make(
    target: Path, url: str | None, prefix: str, registry: AnyRegistry | None = None, report: Report = silent
) -> BackupManifest:
    async def whole() -> BackupManifest:
        redis = None if url is None else RedisBackup(connection(url, prefix=prefix))
        try:
            return await create_backup(target, redis, registry, report)
        finally:
            if redis is not None:
                await redis.close()

    return asyncio.run(whole())


def put_back(
    backup: Path,
    url: str | None,
    prefix: str,
    registry: Path | str | None = None,
    report: Report = silent,
    **options: bool,
) -> None:
    async def whole() -> None:
        redis = None if url is None else RedisBackup(connection(url, prefix=prefix))
        try:
            await restore_backup(backup, redis, _restored(registry), report, **options)
        finally:
            if redis is not None:
                await redis.close()

    asyncio.run(whole())


def _restored(registry: Path | str | None) -> RestoredRegistry | RestoredStoreRegistry | None:
    if registry is None:
        return None
    return RestoredStoreRegistry(registry) if isinstance(registry, str) else RestoredRegistry(registry)
