"""Calibration: the least search effort that reaches the recall asked for, for every kind of query."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from index.evaluation.measure import PLAIN, Asked, Exact
from index.search.query_plan import GROWTH, OVER_FETCH, SCAN, Effort, IndexKind, skew_of, slot_shares
from index.search.searcher import Searcher

MakeSearcher = Callable[[Effort], Searcher]

_SMALLEST_SAMPLE = 8  # queries of one kind in one band of skew, below which its mean decides nothing
_FIRST_EFFORT = {"flat": 1, "hnsw": 32, "ivf": 4}
_CEILING = {"flat": 1, "hnsw": 4096, "ivf": 65_536}
_SLACK = 0.01  # how far a whole kind of query may stay below the target, so that the everyday ones stay cheap
_GROWTH_STEP = 0.125
_MOST_GROWTH = 1.25


def calibrate(
    index_kind: IndexKind, make_searcher: MakeSearcher, exact: Exact, target: float, progress: Callable[[float], None]
) -> Effort:
    """The least effort per band of skew that reaches a recall for every kind of query in the band.

    Effort is raised by an eighth at a time from a small start until each kind's mean recall reaches the target; at the
    latest a full scan does. The first band holds 95 % of the plain queries and is measured on them alone. Then effort
    is made to grow faster with the number of candidates until filtered and deep queries reach the target too. Should
    that leave any kind more than 0.01 below the target, all bands rise together.

    Args:
        index_kind: flat, hnsw or ivf.
        make_searcher: a searcher over the index with a given effort.
        exact: queries and right answers.
        target: recall@k to reach, 0 … 1.
        progress: called with the share done.
    """
    everyday = {kind: asked for kind, asked in exact.kinds.items() if asked.everyday and asked.k == exact.k}
    typical = tuple(float(share) for share in slot_shares(everyday[PLAIN].queries, exact.layout).mean(axis=0))
    start = Effort(typical, ((1.0, SCAN),), exact.k + OVER_FETCH, GROWTH[index_kind])
    if index_kind == "flat":
        return start
    found = _banded(index_kind, make_searcher, start, everyday, exact, target, progress)
    others = {kind: asked for kind, asked in exact.kinds.items() if kind not in everyday}
    while found.growth < _MOST_GROWTH:
        progress(0.8 + 0.1 * found.growth / _MOST_GROWTH)
        searcher = make_searcher(found)
        others = {kind: asked for kind, asked in others.items() if asked.recall(searcher) < target}
        if not others:
            break
        found = replace(found, growth=found.growth + _GROWTH_STEP)
    while any(value != SCAN for _, value in found.bands) and not _holds(make_searcher(found), exact, target - _SLACK):
        progress(0.9)
        found = replace(found, bands=tuple((edge, _raised(index_kind, value)) for edge, value in found.bands))
    return found


def _banded(
    index_kind: IndexKind,
    make_searcher: MakeSearcher,
    start: Effort,
    everyday: Mapping[str, Asked],
    exact: Exact,
    target: float,
    progress: Callable[[float], None],
) -> Effort:
    """Bands of skew with the effort that each needs for everyday queries."""
    typical = np.array(start.typical)
    skews = {kind: skew_of(asked.queries, exact.layout, typical) for kind, asked in everyday.items()}
    first = float(np.clip(np.quantile(skews[PLAIN], 0.95), 0.05, 0.9))
    edges = [first, first + (1 - first) / 4, first + (1 - first) / 2, 1.0]
    measured: dict[float, int] = {}
    effort = _FIRST_EFFORT[index_kind]
    for number, (lowest, edge) in enumerate(zip([-1.0, *edges], edges, strict=False)):
        progress(0.8 * number / len(edges))
        members = {kind: np.flatnonzero((skew > lowest) & (skew <= edge)) for kind, skew in skews.items()}
        if number == 0:  # the everyday queries alone decide what they cost
            members = {PLAIN: members[PLAIN]}
        members = {kind: chosen for kind, chosen in members.items() if chosen.shape[0] >= _SMALLEST_SAMPLE}
        if members and effort != SCAN:  # more skew never needs less, so each band starts where the last one ended
            effort = _climb(index_kind, make_searcher, start, exact, members, effort, target)
        if members or edge == edges[-1]:
            measured[edge] = effort
    # A band without queries takes the effort of the next one, as searchsorted skips it.
    return replace(start, bands=tuple(measured.items()))


def _holds(searcher: Searcher, exact: Exact, floor: float) -> bool:
    """Whether every kind of query as a whole reaches a recall, those in the first band included."""
    return all(exact.recall(searcher, kind) >= floor for kind in exact.kinds)


def _raised(kind: IndexKind, effort: int) -> int:
    """An eighth more effort; :data:`SCAN` beyond the ceiling, and for ever after."""
    more = effort + max(1, effort // 8)
    return SCAN if effort == SCAN or more > _CEILING[kind] else more


def _climb(
    kind: IndexKind,
    make_searcher: MakeSearcher,
    start: Effort,
    exact: Exact,
    members: Mapping[str, NDArray[np.int64]],
    effort: int,
    target: float,
) -> int:
    """Raise the effort by an eighth until every kind reaches the target; :data:`SCAN` when nothing else does."""
    waiting = dict(members)
    while effort != SCAN:
        searcher = make_searcher(replace(start, bands=((1.0, effort),)))
        waiting = {name: chosen for name, chosen in waiting.items() if exact.recall(searcher, name, chosen) < target}
        if not waiting:
            break
        effort = _raised(kind, effort)
    return effort
