"""Days of an export are deleted when they are no longer needed; the exporter goes on from where each bucket was."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import redis
from obstore.store import MemoryStore

from index.bundle.store.object_store import ObjectStore
from index.errors import DiskError, EventExportError
from index.event_export import directory as directory_module
from index.event_export.directory import ExportDirectory
from index.event_export.files import children, delete
from index.event_export.object_path import ExportPath, ObjectPath
from index.event_export.positions import load_positions
from index.event_export.stream_ids import StreamId
from service.errors import ExportRefused
from service.export.exporter import Exporter
from service.stores.history_keys import stream_key
from tests.support.stores.exports import Shop

DAY_MS = 86_400_000
FIRST_DAY = 1_790_035_200_000  # 22 September 2026, midnight
QUIET, BUSY = 3, 5
"""A bucket with an event on the first day alone, and one with an event on every day."""


@pytest.fixture(params=["directory", "object store"])
def shop(redis_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    if request.param == "directory":
        return Shop(redis_url, tmp_path / "export")
    return Shop(redis_url, ObjectPath(ObjectStore("memory", opened=MemoryStore())))


def add(shop: Shop, bucket: int, day: int) -> None:
    with redis.Redis.from_url(shop.url) as client:
        fields = {"user_id": f"u{bucket}", "item_id": f"of day {day}"}
        client.xadd(stream_key(shop.prefix, bucket), fields, id=f"{FIRST_DAY + day * DAY_MS}-0")  # type: ignore[arg-type]


def exported(shop: Shop) -> int:
    return asyncio.run(shop.export(shop.root)).events


def export_days(shop: Shop, count: int) -> None:
    add(shop, QUIET, 0)
    for day in range(count):
        add(shop, BUSY, day)
        exported(shop)


def delete_days(root: ExportPath, first: int = 0, end: int | None = None) -> None:
    for day in ExportDirectory(root).days()[first:end]:
        for path in children(day):
            delete(path)
        if isinstance(day, Path):
            day.rmdir()


def names(root: ExportPath) -> list[str]:
    return [day.name for day in ExportDirectory(root).days()]


@pytest.mark.parametrize("kept", [0, 1])
def test_the_exporter_goes_on_where_days_were_deleted(shop: Shop, kept: int) -> None:
    """The quiet bucket had its last event on a deleted day."""
    export_days(shop, 3)
    delete_days(shop.root, end=3 - kept)
    assert exported(shop) == 0
    add(shop, QUIET, 3)
    add(shop, BUSY, 3)
    assert exported(shop) == 2
    assert names(shop.root) == ["day=2026-09-24", "day=2026-09-25"][1 - kept :]
    assert load_positions(shop.root) == dict.fromkeys((QUIET, BUSY), StreamId(FIRST_DAY + 3 * DAY_MS, 0))


def test_an_exporter_at_work_attaches_again_where_days_were_deleted(shop: Shop) -> None:
    async def check() -> None:
        directory = ExportDirectory.open_or_create(shop.root)
        async with shop.events() as events:
            with directory.exporting():
                exporter = Exporter(events, directory, rows_per_file=100)
                await exporter.attach()
                for day in range(2):
                    add(shop, QUIET if day == 0 else BUSY, day)
                    assert (await exporter.export()).events == 1
                delete_days(shop.root, end=1)
                await exporter.attach()  # as after an outage of Redis
                add(shop, QUIET, 2)
                assert (await exporter.export()).events == 1

    asyncio.run(check())


def test_an_export_of_a_version_without_positions_goes_on(shop: Shop) -> None:
    """Its oldest days were deleted already, so only Redis knows how far the quiet bucket is exported."""
    export_days(shop, 3)
    delete(shop.root / "positions.json")
    delete_days(shop.root, end=1)
    assert exported(shop) == 0
    assert load_positions(shop.root)[QUIET] == StreamId(FIRST_DAY, 0)
    delete_days(shop.root)
    add(shop, QUIET, 3)
    assert exported(shop) == 1


def test_a_lost_day_that_is_not_the_oldest_is_refused_without_positions(shop: Shop) -> None:
    """The newest day may be missing as this is an older copy."""
    export_days(shop, 3)
    delete(shop.root / "positions.json")
    delete_days(shop.root, first=2)
    with pytest.raises(ExportRefused, match=r"b005 is exported up to .*: it is an older copy"):
        exported(shop)


def test_an_older_copy_without_its_oldest_day_is_refused(redis_url: str, tmp_path: Path) -> None:
    shop, copy = Shop(redis_url, tmp_path / "export"), tmp_path / "copy"
    export_days(shop, 2)
    shutil.copytree(tmp_path / "export", copy)
    add(shop, QUIET, 2)
    exported(shop)
    delete_days(copy, end=1)
    shop.root = copy
    with pytest.raises(ExportRefused, match=r"b003 is exported up to .*: it is an older copy"):
        exported(shop)


def test_an_older_copy_without_the_day_of_a_later_position_is_refused(redis_url: str, tmp_path: Path) -> None:
    """The copy's own positions say that the bucket ends earlier, so no deletion explains what it lacks."""
    shop, copy = Shop(redis_url, tmp_path / "export"), tmp_path / "copy"
    export_days(shop, 3)
    shutil.copytree(tmp_path / "export", copy)
    with redis.Redis.from_url(shop.url) as client:
        fields = {"user_id": "u3", "item_id": "late on day 1"}
        client.xadd(stream_key(shop.prefix, QUIET), fields, id=f"{FIRST_DAY + DAY_MS + 1}-0")  # type: ignore[arg-type]
    exported(shop)
    delete_days(copy, end=2)
    shop.root = copy
    with pytest.raises(ExportRefused, match=r"b003 is exported up to .*: it is an older copy"):
        exported(shop)


def test_positions_that_could_not_be_written_are_those_of_the_manifests(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exporter is killed, or the disk is full, between manifest and positions."""
    export_days(shop, 1)
    add(shop, QUIET, 1)
    with monkeypatch.context() as patched:
        patched.setattr(ExportDirectory, "add_positions", nothing)  # of the start, before anything is exported
        patched.setattr(directory_module, "add_positions", refused)
        with pytest.raises((DiskError, OSError), match="No space left"):
            exported(shop)
    assert load_positions(shop.root)[QUIET] == StreamId(FIRST_DAY, 0)
    assert exported(shop) == 0, "the manifest names its file"
    assert load_positions(shop.root)[QUIET] == StreamId(FIRST_DAY + DAY_MS, 0)
    assert [row["item_id"] for row in shop.rows()] == ["of day 0", "of day 0", "of day 1"]


def nothing(*_arguments: Any) -> None:
    """Positions that are there already are not written."""


def refused(*_arguments: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("content", ["{", '{"format": 1}', '{"format": 1, "positions": {"b003": "yesterday"}}'])
def test_damaged_positions_are_named(redis_url: str, tmp_path: Path, content: str) -> None:
    shop = Shop(redis_url, tmp_path)
    export_days(shop, 1)
    (tmp_path / "positions.json").write_text(content)
    with pytest.raises(EventExportError, match=r"positions\.json: .*; restore it from a copy, or delete it if no day"):
        exported(shop)
