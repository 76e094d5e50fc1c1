"""A Redis that has lost what exporters recorded in it, as a failover can, and replicas that must confirm it."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from index.event_export.directory import ExportDirectory
from index.event_export.stream_ids import StreamId
from service.errors import EventsUnavailable, ExportRefused
from service.export.exporter import Exporter
from service.export.kafka_exporter import KafkaExporter
from service.export.kafka_topic import KafkaTopic, Record
from service.stores.event_export.redis_event_export import RedisEventExport
from service.stores.history_keys import bucket_of, export_key, stream_key
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories
from tests.support.stores.exports import Shop
from tests.support.stores.real_redis import connection

Loss = Callable[["redis.Redis[str]", Shop], None]
BUCKET = bucket_of("anna")


def lose_the_last_trim(client: "redis.Redis[str]", shop: Shop) -> None:
    """The mark, and the trimming after it: the exported entries are there again."""
    rows = shop.rows()
    client.hset(export_key(shop.prefix, BUCKET), "exported", rows[0]["stream_id"])
    client.delete(stream_key(shop.prefix, BUCKET))
    for row in rows[1:]:
        fields = {"user_id": "anna", "item_id": row["item_id"]}
        client.xadd(stream_key(shop.prefix, BUCKET), fields, id=row["stream_id"])


def lose_the_bucket(client: "redis.Redis[str]", shop: Shop) -> None:
    client.delete(export_key(shop.prefix, BUCKET), stream_key(shop.prefix, BUCKET))


def lose_everything(client: "redis.Redis[str]", shop: Shop) -> None:
    for name in client.scan_iter(f"{shop.prefix}:*"):
        client.delete(name)


LOSSES = [lose_the_last_trim, lose_the_bucket, lose_everything]


async def _following(shop: Shop, check: Callable[[Exporter, RedisEventExport], Awaitable[None]]) -> None:
    directory = ExportDirectory.open_or_create(shop.root)
    async with shop.events() as events:
        with directory.exporting():
            exporter = Exporter(events, directory, rows_per_file=100)
            await exporter.attach()
            await check(exporter, events)


@pytest.mark.parametrize("when", ["between two rounds", "within a round"])
@pytest.mark.parametrize("loss", LOSSES)
def test_an_exporter_attaches_again_and_goes_on(shop: Shop, loss: Loss, when: str) -> None:
    def lose() -> None:
        with redis.Redis.from_url(shop.url, decode_responses=True) as client:
            loss(client, shop)

    async def check(store: RedisHistories) -> None:
        async def follow(exporter: Exporter, events: RedisEventExport) -> None:
            for item in ("a", "b"):
                await store.append([Event("anna", item, 1.0)])
                await exporter.export()
            if when == "between two rounds":
                lose()
            else:
                await store.append([Event("anna", "c", 1.0)])
                whole = events.entries

                async def lost_meanwhile(*arguments: Any) -> Any:
                    events.entries = whole  # type: ignore[method-assign]
                    entries = await whole(*arguments)
                    lose()
                    return entries

                events.entries = lost_meanwhile  # type: ignore[method-assign]
            with pytest.raises(EventsUnavailable, match=f"lost how far b(000|{BUCKET:03d}) is exported"):
                await exporter.export()
            await exporter.attach()
            await store.append([Event("anna", "d", 1.0)])
            assert (await exporter.export()).events == 1
            assert await store.stream() == []

        await _following(shop, follow)

    shop.run(check)
    assert [row["item_id"] for row in shop.rows()] == ["a", "b", *([] if when == "between two rounds" else "c"), "d"]


def test_ids_that_were_exported_are_not_given_out_again(shop: Shop) -> None:
    """The clock of the new master is behind, and it has lost the end of the stream alone."""
    with redis.Redis.from_url(shop.url, decode_responses=True) as client:
        key, fields = stream_key(shop.prefix, BUCKET), {"user_id": "anna", "item_id": "a"}
        client.xadd(key, fields, id="1-0")
        asyncio.run(shop.export())
        client.xadd(key, fields, id="9000000000000-5")
        asyncio.run(shop.export())
        client.hset(export_key(shop.prefix, BUCKET), "exported", "1-0")
        client.delete(key)
        asyncio.run(shop.export())
        shop.run(lambda store: store.append([Event("anna", "b", 1.0)]))
        asyncio.run(shop.export())
    assert [row["stream_id"] for row in shop.rows()] == ["1-0", "9000000000000-5", "9000000000000-6"]


def test_what_was_detached_ends_and_is_not_taken_for_a_loss(shop: Shop) -> None:
    async def check(store: RedisHistories) -> None:
        async def follow(exporter: Exporter, events: RedisEventExport) -> None:
            await events.detach()
            with pytest.raises(ExportRefused, match="was detached meanwhile"):
                await exporter.export()

        await _following(shop, follow)
        with redis.Redis.from_url(shop.url, decode_responses=True) as client:
            assert client.hgetall(export_key(shop.prefix, 0)) == {"detached": "1"}
            assert list(client.scan_iter(f"{shop.prefix}:*:export")) == [export_key(shop.prefix, 0)]
            await shop.export()
            assert "detached" not in client.hgetall(export_key(shop.prefix, 0))

    shop.run(check)


def test_a_second_exporter_is_no_loss(shop: Shop, tmp_path: Path) -> None:
    async def check(store: RedisHistories) -> None:
        async def follow(exporter: Exporter, events: RedisEventExport) -> None:
            shutil.copytree(shop.root, tmp_path / "copy")
            await store.append([Event("anna", "a", 1.0)])
            whole = events.entries

            async def others_export_meanwhile(*arguments: Any) -> Any:
                entries = await whole(*arguments)
                await shop.export(tmp_path / "copy")
                return entries

            events.entries = others_export_meanwhile  # type: ignore[method-assign]
            with pytest.raises(ExportRefused, match="another exporter exported"):
                await exporter.export()

        await _following(shop, follow)

    shop.run(check)


class Acknowledged:
    """A topic that acknowledges everything."""

    target = KafkaTopic("nowhere:9092", "events")

    def __init__(self) -> None:
        self.ids: list[StreamId] = []

    def write(self, records: list[Record]) -> None:
        self.ids += [StreamId.parse(record.headers["stream_id"]) for record in records]


@pytest.mark.parametrize("loss", ["mark", "everything"])
def test_an_exporter_to_kafka_delivers_again_what_it_cannot_know(shop: Shop, loss: str) -> None:
    topic = Acknowledged()

    async def check(store: RedisHistories) -> None:
        async with shop.events() as events:
            exporter = KafkaExporter(events, topic, records_per_write=100)  # type: ignore[arg-type]
            await exporter.attach()
            await store.append([Event("anna", "a", 1.0)])
            await exporter.export()
            with redis.Redis.from_url(shop.url, decode_responses=True) as client:
                if loss == "mark":
                    client.hset(export_key(shop.prefix, BUCKET), "exported", "0-0")
                else:
                    lose_everything(client, shop)
            with pytest.raises(EventsUnavailable, match="lost how far"):
                await exporter.export()
            await exporter.attach()
            await store.append([Event("anna", "b", 1.0)])
            assert (await exporter.export()).events == 1

    shop.run(check)
    assert topic.ids == sorted(topic.ids)
    assert len(topic.ids) == 2


def test_nothing_is_trimmed_that_replicas_have_not_confirmed(shop: Shop) -> None:
    """There is no replica that could confirm the record of an export."""

    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", "a", 1.0)])
        settings = connection(shop.url, prefix=shop.prefix, wait_replicas=1)
        events = RedisEventExport(settings, timeout_s=0.2)
        try:
            directory = ExportDirectory.open_or_create(shop.root)
            exporter = Exporter(events, directory, rows_per_file=100)
            with pytest.raises(EventsUnavailable, match="UNCONFIRMED"):
                await exporter.attach()
        finally:
            await events.close()
        assert len(await store.stream()) == 1
        assert (await shop.export()).events == 1

    shop.run(check)
