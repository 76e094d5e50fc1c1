"""Exports of streams whose ids are ahead of the time, as the clock of Redis was until it was put right."""

from time import time

import pytest
import redis

from index.event_export.directory import ExportDirectory
from service.export.exporter import Exporter
from service.stores.event_export import waiting_ages
from service.stores.history_keys import bucket_of, stream_key
from service.stores.redis_histories import RedisHistories
from tests.support.stores.exports import Shop, some_events

HOUR_MS = 3_600_000


def test_age_runs_from_when_the_exporter_saw_an_event(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(waiting_ages, "monotonic", lambda: now)

    async def check(store: RedisHistories) -> None:
        nonlocal now
        directory = ExportDirectory.open_or_create(shop.root)
        async with shop.events() as events:
            with directory.exporting():
                exporter = Exporter(events, directory, rows_per_file=100)
                await exporter.attach()

                async def exported() -> int:
                    return (await exporter.export(min_events=100, max_age_s=60.0)).events

                with redis.Redis.from_url(shop.url) as client:
                    ahead = f"{time() * 1000 + HOUR_MS:.0f}-0"
                    fields = {"user_id": "u1", "item_id": "ahead", "timestamp": "5"}
                    client.xadd(stream_key(shop.prefix, bucket_of("u1")), fields, id=ahead)  # type: ignore[arg-type]
                assert await exported() == 0
                now += 59
                await store.append(some_events(1, users=1, start=1))  # of u0, with an id of its time
                await store.append([some_events(1, users=2, start=1)[0]])  # of u1, behind the one of the future
                assert await exported() == 0
                now += 1
                assert await exported() == 2
                await store.append([some_events(1, users=2, start=3)[0]])
                now += 59
                assert await exported() == 1, "of u0, which is as old; that of u1 is new"
                now += 59
                assert await exported() == 0
                now += 1
                assert await exported() == 1

    shop.run(check)
    assert [row["item_id"] for row in shop.rows() if row["user_id"] == "u1"] == ["ahead", "i1", "i3"]
