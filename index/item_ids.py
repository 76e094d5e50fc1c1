"""External item ids ↔ dense rows."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from index.errors import ItemTableError

MAX_ID_BYTES = 256

_FORBIDDEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")  # control characters and lone surrogates


def check_item_id(item_id: str) -> None:
    """Hold an id to the contract: 1 to 256 bytes of UTF-8, no control characters.

    Raises:
        ItemTableError: the id breaks the rule.
    """
    size = len(item_id.encode("utf-8", "surrogatepass"))
    if not 1 <= size <= MAX_ID_BYTES:
        raise ItemTableError(f"an item id must have 1 to {MAX_ID_BYTES} bytes, got {size}: {item_id[:40]!r}")
    if _FORBIDDEN.search(item_id):
        raise ItemTableError(f"an item id must not hold control characters, got {item_id!r}")


class ItemIds:
    """An immutable two-way map between item ids and rows 0 … n − 1.

    Raises:
        ItemTableError: an id is repeated or breaks the rule of :func:`check_item_id`.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids = tuple(ids)
        for item_id in self._ids:
            check_item_id(item_id)
        self._rows = {item_id: row for row, item_id in enumerate(self._ids)}
        if len(self._rows) != len(self._ids):
            seen: set[str] = set()
            repeated = next(i for i in self._ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise ItemTableError(f"item ids must be unique, {repeated!r} is repeated")

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    def row(self, item_id: str) -> int | None:
        """The row of an id, or None if it is unknown."""
        return self._rows.get(item_id)

    def id(self, row: int) -> str:
        """The id in a row (0 ≤ row < n)."""
        return self._ids[row]

    def rows(self, ids: Sequence[str]) -> tuple[NDArray[np.int64], list[str]]:
        """Rows of the known ids, in order, and the ids that are unknown.

        Returns:
            (known,) int64 rows and the unknown ids, each in the order given.
        """
        found = [(item_id, self._rows.get(item_id)) for item_id in ids]
        known = np.array([row for _, row in found if row is not None], dtype=np.int64)
        return known, [item_id for item_id, row in found if row is None]
