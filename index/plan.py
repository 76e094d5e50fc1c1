"""How one search is carried out: how many candidates, how much effort, and when scanning beats the graph or the lists.

Pure arithmetic on sizes and queries; nothing here knows FAISS. The costs behind the rules are ratios measured on
fp16 vectors of 192 dimensions (docs/experiments.md, "Index"): one step of HNSW's beam costs about as much as scanning
100 rows, gathering a row in numpy as much as scanning 15, skipping a masked row a quarter of scanning it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index.slots import SlotLayout

IndexKind = Literal["flat", "hnsw", "ivf"]

OVER_FETCH = 16  # candidates beyond k, so that re-scoring can mend the index's rounding
SCAN = 0  # the effort that means: look at every row

_ROWS_PER_BEAM_STEP = 100
_FEW_ROWS = 500
_FEW_SHARE = 64
_SKIP_COST = 0.25
# Effort for equal recall grows as the number of candidates to this power.
_EFFORT_POWER = {"flat": 0.0, "hnsw": 0.75, "ivf": 0.5}


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
    """

    typical: tuple[float, ...]
    bands: tuple[tuple[float, int], ...]
    per_k: int

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
        path: ``gather`` reads the allowed rows and multiplies (exact); ``scan`` lets the index look at every row (exact
            up to its rounding); ``index`` uses lists or graph.
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
        filters: whether it honours a bitmap of allowed rows. Classic GPU indexes ignore one without a word (faiss
            #3114, #3924), so there it is False and filters go through over-fetch.
        largest_fetch: cap on candidates and on nprobe (2048 on the GPU), None for no cap.
    """

    kind: IndexKind
    rows: int
    lists: int = 0
    filters: bool = True
    largest_fetch: int | None = None


def plan(engine: Engine, k: int, allowed: int, effort: int, per_k: int) -> Step:
    """Choose the path of one search.

    Args:
        engine: the loaded index.
        k: results wanted, at least 1.
        allowed: rows that may be found, 1 … ``engine.rows``.
        effort: effort for plain k and no filter (:class:`Effort`); 0 scans.
        per_k: candidates that ``effort`` was measured with.

    Returns:
        The step; with ``index`` and a filter the answer may come up short and must then be completed by a scan.
    """
    share = allowed / engine.rows
    fetch = min(k + OVER_FETCH, allowed)
    filtered = allowed < engine.rows
    if filtered and allowed <= max(_FEW_ROWS, engine.rows // _FEW_SHARE):
        return Step("gather", fetch, SCAN)
    if not engine.filters:
        return _plan_unfiltered(engine, k, allowed, effort, per_k)
    if engine.kind == "flat" or effort == SCAN:
        return Step("scan", fetch, SCAN)
    wider = _wider(engine, fetch, per_k)
    if engine.kind == "ivf":
        probes = math.ceil(effort * wider / share)
        return Step("scan", fetch, SCAN) if probes >= engine.lists else Step("index", fetch, probes)
    beam = max(fetch, math.ceil(effort * wider / share))
    scan_cost = allowed + _SKIP_COST * (engine.rows - allowed)
    if beam * _ROWS_PER_BEAM_STEP >= scan_cost:
        return Step("scan", fetch, SCAN)
    return Step("index", fetch, beam)


def _wider(engine: Engine, fetch: int, per_k: int) -> float:
    """Factor on the effort for more candidates than it was measured with."""
    return float(max(1.0, fetch / per_k) ** _EFFORT_POWER[engine.kind])


def _plan_unfiltered(engine: Engine, k: int, allowed: int, effort: int, per_k: int) -> Step:
    """The plan for an index that cannot filter: over-fetch, or the exact path when that passes its cap."""
    exact = Step("gather", min(k + OVER_FETCH, allowed), SCAN)
    fetch = min(k + OVER_FETCH, engine.rows)
    if allowed < engine.rows:  # half as much again as expected, for filters that correlate with the query
        fetch = min(math.ceil(1.5 * fetch * engine.rows / allowed), engine.rows)
    cap = engine.largest_fetch or engine.rows
    if fetch > cap:
        return exact
    if engine.kind == "flat":
        return Step("scan", fetch, SCAN)
    probes = engine.lists if effort == SCAN else math.ceil(effort * _wider(engine, fetch, per_k))
    probes = min(probes, engine.lists)
    return exact if probes > cap else Step("index", fetch, probes)
