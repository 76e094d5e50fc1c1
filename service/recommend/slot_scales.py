"""Scales the items that lack slots where a request weighs a slot below 1.

A stored vector is divided by the root of its number of slots. With weight 0 for behaviour, an item without a behaviour
vector would so score √(3/2) = 1.22 times as much as one with it for the same text and picture. Therefore a slot counts
with its weight, at most 1, in that number (`index.items.slots.SlotLayout.weight_scales`). Items with the same scale are
searched together, with the query times the scale: each search stays one of inner products, and exact with any index.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.items.modality_status import ModalityStatus
from index.search.row_mask import RowMask
from index.search.scoring import joined
from service.recommend.engine import SearchJob, SearchResult

_INLINE_ITEMS = 250_000  # a few milliseconds
_BLOCK_ROWS = 65_536
_MOST_MASKS = 8  # masks whose groups are kept; one group of a million rows takes 2 MB
_MOST_GROUPS = 16  # of a mask, and of a bundle; unusual weights divide the same kinds of items otherwise


def weighs_below_one(slot_weights: Mapping[str, float] | None) -> bool:
    """Whether the weights of a request scale items that lack slots."""
    return any(weight < 1 for weight in (slot_weights or {}).values())


def scales_of(bundle: Bundle, rows: NDArray[np.int64], slot_weights: Mapping[str, float]) -> NDArray[np.float32]:
    """The factor on the contributions of each item's slots, (k,) float32; contributions of lists have none.

    Args:
        bundle: of the items.
        rows: (k,) int64.
        slot_weights: by slot name, at least 0.
    """
    return bundle.layout.weight_scales(_present(bundle, rows), slot_weights)


@dataclass(frozen=True, slots=True, eq=False)
class ScaledRows:
    """Items that are scaled alike.

    Attributes:
        scale: factor on the query.
        allowed: the rows that may be found; None: all.
    """

    scale: float
    allowed: RowMask | None

    def job(self, job: SearchJob) -> SearchJob:
        """The first search of a request, among these rows."""
        query = job.query
        return replace(job, allowed=self.allowed, query=lambda encoded, read: query(encoded, read) * self.scale)

    def next_job(self, job: SearchJob, query: NDArray[np.float32]) -> SearchJob:
        """A further search of the same request, among these rows.

        Args:
            job: of the request.
            query: (Σd,) float32, unscaled.
        """
        scaled = query * np.float32(self.scale)
        return replace(job, history=None, rows=None, allowed=self.allowed, query=lambda *_: scaled)


@dataclass(frozen=True, slots=True, eq=False)
class _ItemSlots:
    """Which slots the items of a bundle have.

    Attributes:
        codes: (n,) uint32, one bit for each slot, the first slot lowest.
        kinds: (c,) uint32, the different codes of the rows that may be found.
        present: (c, slots) bool, the same as slots.
    """

    codes: NDArray[np.uint32]
    kinds: NDArray[np.uint32]
    present: NDArray[np.bool_]
    _groups: dict[tuple[int, ...], NDArray[np.bool_]] = field(default_factory=dict)

    def group(self, kinds: tuple[int, ...]) -> NDArray[np.bool_]:
        """(n,) bool: the items of some kinds; kept, as it is the same for every filter."""
        if kinds not in self._groups:
            if len(self._groups) >= _MOST_GROUPS:
                self._groups.clear()
            self._groups[kinds] = np.isin(self.codes, kinds)
        return self._groups[kinds]

    @classmethod
    def of(cls, bundle: Bundle) -> "_ItemSlots":
        numbers = np.arange(len(bundle.layout.slots), dtype=np.uint32)
        codes = np.zeros(len(bundle), dtype=np.uint32)
        for start in range(0, len(bundle), _BLOCK_ROWS):
            rows = np.arange(start, min(start + _BLOCK_ROWS, len(bundle)))
            codes[rows] = _present(bundle, rows) @ (np.uint32(1) << numbers)
        kinds = np.unique(codes[bundle.indexed])
        return cls(codes, kinds, (kinds[:, None] >> numbers & 1).astype(np.bool_))


class SlotScales:
    """The groups of items that slot weights scale alike; to be used in the event loop."""

    def __init__(self) -> None:
        self._slots: WeakKeyDictionary[Bundle, _ItemSlots] = WeakKeyDictionary()
        self._masks: WeakKeyDictionary[Bundle | RowMask, dict[tuple[int, ...], RowMask]] = WeakKeyDictionary()

    async def groups(
        self, bundle: Bundle, allowed: RowMask | None, slot_weights: Mapping[str, float]
    ) -> list[ScaledRows]:
        """Divide the allowed rows by scale; the group of scale 1, where there is one, comes first.

        Args:
            bundle: of the items.
            allowed: the rows that may be found; None: all.
            slot_weights: by slot name, at least 0.

        Returns:
            At least one group; groups without a row are left out. The slots of all items are read once for a bundle, in
            another thread if they are many.
        """
        slots = self._slots.get(bundle)
        if slots is None:
            inline = len(bundle) <= _INLINE_ITEMS
            slots = _ItemSlots.of(bundle) if inline else await asyncio.to_thread(_ItemSlots.of, bundle)
            self._slots[bundle] = slots
        scales = bundle.layout.weight_scales(slots.present, slot_weights)
        if (scales == 1).all():
            return [ScaledRows(1.0, allowed)]
        ordered = sorted(set(scales.tolist()), key=lambda scale: (scale != 1, scale))
        groups = [
            ScaledRows(scale, self._mask(bundle, allowed, slots, tuple(slots.kinds[scales == scale].tolist())))
            for scale in ordered
        ]
        return [group for group in groups if group.allowed is None or group.allowed.count] or groups[:1]

    def _mask(self, bundle: Bundle, allowed: RowMask | None, slots: _ItemSlots, kinds: tuple[int, ...]) -> RowMask:
        of = bundle if allowed is None else allowed
        known = self._masks.get(of)
        if known is None:
            if len(self._masks) >= _MOST_MASKS:
                self._masks.clear()
            known = self._masks[of] = {}
        if kinds not in known:
            if len(known) >= _MOST_GROUPS:
                known.clear()
            members = slots.group(kinds)
            known[kinds] = RowMask.of(members, bundle.indexed) if allowed is None else allowed & members
        return known[kinds]


def best_of_groups(query: NDArray[np.float32], found: Sequence[SearchResult], k: int) -> SearchResult:
    """The best rows of several groups.

    Args:
        query: (Σd,) float32, unscaled.
        found: the results in the groups.
        k: at least 1.
    """
    rows, scores = np.concatenate([part.rows for part in found]), np.concatenate([part.scores for part in found])
    order = np.lexsort((rows, -scores))[:k]
    return SearchResult(query, rows[order], scores[order], joined(*(part.vectors for part in found)))


def _present(bundle: Bundle, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(k, slots) bool: the slots that items have, imputed ones among them."""
    codes = bundle.missing[rows]
    present = codes == ModalityStatus.PRESENT
    imputed = bundle.imputed(rows)
    return np.asarray(present | (imputed[:, None] & (codes == ModalityStatus.COLD)))
