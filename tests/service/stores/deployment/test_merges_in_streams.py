"""Records of merges in the streams of a real Redis and a real cluster: under the same cap as events, and no events."""

from itertools import count, islice
from pathlib import Path

import pytest

from service.export.exporter import Exported
from service.stores.history_keys import bucket_of, keys_of, stream_key
from service.stores.protocols import Event, session_owner
from service.stores.redis_client import RedisWatch
from service.stores.redis_histories import RedisHistories
from tests.support.stores.exports import Shop

BUCKET, CAP = 5, 10
SESSIONS = [*islice((name for name in map(str, count()) if bucket_of(session_owner(name)) == BUCKET), 25)]
USER = next(name for name in map(str, count()) if bucket_of(name) == BUCKET)


@pytest.fixture(params=["redis", "cluster"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    clustered = request.param == "cluster"
    url = request.getfixturevalue("cluster").url if clustered else request.getfixturevalue("redis_url")
    return Shop(url, tmp_path / "export")


async def entries(store: RedisHistories) -> int:
    return int(await store._reads.call("XLEN", stream_key(store._prefix, BUCKET), kind=int))


async def ids(store: RedisHistories, owner: str) -> int:
    return len(await store._reads.call("LRANGE", keys_of(store._prefix, owner).stream_ids, 0, -1, kind=list))


def test_a_stream_of_merges_keeps_its_cap(shop: Shop) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event(USER, f"{n}", float(n)) for n in range(3)])
        for number, session in enumerate(SESSIONS, 1):
            await store.merge(session, "anna")
            assert await entries(store) == min(3 + number, CAP)
        assert await ids(store, USER) == 0
        assert [await ids(store, session_owner(session)) for session in SESSIONS] == [0] * 15 + [1] * CAP
        assert await store.merge(SESSIONS[-1], "anna") == 0  # it is merged already
        assert await entries(store) == CAP

    shop.run(check, stream_cap=64 * CAP)


def test_a_merge_that_is_cut_before_its_export_is_no_lost_event(shop: Shop) -> None:
    lost: list[int] = []

    async def check(store: RedisHistories) -> None:
        await shop.export()
        await store.append([Event(USER, f"{n}", float(n)) for n in range(5)])
        for session in SESSIONS:
            await store.merge(session, "anna")
        assert sum(lost) == 5
        await store.append([Event(USER, f"{n}", float(n)) for n in range(8)])
        assert sum(lost) == 5
        done = await shop.export()
        assert (done.events, done.merges, done.lost) == (8, 2, 5)

    shop.run(check, stream_cap=64 * CAP, watch=RedisWatch(on_lost=lost.append))


def test_an_export_counts_merges_apart(shop: Shop) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event(session_owner("s"), "a", 1.0), Event("anna", "b", 2.0)])
        await store.merge("s", "anna")
        assert await shop.export() == Exported(events=2, merges=1, files=2)

    assert bucket_of(session_owner("s")) != bucket_of("anna")
    shop.run(check)
