"""Stores keys of Redis in numbered Parquet files: ``name``, ``expires_ms`` and ``value`` as Redis serialises it."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from index.bundle.integrity import sha256_of, sync_directory, sync_file
from index.bundle.manifest import FileEntry
from service.errors import BackupRefused
from service.stores.backup.redis_backup import StoredKey

_SCHEMA: Final = pa.schema([("name", pa.string()), ("expires_ms", pa.int64()), ("value", pa.binary())])
_FILE_BYTES: Final = 64 << 20
_FILE_KEYS: Final = 200_000
_BATCH_KEYS: Final = 256
_BATCH_BYTES: Final = 8 << 20


class KeyFiles:
    """Writes keys to new files of a directory, each when it is full; the last one at the end of the block.

    Args:
        directory: an empty one.

    Attributes:
        keys: number of keys that were added, without those that do not exist.
        written: hash and size by name of the file.
    """

    def __init__(self, directory: Path) -> None:
        self.keys = 0
        self.written: dict[str, FileEntry] = {}
        self._directory = directory
        self._waiting: list[StoredKey] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        """The writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write the last file, unless the block failed."""
        if error is None:
            self._write()

    def add(self, keys: list[StoredKey]) -> None:
        """Add keys.

        Raises:
            OSError: a file cannot be written.
        """
        self._waiting += keys
        self._bytes += sum(len(key.name) + len(key.value) for key in keys)
        self.keys += existing(keys)
        if self._bytes >= _FILE_BYTES or len(self._waiting) >= _FILE_KEYS:
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        path = self._directory / f"{len(self.written) + 1:06d}.parquet"
        columns = list(zip(*self._waiting, strict=True))
        pq.write_table(pa.table(dict(zip(_SCHEMA.names, columns, strict=True)), _SCHEMA), path, compression="zstd")
        sync_file(path)
        sync_directory(self._directory)
        self.written[path.name] = FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
        self._waiting, self._bytes = [], 0


def existing(keys: list[StoredKey]) -> int:
    """How many of the keys exist."""
    return sum(bool(key.value) for key in keys)


def read_keys(path: Path) -> Iterator[list[StoredKey]]:
    """The keys of a file in order, in batches of a few MiB.

    Raises:
        BackupRefused: it is no file of keys.
        MemoryError: there is not enough memory.
    """
    try:
        # Arrow waits without end for a thread that could not be started for want of memory.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            table = file.read(use_threads=False).select(_SCHEMA.names).cast(_SCHEMA)
    except pa.ArrowMemoryError:
        raise  # says nothing about the file
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise BackupRefused(f"{path}: cannot be read ({error}); make another backup") from error
    batch: list[StoredKey] = []
    size = 0
    for part in table.to_batches(max_chunksize=_BATCH_KEYS):
        for key in map(StoredKey, *(column.to_pylist() for column in part.columns)):
            batch.append(key)
            size += len(key.value)
            if size >= _BATCH_BYTES or len(batch) >= _BATCH_KEYS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
