"""Recommendations: history → encode → search → filter → diversify → fall back. No HTTP, no Redis, no FAISS here.

Which rows may be answered is a bitmap: those that the filter allows and that are not hidden. What one request leaves
out besides (its history, `exclude`) is taken out of a longer answer, so that the bitmap stays the same for everybody.
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
from index.search.row_mask import RowMask
from service.errors import HistoriesUnavailable, RuleBroken, Violation
from service.recommend.diversity import maximal_marginal_relevance, stages_of
from service.recommend.engine import Engine, SearchJob, SearchResult
from service.recommend.hidden_items import HiddenItems
from service.recommend.query import Answer, Degraded, Query, Strategy
from service.recommend.query_vector import Taste, mean_query, sequence_query
from service.recommend.recent_histories import RecentHistories
from service.request_trace import Stopwatch
from service.stores.protocols import HistoryReader

_T = TypeVar("_T")
_INLINE_COMPARISONS = 250_000  # a millisecond or two
_INLINE_POOL = 200

Observe = Callable[[Bundle, Query, SearchJob, SearchResult, Answer], None]


class Recommender:
    """Answers queries from a bundle, the stored histories and an engine.

    Args:
        histories: where the histories of users are.
        engine: encodes and searches.
        hidden: items that are never answered; one in a history still shapes the query.
        recent: told every stored history that was asked with.
        observe: told every answer that the engine found, in the event loop, so it must be quick.
    """

    def __init__(
        self,
        histories: HistoryReader,
        engine: Engine,
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

    def reading(self, histories: HistoryReader) -> "Recommender":
        """The same recommender with histories that are read from now on, as those of a whole batch are."""
        other = copy.copy(self)
        other._histories = histories  # noqa: SLF001 - of this very class
        other._generation = self._recent.generation  # noqa: SLF001
        return other

    async def recommend(self, bundle: Bundle, query: Query, watch: Stopwatch) -> Answer:
        """What comes next: by the sequence; where that is not possible by likeness; else what is popular.

        Args:
            bundle: read by the whole answer.
            query: what is asked.
            watch: told about each stage.

        Raises:
            RuleBroken: an unknown slot, weights that are all 0, or an unknown item where that is refused.
            FilterError: the filter does not fit the metadata.
        """
        generation = self._recent.generation if self._generation is None else self._generation
        stored, degraded = await self._stored(query, watch)
        self._recent.add(stored, generation)  # never what a request brings along: whose it is may not have consented
        asked = _Asked.of(bundle, query, stored, await self._allowed(bundle, query), liked=bundle.max_history)
        watch.lap("filter")
        return await self._first_that_finds(asked, ("sequence", "similar"), degraded, watch)

    async def similar(self, bundle: Bundle, query: Query, watch: Stopwatch) -> Answer:
        """What is like the given items, whatever their order; raises as :meth:`recommend`."""
        asked = _Asked.of(bundle, query, [], await self._allowed(bundle, query), liked=len(query.items))
        watch.lap("filter")
        return await self._first_that_finds(asked, ("similar",), "overload" if watch.hurry else None, watch)

    async def _allowed(self, bundle: Bundle, query: Query) -> RowMask | None:
        """The rows that may be answered; a pass of a new filter over many items is made in a thread, beside others."""
        available = self._hidden.available(bundle)
        if query.filter is None:
            return available
        mask = None if available is None else available.mask
        comparisons = len(bundle) * sum(len(clauses) for clauses in query.filter.values())
        if comparisons <= _INLINE_COMPARISONS or bundle.has_cached_filter(query.filter, mask):
            return bundle.allowed(query.filter, mask)
        return await asyncio.to_thread(bundle.allowed, query.filter, mask)

    async def _stored(self, query: Query, watch: Stopwatch) -> tuple[list[str], Degraded | None]:
        if watch.hurry:
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

    async def _first_that_finds(
        self, asked: "_Asked", strategies: Sequence[Strategy], degraded: Degraded | None, watch: Stopwatch
    ) -> Answer:
        """Try the strategies in order; one that fails or finds nothing leaves it to the next, and popular ends them."""
        trouble = None
        for strategy in strategies:
            left_s = _left_s(asked.query, watch)
            if watch.hurry or left_s == 0:
                degraded = degraded or "deadline"
                break
            lookup = asked.lookup(strategy, watch)
            if lookup is None:
                continue
            try:
                found, candidates = await _in_time(self._look_up(asked, lookup), left_s)
            except EncoderError as error:
                trouble = str(error)
                continue
            except TimeoutError:
                degraded = degraded or "deadline"
                break
            answer = await asked.ranked(candidates, strategy, degraded, trouble)
            watch.lap("rank")
            if answer is not None:
                self._observe(asked.bundle, asked.query, lookup, found, answer)
                return answer
        answer = asked.popular(degraded, trouble)
        watch.lap("rank")
        return answer

    async def _look_up(self, asked: "_Asked", lookup: SearchJob) -> tuple[SearchResult, SearchResult]:
        """What the engine finds first, and the candidates of the answer: of each pool one search of its own.

        A wider pool goes on behind the one before, whatever the wider search says of its rows, so that the candidates
        of a place are the same for every page.
        """
        first = found = await self._engine.look_up(asked.bundle, lookup)
        candidates = asked.pooled(found, asked.pools[0])
        for pool in asked.pools[1:]:
            if found.rows.shape[0] < lookup.k:
                break  # there are no more
            lookup = replace(lookup, history=None, query=lambda _: first.query, k=pool + asked.more)
            found = await self._engine.look_up(asked.bundle, lookup)
            candidates = asked.pooled(found, pool, candidates)
        return first, candidates


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query as one bundle reads it.

    Attributes:
        bundle: read by the whole answer.
        query: what is asked.
        taste: the items that shape the query vector; those without a slot cannot.
        unknown: ids of the history, stored or given, that the bundle does not have.
        barred: rows that must not be answered.
        allowed: the rows that may be answered; None: all. `barred` ones are still in it.
        slot_weights: (Σd,) float32; None: every slot weighs 1.
    """

    bundle: Bundle
    query: Query
    taste: Taste
    unknown: list[str]
    barred: set[int]
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
        liked: int,
    ) -> "_Asked":
        """Translate ids into rows; of what is liked only the newest ``liked`` items shape the query."""
        slot_weights = _slot_weights(bundle, query)
        rows: list[int] = []
        weights: list[float] = []
        unknown: dict[str, None] = {}
        barred = {row for item_id in query.exclude if (row := bundle.ids.row(item_id)) is not None}
        for item_id, weight in [*((item_id, 1.0) for item_id in stored), *query.items]:
            row = bundle.ids.row(item_id)
            if row is None:
                unknown[item_id] = None
                continue
            if query.exclude_seen or weight == 0:
                barred.add(row)
            if weight != 0 and bundle.indexed[row]:
                rows.append(row)
                weights.append(weight)
        if query.refuse_unknown:
            _refuse_unknown(query, unknown)
        taste = Taste(np.array(rows, dtype=np.int64), np.array(weights, dtype=np.float64))
        return cls(bundle, query, taste.newest(liked), list(unknown), barred, allowed, slot_weights)

    @property
    def pools(self) -> tuple[int, ...]:
        """How many items are ranked before the page is cut; with diversity by stages, ascending."""
        wanted = self.query.offset + self.query.k
        return (wanted,) if self.query.diversity == 0 else tuple(stage.pool for stage in stages_of(wanted))

    @property
    def more(self) -> int:
        """How many found items may have to be left out."""
        if self.allowed is None or not self.barred:
            return len(self.barred)
        return int(np.count_nonzero(self.allowed.mask[list(self.barred)]))

    def lookup(self, strategy: Strategy, watch: Stopwatch) -> SearchJob | None:
        """The engine's work for a strategy; None where the history has nothing for it."""
        history = self.taste.liked if strategy == "sequence" else None
        if not len(self.taste) or (history is not None and not history.size):
            return None

        def query(encoded: NDArray[np.float32]) -> NDArray[np.float32]:
            if history is None:
                vector = mean_query(self.bundle.vectors(self.taste.rows), self.taste.weights)
            elif self.taste.plain:
                vector = encoded
            else:
                vector = sequence_query(encoded, self.bundle.vectors(self.taste.rows), self.taste.weights)
            return vector if self.slot_weights is None else vector * self.slot_weights

        return SearchJob(history, query, self.pools[0] + self.more, self.allowed, watch)

    def pooled(self, found: SearchResult, pool: int, before: SearchResult | None = None) -> SearchResult:
        """The candidates in a pool: those of the pool before, then what else was found, without what is barred."""
        kept = self._kept(found.rows)
        if before is None:
            return SearchResult(found.query, found.rows[kept[:pool]], found.scores[kept[:pool]])
        new = kept[~np.isin(found.rows[kept], before.rows)][: pool - before.rows.shape[0]]
        rows = np.concatenate((before.rows, found.rows[new]))
        return SearchResult(found.query, rows, np.concatenate((before.scores, found.scores[new])))

    async def ranked(
        self, found: SearchResult, strategy: Strategy, degraded: Degraded | None, trouble: str | None
    ) -> Answer | None:
        """Diversify the candidates, cut the page, explain; None where nothing is left to rank."""
        if not found.rows.size or not found.query.any():
            return None
        page: slice | NDArray[np.int64] = slice(self.query.offset, self.query.offset + self.query.k)
        if self.query.diversity > 0:
            page = (await self._diverse(found))[page]
        rows, contributions, nearest = found.rows[page], None, None
        if self.query.explain and rows.size:
            contributions = self.bundle.contributions(found.query[None], rows[None])[0]
            nearest = self._nearest(rows)
        used, scores = len(self.taste), found.scores[page]
        return Answer(rows, scores, used, self.unknown, contributions, nearest, strategy, degraded, trouble)

    def popular(self, degraded: Degraded | None, trouble: str | None) -> Answer:
        """The items with the most events, whoever asks."""
        wanted = self.query.offset + self.query.k
        found = self.bundle.popular(wanted + self.more, allowed=self.allowed)
        page = self._kept(found.rows[0])[self.query.offset : wanted]
        rows, scores = found.rows[0, page], found.scores[0, page]
        return Answer(rows, scores, 0, self.unknown, degraded=degraded, trouble=trouble)

    def _kept(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of real rows that are not barred."""
        kept = [place for place, row in enumerate(rows.tolist()) if row >= 0 and row not in self.barred]
        return np.array(kept, dtype=np.int64)

    async def _diverse(self, found: SearchResult) -> NDArray[np.int64]:
        """Positions of the candidates; a large pool is ordered in a thread, as it would hold up everybody else."""
        if found.rows.shape[0] <= _INLINE_POOL:
            return self._by_marginal_relevance(found)
        return await asyncio.to_thread(self._by_marginal_relevance, found)

    def _by_marginal_relevance(self, found: SearchResult) -> NDArray[np.int64]:
        relevance = found.scores / np.linalg.norm(found.query.astype(np.float64))
        vectors, wanted = self.bundle.vectors(found.rows), self.query.offset + self.query.k
        return maximal_marginal_relevance(relevance, vectors, self.query.diversity, wanted, stages_of(wanted))

    def _nearest(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The liked row with the largest unweighted ⟨x_item, x_h⟩ for each row; of equals the newest."""
        newest_first = self.taste.liked[::-1]
        if not newest_first.size:
            return None
        likeness = self.bundle.vectors(rows) @ self.bundle.vectors(newest_first).T
        nearest: NDArray[np.int64] = newest_first[np.argmax(likeness, axis=1)]
        return nearest


async def _in_time(work: Awaitable[_T], left_s: float | None) -> _T:
    """Wait for work, at most so many seconds; None sets no limit and costs nothing."""
    if left_s is None:
        return await work
    async with asyncio.timeout(left_s):
        return await work


def _left_s(query: Query, watch: Stopwatch) -> float | None:
    """Seconds until the deadline, 0 when it has passed, None where there is none."""
    return None if query.deadline_ms is None else max(query.deadline_ms - watch.elapsed_ms, 0.0) / 1000.0


def _refuse_unknown(query: Query, unknown: dict[str, None]) -> None:
    rule = "must be in the bundle, as unknown_items is error"
    refused: Iterator[str] = (item_id for item_id, _ in query.items if item_id in unknown)
    violations = [Violation("items", f'"{item_id}"', rule) for item_id in refused]
    if violations:
        raise RuleBroken(violations)


def _slot_weights(bundle: Bundle, query: Query) -> NDArray[np.float32] | None:
    """(Σd,) float32, or None where every slot weighs 1."""
    if not query.slot_weights:
        return None
    for name, weight in query.slot_weights.items():
        if name not in bundle.layout.names:
            rule = f"must be one of the slots {', '.join(bundle.layout.names)}"
            raise RuleBroken([Violation(f"slot_weights.{name[:60]}", str(weight), rule)])
    weights = bundle.layout.weights(query.slot_weights)
    if not weights.any():
        raise RuleBroken([Violation("slot_weights", str(dict(query.slot_weights)), "must not all be 0")])
    return weights
