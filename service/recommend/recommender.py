"""Recommends items: history → encode → search → filter → diversify → fall back, without HTTP, Redis or FAISS.

The rows that may be recommended are a bitmap: those that the filter allows and that are not hidden. The rows that one
request excludes besides (its history, `exclude`) are removed from a longer result, so that all requests can share the
bitmap.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from time import time
from typing import TypeVar

from index.bundle.bundle import Bundle
from index.bundle.event_types import DEFAULT_EVENT_TYPES, EventTypes
from index.errors import EncoderError
from index.search.row_mask import RowMask
from service.errors import HistoriesUnavailable, RetrieverUnavailable
from service.recommend.engine import Search, SearchEngine, SearchJob, SearchResult
from service.recommend.hidden_items import HiddenItems
from service.recommend.new_items import NewItems
from service.recommend.query import Degraded, Query, Recommendations, Strategy
from service.recommend.recent_histories import RecentHistories
from service.recommend.resolved_query import ResolvedQuery
from service.recommend.slot_scales import SlotScales, best_of_groups, weighs_below_one
from service.recommend.stored_history import StoredHistory, weighed
from service.request_trace import Stopwatch
from service.stores.protocols import HistoryEntry, HistoryReader

_T = TypeVar("_T")
_INLINE_COMPARISONS = 250_000  # a millisecond or two

Observe = Callable[[Bundle, Query, Sequence[Search], Recommendations], None]


class Recommender:
    """Answers queries from a bundle, the stored histories and an engine.

    Args:
        histories: store of the users' histories.
        engine: encodes and searches.
        hidden: items that are never recommended; one in a history still shapes the query.
        recent: receives every stored history that a request used.
        observe: called with every answer that the engine found and with its first searches: one, or one for each group
            of items that slot weights scale alike, and those for new items if there were any; in the event loop, so it
            must be quick.
        event_types: tells what the types of events mean for answers from a bundle.
    """

    def __init__(
        self,
        histories: HistoryReader,
        engine: SearchEngine,
        hidden: HiddenItems,
        recent: RecentHistories,
        observe: Observe = lambda *_: None,
        event_types: Callable[[Bundle], EventTypes] = lambda _: DEFAULT_EVENT_TYPES,
    ) -> None:
        self._histories = histories
        self._engine = engine
        self._hidden = hidden
        self._recent = recent
        self._event_types = event_types
        self._observe = observe
        self._new_items = NewItems()
        self._slot_scales = SlotScales()
        self._generation: int | None = None

    @property
    def histories(self) -> HistoryReader:
        """The source of histories."""
        return self._histories

    def with_histories(self, histories: HistoryReader) -> "Recommender":
        """The same recommender with another source of histories.

        Its reads begin now, as for a batch request, or with those of this one, if it has such a source already.
        """
        other = copy.copy(self)
        other._histories = histories  # noqa: SLF001 - of this class
        if self._generation is None:
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
        histories, shown, degraded = await self._stored(bundle, query, watch)
        types, excluded = self._event_types(bundle), query.exclude_seen
        stored = weighed(histories, types, exclude_seen=excluded, window=query.history_window, now=time())
        if shown:
            query = replace(query, exclude=[*query.exclude, *shown])
        # Never the items of the request: their user may not have consented.
        self._recent.add(stored.positive, generation)
        resolved = ResolvedQuery.of(
            bundle, query, stored, await self._allowed(bundle, query), most_positive=bundle.max_history
        )
        watch.lap("filter")
        return await self._first_result(resolved, ("sequence", "similar"), degraded, watch)

    async def similar(self, bundle: Bundle, query: Query, watch: Stopwatch) -> Recommendations:
        """Recommend items similar to the given ones, whatever their order; raises as :meth:`recommend`."""
        resolved = ResolvedQuery.of(
            bundle, query, StoredHistory(), await self._allowed(bundle, query), most_positive=len(query.items)
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

    async def _stored(
        self, bundle: Bundle, query: Query, watch: Stopwatch
    ) -> tuple[list[list[HistoryEntry]], list[str], Degraded | None]:
        """The stored histories of a query, and the items shown that it excludes."""
        if watch.overloaded:
            return [], [], "overload"
        owners = query.owners
        if not owners:
            return [], [], None
        try:
            types = self._event_types(bundle)
            read = self._read(owners, types, _shown_types(query, types))
            return *(await _in_time(read, _left_s(query, watch))), None
        except HistoriesUnavailable:
            return [], [], "history_unavailable"
        except TimeoutError:
            return [], [], "deadline"
        finally:
            watch.lap("history")

    async def _read(
        self, owners: Sequence[str], types: EventTypes, shown_types: Collection[str]
    ) -> tuple[list[list[HistoryEntry]], list[str]]:
        if len(owners) == 1 and not shown_types:
            return [await self._histories.entries(owners[0])], []
        histories, impressions = await asyncio.gather(
            asyncio.gather(*map(self._histories.entries, owners)),
            asyncio.gather(*map(self._histories.impressions, owners if shown_types else ())),
        )
        shown = [
            entry.item_id for entries in impressions for entry in entries if types.is_among(entry.type, shown_types)
        ]
        return histories, shown

    async def _first_result(
        self, resolved: "ResolvedQuery", strategies: Sequence[Strategy], degraded: Degraded | None, watch: Stopwatch
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
                searches, candidates = await _in_time(self._search(resolved, job), left_s)
            except EncoderError as error:
                failure = str(error)
                continue
            except RetrieverUnavailable:
                degraded = degraded or "retrieval_unavailable"
                break
            except TimeoutError:
                degraded = degraded or "deadline"
                break
            answer = await resolved.ranked(candidates, job.lists, strategy, degraded, failure)
            watch.lap("rank")
            if answer is not None:
                self._observe(resolved.bundle, resolved.query, searches, answer)
                return answer
        answer = resolved.popular(degraded, failure)
        watch.lap("rank")
        return answer

    async def _search(self, resolved: ResolvedQuery, job: SearchJob) -> tuple[list[Search], SearchResult]:
        """The first searches, with those for new items if there were any, and the candidates.

        Each pool has a search of its own. A wider pool keeps the candidates of the pool before in their order, even if
        the wider search ranks them otherwise, so that the candidates of a position are the same for every page.
        """
        searches, first = await self._found(resolved, job)
        found = first
        fresh_searches, fresh = await self._fresh(resolved, job, found, resolved.pools[0])
        searches += fresh_searches
        candidates = resolved.pooled(found, resolved.pools[0], fresh=fresh)
        for pool in resolved.pools[1:]:
            if found.rows.shape[0] < job.k:
                break  # there are no more
            job = replace(job, history=None, query=lambda *_: first.query, k=pool + resolved.excluded_count, rows=None)
            _, found = await self._found(resolved, job)
            _, fresh = await self._fresh(resolved, job, found, pool)
            candidates = resolved.pooled(found, pool, candidates, fresh)
        return searches, candidates

    async def _found(self, resolved: ResolvedQuery, job: SearchJob) -> tuple[list[Search], SearchResult]:
        """The searches of a job, one for each group of items that the slot weights scale alike, and the best of all."""
        bundle, weights = resolved.bundle, resolved.query.slot_weights
        if weights is None or not weighs_below_one(weights):
            found = await self._engine.search(bundle, job)
            return [(job, found)], found
        first, *others = await self._slot_scales.groups(bundle, job.allowed, weights)
        jobs = [first.job(job)]
        results = [await self._engine.search(bundle, jobs[0])]
        query = results[0].query / first.scale
        for group in others:
            jobs.append(group.next_job(job, query))
            results.append(await self._engine.search(bundle, jobs[-1]))
        return list(zip(jobs, results, strict=True)), best_of_groups(query, results, job.k)

    async def _fresh(
        self, resolved: ResolvedQuery, job: SearchJob, found: SearchResult, pool: int
    ) -> tuple[list[Search], SearchResult | None]:
        """The searches for the new items that a pool lacks, with their result; none, and None, if it lacks none."""
        if not resolved.query.fresh_share:
            return [], None
        new = self._new_items.among(resolved.bundle, resolved.allowed)
        fresh = resolved.fresh_job(job, found, pool, new)
        return ([], None) if fresh is None else await self._found(resolved, fresh)


def _shown_types(query: Query, types: EventTypes) -> Collection[str]:
    """The types of impressions whose items a query excludes."""
    if not isinstance(query.exclude_seen, frozenset):
        return ()
    return {name for name in query.exclude_seen if types.meaning(name) == "impression"}


async def _in_time(work: Awaitable[_T], left_s: float | None) -> _T:
    """Wait for work, at most this many seconds; None: no limit."""
    if left_s is None:
        return await work
    async with asyncio.timeout(left_s):
        return await work


def _left_s(query: Query, watch: Stopwatch) -> float | None:
    """Seconds until the deadline; 0 if it has passed, None if there is none."""
    return None if query.deadline_ms is None else max(query.deadline_ms - watch.elapsed_ms, 0.0) / 1000.0
