"""What is asked of the recommender and what it answers, free of any wire format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Strategy = Literal["sequence", "similar", "popular"]
Degraded = Literal["history_unavailable", "deadline", "overload"]


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked.

    Attributes:
        user_id: whose stored history counts; None: nobody's.
        items: (item id, weight) oldest first; they come after the stored history.
        k: items wanted, at least 1.
        offset: items skipped.
        filter: clauses as `index.filters.filters` takes them; None: every item.
        exclude: item ids that must not be answered; unknown ones do nothing.
        exclude_seen: leave out the stored history and ``items``.
        slot_weights: by slot name, 0…10; a slot not named weighs 1.
        diversity: 0…1, see `service.recommend.diversity`.
        explain: add contributions and the nearest history item.
        refuse_unknown: an unknown id among ``items`` is an error.
        deadline_ms: milliseconds since the request arrived after which popular items are answered.
    """

    user_id: str | None = None
    items: Sequence[tuple[str, float]] = ()
    k: int = 20
    offset: int = 0
    filter: Mapping[str, Any] | None = None
    exclude: Sequence[str] = ()
    exclude_seen: bool = True
    slot_weights: Mapping[str, float] | None = None
    diversity: float = 0.0
    explain: bool = False
    refuse_unknown: bool = False
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """Items for one query.

    Attributes:
        rows: (≤ k,) int64, best first.
        scores: (≤ k,) float32; under popular the share of events.
        history_used: how many items shaped the query.
        unknown_items: ids of the history, stored or given, that the bundle does not have.
        contributions: (≤ k, slots) float32, each row sums to its score; None under popular or if not asked for.
        nearest: (≤ k,) int64 row of the nearest liked item; None likewise, or if nothing is liked.
        strategy: how they were found.
        degraded: why they are less than they could be.
        trouble: why a better strategy failed; None if nothing failed.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    history_used: int
    unknown_items: list[str]
    contributions: NDArray[np.float32] | None = None
    nearest: NDArray[np.int64] | None = None
    strategy: Strategy = "popular"
    degraded: Degraded | None = None
    trouble: str | None = None
