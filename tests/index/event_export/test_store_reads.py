"""What an object store sends of an export: a part of a file, too much, or something else."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import EventExportError, ExportUnavailable
from index.event_export import json_file
from index.event_export.compaction import compact
from index.event_export.directory import ExportDirectory
from index.event_export.files import content_of
from index.event_export.object_path import ObjectPath
from index.event_export.rows import read_rows
from tests.support.stores.exports import counted_rows
from tests.support.stores.s3_server import S3Server
from tests.support.stores.stream_entries import stream_entry

URL = "s3://shop/export"


@pytest.fixture
def export(s3: S3Server) -> S3Server:
    """Two files of one bucket."""
    directory = ExportDirectory.open_or_create(URL)
    for item in (1, 2):
        rows = [
            stream_entry(1_790_000_000_000 + item, n, {"user_id": "u", "item_id": f"i{item}-{n}"}) for n in range(50)
        ]
        directory.commit([directory.write_entries(3, rows)])
    return s3


@pytest.mark.parametrize("ending", [".parquet", "manifest.json", "export.json"])
@pytest.mark.parametrize("fault", ["half", "lie"])
def test_half_a_file_is_an_error_and_nothing_is_changed(export: S3Server, fault: str, ending: str) -> None:
    before = {key: content for key, (content, _) in export.objects.items()}

    def faulty(method: str, key: str) -> str | None:
        return fault if method == "GET" and key.endswith(ending) else None

    with export.faulty(faulty), pytest.raises(EventExportError, match=ending):
        list(compact(ExportDirectory(URL)))
    assert {key: content for key, (content, _) in export.objects.items()} == before
    assert sum(day.files for day in compact(ExportDirectory(URL))) == 1
    assert counted_rows(URL).num_rows == 100


def test_a_file_of_another_size_than_its_manifest_says_is_refused(export: S3Server) -> None:
    key = next(key for key in export.objects if key.endswith(".parquet"))
    path = ObjectPath.of_url(URL) / key.removeprefix("export/")
    size = len(export.objects[key][0])
    assert read_rows(path, size).num_rows == 50
    with pytest.raises(EventExportError, match=rf"has {size:,} bytes, the manifest says {size + 1:,}"):
        read_rows(path, size + 1)


def test_no_more_is_read_than_a_file_may_have(export: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportUnavailable, match=r"export\.json: has \d+ bytes, at most 10 are allowed"):
        content_of(ObjectPath.of_url(URL) / "export.json", limit=10)
    monkeypatch.setattr(json_file, "_LARGEST", 10)
    with pytest.raises(EventExportError, match="at most 10 are allowed"):
        ExportDirectory(URL)


@pytest.mark.parametrize("column", [0, 2, 3])
def test_an_altered_page_is_refused(export: S3Server, column: int) -> None:
    key = next(key for key in export.objects if key.endswith(".parquet"))
    content, modified = export.objects[key]
    pages = pq.read_metadata(pa.BufferReader(content)).row_group(0).column(column)
    last = (pages.dictionary_page_offset or pages.data_page_offset) + pages.total_compressed_size - 2
    export.objects[key] = (content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :], modified)
    with pytest.raises(EventExportError, match="cannot be read"):
        read_rows(ObjectPath.of_url(URL) / key.removeprefix("export/"))
