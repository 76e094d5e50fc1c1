"""Scales the items that lack slots where a request weighs a slot below 1.

A stored vector is divided by the root of its number of slots. With weight 0 for behaviour, an item without a behaviour
vector would so score √(3/2) = 1.22 times as much as one with it for the same text and picture. Therefore a slot counts
with its weight, at most 1, in that number (`index.items.slots.SlotLayout.weight_scales`). Items with the same scale are
searched together, with the query times the scale: each search stays one of inner products, and exact with any index.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.filters.filter_cache import CACHE_BYTES
from index.items.modality_status import ModalityStatus
from index.search.row_mask import RowMask
from index.search.scoring import joined
from service.recommend.engine import SearchJob, SearchResult

_INLINE_ITEMS = 250_000  # a few milliseconds; the event loop does nothing else meanwhile
_BLOCK_ROWS = 65_536
_FEWEST_KEPT = 4  # masks, however large: those of one request
_MaskKey = tuple[int, tuple[int, ...]]  # the address of a filter's mask, and kinds of items
_T = TypeVar("_T")


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


class _ItemSlots:
    """Which slots the items of a bundle have, with masks of items of the same slots.

    Args:
        bundle: read whole.

    Attributes:
        present: (c, slots) bool, the different kinds of items that may be found.
    """

    def __init__(self, bundle: Bundle) -> None:
        numbers = np.arange(len(bundle.layout.slots), dtype=np.uint32)
        codes = np.zeros(len(bundle), dtype=np.uint32)
        for start in range(0, len(bundle), _BLOCK_ROWS):
            rows = np.arange(start, min(start + _BLOCK_ROWS, len(bundle)))
            codes[rows] = _present(bundle, rows) @ (np.uint32(1) << numbers)
        kinds, of_rows = np.unique(codes, return_inverse=True)
        self._indexed, self._kinds = bundle.indexed, np.unique(of_rows[bundle.indexed])
        self._kind_of_rows = of_rows.astype(np.min_scalar_type(len(kinds)))
        self._all_kinds = len(kinds)
        self.present = (kinds[self._kinds, None] >> numbers & 1).astype(np.bool_)
        # The filter stays with its mask, so that its address is that of no other filter.
        self._kept: OrderedDict[_MaskKey, tuple[RowMask | None, RowMask]] = OrderedDict()
        self._bytes = 0

    def made(self, allowed: RowMask | None, kinds: tuple[int, ...]) -> RowMask:
        """The allowed items of some kinds; any number of threads may call it.

        Args:
            allowed: the rows that may be found; None: all.
            kinds: rows of ``present``.
        """
        wanted = np.zeros(self._all_kinds, dtype=np.bool_)
        wanted[self._kinds[list(kinds)]] = True
        members = wanted[self._kind_of_rows]
        return RowMask.of(members, self._indexed) if allowed is None else allowed & members

    def kept(self, allowed: RowMask | None, kinds: tuple[int, ...]) -> RowMask | None:
        """What was made before and is kept; in the event loop alone."""
        found = self._kept.get((id(allowed), kinds))
        if found is None:
            return None
        self._kept.move_to_end((id(allowed), kinds))
        return found[1]

    def keep(self, allowed: RowMask | None, kinds: tuple[int, ...], mask: RowMask) -> None:
        """Keep what was made, at the cost of what was used least recently; in the event loop alone."""
        if self.kept(allowed, kinds) is not None:  # another request made it meanwhile
            return
        self._kept[(id(allowed), kinds)] = (allowed, mask)
        self._bytes += mask.nbytes
        while self._bytes > CACHE_BYTES and len(self._kept) > _FEWEST_KEPT:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes


class SlotScales:
    """The groups of items that slot weights scale alike; to be used in the event loop."""

    def __init__(self) -> None:
        self._slots: WeakKeyDictionary[Bundle, _ItemSlots] = WeakKeyDictionary()

    async def groups(
        self, bundle: Bundle, allowed: RowMask | None, slot_weights: Mapping[str, float]
    ) -> list[ScaledRows]:
        """Divide the allowed rows by scale; the group of scale 1, where there is one, comes first.

        Args:
            bundle: of the items.
            allowed: the rows that may be found; None: all.
            slot_weights: by slot name, at least 0.

        Returns:
            At least one group; groups without a row are left out. What reads all items is done once, in another thread
            if they are many.
        """
        slots = self._slots.get(bundle)
        if slots is None:
            slots = self._slots[bundle] = await _whole(bundle, partial(_ItemSlots, bundle))
        scales = bundle.layout.weight_scales(slots.present, slot_weights)
        if (scales == 1).all():
            return [ScaledRows(1.0, allowed)]
        groups = []
        for scale in sorted(set(scales.tolist()), key=lambda scale: (scale != 1, scale)):
            kinds = tuple(np.flatnonzero(scales == scale).tolist())
            mask = slots.kept(allowed, kinds)
            if mask is None:
                mask = await _whole(bundle, partial(slots.made, allowed, kinds))
                slots.keep(allowed, kinds, mask)
            groups.append(ScaledRows(scale, mask))
        return [group for group in groups if group.allowed is None or group.allowed.count] or groups[:1]


async def _whole(bundle: Bundle, work: Callable[[], _T]) -> _T:
    """Do what reads all items of a bundle, in another thread if they are many."""
    return work() if len(bundle) <= _INLINE_ITEMS else await asyncio.to_thread(work)


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
