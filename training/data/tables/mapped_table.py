"""Keeps a large table in a temporary file that is mapped, so that the kernel drops its pages when memory is short."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import polars as pl
import pyarrow as pa

from index.machine.disk import describe_disk_error
from training.errors import DatasetError

LARGE_BYTES: Final = 256 << 20
"""A table of more bytes is not held in memory, but mapped."""

CACHE_VARIABLE: Final = "VLM2REC_DATA_CACHE"
"""Names the directory of temporary files and of copies from object stores."""


def data_cache() -> Path:
    """The directory of temporary files and of copies from object stores: VLM2REC_DATA_CACHE, or below ~/.cache."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    place = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(place)) / "vlm2rec" / "data"  # noqa: PTH111 - keeps the ~ without a home


@dataclass(frozen=True)
class MappedTable:
    """A table whose values are pages of a file without a name, which goes when the process ends.

    Attributes:
        table: the columns; none of their values is copied into memory.
    """

    table: pa.Table

    @property
    def frame(self) -> pl.DataFrame:
        """The same columns for polars."""
        return pl.DataFrame(pl.from_arrow(self.table))

    @classmethod
    def write(cls, parts: Iterator[pl.DataFrame], *, plain: pa.Schema | None = None) -> Self:
        """Write a table and map it.

        Args:
            parts: at least one, all with the same schema.
            plain: Arrow schema to cast to; None: the one that polars maps without a copy.

        Raises:
            DatasetError: the file cannot be written.
        """
        directory = data_cache()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=directory) as file:
                _write(parts, pa.PythonFile(file, mode="w"), plain)
                file.flush()
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            pa.default_memory_pool().release_unused()  # some 100 MiB, which Arrow would keep for its next table
        except OSError as error:
            remedy = f"name another directory with {CACHE_VARIABLE}, start again"
            raise DatasetError(describe_disk_error(error, directory, remedy, what="the table")) from error
        return cls(pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all())


def _write(parts: Iterator[pl.DataFrame], sink: pa.NativeFile, plain: pa.Schema | None) -> None:
    writer = None
    for part in parts:
        if plain is None:
            table = part.to_arrow(compat_level=pl.CompatLevel.newest())
        else:
            table = part.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(plain)
        if writer is None:
            writer = pa.ipc.new_file(sink, table.schema)
        writer.write_table(table)
    if writer is None:
        raise DatasetError("a table needs at least one row; check its files")
    writer.close()
