"""Calibrates the search effort: the least that reaches the target recall for every kind of query."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index.evaluation.measure import PLAIN, ExactResults, QuerySet
from index.search.query_plan import GROWTH, OVER_FETCH, SCAN, Effort, IndexKind, skew_of, slot_shares
from index.search.searcher import Searcher

MakeSearcher = Callable[[Effort], Searcher]

_SMALLEST_SAMPLE = 8  # fewer queries of one kind in a band of skew are ignored, as their mean is too uncertain
_FIRST_EFFORT = {"flat": 1, "hnsw": 32, "ivf": 4}
_CEILING = {"flat": 1, "hnsw": 4096, "ivf": 65_536}
_SLACK = 0.01  # a whole kind of query may miss the target by this, so that plain queries stay fast
_GROWTH_STEP = 0.125
_MOST_GROWTH = 1.25


def calibrate(
    index_kind: IndexKind,
    make_searcher: MakeSearcher,
    exact: ExactResults,
    target: float,
    progress: Callable[[float], None],
) -> Effort:
    """Find the least effort per band of skew with which every kind of query reaches a recall.

    Effort starts small and rises by an eighth at a time until the mean recall of each kind reaches the target; a full
    scan always does. The first band has 95 % of the plain queries and is measured on them alone. Then ``growth`` rises
    until filtered and deep queries reach the target as well. If a kind is still more than 0.01 below the target, the
    effort of all bands rises together.

    Args:
        index_kind: flat, hnsw or ivf.
        make_searcher: creates a searcher over the index with a given effort.
        exact: queries and exact results.
        target: recall@k to reach, 0 … 1.
        progress: called with the share done, 0 … 1.

    Returns:
        The calibrated effort.
    """
    unfiltered = {
        kind: query_set for kind, query_set in exact.kinds.items() if query_set.unfiltered and query_set.k == exact.k
    }
    typical = tuple(float(share) for share in slot_shares(unfiltered[PLAIN].queries, exact.layout).mean(axis=0))
    start = Effort(typical, ((1.0, SCAN),), exact.k + OVER_FETCH, GROWTH[index_kind])
    if index_kind == "flat":
        return start
    effort = _calibrate_bands(index_kind, make_searcher, start, unfiltered, exact, target, progress)
    others = {kind: query_set for kind, query_set in exact.kinds.items() if kind not in unfiltered}
    while effort.growth < _MOST_GROWTH:
        progress(0.8 + 0.1 * effort.growth / _MOST_GROWTH)
        searcher = make_searcher(effort)
        others = {kind: query_set for kind, query_set in others.items() if query_set.recall(searcher) < target}
        if not others:
            break
        effort = replace(effort, growth=effort.growth + _GROWTH_STEP)
    while any(value != SCAN for _, value in effort.bands) and not _all_reach(
        make_searcher(effort), exact, target - _SLACK
    ):
        progress(0.9)
        effort = replace(effort, bands=tuple((edge, _raised(index_kind, value)) for edge, value in effort.bands))
    return effort


def _calibrate_bands(
    index_kind: IndexKind,
    make_searcher: MakeSearcher,
    start: Effort,
    unfiltered: Mapping[str, QuerySet],
    exact: ExactResults,
    target: float,
    progress: Callable[[float], None],
) -> Effort:
    """Find the effort that each band of skew needs for queries without a filter at depth k."""
    typical = np.array(start.typical)
    skews = {kind: skew_of(query_set.queries, exact.layout, typical) for kind, query_set in unfiltered.items()}
    first = float(np.clip(np.quantile(skews[PLAIN], 0.95), 0.05, 0.9))
    edges = [first, first + (1 - first) / 4, first + (1 - first) / 2, 1.0]
    measured: dict[float, int] = {}
    effort = _FIRST_EFFORT[index_kind]
    for number, (lowest, edge) in enumerate(zip([-1.0, *edges], edges, strict=False)):
        progress(0.8 * number / len(edges))
        members = {kind: np.flatnonzero((skew > lowest) & (skew <= edge)) for kind, skew in skews.items()}
        if number == 0:  # plain queries alone decide the effort of the band that has most of them
            members = {PLAIN: members[PLAIN]}
        members = {kind: chosen for kind, chosen in members.items() if chosen.shape[0] >= _SMALLEST_SAMPLE}
        # More skew never needs less effort, so each band starts at the effort of the previous one.
        if members and effort != SCAN:
            effort = _raise_to_target(index_kind, make_searcher, start, exact, members, effort, target)
        if members or edge == edges[-1]:
            measured[edge] = effort
    # A band without queries takes the effort of the next one, as searchsorted skips it.
    return replace(start, bands=tuple(measured.items()))


def _all_reach(searcher: Searcher, exact: ExactResults, floor: float) -> bool:
    """Whether every kind of query reaches a recall over all its queries, in every band."""
    return all(exact.recall(searcher, kind) >= floor for kind in exact.kinds)


def _raised(kind: IndexKind, effort: int) -> int:
    """An eighth more effort; :data:`SCAN` above the ceiling, and always from :data:`SCAN`."""
    more = effort + max(1, effort // 8)
    return SCAN if effort == SCAN or more > _CEILING[kind] else more


def _raise_to_target(
    kind: IndexKind,
    make_searcher: MakeSearcher,
    start: Effort,
    exact: ExactResults,
    members: Mapping[str, NDArray[np.int64]],
    effort: int,
    target: float,
) -> int:
    """Raise the effort by eighths until every kind reaches the target; :data:`SCAN` if no smaller effort does."""
    below = dict(members)
    while effort != SCAN:
        searcher = make_searcher(replace(start, bands=((1.0, effort),)))
        below = {name: chosen for name, chosen in below.items() if exact.recall(searcher, name, chosen) < target}
        if not below:
            break
        effort = _raised(kind, effort)
    return effort
