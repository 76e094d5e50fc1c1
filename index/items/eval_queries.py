"""Stores evaluation queries: held-out histories with their target items, as rows of one item table.

A bundle carries them for its recall report, parity checks, the shadow comparison and the sample users.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import ItemTableError
from index.items.mapped_array import view_array


@dataclass(frozen=True)
class EvaluationQueries:
    """Held-out histories and the item that followed each.

    Attributes:
        histories: (p, L) int64 rows, oldest first, right-padded with −1.
        targets: (p,) int64 row of the item that followed.

    Raises:
        ItemTableError: wrong shapes, an empty history, or padding that is not on the right.
    """

    histories: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.histories.ndim != 2 or self.targets.shape != (self.histories.shape[0],):
            raise ItemTableError(
                "evaluation queries need histories (p, L) and targets (p,), got "
                f"{self.histories.shape} and {self.targets.shape}"
            )
        filled = self.histories >= 0
        if self.histories.size and not filled[:, 0].all():
            raise ItemTableError("every evaluation query needs a history of at least one item")
        if self.histories.size and (filled[:, 1:] & ~filled[:, :-1]).any():
            raise ItemTableError("histories of evaluation queries must be right-padded with -1")

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def history(self, query: int) -> NDArray[np.int64]:
        """The history of one query: (l,) int64 rows, oldest first, without padding."""
        rows: NDArray[np.int64] = self.histories[query]
        return rows[rows >= 0]

    def check_rows(self, items: int) -> None:
        """Check that every row lies in 0 … items − 1.

        Raises:
            ItemTableError: a row lies outside the item table.
        """
        largest = max(int(self.histories.max(initial=-1)), int(self.targets.max(initial=-1)))
        if largest >= items or int(self.targets.min(initial=0)) < 0:
            raise ItemTableError(f"rows of evaluation queries must lie in 0 … {items - 1}, got {largest}")

    def save(self, path: Path) -> None:
        """Write ``probes.npz``."""
        histories, targets = (np.ascontiguousarray(array, dtype=np.int64) for array in (self.histories, self.targets))
        np.savez(path, histories=histories, targets=targets)

    @classmethod
    def load(cls, path: Path) -> "EvaluationQueries":
        """Read ``probes.npz``.

        Raises:
            ItemTableError: the file is missing, unreadable or breaks a rule.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                histories, targets = (_member(archive, f"{name}.npy") for name in ("histories", "targets"))
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise ItemTableError(
                f"{path}: evaluation queries cannot be read ({error}); build the item table again"
            ) from error
        return cls(histories, targets)


def _member(archive: zipfile.ZipFile, name: str) -> NDArray[np.int64]:
    """One array of the archive; raises ItemTableError unless it holds 64-bit integers."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # a few bytes could become gigabytes
        raise ItemTableError(f"{name} must be stored without compression; build the item table again")
    array = view_array(archive.read(name))
    if array.dtype != np.int64:
        raise ItemTableError(f"{name} must hold 64-bit integers, got {array.dtype}; build the item table again")
    return array
