"""Reading the keys of a backup: without a thread of Arrow's; other columns and too little memory are errors."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.errors import BackupRefused
from service.export.backup.key_files import KeyFiles, read_keys
from service.stores.backup.redis_backup import StoredKey
from tests.support.processes.started_threads import started_threads

KEYS = [StoredKey("a", -1, b"\x00\xff"), StoredKey("b", 7, b"v")]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A file with two keys."""
    with KeyFiles(tmp_path) as files:
        files.add(KEYS)
    return tmp_path / next(iter(files.written))


def test_reading_starts_no_thread(stored: Path) -> None:
    """Where there is no memory for the stack of a thread, Arrow waits for it without end."""
    setup = "from pathlib import Path\nfrom service.export.backup.key_files import read_keys"
    assert started_threads(setup, "list(read_keys(Path(sys.argv[1])))", str(stored)) == 0
    assert list(read_keys(stored)) == [KEYS]


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["a"], "expires_ms": [7]}), tmp_path / "other.parquet")
    with pytest.raises(BackupRefused, match="cannot be read"):
        list(read_keys(tmp_path / "other.parquet"))


def test_too_little_memory_is_no_damaged_file(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 1664 failed")

    monkeypatch.setattr(pq.ParquetFile, "read", fail)
    with pytest.raises(MemoryError, match="malloc of size 1664 failed"):
        list(read_keys(stored))
