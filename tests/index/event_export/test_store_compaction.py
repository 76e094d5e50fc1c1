"""Compaction of an export in an object store while other processes change the same day."""

from collections.abc import Callable

import pytest
from obstore.store import MemoryStore

from index.bundle.store.object_store import ObjectStore
from index.errors import EventExportError
from index.event_export import compaction
from index.event_export.compaction import compact
from index.event_export.directory import ExportDirectory
from index.event_export.manifest import DayManifest
from index.event_export.object_path import ExportObjectChanged, ObjectPath
from tests.support.stores.exports import counted_rows
from tests.support.stores.stream_entries import stream_entry

Place = Callable[[], ObjectPath]
NOON = 1_790_000_000_000


@pytest.fixture
def place() -> Place:
    """Each call is the place as another process sees it."""
    store = MemoryStore()
    return lambda: ObjectPath(ObjectStore("memory", opened=store))


def export(place: Place, *items: int) -> None:
    """Export entries of one bucket, each to a file of its own."""
    directory = ExportDirectory.open_or_create(place())
    for item in items:
        entries = [stream_entry(NOON + item, 0, {"user_id": "u", "item_id": f"i{item}"})]
        directory.commit([directory.write_entries(3, entries)])


def items(place: Place) -> list[str]:
    return [str(item) for item in counted_rows(place()).column("item_id").to_pylist()]


def files(place: Place) -> set[str]:
    (day,) = ExportDirectory(place()).days()
    return {path.name for path in day.children()} - {"manifest.json"}  # type: ignore[union-attr]


def test_a_lost_answer_and_another_writer_delete_nothing_that_counts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is written, its answer is lost, and before the request is repeated an exporter goes on from it."""
    export(place, 1, 2)
    whole = ObjectPath.replace_read

    def lost(self: ObjectPath, content: bytes) -> None:
        whole(self, content)
        monkeypatch.setattr(ObjectPath, "replace_read", whole)
        export(place, 3)
        raise ExportObjectChanged(str(self))

    monkeypatch.setattr(ObjectPath, "replace_read", lost)
    (done,) = compact(ExportDirectory(place()))
    assert items(place) == ["i1", "i2", "i3"]
    assert (done.files_before, done.files) == (2, 1)


def test_its_files_are_deleted_where_another_writer_was_first(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    export(place, 1, 2)
    whole = DayManifest.save

    def second(manifest: DayManifest, day: ObjectPath) -> None:
        monkeypatch.setattr(DayManifest, "save", whole)
        export(place, 3)
        whole(manifest, day)

    monkeypatch.setattr(DayManifest, "save", second)
    (done,) = compact(ExportDirectory(place()))
    assert (done.files_before, done.files) == (3, 1)
    assert items(place) == ["i1", "i2", "i3"]
    assert len(files(place)) == 1


def test_a_file_that_another_compaction_has_replaced_is_not_missing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(place, 1, 2)
    whole, done = compaction._joined, list[str]()

    def others_first(*arguments: object) -> object:
        monkeypatch.setattr(compaction, "_joined", whole)
        done.extend(day.day for day in compact(ExportDirectory(place())))
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compaction, "_joined", others_first)
    assert list(compact(ExportDirectory(place()))) == []
    assert len(done) == 1
    assert items(place) == ["i1", "i2"]


def test_a_file_that_is_missing_is_named(place: Place) -> None:
    export(place, 1, 2)
    (day,) = ExportDirectory(place()).days()
    name = min(files(place))
    (day / name).delete()  # type: ignore[union-attr]
    with pytest.raises(EventExportError, match=f"{name}: the file is missing"):
        list(compact(ExportDirectory(place())))
