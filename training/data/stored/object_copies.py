"""Copies objects of a store into a local directory, once for each of their versions.

``<kind>-<hash>/`` is a whole copy; the hash covers names, sizes and entity tags. So a job reads one state of the
objects however long it runs, and the next job copies again only if they have changed. A copy is made aside
(``.<kind>-<hash>/``): one that breaks off is continued at the byte where it ended.
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

_LOCK: Final = ".lock"


class ObjectCopy:
    """A copy of some objects; no other process removes it while this object exists.

    Args:
        store: holds the objects.
        root: directory of all copies of them.
        kind: what their directories are named by.
        listed: the objects, by key.

    Attributes:
        directory: of the copies, each at its key.

    Raises:
        DatasetError: the store does not answer, or an object changes meanwhile; or the disk refuses them.
    """

    def __init__(self, store: DataStore, root: Path, kind: str, listed: Sequence[StoredObject]) -> None:
        self._held = contextlib.ExitStack()
        name = _digest(listed)
        self.directory = root / f"{kind}-{name}"
        aside = root / f".{kind}-{name}"
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            with file_lock(root / _LOCK, wait=True):
                if not self.directory.is_dir():
                    _copy(store, aside, listed)
                    aside.rename(self.directory)
                self._held.enter_context(directory_lock(self.directory, shared=True))
                _remove_others((*root.glob(f"{kind}-*"), *root.glob(f".{kind}-*")), self.directory)
        except OSError as error:
            remedy = f"name another directory with {CACHE_VARIABLE}, start again"
            raise DatasetError(describe_disk_error(error, root, remedy, what=f"the {kind} of {store.url}")) from error


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


def _remove_others(paths: Sequence[Path], kept: Path) -> None:
    """Remove the copies of earlier versions that no process uses, and those that broke off."""
    for path in paths:
        if path != kept:
            with contextlib.suppress(OSError), directory_lock(path):
                shutil.rmtree(path)
