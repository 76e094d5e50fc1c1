"""Exporting from a real Redis: every event once, whatever ends in between."""

import asyncio
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from index.errors import DiskError, EventExportError, ExportBusy
from index.event_export import directory as directory_module
from index.event_export.directory import ExportDirectory
from index.event_export.stream_ids import StreamId
from service.errors import EventsUnavailable, ExportRefused
from service.export.exporter import Exporter
from service.stores.event_export import redis_event_export
from service.stores.event_export.redis_event_export import ReadPage, RedisEventExport, pages_of
from service.stores.history_keys import BUCKETS, bucket_of, stream_key
from service.stores.protocols import Event
from service.stores.redis_client import RedisWatch
from service.stores.redis_histories import RedisHistories
from tests.support.stores.exports import Shop, some_events


def admin(shop: Shop) -> "redis.Redis[str]":
    return redis.Redis.from_url(shop.url, decode_responses=True)


def test_every_event_is_exported_once_and_then_trimmed(shop: Shop) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append(some_events(250))
        assert (await shop.export()).events == 250
        assert await store.stream() == []
        assert (await shop.export()).events == 0
        await store.append(some_events(30, start=250))
        assert (await shop.export()).events == 30

    shop.run(check)
    rows = shop.rows()
    assert sorted(row["event_id"] for row in rows) == sorted(f"e{n}" for n in range(280))
    (row,) = [row for row in rows if row["event_id"] == "e5"]
    assert (row["user_id"], row["item_id"], row["timestamp"], row["type"]) == ("u5", "i5", 1_700_000_005.5, "view")
    assert (row["request_id"], row["session_id"], row["value"], row["extra"]) == ("r5", None, None, None)
    assert row["arrived"].timestamp() == StreamId.parse(row["stream_id"]).milliseconds / 1000
    with admin(shop) as client:
        kinds = {key.split(":")[2] for key in client.scan_iter(f"{shop.prefix}:*")}
    assert "stream_ids" not in kinds


def test_buckets_are_trimmed_one_after_another(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they would be one exchange, which Redis carries out before it answers anybody else."""
    running, most, trim = 0, 0, RedisEventExport.trim_read

    async def watched(events: RedisEventExport, bucket: int, pages: Sequence[ReadPage]) -> None:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await trim(events, bucket, pages)
        running -= 1

    async def check(store: RedisHistories) -> None:
        await store.append(some_events(250))
        monkeypatch.setattr(RedisEventExport, "trim_read", watched)
        assert (await shop.export()).events == 250
        assert await store.stream() == []

    shop.run(check)
    assert most == 1


@pytest.mark.parametrize("meanwhile", ["nothing", "erased", "cut", "left behind", "not recorded"])
def test_what_was_read_is_trimmed_and_nothing_else(shop: Shop, monkeypatch: pytest.MonkeyPatch, meanwhile: str) -> None:
    """The entries of a bucket and their ids in the lists of users, whatever was removed or left since the reading."""
    monkeypatch.setattr(redis_event_export, "_PAGE", 4)
    users = [user for user in map(str, range(1000)) if bucket_of(user) == 5][:3]
    stream = stream_key(shop.prefix, 5)

    async def check(store: RedisHistories) -> None:
        await store.append([Event(users[n % len(users)], f"i{n}", 1.0 + n) for n in range(9)])
        async with shop.events() as events:
            await events.attach("d", "k", ["0-0"] * BUCKETS)
            read = await events.entries(5, "0-0", 100)
            if meanwhile == "erased":
                await store.erase(users[1])
            elif meanwhile == "left behind":
                read = read[2:]
            elif meanwhile == "cut":
                with admin(shop) as client:
                    for entry_id, fields in read[:2]:
                        client.xdel(stream, entry_id.decode())
                        client.lrem(f"{stream}_ids:{fields[1].decode()}", 1, entry_id.decode())
            await store.append([Event(user, "later", 20.0) for user in users])
            if meanwhile != "not recorded":
                await events.mark(5, "d", "0-0", read[-1][0].decode())
            await events.trim_read(5, pages_of(read))

    shop.run(check)
    left = 3 if meanwhile != "not recorded" else 12
    with admin(shop) as client:
        ids = [entry_id for entry_id, _ in client.xrange(stream)]
        lists = [entry_id for user in users for entry_id in client.lrange(f"{stream}_ids:{user}", 0, -1)]
    assert (len(ids), sorted(lists)) == (left, sorted(ids))


def test_the_name_of_a_file_has_bucket_and_ids(shop: Shop) -> None:
    shop.run(lambda store: _stored_and_exported(shop, store, [Event("anna", "a", 1.0), Event("anna", "b", 2.0)]))
    ids = [row["stream_id"] for row in shop.rows()]
    (path,) = shop.root.glob("day=*/*.parquet")
    assert path.name == f"b{bucket_of('anna'):03d}-{ids[0]}-{ids[1]}.parquet"
    assert path.parent.name == f"day={StreamId.parse(ids[0]).day}"


async def _stored_and_exported(shop: Shop, store: RedisHistories, events: list[Event]) -> None:
    await store.append(events)
    await shop.export()


def test_unknown_fields_and_bad_numbers_are_in_extra(shop: Shop) -> None:
    key = stream_key(shop.prefix, bucket_of("u"))
    known = {"user_id": "u", "item_id": "i", "timestamp": "12.5", "session_id": "s", "value": "9.95"}
    with admin(shop) as client:
        client.xadd(key, known | {"arm": "B", "colour": "grün"})  # type: ignore[arg-type]
        client.xadd(key, {"user_id": "u", "item_id": "", "timestamp": "noon", "value": "inf"})
    asyncio.run(shop.export())
    first, second = shop.rows()
    assert (first["timestamp"], first["session_id"], first["value"]) == (12.5, "s", 9.95)
    assert first["extra"] == '{"arm": "B", "colour": "grün"}'
    assert (second["item_id"], second["timestamp"], second["value"]) == (None, None, None)
    assert second["extra"] == '{"timestamp": "noon", "value": "inf"}'


def test_a_bucket_of_two_days_has_two_files(shop: Shop) -> None:
    key, midnight = stream_key(shop.prefix, 3), 1_790_035_200_000
    with admin(shop) as client:
        for at in (midnight - 2, midnight - 1, midnight, midnight + 1):
            client.xadd(key, {"user_id": "u", "item_id": str(at)}, id=f"{at}-0")
    asyncio.run(shop.export())
    names = sorted(str(path.relative_to(shop.root)) for path in shop.root.glob("day=*/*.parquet"))
    assert names == [
        f"day=2026-09-21/b003-{midnight - 2}-0-{midnight - 1}-0.parquet",
        f"day=2026-09-22/b003-{midnight}-0-{midnight + 1}-0.parquet",
    ]
    assert [row["item_id"] for row in shop.rows()] == [str(midnight + by) for by in (-2, -1, 0, 1)]


class Killed(BaseException):
    """Stands for the death of the process: no handler of the program catches it."""


def die_at(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Kill before or after the first of the steps of this name, which change something."""

    def dying(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def step(self: Any, *arguments: Any) -> Any:
            if moment == f"before {name}":
                raise Killed(moment)
            done = whole(self, *arguments)
            if asyncio.iscoroutine(done):
                return _killed_after(done, name, moment)
            if moment == f"after {name}":
                raise Killed(moment)
            return done

        monkeypatch.setattr(owner, name, step)

    for owner, names in (
        (ExportDirectory, ("write_entries", "commit", "add_erasures")),
        (RedisEventExport, ("mark", "trim", "trim_read", "erasures_written")),
        (directory_module.DayManifest, ("save",)),
    ):
        for name in names:
            dying(owner, name)


async def _killed_after(done: Any, name: str, moment: str) -> Any:
    result = await done
    if moment == f"after {name}":
        raise Killed(moment)
    return result


STEPS = [
    *("write_entries", "add_erasures", "erasures_written"),
    *("commit", "save", "mark", "trim", "trim_read"),
]


@pytest.mark.parametrize("name", STEPS)
def test_killed_at_any_step_it_loses_and_doubles_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Killed before and after a step of an export of two buckets and an erasure, each of which had some before."""
    killed: list[str] = []

    async def check(store: RedisHistories) -> None:
        await store.append([Event("u0", "first", 1.0)])
        await shop.export()
        await store.append(some_events(6, users=2))
        await store.erase("u1")
        for when in ("before", "after"):
            with monkeypatch.context() as patched:
                die_at(patched, f"{when} {name}")
                try:
                    await shop.export()
                except Killed as death:
                    killed.append(str(death))
        await store.append([Event("u1", "last", 1.0)])
        await shop.export()
        assert await store.stream() == []

    shop.run(check)
    assert killed[0] == f"before {name}"
    assert sorted(row["item_id"] for row in shop.rows()) == ["first", "i0", "i2", "i4", "last"]
    assert len(ExportDirectory(shop.root).erasures()) == 1
    files = {path.name for path in shop.root.glob("day=*/*") if path.name != "manifest.json"}
    assert len(files) <= 3, "files of a killed exporter are deleted"


def test_events_cut_before_their_export_are_counted(shop: Shop) -> None:
    lost: list[int] = []
    user = next(user for user in map(str, range(1000)) if bucket_of(user) == 5)

    async def check(store: RedisHistories) -> None:
        await store.append([Event(user, f"{n}", float(n)) for n in range(12)])
        assert lost == [], "without an exporter the stream is a window of the newest events"
        await shop.export()
        await store.append([Event(user, f"{n}", float(n)) for n in range(10)])
        assert lost == []
        await store.append([Event(user, f"{n}", float(n)) for n in range(10, 13)])
        assert lost == [3]
        assert (await shop.export()).lost == 3

    shop.run(check, stream_cap=64 * 10, watch=RedisWatch(on_lost=lost.append))
    assert [row["item_id"] for row in shop.rows()][-10:] == [str(n) for n in range(3, 13)]


def test_two_exporters_are_refused(shop: Shop, tmp_path: Path) -> None:
    asyncio.run(shop.export())
    directory = ExportDirectory(shop.root)
    with directory.exporting(), pytest.raises(ExportBusy, match="another exporter is at work here"):
        asyncio.run(shop.export())
    with pytest.raises(ExportRefused, match=r"exported to another directory.*vlm2rec events detach"):
        asyncio.run(shop.export(tmp_path / "second"))


def test_an_older_copy_of_the_directory_is_refused(shop: Shop, tmp_path: Path) -> None:
    import shutil

    async def check(store: RedisHistories) -> None:
        await shop.export()
        shutil.copytree(shop.root, tmp_path / "copy")
        await store.append([Event("anna", "a", 1.0)])
        await shop.export()
        await store.append([Event("anna", "b", 1.0)])
        with pytest.raises(ExportRefused, match="older copy"):
            await shop.export(tmp_path / "copy")
        assert len(await store.stream()) == 1

    shop.run(check)


def test_two_exporters_with_copies_of_one_directory_stop_at_once(shop: Shop, tmp_path: Path) -> None:
    import shutil

    async def check(store: RedisHistories) -> None:
        await shop.export()
        shutil.copytree(shop.root, tmp_path / "copy")
        copy = ExportDirectory(tmp_path / "copy")
        async with shop.events() as events:
            second = Exporter(events, copy, rows_per_file=100)
            await second.attach()
            whole = events.entries

            async def others_export_meanwhile(*arguments: Any) -> Any:
                entries = await whole(*arguments)
                await shop.export()
                await store.append([Event("anna", "b", 1.0)])
                return entries

            events.entries = others_export_meanwhile  # type: ignore[method-assign]
            await store.append([Event("anna", "a", 1.0)])
            with pytest.raises(ExportRefused, match="another exporter exported"):
                await second.export()
        assert [event.item_id for event in await store.stream()] == ["b"]

    shop.run(check)


def test_a_redis_that_lost_everything_goes_on_behind_the_directory(shop: Shop) -> None:
    key = stream_key(shop.prefix, bucket_of("anna"))
    with admin(shop) as client:
        client.xadd(key, {"user_id": "anna", "item_id": "future"}, id="9000000000000-5")
        asyncio.run(shop.export())
        for name in client.scan_iter(f"{shop.prefix}:*"):
            client.delete(name)
        asyncio.run(shop.export())

        async def check(store: RedisHistories) -> None:
            await store.append([Event("anna", "a", 1.0)])
            await shop.export()

        shop.run(check)
    assert [row["stream_id"] for row in shop.rows()] == ["9000000000000-5", "9000000000000-6"]


def test_detached_it_is_as_without_an_exporter(shop: Shop, tmp_path: Path) -> None:
    async def check(store: RedisHistories) -> None:
        await shop.export()
        await store.erase("anna")
        async with shop.events() as events:
            assert await events.waiting() is not None
            assert await events.detach() == 1
            assert await events.waiting() is None
        await store.append([Event("anna", "a", 1.0)])
        assert (await shop.export(tmp_path / "second")).events == 1

    shop.run(check)
    assert ExportDirectory(shop.root).key != ExportDirectory(tmp_path / "second").key


def test_a_redis_that_is_gone_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    from demo.embedded_redis import EmbeddedRedis

    with EmbeddedRedis(tmp_path / "redis", append_only=True, fsync_always=True) as server:
        shop = Shop(server.url, tmp_path / "export", "vlm2rec")

        async def check(store: RedisHistories) -> None:
            await store.append(some_events(50))
            directory = ExportDirectory.open_or_create(shop.root)
            async with shop.events() as events:
                exporter = Exporter(events, directory, rows_per_file=100)
                await exporter.attach()
                whole = directory.commit

                def killed_before(*arguments: Any) -> None:
                    server.kill()
                    whole(*arguments)

                directory.commit = killed_before  # type: ignore[method-assign]
                with pytest.raises(EventsUnavailable, match="Redis did not answer"):
                    await exporter.export()
            server.start()
            assert len(await shop_stream(shop)) == 50
            assert (await shop.export()).events == 0
            assert await shop_stream(shop) == []

        shop.run(check)
    assert len(shop.rows()) == 50


async def shop_stream(shop: Shop) -> list[Event]:
    from tests.support.stores.real_redis import open_histories

    store = open_histories(shop.url, prefix=shop.prefix, timeout_s=10.0)
    try:
        return await store.stream()
    finally:
        await store.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("step", ["write_rows", "save", "add_erasures"])
def test_a_disk_that_is_full_or_read_only_is_an_error_and_loses_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    def refused(*_arguments: Any) -> int:
        raise OSError(code, os.strerror(code))

    async def check(store: RedisHistories) -> None:
        await shop.export()
        await store.append(some_events(10))
        await store.erase("u1")
        left = len(await store.stream())
        with monkeypatch.context() as patched:
            patched.setattr(directory_module.DayManifest if step == "save" else directory_module, step, refused)
            with pytest.raises(DiskError, match=os.strerror(code)):
                await shop.export()
        assert len(await store.stream()) == left
        done = await shop.export()
        assert done.events == left
        assert len(ExportDirectory(shop.root).erasures()) == 1

    shop.run(check)
    assert len(shop.rows()) == 8, "two of the ten are of the erased user"


def test_another_directory_is_not_touched(shop: Shop) -> None:
    shop.root.mkdir()
    (shop.root / "holiday.jpg").write_bytes(b"")
    with pytest.raises(EventExportError, match=r"has files and is no export \(it has 'holiday.jpg'"):
        asyncio.run(shop.export())
    assert [path.name for path in shop.root.iterdir()] == ["holiday.jpg"]
