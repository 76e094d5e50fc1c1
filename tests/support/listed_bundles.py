"""Makes bundles with item-to-item lists out of bundles without."""

import shutil
from pathlib import Path

import numpy as np

from index.bundle.integrity import sha256_of
from index.bundle.manifest import LISTS_DIRECTORY, MANIFEST_FILE, FileEntry, ListsRecord, Manifest
from index.lists.item_lists import ItemList, ItemLists, ListWeights, compressed


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
