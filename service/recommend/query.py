"""The recommender's query and result types, independent of HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.recommend.contributions import Contributions
from service.recommend.stored_history import ExcludeSeen, HistoryWindow
from service.stores.protocols import session_owner

Strategy = Literal["sequence", "similar", "popular"]
Degraded = Literal["history_unavailable", "retrieval_unavailable", "deadline", "overload"]


@dataclass(frozen=True, slots=True)
class Query:
    """A request for recommendations.

    Attributes:
        user_id: the user whose stored history is used; None: none.
        session_id: the anonymous session whose stored history follows that of the user; None: none.
        history_window: how much older events of the stored history count; None: as much as others.
        items: (item id, weight) oldest first; they come after the stored history.
        k: items wanted, at least 1.
        offset: items skipped.
        from_start: answer the skipped items too, before the others, as one ranking whose beginning is the same for any
            ``k``. Items in places for new items then stand in their positions, not in the order of the scores.
        filter: clauses as `index.filters.filters` takes them; None: every item.
        exclude: item ids that must not be recommended; unknown ones are ignored.
        exclude_seen: leave out the stored history and ``items``; ``positive``: only those with a weight above 0; a set:
            only items of the stored history with an event of these types. See `service.recommend.stored_history`.
        slot_weights: by slot name, 0…10; a slot not named weighs 1.
        diversity: 0…1, see `service.recommend.diversity`.
        fresh_share: share of the places that is kept for new items, 0…1, see `service.recommend.new_items`.
        explain: add contributions and the nearest history item.
        contributions_later: add a function that computes the contributions, for after the answer is sent.
        explain_lists: with ``explain``, add what each item-to-item list contributes.
        refuse_unknown: an unknown id among ``items`` is an error.
        deadline_ms: milliseconds since the request arrived after which popular items are answered.
    """

    user_id: str | None = None
    session_id: str | None = None
    history_window: HistoryWindow | None = None
    items: Sequence[tuple[str, float]] = ()
    k: int = 20
    offset: int = 0
    from_start: bool = False
    filter: Mapping[str, Any] | None = None
    exclude: Sequence[str] = ()
    exclude_seen: ExcludeSeen = True
    slot_weights: Mapping[str, float] | None = None
    diversity: float = 0.0
    fresh_share: float = 0.0
    explain: bool = False
    contributions_later: bool = False
    explain_lists: bool = False
    refuse_unknown: bool = False
    deadline_ms: float | None = None

    @property
    def page(self) -> slice:
        """The positions of the ranking that are answered."""
        return slice(0 if self.from_start else self.offset, self.offset + self.k)

    @property
    def owners(self) -> list[str]:
        """The owners of the stored histories that are used, in their order."""
        session = () if self.session_id is None else (session_owner(self.session_id),)
        return [*(() if self.user_id is None else (self.user_id,)), *session]

    def excludes(self, weight: float) -> bool:
        """Whether a given item of this weight must not be recommended."""
        return weight == 0 or self.exclude_seen is True or (self.exclude_seen == "positive" and weight > 0)


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
        later: computes the contributions; it keeps the bundle in memory. None for popular items or if not requested.
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
    later: Contributions | None = None

    def chosen(self, places: Sequence[int]) -> "Recommendations":
        """The items at some places, counted from 0, in this order."""
        chosen, later = np.array(places, dtype=np.int64), self.later

        def of(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[chosen]

        return replace(
            self,
            rows=self.rows[chosen],
            scores=self.scores[chosen],
            contributions=of(self.contributions),
            list_contributions=of(self.list_contributions),
            nearest=of(self.nearest),
            later=None if later is None else later.of(chosen),
        )
