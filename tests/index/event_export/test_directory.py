"""Ids, file names and the directory of an export."""

import os
import stat
import threading
from pathlib import Path

import pytest

from index.errors import EventExportError
from index.event_export.directory import ExportDirectory
from index.event_export.erasures import Erasures, user_hash
from index.event_export.stream_ids import FileRange, StreamId


def test_ids_are_ordered_as_numbers() -> None:
    texts = ["9-9", "10-0", "10-2", "10-10"]
    assert [str(entry) for entry in sorted(map(StreamId.parse, reversed(texts)))] == texts


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "1-2-3", "1.5-0", "x-0", " 1-0"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(EventExportError, match="must be two numbers as in"):
        StreamId.parse(text)


def test_the_day_is_that_of_the_arrival_in_utc() -> None:
    assert StreamId(0, 0).day == "1970-01-01"
    assert StreamId(1_790_035_199_999, 0).day == "2026-09-21"
    assert StreamId(1_790_035_200_000, 0).day == "2026-09-22"
    assert StreamId(2**64 - 1, 0).day == "9999-12-31", "another program may have written such an id"


@pytest.mark.parametrize("compaction", [0, 3])
def test_a_file_name_is_read_as_it_was_written(compaction: int) -> None:
    span = FileRange(17, StreamId(1_790_000_000_123, 0), StreamId(1_790_000_009_999, 4), compaction)
    assert FileRange.of_file(span.file_name) == span
    end = "-c3.parquet" if compaction else ".parquet"
    assert span.file_name == f"b017-1790000000123-0-1790000009999-4{end}"
    for name in (f"{span.file_name}.part", "b17-1-0-2-0.parquet", "b017-1-0.parquet", "../b017-1-0-2-0.parquet"):
        with pytest.raises(EventExportError, match="an exported file is called"):
            FileRange.of_file(name)


def test_a_hash_depends_on_the_key_and_is_known() -> None:
    # RFC 4231, test case 2: key "Jefe", data "what do ya want for nothing?".
    assert user_hash("Jefe", "what do ya want for nothing?") == "5bdcc146bf60754e6a042426089575c7"
    assert user_hash("another", "anna") != user_hash("Jefe", "anna")
    erasures = Erasures("Jefe", {user_hash("Jefe", "anna"): StreamId(5, 0), user_hash("other", "bob"): StreamId(6, 0)})
    assert erasures.until(["anna", "bob"]) == {"anna": StreamId(5, 0)}


def test_the_key_is_readable_by_the_owner_alone(tmp_path: Path) -> None:
    ExportDirectory.open_or_create(tmp_path)
    assert stat.S_IMODE((tmp_path / "export.json").stat().st_mode) == 0o600


def test_two_that_create_it_at_once_make_one_export(tmp_path: Path) -> None:
    together, found = threading.Barrier(4), set()

    def create() -> None:
        together.wait()
        found.add(ExportDirectory.open_or_create(tmp_path / "export").id)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


def test_of_two_erasures_of_a_user_the_later_one_counts(tmp_path: Path) -> None:
    directory = ExportDirectory.open_or_create(tmp_path)
    anna = user_hash(directory.key, "anna")
    for until in (StreamId(5, 0), StreamId(9, 1), StreamId(7, 0)):
        directory.add_erasures(3, {anna: until})
    assert directory.erasures().until(["anna"]) == {"anna": StreamId(9, 1)}
    (tmp_path / "erasures" / "b003.json").write_text('{"format": 1, "erased": {"x": "never"}}')
    with pytest.raises(EventExportError, match=r"b003.json: does not hold erasures"):
        directory.erasures()


def test_an_export_of_a_later_version_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text('{"format": 2, "id": "x", "key": "y"}')
    with pytest.raises(EventExportError, match=r"must be an object of format 1; .*or use the version that wrote it"):
        ExportDirectory(tmp_path)
    (tmp_path / "export.json").write_text('{"format": 1, "id": "x"}')
    with pytest.raises(EventExportError, match="lacks 'key'"):
        ExportDirectory(tmp_path)


@pytest.mark.parametrize(
    "name", ["export.json", "positions.json", "erasures/b000.json", "day=2026-11-30/manifest.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_is_refused_and_not_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    directory = ExportDirectory.open_or_create(tmp_path / "export")
    path = tmp_path / "export" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(EventExportError, match=f"{path.name}: is no regular file; restore it from a copy"):
        _ = (ExportDirectory(tmp_path / "export"), directory.positions(), directory.erasures())
