"""Measures recall and slot shares on a sample of live answers.

The figures are our own definition, the slot shares as in `service.bundles.comparison` and in the report of a bundle:

- *recall*: share of the best k allowed rows that were found (k as in the search, at most 20), counted by score; mean
  over the newest checks. The search for new items, where places are kept for them, counts with its own rows. An exact
  search reads every stored vector, so checks pause long enough to keep their processor time below a share of one core;
- *slot share*: each slot's share of the positive contributions to the score, mean over the recommended items of the
  newest answers to queries without slot weights; the share of imputed behaviour vectors is counted apart from that of
  the others;
- *balance*: the smallest share over the largest, of the slots that any item of the bundle has. An entropy hardly moves
  when the weakest of three slots contributes nothing; the balance falls to 0.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from time import monotonic, thread_time
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.items.slots import BEHAVIOUR
from index.lists.list_query import ListQuery
from index.search.row_mask import RowMask
from index.search.scoring import joined
from service.recommend.engine import Search
from service.recommend.query import Query, Recommendations

_T = TypeVar("_T")

RECALL_K = 20
IMPUTED = "imputed"
"""Name under which the share of imputed behaviour vectors is counted."""
WINDOW = 256
"""Number of checks, or answers, over which a figure is the mean."""
_SHARES_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class SampledAnswer:
    """An answer that is measured.

    Attributes:
        bundle: the bundle that gave it.
        searches: the first searches of the engine, and those for new items if there were any, with their results.
        rows: (≤ k,) int64 recommended rows.
        filtered: whether the request had a filter.
        plain: whether every slot weighed 1.
    """

    bundle: Bundle
    searches: Sequence[Search]
    rows: NDArray[np.int64]
    filtered: bool
    plain: bool


class SampledFigures(Protocol):
    """Receives the figures of sampled answers."""

    def clear(self) -> None:
        """Clear what was measured on another bundle."""
        ...

    def checked(self, recall: float, *, filtered: bool, cpu_s: float) -> None:
        """Count a check; recall is the mean over the newest checks, 0 … 1, and the check took ``cpu_s`` seconds."""
        ...

    def slot_shares(self, shares: Mapping[str, float], balance: float) -> None:
        """Set the share of each slot by name, 0 … 1, and the smallest over the largest of them."""
        ...

    def failed(self) -> None:
        """Count a measurement that failed."""
        ...


class CheckThread(Protocol):
    """One thread that runs one check at a time."""

    def run(self, call: Callable[[], _T]) -> Awaitable[_T]:
        """Run a call after the earlier ones, and raise what it raises."""
        ...

    def close(self) -> None:
        """Refuse new calls."""
        ...


class OnlineRecall:
    """Samples answers; called with every answer of the engine, in the event loop, where it nearly always does nothing.

    Args:
        metrics: receives the figures.
        log: the service's logger.
        checks_per_s: most checks of recall per second; 0: none.
        cpu_share: the largest share of one core that the checks may use, above 0.
        thread: runs the checks. Nearly all of one is a call of FAISS without the interpreter's lock, so the lowest
            priority is safe.
        clock: monotonic seconds.
        is_active: whether a bundle is the active one; answers of others are not measured, as those of an experiment's
            arm: figures of two bundles would be neither's.
    """

    def __init__(
        self,
        metrics: SampledFigures,
        log: FilteringBoundLogger,
        *,
        checks_per_s: float,
        cpu_share: float,
        thread: CheckThread,
        clock: Callable[[], float] = monotonic,
        is_active: Callable[[Bundle], bool] = lambda _bundle: True,
    ) -> None:
        self._metrics = metrics
        self._log = log
        self._pause_s = 1.0 / checks_per_s if checks_per_s else inf
        self._cpu_share = cpu_share
        self._clock = clock
        self._is_active = is_active
        self._background = thread
        self._task: asyncio.Task[None] | None = None
        self._shares_due = clock()
        self._check_due = clock() + self._pause_s
        self._due = min(self._shares_due, self._check_due)
        self._bundle_id = ""
        self._recalls: dict[bool, deque[float]] = {}
        self._shares: deque[NDArray[np.float64]] = deque(maxlen=WINDOW)
        self._last_error = ""

    def __call__(self, bundle: Bundle, query: Query, searches: Sequence[Search], answer: Recommendations) -> None:
        """Measure an answer if the next sample is due."""
        if self._clock() < self._due or not answer.rows.size or self._task is not None:
            return
        if not self._is_active(bundle):
            return
        sample = SampledAnswer(
            bundle, searches, answer.rows, filtered=query.filter is not None, plain=not query.slot_weights
        )
        self._task = asyncio.get_running_loop().create_task(self._measure(sample))

    async def close(self) -> None:
        """Stop sampling."""
        self._due = inf
        self._background.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _measure(self, sample: SampledAnswer) -> None:
        """Measure an answer that the client has received already; an error is counted and logged."""
        try:
            self._reset_for(sample.bundle.id)
            now = self._clock()
            if now >= self._shares_due:
                self._shares_due = now + _SHARES_EVERY_S
                if sample.plain:
                    self._measure_slot_shares(sample)
            if now >= self._check_due:
                self._check_due = now + self._pause_s
                checks = [_Check.of(sample, search) for search in sample.searches]
                # The thread may wait long for a core; meanwhile this task must not keep the bundle in memory.
                del sample
                await self._check(checks)
        except Exception as error:  # noqa: BLE001 - sampling goes on after any error
            self._metrics.failed()
            if str(error) != self._last_error:
                self._last_error = str(error)
                self._log.error("answer not measured", exc_info=error)
        finally:
            self._due = min(self._shares_due, self._check_due)
            self._task = None

    def _reset_for(self, bundle_id: str) -> None:
        if bundle_id != self._bundle_id:
            self._bundle_id = bundle_id
            self._recalls = {}
            self._shares.clear()
            self._metrics.clear()

    def _measure_slot_shares(self, sample: SampledAnswer) -> None:
        bundle = sample.bundle
        job, found = sample.searches[0]
        vectors = joined(*(result.vectors for _, result in sample.searches))
        parts = np.maximum(bundle.contributions(found.query[None], sample.rows[None], [job.lists], vectors)[0], 0.0)
        totals = parts.sum(axis=1, keepdims=True, dtype=np.float64)
        of_items = parts / np.where(totals > 0, totals, 1.0)
        names, whole = bundle.layout.names, of_items.mean(axis=0)
        imputed = np.zeros(len(names))
        if BEHAVIOUR in names:
            column = names.index(BEHAVIOUR)
            imputed[column] = (of_items[:, column] * bundle.imputed(sample.rows)).mean()
        self._shares.append(np.stack((whole, imputed)))
        whole, imputed = np.mean(self._shares, axis=0)
        shares = dict(zip(names, (whole - imputed).tolist(), strict=True)) | {IMPUTED: float(imputed.sum())}
        self._metrics.slot_shares(shares, balance_of(whole, bundle.slots_in_use))

    async def _check(self, checks: Sequence["_Check"]) -> None:
        hits, wanted, cpu_s = 0.0, 0, 0.0
        for check in checks:
            checked = await self._background.run(check.run)
            if checked is None:
                return
            truth, spent = checked
            cpu_s += spent
            wanted += truth.size
            hits += recall_of(check.scores, truth) * truth.size if truth.size else 0.0
        self._check_due = self._clock() + max(self._pause_s, cpu_s / self._cpu_share)
        if not wanted:
            return
        filtered = checks[0].filtered
        recalls = self._recalls.setdefault(filtered, deque(maxlen=WINDOW))
        recalls.append(hits / wanted)
        self._metrics.checked(sum(recalls) / len(recalls), filtered=filtered, cpu_s=cpu_s)


@dataclass(frozen=True, slots=True, eq=False)
class _Check:
    """A search that is repeated exactly; it does not keep its bundle in memory.

    Attributes:
        bundle: returns the bundle; None if it was freed.
        query: (Σd,) float32.
        lists: the history whose lists add to the scores; None: no list does.
        allowed: the rows that may be found; None: all.
        k: number of items that should be found.
        scores: (≤ k,) float32 scores of the items that were found.
        filtered: whether the request had a filter.
    """

    bundle: Callable[[], Bundle | None]
    query: NDArray[np.float32]
    lists: ListQuery | None
    allowed: RowMask | None
    k: int
    scores: NDArray[np.float32]
    filtered: bool

    @classmethod
    def of(cls, sample: SampledAnswer, search: Search) -> "_Check":
        """The check of one search of an answer."""
        job, found = search
        k = min(job.k, RECALL_K)
        bundle = weakref.ref(sample.bundle)
        return cls(bundle, found.query, job.lists, job.allowed, k, found.scores[:k], sample.filtered)

    def run(self) -> tuple[NDArray[np.float32], float] | None:
        """The best scores, (≤ k,) float32, and the processor seconds that this took; None: the bundle was freed."""
        started, bundle = thread_time(), self.bundle()
        if bundle is None:
            return None
        bundle.files.check_sizes()  # a check may have waited long, and it reads every stored vector
        found = bundle.exact(self.query[None], self.k, allowed=self.allowed, histories=[self.lists])
        return found.scores[0][found.rows[0] >= 0], thread_time() - started


def recall_of(scores: NDArray[np.float32], truth: NDArray[np.float32]) -> float:
    """Share of the best items that were found; an item counts as one of them if its score reaches the lowest of theirs.

    Args:
        scores: (≤ k,) float32 of the found items.
        truth: (k ≥ 1,) float32 of the best k, never increasing.

    Returns:
        0 … 1.
    """
    return min(int(np.count_nonzero(scores >= truth[-1])) / truth.size, 1.0)


def balance_of(shares: NDArray[np.float64], in_use: NDArray[np.bool_]) -> float:
    """Smallest over largest share of the slots in use, 0 … 1; higher is more balanced.

    Args:
        shares: (slots,) float64, none below 0.
        in_use: (slots,) bool, the slots that any item has.

    Returns:
        NaN where fewer than two slots are in use, or all shares are 0.
    """
    compared = shares[in_use]
    if compared.size < 2 or not compared.max() > 0:
        return nan
    return float(compared.min() / compared.max())
