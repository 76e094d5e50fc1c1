"""Reading an exported file: without a thread of Arrow's, and too little memory is no damage."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.event_export.rows import SCHEMA, read_rows, write_rows
from tests.support.processes.started_threads import started_threads


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An exported file without events."""
    path = tmp_path / "rows.parquet"
    write_rows(path, SCHEMA.empty_table())
    return path


def test_reading_starts_no_thread(exported: Path) -> None:
    """Where there is no memory for the stack of a thread, Arrow waits for it without end."""
    setup = "from pathlib import Path\nfrom index.event_export.rows import read_rows"
    assert started_threads(setup, "read_rows(Path(sys.argv[1]))", str(exported)) == 0
    assert read_rows(exported).schema == SCHEMA


def test_too_little_memory_is_no_damaged_file(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 1664 failed")

    monkeypatch.setattr(pq.ParquetFile, "read", fail)
    with pytest.raises(MemoryError, match="malloc of size 1664 failed"):
        read_rows(exported)
