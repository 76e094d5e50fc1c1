"""Backups that are made, restored, and compared with the keys that they are of."""

import asyncio
from pathlib import Path
from typing import Any

import redis as redis_py

from index.bundle.registry import Registry
from service.export.backup.create import create_backup
from service.export.backup.manifest import BackupManifest
from service.export.backup.registry_copy import RestoredRegistry
from service.export.backup.restore import restore_backup
from service.stores.backup.redis_backup import RedisBackup
from tests.support.stores.real_redis import connection

SECOND_MS = 1000


def silent(step: str, done: int, every: int | None) -> None:
    """Report nothing."""


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


def make(target: Path, url: str | None, prefix: str, registry: Registry | None = None) -> BackupManifest:
    async def whole() -> BackupManifest:
        redis = None if url is None else RedisBackup(connection(url, prefix=prefix))
        try:
            return await create_backup(target, redis, registry, silent)
        finally:
            if redis is not None:
                await redis.close()

    return asyncio.run(whole())


def put_back(backup: Path, url: str, prefix: str, registry: Path | None = None, **options: bool) -> None:
    async def whole() -> None:
        redis = RedisBackup(connection(url, prefix=prefix))
        try:
            restored = None if registry is None else RestoredRegistry(registry)
            await restore_backup(backup, redis, restored, silent, **options)
        finally:
            await redis.close()

    asyncio.run(whole())
