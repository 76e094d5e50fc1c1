"""Probes: held-out histories with their targets, as rows of one item table.

They travel in the bundle and feed its recall report, warm-up, parity checks, shadow comparison and the sample users.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.errors import ItemTableError


@dataclass(frozen=True)
class Probes:
    """Held-out histories.

    Attributes:
        histories: (p, L) int64 rows, oldest first, right-padded with −1.
        targets: (p,) int64, the row really taken next.

    Raises:
        ItemTableError: wrong shapes, an empty history, or padding that is not on the right.
    """

    histories: NDArray[np.int64]
    targets: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.histories.ndim != 2 or self.targets.shape != (self.histories.shape[0],):
            raise ItemTableError(
                f"probes need histories (p, L) and targets (p,), got {self.histories.shape} and {self.targets.shape}"
            )
        filled = self.histories >= 0
        if self.histories.size and not filled[:, 0].all():
            raise ItemTableError("every probe needs a history of at least one item")
        if self.histories.size and (filled[:, 1:] & ~filled[:, :-1]).any():
            raise ItemTableError("probe histories must be right-padded with -1")

    def __len__(self) -> int:
        return int(self.targets.shape[0])

    def history(self, probe: int) -> NDArray[np.int64]:
        """The rows of one history, oldest first, without padding."""
        rows: NDArray[np.int64] = self.histories[probe]
        return rows[rows >= 0]

    def check_rows(self, items: int) -> None:
        """Hold every row to 0 ≤ row < items.

        Raises:
            ItemTableError: a row lies outside the item table.
        """
        largest = max(int(self.histories.max(initial=-1)), int(self.targets.max(initial=-1)))
        if largest >= items or int(self.targets.min(initial=0)) < 0:
            raise ItemTableError(f"probe rows must lie in 0 … {items - 1}, got {largest}")

    def save(self, path: Path) -> None:
        """Write ``probes.npz``."""
        np.savez(path, histories=self.histories, targets=self.targets)

    @classmethod
    def load(cls, path: Path) -> "Probes":
        """Read ``probes.npz``.

        Raises:
            ItemTableError: the file is missing, unreadable or breaks a rule.
        """
        try:
            # np.load leaves a file open that it opened itself and cannot read.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["histories"].astype(np.int64), arrays["targets"].astype(np.int64))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ItemTableError(f"{path}: probes cannot be read ({error}); build the item table again") from error
