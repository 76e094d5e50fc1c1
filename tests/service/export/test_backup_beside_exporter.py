"""A backup while an exporter trims the streams: no user's keys are lost with the events that name the user."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from demo.embedded_redis import EmbeddedRedis
from service.export.backup.create import create_backup
from service.stores.backup.redis_backup import RedisBackup
from service.stores.history_keys import bucket_of
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories
from tests.support.stores.backups import assert_same, put_back, silent, stored
from tests.support.stores.exports import Shop
from tests.support.stores.real_redis import connection

BUCKET = f"{{b{bucket_of('anna'):03d}}}"


class Interrupted(RedisBackup):
    """The scan meets some keys first, then the keys change, then it meets others that were there all the time.

    Args:
        late: names of keys that are met late. A key that appears meanwhile is not met, as its place was passed.
        change: changes the keys.
    """

    def __init__(self, shop: Shop, late: set[str], change: Callable[[], Awaitable[None]]) -> None:
        super().__init__(connection(shop.url, prefix=shop.prefix))
        self._late, self._change = late, change

    async def names(self, pattern: str = "*") -> Any:
        if pattern != "*":
            async for page in super().names(pattern):
                yield page
            return
        found = [name async for page in super().names() for name in page]
        assert self._late <= set(found)
        yield [name for name in found if name not in self._late]
        await self._change()
        yield sorted(self._late)


@pytest.mark.parametrize("kind", ["impressions", "event_ids", "merges"])
def test_a_history_that_appears_meanwhile_hides_no_older_key(shop: Shop, tmp_path: Path, kind: str) -> None:
    """The only key of a user is met after an event made a history, and after the event was exported and trimmed."""
    late = f"{BUCKET}:{kind}:anna"

    async def check(store: RedisHistories) -> None:
        async def act() -> None:
            await store.append([Event("anna", "a", 1.0)])
            await shop.export()

        await shop.export()
        with redis.Redis.from_url(shop.url) as client:
            if kind == "impressions":
                client.rpush(f"{shop.prefix}:{late}", "x")
            else:
                client.zadd(f"{shop.prefix}:{late}", {"x": 1})
        backup = Interrupted(shop, {late}, act)
        try:
            await create_backup(tmp_path / "backup", backup, None, silent)
        finally:
            await backup.close()

    shop.run(check)
    with EmbeddedRedis() as server:
        put_back(tmp_path / "backup", server.url, "new")
        assert_same(stored(shop.url, shop.prefix), stored(server.url, "new"))


def test_a_user_is_of_one_moment_although_met_twice(shop: Shop, tmp_path: Path) -> None:
    """Between the two the user is erased and acts again, and all of it is exported and trimmed."""
    late = f"{BUCKET}:event_ids:anna"

    async def check(store: RedisHistories) -> None:
        async def act() -> None:
            await store.erase("anna")
            with redis.Redis.from_url(shop.url) as client:
                client.zadd(f"{shop.prefix}:{late}", {"y": 1})
            await shop.export()

        await shop.export()
        await store.append([Event("anna", "a", 1.0, event_id="1")])
        await shop.export()
        backup = Interrupted(shop, {late}, act)
        try:
            await create_backup(tmp_path / "backup", backup, None, silent)
        finally:
            await backup.close()

    shop.run(check)
    with EmbeddedRedis() as server:
        put_back(tmp_path / "backup", server.url, "new")
        assert f"{BUCKET}:history:anna" not in stored(server.url, "new")
        assert_same(stored(shop.url, shop.prefix), stored(server.url, "new"))


def test_keys_that_do_not_exist_are_not_counted(shop: Shop, tmp_path: Path) -> None:
    async def nothing() -> None:
        pass

    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", "a", 1.0), Event("bob", "b", 1.0, event_id="b")])
        backup = Interrupted(shop, set(), nothing)  # meets all keys at once: each user is copied once for a page
        manifest = await create_backup(tmp_path / "backup", backup, None, silent)
        await backup.close()
        assert manifest.redis is not None
        twice = 3  # two histories and the event ids, as both users have just acted
        assert manifest.redis.keys == 2 * twice + 2  # and two streams

    shop.run(check)
