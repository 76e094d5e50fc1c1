"""Translates a query into the rows of one bundle, and the result of a search into an answer."""

import asyncio
import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.lists.list_query import FoundParts, ListQuery
from index.search.row_mask import RowMask
from index.search.scoring import ReadVectors, joined
from service.errors import RuleBroken, RuleViolation
from service.recommend.contributions import Contributions
from service.recommend.diversity import maximal_marginal_relevance, stages_of
from service.recommend.engine import SearchJob, SearchResult
from service.recommend.new_items import by_position, in_score_order, is_new, places_for_new
from service.recommend.query import Degraded, Query, Recommendations, Strategy
from service.recommend.query_vector import WeightedHistory, mean_query, sequence_query
from service.recommend.stored_history import StoredHistory, relative
from service.request_trace import Stopwatch

_INLINE_POOL = 200
_SMALLEST_DIVERSE_SEARCH = 200  # the engine joins smaller searches with larger ones; pages must be cut from the same


@dataclass(frozen=True, slots=True)
class ResolvedQuery:
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
        stored: StoredHistory,
        allowed: RowMask | None,
        *,
        most_positive: int,
    ) -> "ResolvedQuery":
        """Translate ids into rows; only the newest ``most_positive`` items with a positive weight shape the query."""
        slot_weights = _slot_weights(bundle, query)
        rows: list[int] = []
        weights: list[float] = []
        unknown: dict[str, None] = {}
        row_of, findable = bundle.ids.row, bundle.findable
        excluded = {row for item_id in query.exclude if (row := row_of(item_id)) is not None}
        for item_id, weight in zip(stored.item_ids, stored.weights, strict=True):
            row = row_of(item_id)
            if row is None:
                unknown[item_id] = None
                continue
            if item_id in stored.excluded:
                excluded.add(row)
            if weight != 0 and findable[row]:
                rows.append(row)
                weights.append(weight)
        given = len(rows)
        for item_id, weight in query.items:
            row = row_of(item_id)
            if row is None:
                unknown[item_id] = None
                continue
            if query.excludes(weight):
                excluded.add(row)
            if weight != 0 and findable[row]:
                rows.append(row)
                weights.append(weight)
        weights[:given] = relative(weights[:given], most_positive - sum(weight > 0 for weight in weights[given:]))
        if query.refuse_unknown:
            _refuse_unknown(query, unknown)
        history = WeightedHistory.of(rows, weights)
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

        query = partial(self._vector, history is not None)
        lists = self._lists(strategy)
        k = self.pools[0] + self.excluded_count
        return SearchJob(history, query, k, self.allowed, watch, lists, self.history.rows)

    def _vector(self, is_sequence: bool, encoded: NDArray[np.float32], read: ReadVectors) -> NDArray[np.float32]:
        """(Σd,) float32: the query vector.

        Args:
            is_sequence: whether the sequence was encoded.
            encoded: (Σd,) float32, the encoder's output.
            read: returns the vectors of the history.
        """
        if not is_sequence:
            vector = mean_query(read(self.history.rows), self.history.weights)
        elif self.history.plain:
            vector = encoded
        else:
            vector = sequence_query(encoded, read(self.history.rows), self.history.weights)
        return vector if self.slot_weights is None else vector * self.slot_weights

    def _lists(self, strategy: Strategy) -> ListQuery | None:
        """The history whose lists add to the scores; None in a bundle without lists, or without a positive item."""
        history = self.listed if strategy == "sequence" else self.history
        if self.bundle.list_scores is None or not history.positive.size:
            return None
        weights = None
        if given := self.query.slot_weights:
            weights = np.array([given.get(name, 1.0) for name in self.bundle.layout.names], dtype=np.float32)
        found = FoundParts() if self.query.explain or self.query.contributions_later else None
        return (history.sequence_lists if strategy == "sequence" else history.mean_lists)(weights, found)

    def fresh_job(self, job: SearchJob, found: SearchResult, pool: int, new: RowMask) -> SearchJob | None:
        """The search for the new items that a pool lacks; None if it has enough, or there are none.

        Args:
            job: the search of the pool.
            found: its result.
            pool: how many items are ranked.
            new: the new items that may be recommended.
        """
        wanted = places_for_new(self.query.fresh_share, pool)
        rows = found.rows[self._not_excluded(found.rows)[:pool]]
        if not new.count or np.count_nonzero(new.mask[rows]) >= wanted:
            return None
        k = wanted + int(np.count_nonzero(new.mask[list(self.excluded)]))
        if self.query.diversity > 0:
            k = max(k, _SMALLEST_DIVERSE_SEARCH)
        return replace(job, history=None, query=lambda *_: found.query, k=k, allowed=new, rows=None)

    def pooled(
        self,
        found: SearchResult,
        pool: int,
        before: SearchResult | None = None,
        fresh: SearchResult | None = None,
    ) -> SearchResult:
        """The candidates in a pool: those of the pool before, then the newly found rows, without the excluded ones.

        Args:
            found: the best rows.
            pool: how many items are ranked.
            before: the candidates of the pool before.
            fresh: the best new items, if ``found`` has too few of them.
        """
        found, share = self._without_excluded(found), self.query.fresh_share
        fresh = None if fresh is None else self._without_excluded(fresh)
        others = [other.vectors for other in (before, fresh) if other is not None]
        if others:
            found = replace(found, vectors=joined(found.vectors, *others))
        whole = by_position(self.bundle, found, fresh, share, pool)
        if share and self.query.diversity > 0:
            whole = in_score_order(whole, 0)
        elif share and not self.query.from_start:
            whole = in_score_order(whole, self.query.offset)
        if before is None:
            return whole
        new = np.flatnonzero(~np.isin(whole.rows, before.rows))[: pool - before.rows.shape[0]]
        rows = np.concatenate((before.rows, whole.rows[new]))
        return SearchResult(found.query, rows, np.concatenate((before.scores, whole.scores[new])), found.vectors)

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
        page: slice | NDArray[np.int64] = self.query.page
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
        if not rows.size:
            return answer
        if self.query.contributions_later:
            answer = replace(answer, later=self._contributions(found, rows, lists))
        return self._explained(answer, found, lists) if self.query.explain else answer

    def _contributions(self, found: SearchResult, rows: NDArray[np.int64], lists: ListQuery | None) -> Contributions:
        return Contributions(self.bundle, found.query, rows, lists, self.query.slot_weights, found.vectors)

    def _vectors(self, found: SearchResult, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(k, Σd) vectors of found rows or of the history: those that came with them, else those of the bundle."""
        return self.bundle.vectors(rows) if found.vectors is None else found.vectors.of(rows, self.bundle.vectors)

    def _explained(self, answer: Recommendations, found: SearchResult, lists: ListQuery | None) -> Recommendations:
        rows = answer.rows[None]
        parts = self.bundle.list_contributions([lists], rows)[0] if self.query.explain_lists else None
        return replace(
            answer,
            contributions=self._contributions(found, answer.rows, lists)(),
            list_contributions=parts,
            nearest=self._nearest(answer.rows, found),
        )

    def popular(self, degraded: Degraded | None, failure: str | None) -> Recommendations:
        """The items with the most events, the same for every user."""
        end = self.query.offset + self.query.k
        found = self.bundle.popular(end + self.excluded_count, allowed=self.allowed)
        page = self._not_excluded(found.rows[0])[self.query.page]
        rows, scores = found.rows[0, page], found.scores[0, page]
        return Recommendations(rows, scores, 0, self.unknown, degraded=degraded, error=failure)

    def _without_excluded(self, found: SearchResult) -> SearchResult:
        kept = self._not_excluded(found.rows)
        return SearchResult(found.query, found.rows[kept], found.scores[kept], found.vectors)

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
        vectors, length = self._vectors(found, found.rows), self.query.offset + self.query.k
        share = self.query.fresh_share
        new = is_new(self.bundle, found.rows) if share else None
        stages = stages_of(length)
        return maximal_marginal_relevance(relevance, vectors, self.query.diversity, length, stages, new, share)

    def _nearest(self, rows: NDArray[np.int64], found: SearchResult) -> NDArray[np.int64] | None:
        """For each row the positive history row that alone would score it highest, unweighted; of equals the newest."""
        newest_first = self.history.positive[::-1]
        if not newest_first.size:
            return None
        similarity = self._vectors(found, rows) @ self._vectors(found, newest_first).T
        if self.bundle.list_scores is not None:
            similarity += self.bundle.list_scores.similarities(newest_first, rows).T
        nearest: NDArray[np.int64] = newest_first[np.argmax(similarity, axis=1)]
        return nearest


def _refuse_unknown(query: Query, unknown: dict[str, None]) -> None:
    rule = "must be in the bundle, as unknown_items is error"
    refused = (item_id for item_id, _ in query.items if item_id in unknown)
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
        raise RuleBroken([RuleViolation("slot_weights", json.dumps(dict(query.slot_weights)), "must not all be 0")])
    return weights
