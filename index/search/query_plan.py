"""Plans a search: the number of candidates, the effort, and the cheapest of three paths.

The plan is pure arithmetic on sizes, without FAISS. The unit of cost is one row of a sequential scan. Costs were
measured on fp16 vectors of 192 dimensions with 100,000 to 1,000,000 rows (docs/experiments/search.md); only their
ratios matter.

The cheapest of these paths is taken:

- ``gather`` reads only the allowed rows and multiplies them; exact, the cheapest for narrow filters;
- ``scan`` reads every row except those that a bitmap excludes; exact up to rounding, for filters of medium width;
- ``index`` takes more candidates from the index than needed and drops the excluded ones, for wide filters. The allowed
  rows among the best candidates are the best allowed rows, so enough of them prove the result complete. If too few
  remain, because the filter excludes the rows near the query, an exact path is used instead. A bitmap inside the graph
  or the lists costs as much and gives no such proof: it returns k rows, but not the nearest.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.items.slots import SlotLayout

IndexKind = Literal["flat", "hnsw", "ivf"]

OVER_FETCH = 16  # candidates beyond k, so that re-scoring can correct the rounding of the index
SCAN = 0  # the effort of a scan of every row

SPARE = OVER_FETCH // 2  # allowed candidates beyond k that prove an over-fetch complete

_ROWS_PER_BEAM_STEP = 250
_ROWS_PER_LISTED_ROW = 1.8
_ROWS_PER_CENTROID = 2.0
_ROWS_PER_CANDIDATE = 45.0
_ROWS_PER_GATHERED_ROW = 8.0
_ROWS_PER_SKIPPED_ROW = 0.1
_ROWS_PER_ALLOWED_ROW = 3.0  # of a scan with a bitmap, which reads memory at random …
_ROWS_PER_FAR_ROW = 12.0  # … and costs more if the vectors exceed the processor's cache
_CACHED_ROWS = 100_000
_MOST_SCANS_PER_BITMAP = 2.5
_MARGIN = 1.5  # over-fetch beyond what an average filter needs
# Effort for equal recall grows with the number of candidates to this power; the build measures a better value.
GROWTH = {"flat": 0.0, "hnsw": 0.75, "ivf": 0.5}


@dataclass(frozen=True)
class Effort:
    """Search effort by the skew of the query's slots, as measured at the build.

    A request re-weights slots by scaling parts of the query. The lists and the graph were built for plain queries, and
    the same effort has a lower recall if one slot dominates the query (IVF on 1M items: .965 plain, .763 with the image
    slot alone). The skew is computed from the query: half the L1 distance between its shares of squared length per slot
    and those of a typical plain query. 0 is typical; near 1 one slot has all of the length.

    Attributes:
        typical: share of squared length per slot of plain queries, sums to 1.
        bands: (skew, effort) pairs, skew ascending and ending at 1; a query takes the effort of the first band whose
            skew is at least its own. Effort is nprobe (IVF) or efSearch (HNSW) at ``per_k`` candidates; 0 scans.
        per_k: the number of candidates at which the effort was measured.
        growth: effort for equal recall grows with the number of candidates to this power.
    """

    typical: tuple[float, ...]
    bands: tuple[tuple[float, int], ...]
    per_k: int
    growth: float = 1.0

    def of(self, queries: NDArray[np.float32], layout: SlotLayout) -> NDArray[np.int64]:
        """The effort of each query, (B,) int64.

        Args:
            queries: (B, Σd) float32.
            layout: the slots.
        """
        edges, efforts, typical = self._arrays
        if efforts.shape[0] == 1:
            return np.repeat(efforts, queries.shape[0])
        return efforts[np.searchsorted(edges, skew_of(queries, layout, typical), side="left")]

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """The inner edges of the bands, their efforts, the typical shares."""
        edges = np.array([skew for skew, _ in self.bands[:-1]])
        return edges, np.array([effort for _, effort in self.bands], dtype=np.int64), np.array(self.typical)


def slot_shares(queries: NDArray[np.float32], layout: SlotLayout) -> NDArray[np.float64]:
    """Share of a query's squared length per slot.

    Args:
        queries: (B, Σd) float32.
        layout: the slots.

    Returns:
        (B, slots) float64; rows sum to 1, a zero query has equal shares.
    """
    energy = np.empty((queries.shape[0], len(layout.slots)))
    start = 0
    for position, slot in enumerate(layout.slots):
        part = queries[:, start : start + slot.dim]
        energy[:, position] = np.vecdot(part, part)
        start += slot.dim
    total = energy.sum(axis=1, keepdims=True)
    if total.all():
        shares: NDArray[np.float64] = energy / total
        return shares
    return np.where(total > 0, energy / np.where(total > 0, total, 1.0), 1.0 / len(layout.slots))


def skew_of(queries: NDArray[np.float32], layout: SlotLayout, typical: NDArray[np.float64]) -> NDArray[np.float64]:
    """Skew of each query, see :class:`Effort`.

    Args:
        queries: (B, Σd) float32.
        layout: the slots.
        typical: (slots,) float64 typical shares.

    Returns:
        (B,) float64, 0 … 1.
    """
    distance: NDArray[np.float64] = np.abs(slot_shares(queries, layout) - typical).sum(axis=1) / 2
    return distance


@dataclass(frozen=True)
class SearchStep:
    """One planned search for a group of queries.

    Attributes:
        path: ``gather``, ``scan`` or ``index``, see the module's description.
        fetch: number of candidates to take before re-scoring, at least 1.
        effort: nprobe or efSearch for ``index``, else :data:`SCAN`.
    """

    path: Literal["gather", "scan", "index"]
    fetch: int
    effort: int


@dataclass(frozen=True)
class IndexCapabilities:
    """Kind, size and limits of a loaded index, on which :func:`plan` bases its choice.

    Attributes:
        kind: flat, hnsw or ivf.
        rows: number of rows in the index.
        lists: number of inverted lists of IVF; 0 for other kinds.
        largest_fetch: cap on candidates and on nprobe of ``index`` (2048 on the GPU); None for no cap.
        speedup: speed of ``index`` relative to the CPU; ``gather`` and ``scan`` always run on the CPU.
    """

    kind: IndexKind
    rows: int
    lists: int = 0
    largest_fetch: int | None = None
    speedup: float = 1.0


def plan(
    capabilities: IndexCapabilities, k: int, allowed: int, effort: int, level: Effort, removed: int = 0
) -> SearchStep:
    """Choose the path of one search.

    Args:
        capabilities: those of the loaded index.
        k: number of results, at least 1.
        allowed: number of rows that may be found, 1 … ``capabilities.rows``.
        effort: effort for k results without a filter, from ``level``; 0 scans.
        level: how effort grows with the number of candidates.
        removed: number of rows excluded one by one, all of which may be nearer than any allowed row.

    Returns:
        The step. If an ``index`` step under a filter leaves fewer than min(k + :data:`SPARE`, ``allowed``) allowed
        candidates, :func:`exact_step` must be used instead.
    """
    exact_cost, exact = _exact(capabilities, k, allowed)
    fetch = min(k + OVER_FETCH, allowed)
    if allowed < capabilities.rows:
        share = min(1.0, (allowed + removed) / capabilities.rows)
        fetch = min(math.ceil(_MARGIN * fetch / share) + removed, capabilities.rows)
    through_index = _through_index(capabilities, fetch, effort, level)
    if through_index is None:
        return exact
    cost, step = through_index
    return step if cost <= exact_cost else exact


def exact_step(capabilities: IndexCapabilities, k: int, allowed: int) -> SearchStep:
    """The cheaper of ``gather`` and ``scan``; arguments as of :func:`plan`."""
    return _exact(capabilities, k, allowed)[1]


def _exact(capabilities: IndexCapabilities, k: int, allowed: int) -> tuple[float, SearchStep]:
    fetch = min(k + OVER_FETCH, allowed)
    scan = float(capabilities.rows)
    if allowed < capabilities.rows:
        jump = _ROWS_PER_ALLOWED_ROW if capabilities.rows <= _CACHED_ROWS else _ROWS_PER_FAR_ROW
        scan = min(
            _ROWS_PER_SKIPPED_ROW * capabilities.rows + jump * allowed, _MOST_SCANS_PER_BITMAP * capabilities.rows
        )
    gather = _ROWS_PER_GATHERED_ROW * allowed
    cost = min(scan, gather) + _ROWS_PER_CANDIDATE * fetch
    return cost, SearchStep("gather" if gather < scan else "scan", fetch, SCAN)


def _through_index(
    capabilities: IndexCapabilities, fetch: int, effort: int, level: Effort
) -> tuple[float, SearchStep] | None:
    """Cost and step of the ``index`` path; None if it is impossible or no better than a scan."""
    if capabilities.largest_fetch is not None and fetch > capabilities.largest_fetch:
        return None
    cost = _ROWS_PER_CANDIDATE * fetch
    if capabilities.kind == "flat":
        return (capabilities.rows + cost) / capabilities.speedup, SearchStep("index", fetch, SCAN)
    deeper = math.ceil(effort * max(1.0, fetch / level.per_k) ** level.growth)
    if capabilities.kind == "hnsw":
        beam = max(fetch, deeper)
        cost += _ROWS_PER_BEAM_STEP * beam
        return None if effort == SCAN else (cost / capabilities.speedup, SearchStep("index", fetch, beam))
    nprobe = capabilities.lists if effort == SCAN else min(deeper, capabilities.lists)
    if capabilities.largest_fetch is None and nprobe == capabilities.lists:
        return None  # a scan does the same
    if capabilities.largest_fetch is not None and nprobe > capabilities.largest_fetch:
        return None
    cost += (
        _ROWS_PER_CENTROID * capabilities.lists + _ROWS_PER_LISTED_ROW * nprobe * capabilities.rows / capabilities.lists
    )
    return cost / capabilities.speedup, SearchStep("index", fetch, nprobe)
