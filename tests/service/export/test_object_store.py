"""Exporting to an object store: no lock and no rename, yet every event once, whatever is killed and with other writers.

The same tests run on a store in memory and on moto's S3 server, which answers conditional writes as S3 does.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from obstore.store import MemoryStore

from index.bundle.store.object_store import ObjectStore
from index.errors import EventExportError, ExportBusy, ExportUnavailable
from index.event_export import files
from index.event_export.compaction import compact
from index.event_export.directory import ExportDirectory
from index.event_export.manifest import DayManifest
from index.event_export.object_path import ObjectPath
from service.export.exporter import Exporter
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories
from tests.support.stores.exports import Shop, some_events
from training.events.export_reader import read_export

Place = Callable[[], ObjectPath]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    started = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    yield f"http://{host}:{port}"
    started.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    import boto3

    for name, value in (
        ("AWS_ENDPOINT_URL", server),
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", "a-secret-of-s3"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{next(_numbers)}"
    boto3.client("s3", endpoint_url=server, region_name="us-east-1").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/some/export"


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest) -> Place:
    """Each call is the place as another process sees it."""
    if request.param == "s3":
        url = request.getfixturevalue("s3")
        return lambda: ObjectPath.of_url(url)
    store = MemoryStore()
    return lambda: ObjectPath(ObjectStore("memory", opened=store))


@pytest.fixture
def shop(redis_url: str, place: Place) -> Shop:
    return Shop(redis_url, place())


def items(place: Place) -> list[str]:
    return sorted(read_export(place()).interactions["item_id"].to_list())


def test_every_event_is_exported_once_and_an_erasure_and_a_compaction_reach_it(shop: Shop, place: Place) -> None:
    async def check(store: RedisHistories) -> None:
        await store.append(some_events(40))
        assert (await shop.export(place())).events == 40
        assert await store.stream() == []
        await store.append(some_events(10, start=40))
        await store.erase("u1")
        done = await shop.export(place())
        assert done.erasures == 1

    shop.run(check)
    left = [f"i{n}" for n in range(50) if n % 7 != 1]
    assert items(place) == sorted(left)
    before = len([path for day in ExportDirectory(place()).days() for path in day.children()])  # type: ignore[union-attr]
    assert sum(day.erased for day in compact(ExportDirectory(place()))) == 6
    assert items(place) == sorted(left)
    after = [path for day in ExportDirectory(place()).days() for path in day.children()]  # type: ignore[union-attr]
    assert len(after) < before
    assert list(compact(ExportDirectory(place()))) == []
    assert asyncio.run(shop.export(place())).events == 0, "the positions stay"


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["write_new", "replace_read"])
def test_killed_at_any_write_it_loses_and_doubles_nothing(
    shop: Shop, place: Place, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    whole, counts = getattr(ObjectPath, kind), list[int]()

    def dying_at(number: int) -> Callable[[ObjectPath, bytes], None]:
        writes = itertools.count()

        def write(self: ObjectPath, content: bytes) -> None:
            dies = next(writes) == number
            if dies and when == "before":
                raise Killed
            whole(self, content)
            if dies:
                raise Killed

        return write

    async def check(store: RedisHistories) -> None:
        await shop.export(place())
        await store.append(some_events(6, users=2))
        await store.erase("u3")
        for number in range(3):
            with monkeypatch.context() as patched:
                patched.setattr(ObjectPath, kind, dying_at(number))
                try:
                    await shop.export(place())
                except Killed:
                    counts.append(number)
            await store.append([Event(f"u{number}", f"more{number}", 1.0)])
        await shop.export(place())
        assert await store.stream() == []

    shop.run(check)
    assert counts[:1] == [0]
    assert items(place) == sorted([*(f"i{n}" for n in range(6)), "more0", "more1", "more2"])
    assert len(ExportDirectory(place()).erasures()) == 1


def test_of_two_exporters_one_wins_and_no_event_is_doubled(shop: Shop, place: Place) -> None:
    """The second one exports between the reading and the commit of the first one, and after it."""
    refused: list[str] = []

    async def check(store: RedisHistories) -> None:
        await shop.export(place())
        async with shop.events() as events:
            first = Exporter(events, ExportDirectory(place()), rows_per_file=100)
            await first.attach()
            whole = events.entries

            async def others_export_meanwhile(bucket: int, after: str, most: int) -> Sequence[Any]:
                entries = await whole(bucket, after, most)
                await shop.export(place())
                return entries

            events.entries = others_export_meanwhile  # type: ignore[assignment, method-assign]
            await store.append([Event("anna", "a", 1.0), Event("anna", "b", 1.0)])
            with pytest.raises(ExportBusy, match="another exporter is at work here") as busy:
                await first.export()
            refused.append(str(busy.value))
        await store.append([Event("anna", "c", 1.0)])
        await shop.export(place())

    shop.run(check)
    assert refused
    assert items(place) == ["a", "b", "c"]


def test_an_exporter_and_a_compaction_at_once_lose_nothing(
    shop: Shop, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each changes the manifest between the other's reading and writing."""
    whole, running = DayManifest.save, list[str]()

    async def check(store: RedisHistories) -> None:
        loop = asyncio.get_running_loop()
        for n in range(3):
            await store.append([Event("anna", f"{n}", 1.0)])
            await shop.export(place())
        await store.append([Event("anna", "late", 1.0)])

        def interrupted(manifest: DayManifest, day: Any) -> None:
            if not running:
                running.append("export")
                asyncio.run_coroutine_threadsafe(shop.export(place()), loop).result(60)
            whole(manifest, day)

        with monkeypatch.context() as patched:
            patched.setattr(DayManifest, "save", interrupted)
            (done,) = await asyncio.to_thread(lambda: list(compact(ExportDirectory(place()))))
        assert (done.files_before, done.files) == (4, 1)
        running.clear()

        def compacted_meanwhile(manifest: DayManifest, day: Any) -> None:
            if not running:
                running.append("compact")
                list(compact(ExportDirectory(place())))
            whole(manifest, day)

        await store.append([Event("anna", "later", 1.0)])
        await shop.export(place())
        monkeypatch.setattr(DayManifest, "save", compacted_meanwhile)
        await store.append([Event("anna", "last", 1.0)])
        await shop.export(place())
        assert running == ["compact"]

    shop.run(check)
    assert items(place) == sorted(["0", "1", "2", "late", "later", "last"])


def test_files_of_a_killed_job_go_a_day_later_and_those_of_a_slow_one_never_count(
    shop: Shop, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from index.event_export import directory as module

    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", "a", 1.0)])
        with monkeypatch.context() as patched, suppress(Killed):
            patched.setattr(ExportDirectory, "commit", _killed)
            await shop.export(place())
        await shop.export(place())
        (day,) = ExportDirectory(place()).days()
        names = {path.name for path in files.children(day)}
        assert len(names) == 3, "the killed exporter's file might be of one at work"
        with monkeypatch.context() as patched:
            patched.setattr(files, "_OLD_S", -timedelta(minutes=1).total_seconds())
            await shop.export(place())
        assert len(files.children(day)) == 2
        await store.append([Event("anna", "b", 1.0)])
        with monkeypatch.context() as patched:
            patched.setattr(module, "_LONGEST_WRITING_S", -1.0)
            with pytest.raises(ExportUnavailable, match="writing took more than an hour"):
                await shop.export(place())
        assert len(await store.stream()) == 1
        await shop.export(place())

    shop.run(check)
    assert items(place) == ["a", "b"]


def _killed(*_arguments: Any) -> None:
    raise Killed


def test_two_that_create_it_at_once_make_one_export(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, others = ObjectPath.replace_read, list[str]()

    def others_first(self: ObjectPath, content: bytes) -> None:
        monkeypatch.setattr(ObjectPath, "replace_read", whole)
        others.append(ExportDirectory.open_or_create(place()).id)
        whole(self, content)

    monkeypatch.setattr(ObjectPath, "replace_read", others_first)
    assert ExportDirectory.open_or_create(place()).id == others[0]


def test_another_prefix_is_not_touched(place: Place) -> None:
    (place() / "holiday.jpg").write_new(b"")
    with pytest.raises(EventExportError, match=r"has files and is no export \(it has 'holiday.jpg'"):
        ExportDirectory.open_or_create(place())


def test_a_lost_answer_to_a_conditional_write_is_no_conflict(place: Place) -> None:
    first, second = place() / "file", place() / "file"
    with suppress(FileNotFoundError):
        first.read_bytes()
    first._store.replace("file", b"same", None)
    first.replace_read(b"same")
    assert second.read_bytes() == b"same"


@pytest.mark.parametrize("url", ["s3://", "s3://key:hunter2@bucket/x", "s3://bucket/x?secret=hunter2"])
def test_what_is_no_place_is_refused_without_a_secret_in_the_message(url: str) -> None:
    with pytest.raises(EventExportError, match=r"must be named as s3://bucket/prefix") as refused:
        ExportDirectory(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.slow
def test_a_store_that_is_gone_or_refuses_is_one_line_without_a_secret(
    s3: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(redis_url, ObjectPath.of_url(s3))

    async def check(store: RedisHistories) -> None:
        await shop.export()
        await store.append([Event("anna", "a", 1.0)])
        with pytest.raises(ExportUnavailable, match=r"^s3://no-such-bucket/x/.*\(NoSuchBucket\)") as said:
            await shop.export("s3://no-such-bucket/x")
        assert "a-secret-of-s3" not in str(said.value)
        assert len(await store.stream()) == 1
        with monkeypatch.context() as patched:
            patched.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            with pytest.raises(ExportUnavailable, match=r"127\.0\.0\.1:9"):
                await shop.export(s3)
        assert len(await store.stream()) == 1
        assert (await shop.export()).events == 1

    shop.run(check)


@pytest.mark.slow
def test_the_commands_export_compact_and_read_in_s3(s3: str, redis_url: str) -> None:
    from typer.testing import CliRunner

    from cli.app import app

    shop = Shop(redis_url, ObjectPath.of_url(s3))

    def events(*arguments: str) -> str:
        environment = {"VLM2REC_REDIS_URL": redis_url, "VLM2REC_REDIS_PREFIX": shop.prefix}
        done = CliRunner().invoke(app, ["events", *arguments], env=environment)
        assert done.exit_code == 0, done.output
        return done.stdout

    async def check(store: RedisHistories) -> None:
        await store.append([Event("anna", "a", 1.0), Event("bob", "b", 1.0)])

    async def erase(store: RedisHistories) -> None:
        await store.erase("anna")

    shop.run(check)
    assert events("export", "--to", s3) == "2 events in 2 files, 0 erasures\n"
    shop.run(erase)
    assert events("export", "--to", s3) == "0 events in 0 files, 1 erasures\n"
    assert events("compact", s3).endswith(": 1 rows of erased users removed, 2 files are 1\n")
    assert [row["user_id"] for row in shop.rows()] == ["bob"]
    assert events("detach").startswith("detached")
