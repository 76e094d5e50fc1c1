"""Stores vectors of some items or histories in one file, the unit that survives a killed job."""

import contextlib
import json
import uuid
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.bundle.integrity import sync_directory, sync_file

_DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Shard:
    """Vectors of some items or histories.

    Attributes:
        item_ids: ids of the items or histories.
        vectors: slot name → (n, D) float32, rows as the ids.
        unreadable: item id → reason, for pictures that could not be used.
    """

    item_ids: list[str]
    vectors: dict[str, NDArray[np.float32]]
    unreadable: dict[str, str]

    def only(self, kept: set[str]) -> "Shard":
        """The shard restricted to some ids."""
        rows = [row for row, item_id in enumerate(self.item_ids) if item_id in kept]
        return Shard(
            [self.item_ids[row] for row in rows],
            {name: block[rows] for name, block in self.vectors.items()},
            {item_id: reason for item_id, reason in self.unreadable.items() if item_id in kept},
        )

    def save(self, path: Path) -> None:
        """Write a file durably, under a temporary name of this call first: two workers may make the same shard."""
        partial = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:8]}.part")
        about = json.dumps({"item_ids": self.item_ids, "unreadable": self.unreadable}).encode()
        with partial.open("wb") as file:
            arrays: dict[str, Any] = dict(self.vectors)
            np.savez(file, allow_pickle=False, about=np.frombuffer(about, dtype=np.uint8), **arrays)
        sync_file(partial)
        partial.replace(path)
        sync_directory(path.parent)

    @classmethod
    def read(cls, path: Path) -> "Shard | None":
        """A shard; None if the file is missing or damaged."""
        with contextlib.suppress(*_DAMAGED):
            # np.load leaks the file handle if it opens the file itself and fails to read it.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                about = json.loads(stored["about"].tobytes())
                vectors = {name: stored[name] for name in stored.files if name != "about"}
            ids = [str(item_id) for item_id in about["item_ids"]]
            if vectors and all(block.ndim == 2 and len(block) == len(ids) for block in vectors.values()):
                return cls(ids, vectors, dict(about["unreadable"]))
        return None
