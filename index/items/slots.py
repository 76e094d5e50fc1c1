"""Defines the slots of an item vector and the layout that orders them.

An item vector is ``x = [x^text ; x^image ; x^behaviour] / sqrt(slots present)`` where every present slot is a unit
vector and an absent slot is zero (docs/method.md, "From VLM vectors to an online encoder"). Only an imputed behaviour
slot may be shorter than a unit vector. A query has the same layout, so a score splits exactly into one contribution per
slot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import ItemTableError

TEXT = "text"
IMAGE = "image"
BEHAVIOUR = "behaviour"
_UNIT = 0.995
"""Vectors of at least this length are unit vectors that were rounded."""


@dataclass(frozen=True)
class Slot:
    """One named part of an item vector.

    Attributes:
        name: ``text``, ``image`` or ``behaviour``; other names are allowed.
        dim: number of components, at least 1.
    """

    name: str
    dim: int


@dataclass(frozen=True)
class SlotLayout:
    """The slots of a vector, in order; immutable and comparable.

    Attributes:
        slots: at least one, with different names.

    Raises:
        ItemTableError: no slot, a repeated name, or a dimension below 1.
    """

    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        names = [slot.name for slot in self.slots]
        if not names:
            raise ItemTableError("a slot layout needs at least one slot, got none")
        if len(set(names)) != len(names):
            raise ItemTableError(f"slot names must differ, got {names}")
        for slot in self.slots:
            if slot.dim < 1:
                raise ItemTableError(f"slot {slot.name!r}: dim must be at least 1, got {slot.dim}")

    @property
    def names(self) -> tuple[str, ...]:
        """Slot names in order."""
        return tuple(slot.name for slot in self.slots)

    @property
    def dim(self) -> int:
        """Σd, the number of components of a whole vector."""
        return sum(slot.dim for slot in self.slots)

    def slice(self, name: str) -> slice:
        """The components of slot ``name``.

        Raises:
            ItemTableError: the layout has no slot of this name.
        """
        start = 0
        for slot in self.slots:
            if slot.name == name:
                return slice(start, start + slot.dim)
            start += slot.dim
        raise ItemTableError(f"unknown slot {name!r}; this layout has {', '.join(self.names)}")

    def weights(self, by_slot: Mapping[str, float]) -> NDArray[np.float32]:
        """Slot weights as a factor per component.

        Args:
            by_slot: weight per slot name, at least 0; any other slot has weight 1.

        Returns:
            (Σd,) float32; multiply a query with it.

        Raises:
            ItemTableError: an unknown slot, or a weight that is negative or not finite.
        """
        weights = np.ones(self.dim, dtype=np.float32)
        for name, weight in by_slot.items():
            if not math.isfinite(weight) or weight < 0:
                raise ItemTableError(f"slot weight of {name!r} must be finite and at least 0, got {weight}")
            weights[self.slice(name)] = weight
        return weights

    def weight_scales(self, present: NDArray[np.bool_], by_slot: Mapping[str, float]) -> NDArray[np.float32]:
        """Factors with which slot weights rank items as if a slot of weight 0 did not exist.

        A stored vector is divided by √(slots present). So in weighed slots an item that lacks a slot of weight 0 would
        score more than one that has it. With these factors a slot counts in that number with its weight, at most 1.

        Args:
            present: (n, slots) bool, columns in the order of ``names``.
            by_slot: weight per slot name, at least 0; any other slot has weight 1.

        Returns:
            (n,) float32, to multiply inner products with a weighed query by: 1 for an item with every slot, and for all
            items if no weight is below 1.
        """
        counted = np.array([min(by_slot.get(name, 1.0), 1.0) for name in self.names])
        slots, weighed = present.sum(axis=1), present @ counted
        whole = len(counted) / counted.sum() if counted.any() else 1.0
        ratios = np.divide(slots, weighed, out=np.full(len(present), whole), where=weighed > 0)
        return np.asarray(np.sqrt(ratios / whole), dtype=np.float32)

    def present(self, vectors: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which slots of each vector are present, that is, not all zero.

        Args:
            vectors: (n, Σd).

        Returns:
            (n, slots) bool, columns in the order of ``names``.
        """
        return np.stack([np.any(vectors[:, self.slice(name)] != 0, axis=1) for name in self.names], axis=1)

    def lengths(self, name: str, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Length of a slot's vectors before the division by sqrt(slots present): 1, 0 if absent, between if imputed.

        Args:
            name: of the slot.
            vectors: (n, Σd) stored vectors.

        Returns:
            (n,) float64.
        """
        part = np.asarray(vectors[:, self.slice(name)], dtype=np.float64)
        return np.asarray(np.linalg.norm(part, axis=1) * np.sqrt(self.present(vectors).sum(axis=1)))

    def stack(
        self,
        slots: Mapping[str, NDArray[np.floating]],
        lengths: Mapping[str, NDArray[np.floating]] | None = None,
    ) -> NDArray[np.float32]:
        """Combine slot vectors into stored vectors: present slots as unit vectors, divided by sqrt(slots present).

        Args:
            slots: (n, d) per slot name; a row of zeros means that the slot is absent. A slot without an entry is absent
                in every row.
            lengths: (n,) per slot name, length above 0 and at most 1 of the slot's vectors; 1 where not given.

        Returns:
            (n, Σd) float32; a row without any slot stays zero, every other row has length 1, or less where a slot has.

        Raises:
            ItemTableError: an unknown slot, a wrong shape, unequal row counts, a non-finite value, or a length out of
                bounds.
        """
        counts = {name: block.shape[0] for name, block in slots.items()}
        if len(set(counts.values())) != 1:
            raise ItemTableError(f"slots need the same number of rows, got {counts or 'no slots'}")
        stored = np.zeros((next(iter(counts.values())), self.dim), dtype=np.float32)
        present = np.zeros(stored.shape[0], dtype=np.float64)
        for name, block in slots.items():
            part = self.slice(name)
            if block.ndim != 2 or block.shape[1] != part.stop - part.start:
                raise ItemTableError(f"slot {name!r} must be (n, {part.stop - part.start}), got {block.shape}")
            if not np.isfinite(block).all():
                row = int(np.argmax(~np.isfinite(block).all(axis=1)))
                raise ItemTableError(f"slot {name!r} has a non-finite value in row {row}")
            norm = np.linalg.norm(block.astype(np.float64), axis=1)
            stored[:, part] = block / np.where(norm > 0, norm, 1.0)[:, None]
            if lengths is not None and name in lengths:
                stored[:, part] *= _checked_lengths(name, lengths[name], len(norm))[:, None]
            present += norm > 0
        stored /= np.sqrt(np.maximum(present, 1.0)).astype(np.float32)[:, None]
        return stored

    def keep_only(self, names: Sequence[str], vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Recompute stored vectors as if only some slots existed ("text only", "image only").

        Args:
            names: slots to keep.
            vectors: (n, Σd) stored vectors.

        Returns:
            (n, Σd) float32, the other slots zero and the kept ones re-scaled; an imputed slot keeps its length.
        """
        slots = {name: np.asarray(vectors[:, self.slice(name)], dtype=np.float32) for name in names}
        if BEHAVIOUR not in slots:
            return self.stack(slots)
        lengths = self.lengths(BEHAVIOUR, vectors)
        shorter = (lengths > 0) & (lengths < _UNIT)
        return self.stack(slots, {BEHAVIOUR: np.where(shorter, lengths, 1.0)})


def _checked_lengths(name: str, lengths: NDArray[np.floating], rows: int) -> NDArray[np.float32]:
    if lengths.shape != (rows,) or not ((lengths > 0) & (lengths <= 1)).all():
        raise ItemTableError(f"lengths of slot {name!r} must be ({rows},), above 0 and at most 1")
    return lengths.astype(np.float32)
