"""Recommends items: history → encode → search → filter → diversify → fall back, without HTTP, Redis or FAISS.

The rows that may be recommended are a bitmap: those that the filter allows and that are not hidden. The rows that one
request excludes besides (its history, `exclude`) are removed from a longer result, so that all requests can share the
bitmap.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.errors import EncoderError
from index.lists.list_query import ListQuery
from index.search.row_mask import RowMask
from service.errors import HistoriesUnavailable, RuleBroken, RuleViolation
from service.recommend.diversity import maximal_marginal_relevance, stages_of
from service.recommend.engine import SearchEngine, SearchJob, SearchResult
from service.recommend.hidden_items import HiddenItems
from service.recommend.query import Degraded, Query, Recommendations, Strategy
from service.recommend.query_vector import WeightedHistory, mean_query, sequence_query
from service.recommend.recent_histories import RecentHistories
from service.request_trace import Stopwatch
from service.stores.protocols import HistoryReader

_T = TypeVar("_T")
_INLINE_COMPARISONS = 250_000  # a millisecond or two
_INLINE_POOL = 200

Observe = Callable[[Bundle, Query, SearchJob, SearchResult, Recommendations], None]


class Recommender:
    """Answers queries from a bundle, the stored histories and an engine.

    Args:
        histories: store of the users' histories.
        engine: encodes and searches.
        hidden: items that are never recommended; one in a history still shapes the query.
        recent: receives every stored history that a request used.
        observe: called with every answer that the engine found, in the event loop, so it must be quick.
    """

    def __init__(
        self,
        histories: HistoryReader,
        engine: SearchEngine,
        hidden: HiddenItems,
        recent: RecentHistories,
        observe: Observe = lambda *_: None,
    ) -> None:
        self._histories = histories
        self._engine = engine
        self._hidden = hidden
        self._recent = recent
        self._observe = observe
        self._generation: int | None = None

    def with_histories(self, histories: HistoryReader) -> "Recommender":
        """The same recommender with another source of histories, whose reads begin now, as for a batch request."""
        other = copy.copy(self)
        other._histories = histories  # noqa: SLF001 - of this class
        other._generation = self._recent.generation  # noqa: SLF001
        return other

    async def recommend(self, bundle: Bundle, query: Query, watch: Stopwatch) -> Recommendations:
        """Recommend the next items: by the sequence; if that finds nothing, similar items; else popular ones.

        Args:
            bundle: used for the whole answer.
            query: the request.
            watch: records the time of each stage.

        Raises:
            RuleBroken: an unknown slot, weights that are all 0, or an unknown item with `refuse_unknown`.
            FilterError: the filter does not match the metadata.
        """
        generation = self._recent.generation if self._generation is None else self._generation
        stored, degraded = await self._stored(query, watch)
        self._recent.add(stored, generation)  # never the items of the request: their user may not have consented
        resolved = _ResolvedQuery.of(
            bundle, query, stored, await self._allowed(bundle, query), most_positive=bundle.max_history
        )
        watch.lap("filter")
        return await self._first_result(resolved, ("sequence", "similar"), degraded, watch)

    async def similar(self, bundle: Bundle, query: Query, watch: Stopwatch) -> Recommendations:
        """Recommend items similar to the given ones, whatever their order; raises as :meth:`recommend`."""
        resolved = _ResolvedQuery.of(
            bundle, query, [], await self._allowed(bundle, query), most_positive=len(query.items)
        )
        watch.lap("filter")
        return await self._first_result(resolved, ("similar",), "overload" if watch.overloaded else None, watch)

    async def _allowed(self, bundle: Bundle, query: Query) -> RowMask | None:
        """The rows that may be recommended; a new filter over many items is evaluated in another thread."""
        available = self._hidden.available(bundle)
        if query.filter is None:
            return available
        mask = None if available is None else available.mask
        comparisons = len(bundle) * sum(len(clauses) for clauses in query.filter.values())
        if comparisons <= _INLINE_COMPARISONS or bundle.has_cached_filter(query.filter, mask):
            return bundle.allowed(query.filter, mask)
        return await asyncio.to_thread(bundle.allowed, query.filter, mask)

    async def _stored(self, query: Query, watch: Stopwatch) -> tuple[list[str], Degraded | None]:
        if watch.overloaded:
            return [], "overload"
        if query.user_id is None:
            return [], None
        try:
            return await _in_time(self._histories.recent(query.user_id), _left_s(query, watch)), None
        except HistoriesUnavailable:
            return [], "history_unavailable"
        except TimeoutError:
            return [], "deadline"
        finally:
            watch.lap("history")

    async def _first_result(
        self, resolved: "_ResolvedQuery", strategies: Sequence[Strategy], degraded: Degraded | None, watch: Stopwatch
    ) -> Recommendations:
        """Try the strategies in order until one finds items; after the last one return popular items."""
        failure = None
        for strategy in strategies:
            left_s = _left_s(resolved.query, watch)
            if watch.overloaded or left_s == 0:
                degraded = degraded or "deadline"
                break
            job = resolved.job(strategy, watch)
            if job is None:
                continue
            try:
                found, candidates = await _in_time(self._search(resolved, job), left_s)
            except EncoderError as error:
                failure = str(error)
                continue
            except TimeoutError:
                degraded = degraded or "deadline"
                break
            answer = await resolved.ranked(candidates, job.lists, strategy, degraded, failure)
            watch.lap("rank")
            if answer is not None:
                self._observe(resolved.bundle, resolved.query, job, found, answer)
                return answer
        answer = resolved.popular(degraded, failure)
        watch.lap("rank")
        return answer

    async def _search(self, resolved: "_ResolvedQuery", job: SearchJob) -> tuple[SearchResult, SearchResult]:
        """The result of the first search, and the candidates, for which each pool has a search of its own.

        A wider pool keeps the candidates of the pool before in their order, even if the wider search ranks them
        otherwise, so that the candidates of a position are the same for every page.
        """
        first = found = await self._engine.search(resolved.bundle, job)
        candidates = resolved.pooled(found, resolved.pools[0])
        for pool in resolved.pools[1:]:
            if found.rows.shape[0] < job.k:
                break  # there are no more
            job = replace(job, history=None, query=lambda _: first.query, k=pool + resolved.excluded_count)
            found = await self._engine.search(resolved.bundle, job)
            candidates = resolved.pooled(found, pool, candidates)
        return first, candidates


@dataclass(frozen=True, slots=True)
class _ResolvedQuery:
    """A query whose item ids are translated into the rows of one bundle.

    Attributes:
        bundle: used for the whole answer.
        query: the request.
        history: the items that shape the query vector; items without a slot are left out.
        listed: the items whose item-to-item lists add to the scores of the sequence.
        unknown: ids of the history, stored or given, that the bundle does not have.
        excluded: rows that this request must not get.
        allowed: the rows that may be recommended; None: all. It still contains the excluded ones.
        slot_weights: (Σd,) float32; None: every slot weighs 1.
    """

    bundle: Bundle
    query: Query
    history: WeightedHistory
    listed: WeightedHistory
    unknown: list[str]
    excluded: set[int]
    allowed: RowMask | None
    slot_weights: NDArray[np.float32] | None

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        query: Query,
        stored: Sequence[str],
        allowed: RowMask | None,
        *,
        most_positive: int,
    ) -> "_ResolvedQuery":
        """Translate ids into rows; only the newest ``most_positive`` items with a positive weight shape the query."""
        slot_weights = _slot_weights(bundle, query)
        rows: list[int] = []
        weights: list[float] = []
        unknown: dict[str, None] = {}
        excluded = {row for item_id in query.exclude if (row := bundle.ids.row(item_id)) is not None}
        for item_id, weight in [*((item_id, 1.0) for item_id in stored), *query.items]:
            row = bundle.ids.row(item_id)
            if row is None:
                unknown[item_id] = None
                continue
            if query.exclude_seen or weight == 0:
                excluded.add(row)
            if weight != 0 and bundle.indexed[row]:
                rows.append(row)
                weights.append(weight)
        if query.refuse_unknown:
            _refuse_unknown(query, unknown)
        history = WeightedHistory(np.array(rows, dtype=np.int64), np.array(weights, dtype=np.float64))
        listed = history.newest(0 if bundle.list_scores is None else bundle.list_scores.history)
        used = history.newest(most_positive)
        return cls(bundle, query, used, listed, list(unknown), excluded, allowed, slot_weights)

    @property
    def pools(self) -> tuple[int, ...]:
        """How many items are ranked before the page is cut; with diversity one number for each stage, ascending."""
        length = self.query.offset + self.query.k
        return (length,) if self.query.diversity == 0 else tuple(stage.pool for stage in stages_of(length))

    @property
    def excluded_count(self) -> int:
        """How many found items at most are excluded ones."""
        if self.allowed is None or not self.excluded:
            return len(self.excluded)
        return int(np.count_nonzero(self.allowed.mask[list(self.excluded)]))

    def job(self, strategy: Strategy, watch: Stopwatch) -> SearchJob | None:
        """The search for a strategy; None if the history has no item for it."""
        history = self.history.positive if strategy == "sequence" else None
        if not len(self.history) or (history is not None and not history.size):
            return None

        def query(encoded: NDArray[np.float32]) -> NDArray[np.float32]:
            if history is None:
                vector = mean_query(self.bundle.vectors(self.history.rows), self.history.weights)
            elif self.history.plain:
                vector = encoded
            else:
                vector = sequence_query(encoded, self.bundle.vectors(self.history.rows), self.history.weights)
            return vector if self.slot_weights is None else vector * self.slot_weights

        lists = self._lists(strategy)
        return SearchJob(history, query, self.pools[0] + self.excluded_count, self.allowed, watch, lists)

    def _lists(self, strategy: Strategy) -> ListQuery | None:
        """The history whose lists add to the scores; None in a bundle without lists, or without a positive item."""
        history = self.listed if strategy == "sequence" else self.history
        if self.bundle.list_scores is None or not history.positive.size:
            return None
        weights = None
        if given := self.query.slot_weights:
            weights = np.array([given.get(name, 1.0) for name in self.bundle.layout.names], dtype=np.float32)
        return history.sequence_lists(weights) if strategy == "sequence" else history.mean_lists(weights)

    def pooled(self, found: SearchResult, pool: int, before: SearchResult | None = None) -> SearchResult:
        """The candidates in a pool: those of the pool before, then the newly found rows, without the excluded ones."""
        kept = self._not_excluded(found.rows)
        if before is None:
            return SearchResult(found.query, found.rows[kept[:pool]], found.scores[kept[:pool]])
        new = kept[~np.isin(found.rows[kept], before.rows)][: pool - before.rows.shape[0]]
        rows = np.concatenate((before.rows, found.rows[new]))
        return SearchResult(found.query, rows, np.concatenate((before.scores, found.scores[new])))

    async def ranked(
        self,
        found: SearchResult,
        lists: ListQuery | None,
        strategy: Strategy,
        degraded: Degraded | None,
        failure: str | None,
    ) -> Recommendations | None:
        """Diversify the candidates, cut the page, explain; None if no candidate is left."""
        if not found.rows.size or not found.query.any():
            return None
        page: slice | NDArray[np.int64] = slice(self.query.offset, self.query.offset + self.query.k)
        if self.query.diversity > 0:
            page = (await self._diverse(found))[page]
        rows = found.rows[page]
        answer = Recommendations(
            rows,
            found.scores[page],
            len(self.history),
            self.unknown,
            strategy=strategy,
            degraded=degraded,
            error=failure,
        )
        return self._explained(answer, found.query, lists) if self.query.explain and rows.size else answer

    def _explained(
        self, answer: Recommendations, query: NDArray[np.float32], lists: ListQuery | None
    ) -> Recommendations:
        rows = answer.rows[None]
        parts = self.bundle.list_contributions([lists], rows)[0] if self.query.explain_lists else None
        return replace(
            answer,
            contributions=self.bundle.contributions(query[None], rows, [lists])[0],
            list_contributions=parts,
            nearest=self._nearest(answer.rows),
        )

    def popular(self, degraded: Degraded | None, failure: str | None) -> Recommendations:
        """The items with the most events, the same for every user."""
        end = self.query.offset + self.query.k
        found = self.bundle.popular(end + self.excluded_count, allowed=self.allowed)
        page = self._not_excluded(found.rows[0])[self.query.offset : end]
        rows, scores = found.rows[0, page], found.scores[0, page]
        return Recommendations(rows, scores, 0, self.unknown, degraded=degraded, error=failure)

    def _not_excluded(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the found rows that are not excluded; -1 stands for no row."""
        kept = [position for position, row in enumerate(rows.tolist()) if row >= 0 and row not in self.excluded]
        return np.array(kept, dtype=np.int64)

    async def _diverse(self, found: SearchResult) -> NDArray[np.int64]:
        """Positions of the candidates in diverse order; a large pool is ordered in another thread, as it takes long."""
        if found.rows.shape[0] <= _INLINE_POOL:
            return self._by_marginal_relevance(found)
        return await asyncio.to_thread(self._by_marginal_relevance, found)

    def _by_marginal_relevance(self, found: SearchResult) -> NDArray[np.int64]:
        relevance = found.scores / np.linalg.norm(found.query.astype(np.float64))
        vectors, length = self.bundle.vectors(found.rows), self.query.offset + self.query.k
        return maximal_marginal_relevance(relevance, vectors, self.query.diversity, length, stages_of(length))

    def _nearest(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """For each row the positive history row that alone would score it highest, unweighted; of equals the newest."""
        newest_first = self.history.positive[::-1]
        if not newest_first.size:
            return None
        similarity = self.bundle.vectors(rows) @ self.bundle.vectors(newest_first).T
        if self.bundle.list_scores is not None:
            similarity += self.bundle.list_scores.similarities(newest_first, rows).T
        nearest: NDArray[np.int64] = newest_first[np.argmax(similarity, axis=1)]
        return nearest


async def _in_time(work: Awaitable[_T], left_s: float | None) -> _T:
    """Wait for work, at most this many seconds; None: no limit."""
    if left_s is None:
        return await work
    async with asyncio.timeout(left_s):
        return await work


def _left_s(query: Query, watch: Stopwatch) -> float | None:
    """Seconds until the deadline; 0 if it has passed, None if there is none."""
    return None if query.deadline_ms is None else max(query.deadline_ms - watch.elapsed_ms, 0.0) / 1000.0


def _refuse_unknown(query: Query, unknown: dict[str, None]) -> None:
    rule = "must be in the bundle, as unknown_items is error"
    refused: Iterator[str] = (item_id for item_id, _ in query.items if item_id in unknown)
    violations = [RuleViolation("items", f'"{item_id}"', rule) for item_id in refused]
    if violations:
        raise RuleBroken(violations)


def _slot_weights(bundle: Bundle, query: Query) -> NDArray[np.float32] | None:
    """(Σd,) float32; None if every slot weighs 1."""
    if not query.slot_weights:
        return None
    for name, weight in query.slot_weights.items():
        if name not in bundle.layout.names:
            rule = f"must be one of the slots {', '.join(bundle.layout.names)}"
            raise RuleBroken([RuleViolation(f"slot_weights.{name[:60]}", str(weight), rule)])
    weights = bundle.layout.weights(query.slot_weights)
    if not weights.any():
        raise RuleBroken([RuleViolation("slot_weights", str(dict(query.slot_weights)), "must not all be 0")])
    return weights
