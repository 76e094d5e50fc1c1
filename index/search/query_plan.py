"""How one search is carried out: how many candidates, how much effort, and which of three paths costs the least.

Pure arithmetic on sizes; nothing here knows FAISS. Costs are counted in rows of a plain sequential scan, as measured on
fp16 vectors of 192 dimensions with 100,000 to 1,000,000 rows (docs/experiments/search.md); only their ratios matter.

A filter is met in one of these ways, whichever is the cheapest:

- narrow: the allowed rows are read and multiplied, exact (``gather``);
- middling: every row is looked at, those that a bitmap forbids are skipped, exact up to rounding (``scan``);
- wide: the index gives more candidates than needed and the forbidden ones are dropped (``index``). The allowed rows
  among its best are the best allowed rows, so enough of them prove that the filter has hidden nothing; when too few are
  left, because the filter forbids what is near the query, an exact path answers instead. A bitmap inside graph or lists
  costs no less and has no such proof: it gives k rows, but not the nearest ones.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.items.slots import SlotLayout

IndexKind = Literal["flat", "hnsw", "ivf"]

OVER_FETCH = 16  # candidates beyond k, so that re-scoring can mend the index's rounding
SCAN = 0  # the effort that means: look at every row

SPARE = OVER_FETCH // 2  # of those, the ones that must be left of an over-fetch to prove it sufficient

_ROWS_PER_BEAM_STEP = 250
_ROWS_PER_LISTED_ROW = 1.8
_ROWS_PER_CENTROID = 2.0
_ROWS_PER_CANDIDATE = 45.0
_ROWS_PER_GATHERED_ROW = 8.0
_ROWS_PER_SKIPPED_ROW = 0.1
_ROWS_PER_ALLOWED_ROW = 3.0  # of a scan with a bitmap, which jumps about in memory …
_ROWS_PER_FAR_ROW = 12.0  # … which costs more when that is larger than the processor's cache
_CACHED_ROWS = 100_000
_MOST_SCANS_PER_BITMAP = 2.5
_MARGIN = 1.5  # over-fetch beyond what an average filter needs
# Effort for equal recall grows as the number of candidates to this power, until the build has measured it.
GROWTH = {"flat": 0.0, "hnsw": 0.75, "ivf": 0.5}


@dataclass(frozen=True)
class Effort:
    """Search effort by the skew of the query's slots, as the build measured it.

    A request re-weights slots by scaling parts of the query. The lists and the graph were built for plain queries, and
    with most of a query in one slot the same effort finds less (IVF on 1M items: recall .965 plain, .763 with the
    image slot alone). The skew is visible in the query itself: half the L1 distance between its shares of squared
    length per slot and those of a typical plain query; 0 is typical, towards 1 everything sits in one slot.

    Attributes:
        typical: share of squared length per slot of plain queries, sums to 1.
        bands: (skew, effort) pairs, skew ascending and ending at 1; a query takes the effort of the first band whose
            skew is at least its own. Effort is nprobe (IVF) or efSearch (HNSW) at ``per_k`` candidates; 0 scans.
        per_k: the number of candidates that the effort was measured with.
        growth: effort for equal recall grows as the number of candidates to this power.
    """

    typical: tuple[float, ...]
    bands: tuple[tuple[float, int], ...]
    per_k: int
    growth: float = 1.0

    def of(self, queries: NDArray[np.float32], layout: SlotLayout) -> NDArray[np.int64]:
        """(B,) int64 effort per query."""
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
    """(B, slots) float64 share of squared length per slot; rows sum to 1, a zero query spreads evenly."""
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
    """(B,) float64 skew, 0 … 1, of each query against the typical shares (see :class:`Effort`)."""
    distance: NDArray[np.float64] = np.abs(slot_shares(queries, layout) - typical).sum(axis=1) / 2
    return distance


@dataclass(frozen=True)
class Step:
    """What to do for one group of queries.

    Attributes:
        path: ``gather`` reads the allowed rows and multiplies (exact); ``scan`` lets the index look at every row that a
            bitmap allows (exact up to its rounding); ``index`` asks it as it was built, with no filter.
        fetch: candidates to take before they are scored again, at least 1.
        effort: nprobe or efSearch under ``index``, else :data:`SCAN`.
    """

    path: Literal["gather", "scan", "index"]
    fetch: int
    effort: int


@dataclass(frozen=True)
class Engine:
    """What a loaded index can do; :func:`plan` decides by it.

    Attributes:
        kind: flat, hnsw or ivf.
        rows: rows in the index.
        lists: inverted lists of IVF; 0 otherwise.
        largest_fetch: cap on candidates and on nprobe of ``index`` (2048 on the GPU), None for no cap.
        advantage: how many times faster than a CPU ``index`` is; ``gather`` and ``scan`` are always the CPU's.
    """

    kind: IndexKind
    rows: int
    lists: int = 0
    largest_fetch: int | None = None
    advantage: float = 1.0


def plan(engine: Engine, k: int, allowed: int, effort: int, level: Effort, taken: int = 0) -> Step:
    """Choose the path of one search.

    Args:
        engine: the loaded index.
        k: results wanted, at least 1.
        allowed: rows that may be found, 1 … ``engine.rows``.
        effort: effort for plain k and no filter, from ``level``; 0 scans.
        level: how effort grows with the number of candidates.
        taken: rows forbidden one by one, which may all be nearer than any allowed one.

    Returns:
        The step. After ``index`` under a filter, fewer than min(k + :data:`SPARE`, ``allowed``) allowed candidates
        mean that :func:`exact_step` has to answer.
    """
    exact_cost, exact = _exact(engine, k, allowed)
    fetch = min(k + OVER_FETCH, allowed)
    if allowed < engine.rows:
        share = min(1.0, (allowed + taken) / engine.rows)
        fetch = min(math.ceil(_MARGIN * fetch / share) + taken, engine.rows)
    found = _through_index(engine, fetch, effort, level)
    if found is None:
        return exact
    cost, step = found
    return step if cost <= exact_cost else exact


def exact_step(engine: Engine, k: int, allowed: int) -> Step:
    """The cheaper of the two paths that look at every allowed row; arguments as of :func:`plan`."""
    return _exact(engine, k, allowed)[1]


def _exact(engine: Engine, k: int, allowed: int) -> tuple[float, Step]:
    fetch = min(k + OVER_FETCH, allowed)
    scan = float(engine.rows)
    if allowed < engine.rows:
        jump = _ROWS_PER_ALLOWED_ROW if engine.rows <= _CACHED_ROWS else _ROWS_PER_FAR_ROW
        scan = min(_ROWS_PER_SKIPPED_ROW * engine.rows + jump * allowed, _MOST_SCANS_PER_BITMAP * engine.rows)
    gather = _ROWS_PER_GATHERED_ROW * allowed
    cost = min(scan, gather) + _ROWS_PER_CANDIDATE * fetch
    return cost, Step("gather" if gather < scan else "scan", fetch, SCAN)


def _through_index(engine: Engine, fetch: int, effort: int, level: Effort) -> tuple[float, Step] | None:
    """Cost and step of asking the index as it was built; None where that is impossible or no better than a scan."""
    if engine.largest_fetch is not None and fetch > engine.largest_fetch:
        return None
    cost = _ROWS_PER_CANDIDATE * fetch
    if engine.kind == "flat":
        return (engine.rows + cost) / engine.advantage, Step("index", fetch, SCAN)
    deeper = math.ceil(effort * max(1.0, fetch / level.per_k) ** level.growth)
    if engine.kind == "hnsw":
        beam = max(fetch, deeper)
        cost += _ROWS_PER_BEAM_STEP * beam
        return None if effort == SCAN else (cost / engine.advantage, Step("index", fetch, beam))
    probes = engine.lists if effort == SCAN else min(deeper, engine.lists)
    if engine.largest_fetch is None and probes == engine.lists:
        return None  # a scan does the same
    if engine.largest_fetch is not None and probes > engine.largest_fetch:
        return None
    cost += _ROWS_PER_CENTROID * engine.lists + _ROWS_PER_LISTED_ROW * probes * engine.rows / engine.lists
    return cost / engine.advantage, Step("index", fetch, probes)
