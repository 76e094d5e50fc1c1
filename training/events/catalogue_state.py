"""Identifies the state of a catalogue: its items file and the files of its pictures."""

import hashlib
from pathlib import Path

from index.bundle.integrity import sha256_of
from training.data.dataset import IMAGE, ITEM_SUFFIXES, ITEMS, confined_file, read_items
from training.data.tables.table_files import find_table
from training.errors import DatasetError


def catalogue_state(data: Path) -> str:
    """16 hex digits over the items file, and over size and modification time of every picture that it names.

    Args:
        data: the data set.

    Raises:
        DatasetError: the items file cannot be read or breaks a rule.
    """
    path = find_table(data, ITEMS, ITEM_SUFFIXES)
    try:
        digest = hashlib.sha256(f"{path.name} {sha256_of(path)}".encode())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error}); check the path and its permissions") from error
    for name in read_items(path)[IMAGE]:
        picture = confined_file(data, name)
        try:
            status = None if picture is None else picture.stat()
        except OSError:  # gone since
            status = None
        digest.update(b"-" if status is None else f"{status.st_size} {status.st_mtime_ns};".encode())
    return digest.hexdigest()[:16]
