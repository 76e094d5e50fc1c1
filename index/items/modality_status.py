"""Records for each item which slots are missing and why: the missing-modality record.

A zero slot does not show why it is zero. The record distinguishes a picture that could not be read from one that never
existed, and an item too new for a behaviour vector from an absent modality.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from index.errors import ItemTableError
from index.items.slots import BEHAVIOUR, SlotLayout

_BLOCK_ROWS = 65_536


class ModalityStatus(IntEnum):
    """State of one slot of one item."""

    PRESENT = 0
    """The slot has a vector."""
    ABSENT = 1
    """The catalogue has no value for this modality."""
    UNREADABLE = 2
    """The catalogue names a file that could not be read."""
    COLD = 3
    """The item has too little history for a behaviour vector."""
    NOT_FOUND = 4
    """The catalogue names a file that does not exist."""


def derive_missing(layout: SlotLayout, vectors: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Derive a record from the vectors alone: a zero slot is ``COLD`` if it is behaviour, else ``ABSENT``.

    Args:
        layout: the slots.
        vectors: (n, Σd) stored vectors, may be memory-mapped; read in blocks.

    Returns:
        (n, slots) uint8 codes of :class:`ModalityStatus`, columns in the order of the layout.
    """
    reasons = [ModalityStatus.COLD if name == BEHAVIOUR else ModalityStatus.ABSENT for name in layout.names]
    missing = np.zeros((vectors.shape[0], len(reasons)), dtype=np.uint8)
    for start in range(0, vectors.shape[0], _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        missing[part] = np.where(
            layout.present(vectors[part]), ModalityStatus.PRESENT, np.array(reasons, dtype=np.uint8)
        )
    return missing


def check_missing(missing: NDArray[np.uint8], layout: SlotLayout, rows: int) -> None:
    """Check dtype, shape and codes of a record.

    Args:
        missing: the record; must be (rows, slots) uint8 codes of :class:`ModalityStatus`.
        layout: the slots.
        rows: number of items.

    Raises:
        ItemTableError: another shape or dtype, or an unknown code.
    """
    wanted = (rows, len(layout.slots))
    if missing.dtype != np.uint8 or missing.shape != wanted:
        raise ItemTableError(
            f"the missing-modality record must be uint8 of shape {wanted}, got {missing.dtype} {missing.shape}"
        )
    largest = int(missing.max(initial=0))
    if largest > max(ModalityStatus):
        raise ItemTableError(
            f"a code of the missing-modality record must lie in 0 … {max(ModalityStatus)}, got {largest}"
        )


def check_missing_fits(missing: NDArray[np.uint8], layout: SlotLayout, vectors: NDArray[np.floating]) -> None:
    """Check a record against the vectors: ``PRESENT`` exactly where the slot is not zero.

    Args:
        missing: (n, slots) uint8 codes of :class:`ModalityStatus`.
        layout: the slots.
        vectors: (n, Σd) stored vectors, may be memory-mapped; read in blocks.

    Raises:
        ItemTableError: a slot is recorded as present and is zero, or the reverse; the message names the first such row.
    """
    for start in range(0, vectors.shape[0], _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        wrong = (missing[part] == ModalityStatus.PRESENT) != layout.present(vectors[part])
        if wrong.any():
            row, column = (int(position) for position in np.argwhere(wrong)[0])
            state = "zero" if missing[start + row, column] == ModalityStatus.PRESENT else "not zero"
            raise ItemTableError(
                f"row {start + row}: slot {layout.names[column]!r} is {state}, but its missing-modality code is "
                f"{ModalityStatus(missing[start + row, column]).name}"
            )
