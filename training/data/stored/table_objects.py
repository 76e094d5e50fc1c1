"""Lists the objects that are the tables of a data set in an object store."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from index.bundle.store.object_store import StoredObject
from training.data.stored.data_store import DataStore
from training.data.tables.parquet_table import PARQUET, is_left_out
from training.errors import DatasetError


def table_objects(store: DataStore, tables: Mapping[str, Sequence[str]], more: Sequence[str]) -> list[StoredObject]:
    """The objects of the tables by key; a folder ``items`` beside a file of that table is none.

    Args:
        store: holds the data set.
        tables: their names without a suffix, and the suffixes that each may have.
        more: names of other files.

    Raises:
        DatasetError: the store does not answer, or holds none of the tables.
    """
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
