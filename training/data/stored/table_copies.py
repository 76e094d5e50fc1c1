"""Copies the tables of a data set from an object store into a local directory, once for each of their versions.

``tables-<hash>/`` is a whole copy; the hash covers names, sizes and entity tags. So a job reads one state of the tables
however long it runs, and the next job copies again only if they have changed. A copy is made aside
(``.tables-<hash>/``): one that breaks off is continued at the byte where it ended.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from index.bundle.integrity import sync_file
from index.bundle.store.object_store import StoredObject
from index.machine.disk import describe_disk_error
from index.machine.locks import directory_lock, file_lock
from training.data.stored.data_store import DataStore
from training.data.tables.mapped_table import CACHE_VARIABLE
from training.data.tables.parquet_table import PARQUET, is_left_out
from training.errors import DatasetError

_COPY: Final = "tables-"
_PARTIAL: Final = ".tables-"
_LOCK: Final = ".lock"


class TableCopy:
    """A copy of the tables; no other process removes it while this object exists.

    Args:
        store: holds the data set.
        root: directory of the copies of this data set.
        tables: their names without a suffix, and the suffixes that each may have.
        more: names of other files to copy.

    Attributes:
        directory: of the tables.

    Raises:
        DatasetError: the store does not answer, holds none of the tables, or changes meanwhile; or the disk refuses
            them.
    """

    def __init__(self, store: DataStore, root: Path, tables: Mapping[str, Sequence[str]], more: Sequence[str]) -> None:
        listed = _listed(store, tables, more)
        self._held = contextlib.ExitStack()
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with file_lock(root / _LOCK, wait=True):
                name = _digest(listed)
                self.directory = root / f"{_COPY}{name}"
                if not self.directory.is_dir():
                    _copy(store, root / f"{_PARTIAL}{name}", listed)
                    (root / f"{_PARTIAL}{name}").rename(self.directory)
                self._held.enter_context(directory_lock(self.directory, shared=True))
                _remove_others(root, self.directory)
        except OSError as error:
            remedy = f"name another directory with {CACHE_VARIABLE}, start again"
            raise DatasetError(describe_disk_error(error, root, remedy, what=f"the tables of {store.url}")) from error


def _listed(store: DataStore, tables: Mapping[str, Sequence[str]], more: Sequence[str]) -> list[StoredObject]:
    """The objects of the tables by key; a folder ``items`` beside a file of that table is none."""
    found: list[StoredObject] = []
    for table, suffixes in tables.items():
        # A folder first: to a listing a store says what it refuses, to a request for one object only that it does.
        own = _of_folder(store, table + PARQUET)
        own += _of_names(store, [f"{table}.{suffix}" for suffix in suffixes])
        found += own or _of_folder(store, table)
    found += _of_names(store, more)
    if not found:
        raise DatasetError(
            f"{store.url}: there is no table below this prefix, such as items.parquet; check the bucket and the prefix"
        )
    return sorted(found, key=lambda one: one.key)


def _of_names(store: DataStore, names: Sequence[str]) -> list[StoredObject]:
    return [one for name in names if (one := store.head(name)) is not None]


def _of_folder(store: DataStore, folder: str) -> list[StoredObject]:
    """The objects of a folder that is a table: those that are read, or the first that the reader refuses.

    Empty objects without the suffix are left out, as stores mark folders with them.
    """
    found = [one for block in store.listed(folder) for one in block]
    folders = {parent for one in found for parent in PurePosixPath(one.key).parents}
    parquet, foreign = [], []
    for one in found:
        path = PurePosixPath(one.key)
        if one.key == folder or (path in folders and not one.size) or is_left_out(path.relative_to(folder).parts):
            continue
        if path.suffix.lower() == PARQUET:
            parquet.append(one)
        elif one.size:
            foreign.append(one)
    return sorted(foreign, key=lambda one: PurePosixPath(one.key).parts)[:1] or parquet


def _digest(listed: Sequence[StoredObject]) -> str:
    lines = "".join(f"{one.key}\0{one.size}\0{one.version or one.modified.isoformat()}\n" for one in listed)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _copy(store: DataStore, aside: Path, listed: Sequence[StoredObject]) -> None:
    aside.mkdir(exist_ok=True)
    for one in listed:
        path = aside / one.key
        if not path.resolve().is_relative_to(aside.resolve()):
            raise DatasetError(f"{store.url}/{one.key}: the name leads out of the data set; rename the object")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            store.fetch(one, file)
        sync_file(path)


def _remove_others(root: Path, kept: Path) -> None:
    """Remove the copies of earlier versions that no process uses, and those that broke off."""
    for path in (*root.glob(f"{_COPY}*"), *root.glob(f"{_PARTIAL}*")):
        if path != kept:
            with contextlib.suppress(OSError), directory_lock(path):
                shutil.rmtree(path)
