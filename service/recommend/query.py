"""The recommender's query and result types, independent of HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Strategy = Literal["sequence", "similar", "popular"]
Degraded = Literal["history_unavailable", "deadline", "overload"]


@dataclass(frozen=True, slots=True)
class Query:
    """A request for recommendations.

    Attributes:
        user_id: the user whose stored history is used; None: none.
        items: (item id, weight) oldest first; they come after the stored history.
        k: items wanted, at least 1.
        offset: items skipped.
        filter: clauses as `index.filters.filters` takes them; None: every item.
        exclude: item ids that must not be recommended; unknown ones are ignored.
        exclude_seen: leave out the stored history and ``items``.
        slot_weights: by slot name, 0…10; a slot not named weighs 1.
        diversity: 0…1, see `service.recommend.diversity`.
        explain: add contributions and the nearest history item.
        explain_lists: with ``explain``, add what each item-to-item list contributes.
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
    explain_lists: bool = False
    refuse_unknown: bool = False
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Recommendations:
    """The recommended items of one query.

    Attributes:
        rows: (≤ k,) int64, best first.
        scores: (≤ k,) float32; for popular items the share of events.
        history_used: how many items shaped the query.
        unknown_items: ids of the history, stored or given, that the bundle does not have.
        contributions: (≤ k, slots) float32, each row sums to its score; None for popular items or if not requested.
        list_contributions: (≤ k, lists) float32, parts of the contributions of their slots; None as above.
        nearest: (≤ k,) int64 row of the nearest positive item of the history; None if there is none, or not requested.
        strategy: how the items were found.
        degraded: why the answer is worse than it could be; None if it is not.
        error: why a better strategy failed; None if none failed.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    history_used: int
    unknown_items: list[str]
    contributions: NDArray[np.float32] | None = None
    list_contributions: NDArray[np.float32] | None = None
    nearest: NDArray[np.int64] | None = None
    strategy: Strategy = "popular"
    degraded: Degraded | None = None
    error: str | None = None
