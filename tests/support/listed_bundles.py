"""Makes item-to-item lists, bundles with them out of bundles without, and bundles in which some items are new."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.build.build import build_bundle
from index.bundle.index_spec import IndexSpec
from index.bundle.integrity import sha256_of
from index.bundle.manifest import LISTS_DIRECTORY, MANIFEST_FILE, FileEntry, ListsRecord, Manifest
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from index.items.modality_status import ModalityStatus
from index.items.slots import BEHAVIOUR
from index.lists.item_lists import ItemList, ItemLists, ListWeights


def compressed(name: str, lists: Sequence[tuple[NDArray[np.int32], NDArray[np.float16]]]) -> ItemList:
    """One list from rows and similarities item by item.

    Args:
        name: of the list.
        lists: for each item (k,) int32 rows and (k,) float16 similarities, most similar first.
    """
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum([len(rows) for rows, _ in lists], out=offsets[1:])
    rows = np.concatenate([np.zeros(0, np.int32), *(rows for rows, _ in lists)])
    similarities = np.concatenate([np.zeros(0, np.float16), *(values for _, values in lists)])
    return ItemList(name, offsets, rows, similarities)


def random_lists(
    items: int, seed: int = 0, *, neighbours: int = 8, weights: dict[str, float] | None = None, recency: int = 5
) -> ItemLists:
    """Lists of up to ``neighbours`` random items each; some items have none."""
    rng = np.random.default_rng(seed)
    weights = {"co": 0.7, "words": 0.4, "look": 0.25} if weights is None else weights
    lists = tuple(_random_list(rng, name, items, min(neighbours, items - 1)) for name in weights)
    return ItemLists(items, lists, ListWeights(np.linspace(1.0, 0.4, recency, dtype=np.float32), weights))


def _random_list(rng: np.random.Generator, name: str, items: int, neighbours: int) -> ItemList:
    entries = []
    for item in range(items):
        others = rng.permutation(np.delete(np.arange(items), item))[: rng.integers(0, neighbours + 1)]
        similarities = np.sort(rng.uniform(0.01, 1.0, len(others)).astype(np.float16))[::-1]
        entries.append((others.astype(np.int32), similarities))
    return compressed(name, entries)


def with_lists(bundle: Path, lists: ItemLists, out: Path) -> Path:
    """Copy a bundle into ``out`` with lists; the copy's directory has the name of its new id."""
    directory = out / "unsealed"
    shutil.copytree(bundle, directory)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    old = Manifest.read(directory)
    lists.save(directory / LISTS_DIRECTORY)
    record = ListsRecord.of(lists)
    files = {
        name: FileEntry(sha256=sha256_of(directory / name), size=(directory / name).stat().st_size)
        for name in (*old.files, *record.files)
    }
    parts = {name: getattr(old, name) for name in type(old).model_fields} | {"lists": record, "files": files}
    for sealed in ("format", "id", "content", "created"):
        parts.pop(sealed)
    manifest = Manifest.seal(old.created, **parts)
    (directory / MANIFEST_FILE).write_text(manifest.to_json())
    return directory.rename(out / manifest.id)


def with_new_items(table: ItemTable, rows: list[int], length: float) -> ItemTable:
    """The table, in which items have no training event and a behaviour vector of this length; 0: none at all."""
    layout = table.layout
    vectors = np.asarray(table.vectors, dtype=np.float32).copy()
    slots = {slot.name: vectors[:, layout.slice(slot.name)] for slot in layout.slots}
    popularity, missing = table.popularity.copy(), table.missing_record().copy()
    popularity[rows] = 0
    missing[rows, layout.names.index(BEHAVIOUR)] = ModalityStatus.COLD
    lengths = np.ones(len(table), dtype=np.float32)
    lengths[rows] = length
    if not length:
        slots[BEHAVIOUR][rows] = 0
    present = np.any(slots[BEHAVIOUR] != 0, axis=1)
    stacked = layout.stack(slots, {BEHAVIOUR: np.where(present, lengths, 1.0)}).astype(np.float16)
    return dataclasses.replace(table, vectors=stacked, popularity=popularity, missing=missing)


def bundle_with_new_items(
    table: ItemTable, encoder: Path, out: Path, rows: list[int], *, length: float = 0.5, fresh_share: float = 0.0
) -> Path:
    """Build a flat bundle of :func:`with_new_items`."""
    queries = EvaluationQueries(np.array([[1, 2, 4], [10, 11, -1], [20, -1, -1]]), np.array([5, 12, 21]))
    spec = IndexSpec(threads=1, fresh_share=fresh_share)
    return build_bundle(with_new_items(table, rows, length), encoder, queries, out, spec)
