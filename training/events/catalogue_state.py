"""Identifies the state of a catalogue: its items table and its pictures."""

import hashlib
from pathlib import Path

from index.bundle.integrity import sha256_of
from training.data.data_place import AnyPlace, DataPlace
from training.data.dataset import IMAGE, ITEM_SUFFIXES, ITEMS, read_items
from training.data.tables.parquet_table import parquet_files
from training.data.tables.table_files import find_table
from training.errors import DatasetError


def catalogue_state(data: AnyPlace) -> str:
    """16 hex digits over the items table, and over size and modification time of every picture that it names.

    Args:
        data: the data set: its directory, or ``s3://bucket/prefix``.

    Raises:
        DatasetError: the items table cannot be read or breaks a rule, or the object store does not answer.
    """
    place = DataPlace.open(data)
    with place.naming():
        path = find_table(place.directory, ITEMS, ITEM_SUFFIXES)
        digest = _digest_of(path)
        for name in read_items(path)[IMAGE]:
            picture = place.picture(name)
            try:
                status = None if picture is None else picture.stat()
            except OSError:  # gone since
                status = None
            digest.update(b"-" if status is None else f"{status.st_size} {status.st_mtime_ns};".encode())
    return digest.hexdigest()[:16]


def _digest_of(path: Path) -> "hashlib._Hash":
    """Over the name and content of a table."""
    try:
        if not path.is_dir():
            return hashlib.sha256(f"{path.name} {sha256_of(path)}".encode())
        digest = hashlib.sha256(path.name.encode())
        for file in parquet_files(path):
            digest.update(f"\n{file.relative_to(path).as_posix()} {sha256_of(file)}".encode())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error}); check the path and its permissions") from error
    return digest
