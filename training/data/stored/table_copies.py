"""Copies the tables of a data set from an object store into a local directory, once for each of their versions.

``tables-<hash>/`` is a whole copy; the hash covers names, sizes and entity tags. So a job reads one state of the tables
however long it runs, and the next job copies again only if they have changed. A copy is made aside
(``.tables-<hash>/``): one that breaks off is continued at the byte where it ended.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from index.bundle.integrity import sync_file
from index.bundle.store.object_store import StoredObject
from index.machine.disk import describe_disk_error
from index.machine.locks import directory_lock, file_lock
from training.data.stored.data_store import DataStore
from training.data.tables.mapped_table import CACHE_VARIABLE
from training.errors import DatasetError

_COPY: Final = "tables-"
_PARTIAL: Final = ".tables-"
_LOCK: Final = ".lock"


class TableCopy:
    """A copy of the tables; no other process removes it while this object exists.

    Args:
        store: holds the data set.
        root: directory of the copies of this data set.
        files: names of the tables that are files.
        folders: names of the tables that are folders.

    Attributes:
        directory: of the tables.

    Raises:
        DatasetError: the store does not answer, holds none of the tables, or changes meanwhile; or the disk refuses
            them.
    """

    def __init__(self, store: DataStore, root: Path, files: Sequence[str], folders: Sequence[str]) -> None:
        listed = _listed(store, files, folders)
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


def _listed(store: DataStore, files: Sequence[str], folders: Sequence[str]) -> list[StoredObject]:
    """The objects of the tables by key."""
    # Folders first: to a listing a store says what it refuses, to a request for one object only that it does.
    found = [one for name in folders for block in store.listed(name) for one in block if one.key != name]
    found += [one for name in files if (one := store.head(name)) is not None]
    if not found:
        raise DatasetError(
            f"{store.url}: there is no table below this prefix, such as items.parquet; check the bucket and the prefix"
        )
    return sorted(found, key=lambda one: one.key)


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
