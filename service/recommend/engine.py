"""The engine: encodes histories and searches the index, for one request or for several at once.

`look_up` is the work itself, on a batch. `InlineEngine` calls it in the event loop with a batch of one: encoder and
search take less than a thread hop. Whatever collects requests under load puts the same lookups into bigger batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.search.row_mask import RowMask
from service.request_trace import Stopwatch

_LARGE_K = 200  # the smallest pool of a diverse answer


@dataclass(frozen=True, slots=True, eq=False)
class SearchJob:
    """One request's work for the engine.

    Attributes:
        history: (h,) int64 rows for the encoder, oldest first; None: nothing is encoded.
        query: from the encoder's answer (Σd,) float32, zeros if nothing is encoded, to the query (Σd,) float32.
        k: how many items are wanted.
        allowed: rows that may be found; None: all.
        watch: told about the stages ``encode`` and ``search``.
    """

    history: NDArray[np.int64] | None
    query: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    k: int
    allowed: RowMask | None
    watch: Stopwatch


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """What the engine found.

    Attributes:
        query: (Σd,) float32, slot weights multiplied in.
        rows: (≤ k,) int64, best first.
        scores: (≤ k,) float32, never increasing.
    """

    query: NDArray[np.float32]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Engine(Protocol):
    """Runs a lookup, alone or together with others that wait at the same time."""

    async def look_up(self, bundle: Bundle, lookup: SearchJob) -> SearchResult:
        """Encode and search.

        Raises:
            EncoderError: the encoder fails on this history.
        """
        ...


class InlineEngine:
    """Runs every lookup at once, in the event loop."""

    async def look_up(self, bundle: Bundle, lookup: SearchJob) -> SearchResult:
        """Encode and search; see `Engine.look_up`."""
        return look_up(bundle, [lookup])[0]


def look_up(bundle: Bundle, lookups: Sequence[SearchJob]) -> list[SearchResult]:
    """Encode and search a batch.

    Args:
        bundle: the one bundle that all of them read.
        lookups: at least one; those with equal ``allowed`` (or none) are searched together.

    Returns:
        One result a lookup, in the order given.

    Raises:
        EncoderError: the encoder fails; which history it was is not known.
    """
    encoded = _encode(bundle, lookups)
    queries = np.stack([lookup.query(vector) for lookup, vector in zip(lookups, encoded, strict=True)])
    for lookup in lookups:
        lookup.watch.lap("encode")
    found: list[SearchResult | None] = [None] * len(lookups)
    for members in _alike(lookups):
        k = max(lookups[member].k for member in members)
        hits = bundle.search(
            queries if len(members) == len(lookups) else queries[members], k, allowed=lookups[members[0]].allowed
        )
        real = np.count_nonzero(hits.rows >= 0, axis=1).tolist()
        for place, member in enumerate(members):
            wanted = min(lookups[member].k, real[place])
            found[member] = SearchResult(queries[member], hits.rows[place, :wanted], hits.scores[place, :wanted])
            lookups[member].watch.lap("search")
    return [result for result in found if result is not None]


def _encode(bundle: Bundle, lookups: Sequence[SearchJob]) -> NDArray[np.float32]:
    """(B, Σd) float32; zeros where nothing is to be encoded."""
    histories = [lookup.history for lookup in lookups if lookup.history is not None]
    if len(histories) == len(lookups):
        return bundle.encode(histories)
    encoded = np.zeros((len(lookups), bundle.layout.dim), dtype=np.float32)
    if histories:
        encoded[[lookup.history is not None for lookup in lookups]] = bundle.encode(histories)
    return encoded


def _alike(lookups: Sequence[SearchJob]) -> list[list[int]]:
    """Positions grouped so that each group is one search: the very same bitmap, and a k of about the same size.

    A group is searched with its largest k, so those that want much are kept from those that want little. A large k is
    searched as it is: an approximate index may find other rows with a larger one, and pages that are cut from the same
    pool would repeat items.
    """
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for position, lookup in enumerate(lookups):
        is_large = lookup.k >= _LARGE_K
        size = lookup.k if is_large else lookup.k.bit_length()
        groups.setdefault((id(lookup.allowed), size, is_large), []).append(position)
    return list(groups.values())
