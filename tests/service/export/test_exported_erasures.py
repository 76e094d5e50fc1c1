"""Erasures reach the export: they are in the directory before the rows of their user, and none is lost."""

from typing import Any

import pytest
import redis

from index.event_export.compaction import compact
from index.event_export.directory import ExportDirectory
from index.event_export.erasures import user_hash
from index.event_export.stream_ids import StreamId
from service.errors import HistoriesUnavailable
from service.export.exporter import Exporter
from service.stores import redis_histories
from service.stores.history_keys import bucket_of, erasures_key, export_key
from service.stores.protocols import Event, session_owner
from service.stores.redis_histories import RedisHistories
from tests.support.stores.exports import Shop
from training.events.export_reader import read_export


def admin(shop: Shop) -> "redis.Redis[str]":
    return redis.Redis.from_url(shop.url, decode_responses=True)


def test_an_erasure_is_in_the_directory_before_the_rows_of_its_user(shop: Shop) -> None:
    """A user is erased after the entries were read and before the files count."""

    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", "a", 1.0)])
        directory = ExportDirectory.open_or_create(shop.root)
        async with shop.events() as events:
            exporter = Exporter(events, directory, rows_per_file=100)
            await exporter.attach()
            whole = directory.write_entries

            def erased_meanwhile(*arguments: Any) -> Any:
                with admin(shop) as client:
                    client.hset(
                        erasures_key(shop.prefix, bucket_of("anna")),
                        user_hash(directory.key, "anna"),
                        "9999999999999-0",
                    )
                return whole(*arguments)

            directory.write_entries = erased_meanwhile  # type: ignore[method-assign]
            assert await exporter.export() is not None

    shop.run(check)
    assert list(ExportDirectory(shop.root).erasures().until(["anna", "bob"])) == ["anna"]


def test_an_erasure_covers_what_arrived_before_and_nothing_later(shop: Shop) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", "a", 1.0), Event("bob", "b", 1.0)])
        await shop.export()
        await store.append([Event("anna", "not exported yet", 1.0)])
        await store.erase("anna")
        assert [event.user_id for event in await store.stream()] == []
        await store.append([Event("anna", "later", 1.0)])
        assert (await shop.export()).erasures == 1

    shop.run(check)
    until = ExportDirectory(shop.root).erasures().until(["anna", "bob"])
    assert list(until) == ["anna"]
    rows = {row["item_id"]: StreamId.parse(row["stream_id"]) for row in shop.rows()}
    assert set(rows) == {"a", "b", "later"}
    assert rows["a"] < until["anna"] < rows["later"]
    with admin(shop) as client:
        assert list(client.scan_iter(f"{shop.prefix}:*:erasures")) == []
        assert client.hget(export_key(shop.prefix, bucket_of("anna")), "erasing") is None


def test_nothing_of_an_erasure_stays_without_an_exporter(shop: Shop) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", "a", 1.0)])
        await store.erase("anna")

    shop.run(check)
    with admin(shop) as client:
        assert [key for key in client.scan_iter(f"{shop.prefix}:*") if not key.endswith(":stream")] == []


def test_an_erasure_that_may_not_wait_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_histories, "_MOST_ERASURES", 1)
    first, second = [user for user in map(str, range(1000)) if bucket_of(user) == 7][:2]

    async def check(store: RedisHistories) -> None:
        await shop.export()
        await store.append([Event(second, "a", 1.0)])
        await store.erase(first)
        await store.erase(first)
        with pytest.raises(HistoriesUnavailable, match="too many erasures wait for the exporter"):
            await store.erase(second)
        assert [entry.item_id for entry in await store.entries(second)] == ["a"]
        await shop.export()
        await store.erase(second)

    shop.run(check)


def test_a_merge_reaches_the_export_and_an_erasure_of_the_user_its_session(shop: Shop) -> None:
    session = session_owner("s1")

    async def merged(store: RedisHistories) -> None:
        await store.append([Event(session, "exported before", 1.0, session_id="s1"), Event("anna", "own", 2.0)])
        await shop.export()
        await store.append([Event(session, "exported after", 3.0, session_id="s1")])
        assert await store.merge("s1", "anna") == 2
        assert await store.merge("s1", "anna") == 0
        await store.append([Event(session, "later", 4.0, session_id="s1")])
        assert [event.item_id for event in await store.stream()] == ["exported after", "later"]
        await shop.export()

    shop.run(merged)
    read = read_export(ExportDirectory(shop.root).root)
    assert set(read.interactions["user_id"]) == {"anna"}
    assert read.interactions["item_id"].to_list() == ["exported before", "own", "exported after", "later"]
    assert read.counts.merged == 2

    async def erased(store: RedisHistories) -> None:
        await store.erase("anna")
        await store.append([Event(session, "another visitor", 5.0, session_id="s1")])
        await shop.export()

    shop.run(erased)
    read = read_export(ExportDirectory(shop.root).root)
    assert read.interactions.select("user_id", "item_id").rows() == [(session, "another visitor")]
    assert sum(day.erased for day in compact(ExportDirectory(shop.root))) == 5, "four events and the merge"
    assert [row["item_id"] for row in shop.rows()] == ["another visitor"]


def test_a_merge_that_is_not_exported_goes_with_its_session(shop: Shop) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append([Event(session_owner("s1"), "a", 1.0, session_id="s1")])
        await store.merge("s1", "anna")
        await store.erase("anna")

    shop.run(check)
    with admin(shop) as client:
        left = {key: client.xlen(key) for key in client.scan_iter(f"{shop.prefix}:*")}
    assert set(left.values()) <= {0}
