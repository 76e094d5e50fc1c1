"""Encodes histories and searches the index, for one request or for a batch.

`run_searches` does the work for a batch. `InlineEngine` calls it in the event loop with a batch of one, as encoding and
searching take less time than a hop to another thread. `service.recommend.batching` builds larger batches under load.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery
from index.search.row_mask import RowMask
from index.search.scoring import FoundVectors, ReadVectors
from service.request_trace import Stopwatch
from service.retrieval.faiss_retriever import FAISS
from service.retrieval.retriever import Retriever

_LARGE_K = 200  # the smallest pool of candidates of a request with diversity


@dataclass(frozen=True, slots=True, eq=False)
class SearchJob:
    """What one request needs from the engine.

    Attributes:
        history: (h,) int64 rows for the encoder, oldest first; None: nothing is encoded.
        query: turns the encoder's output (Σd,) float32, zeros if nothing is encoded, into the query (Σd,) float32; its
            second argument returns stored vectors of ``rows``.
        k: how many items are wanted.
        allowed: rows that may be found; None: all.
        watch: records the stages ``encode`` and ``search``.
        lists: the history whose item-to-item lists add to the scores; None: no list does.
        rows: (r,) int64 rows of the history, whose vectors shape the query or the answer; None: no vector does.
    """

    history: NDArray[np.int64] | None
    query: Callable[[NDArray[np.float32], ReadVectors], NDArray[np.float32]]
    k: int
    allowed: RowMask | None
    watch: Stopwatch
    lists: ListQuery | None = None
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """What the engine found.

    Attributes:
        query: (Σd,) float32, slot weights multiplied in.
        rows: (≤ k,) int64, best first.
        scores: (≤ k,) float32, never increasing.
        vectors: those that came with the rows, and of the rows of the job; None: the bundle has them.
    """

    query: NDArray[np.float32]
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    vectors: FoundVectors | None = None


Search = tuple[SearchJob, SearchResult]


class SearchEngine(Protocol):
    """Runs a search, alone or in a batch with others that wait at the same time."""

    async def search(self, bundle: Bundle, job: SearchJob) -> SearchResult:
        """Encode and search.

        Raises:
            EncoderError: the encoder fails on this history.
            RetrieverUnavailable: another store is searched and does not answer.
        """
        ...


class InlineEngine:
    """Runs every search at once, in the event loop.

    Args:
        retriever: finds the items.
    """

    def __init__(self, retriever: Retriever = FAISS) -> None:
        self._retriever = retriever

    async def search(self, bundle: Bundle, job: SearchJob) -> SearchResult:
        """Encode and search; see `SearchEngine.search`."""
        return run_searches(bundle, [job], self._retriever)[0]


def run_searches(bundle: Bundle, jobs: Sequence[SearchJob], retriever: Retriever = FAISS) -> list[SearchResult]:
    """Encode and search a batch.

    Args:
        bundle: the bundle that all of them read.
        jobs: at least one; those with the same ``allowed`` (or none) are searched together.
        retriever: finds the items.

    Returns:
        One result for each job, in the same order.

    Raises:
        EncoderError: the encoder fails; it does not say on which history.
        RetrieverUnavailable: another store is searched and does not answer.
    """
    held = _held(bundle, jobs, retriever) if retriever.waits else None
    read = bundle.vectors if held is None else partial(held.of, others=bundle.vectors)
    encoded = _encode(bundle, jobs, read)
    queries = np.stack([job.query(vector, read) for job, vector in zip(jobs, encoded, strict=True)])
    for job in jobs:
        job.watch.lap("encode")
    found: list[SearchResult | None] = [None] * len(jobs)
    for members in _searched_together(jobs):
        k = max(jobs[member].k for member in members)
        hits = retriever.search(
            bundle,
            queries if len(members) == len(jobs) else queries[members],
            k,
            allowed=jobs[members[0]].allowed,
            histories=[jobs[member].lists for member in members],
        )
        vectors = hits.vectors if held is None else held.joined_with(hits.vectors)
        real = np.count_nonzero(hits.rows >= 0, axis=1).tolist()
        for number, member in enumerate(members):
            count = min(jobs[member].k, real[number])
            rows, scores = hits.rows[number, :count], hits.scores[number, :count]
            found[member] = SearchResult(queries[member], rows, scores, vectors)
            jobs[member].watch.lap("search")
    return [result for result in found if result is not None]


def _held(bundle: Bundle, jobs: Sequence[SearchJob], retriever: Retriever) -> FoundVectors | None:
    """The vectors of the histories of all jobs, in one call of another store; None: the bundle has them."""
    wanted = [rows for job in jobs for rows in (job.history, job.rows) if rows is not None]
    return retriever.vectors(bundle, np.concatenate(wanted)) if wanted else None


def _encode(bundle: Bundle, jobs: Sequence[SearchJob], read: ReadVectors) -> NDArray[np.float32]:
    """(B, Σd) float32; zeros where nothing is to be encoded."""
    histories = [job.history for job in jobs if job.history is not None]
    if len(histories) == len(jobs):
        return bundle.encode(histories, read)
    encoded = np.zeros((len(jobs), bundle.layout.dim), dtype=np.float32)
    if histories:
        encoded[[job.history is not None for job in jobs]] = bundle.encode(histories, read)
    return encoded


def _searched_together(jobs: Sequence[SearchJob]) -> list[list[int]]:
    """Positions of the jobs, grouped so that each group is one search: the same bitmap and a k of about the same size.

    A group is searched with its largest k, so a small k is not grouped with a large one. A k of 200 or more is searched
    exactly as it is: an approximate index may find other rows with a larger k, and pages that are cut from the same
    pool would repeat items.
    """
    groups: dict[tuple[int, int, bool], list[int]] = {}
    for position, job in enumerate(jobs):
        is_large = job.k >= _LARGE_K
        size = job.k if is_large else job.k.bit_length()
        groups.setdefault((id(job.allowed), size, is_large), []).append(position)
    return list(groups.values())
