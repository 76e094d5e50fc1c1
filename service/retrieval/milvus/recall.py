"""Measures the recall of a collection against exact search, and chooses the search effort."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.search.query_plan import OVER_FETCH
from index.search.scoring import whole_scores
from service.errors import PushRefused
from service.retrieval.milvus.client import MilvusClient

EFFORTS: Final = (64, 128, 256, 512, 1024)
"""Search efforts (ef) that are tried, ascending."""
_K: Final = 20
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class MeasuredRecall:
    """What was measured.

    Attributes:
        ef: the lowest effort at which plain queries, and those with one slot alone, reach the bound; else the highest.
        plain: recall@20 of plain queries, 0 … 1.
        skewed: the lowest recall@20 of queries with one slot alone, 0 … 1.
    """

    ef: int
    plain: float
    skewed: float


def measure(bundle: Bundle, client: MilvusClient, name: str, bound: float, sample: int) -> MeasuredRecall:
    """Measure a loaded collection.

    Args:
        bundle: whose collection it is.
        client: calls Milvus.
        name: of the collection.
        bound: the lowest recall@20 of plain queries, 0 … 1.
        sample: most queries.

    Raises:
        PushRefused: the recall of plain queries is below the bound at any effort, or a vector is not that of the
            bundle.
        RetrieverUnavailable: Milvus does not answer.
    """
    plain = sample_queries(bundle, sample)
    alone = [queries for queries in (_only(bundle, plain, slot) for slot in bundle.layout.names) if queries.size]
    truths = [bundle.searcher.exact(queries, _K)[1] for queries in (plain, *alone)]
    found = MeasuredRecall(EFFORTS[0], 0.0, 0.0)
    for ef in EFFORTS:
        recalls = [
            _recall(bundle, client, name, queries, truth, ef)
            for queries, truth in zip((plain, *alone), truths, strict=True)
        ]
        found = MeasuredRecall(ef, recalls[0], min(recalls))
        if found.skewed >= bound:
            return found
    if found.plain < bound:
        raise PushRefused(
            f"{name}: recall@20 {found.plain:.4f} of {len(plain)} queries is below {bound}; choose a lower bound with "
            "--min-recall, or look at the index of Milvus"
        )
    return found


def sample_queries(bundle: Bundle, sample: int) -> NDArray[np.float32]:
    """(q, Σd) float32 queries: encoded evaluation histories, and vectors of items where there are too few of them."""
    evaluation = bundle.evaluation_queries
    histories = [evaluation.history(number) for number in range(min(len(evaluation), sample))]
    histories = [rows for rows in histories if rows.size]
    rows = np.flatnonzero(bundle.indexed)
    rows = rows[np.linspace(0, rows.size - 1, min(sample - len(histories), rows.size)).astype(np.int64)]
    items = bundle.vectors(rows)
    return np.concatenate((bundle.encode(histories), items)) if histories else items


def _only(bundle: Bundle, queries: NDArray[np.float32], slot: str) -> NDArray[np.float32]:
    """The queries with one slot alone, without those that lack it."""
    alone = np.zeros_like(queries)
    part = bundle.layout.slice(slot)
    alone[:, part] = queries[:, part]
    return alone[alone.any(axis=1)]


def _recall(
    bundle: Bundle,
    client: MilvusClient,
    name: str,
    queries: NDArray[np.float32],
    truth: NDArray[np.float32],
    ef: int,
) -> float:
    """Share of the best items that were found; one counts if its exact score reaches the lowest of theirs."""
    hits = wanted = 0
    for start in range(0, len(queries), _BATCH):
        part = slice(start, start + _BATCH)
        answers = client.search(name, queries[part], _K + OVER_FETCH, "", ef)
        for query, best, answer in zip(queries[part], truth[part], answers, strict=True):
            vectors = bundle.vectors(answer.rows)
            if answer.vectors is None or not np.array_equal(answer.vectors, vectors):
                raise PushRefused(f"{name} returns other vectors than those of the bundle; drop it and push again")
            scores = whole_scores(query[None], vectors[None])[0]
            real = best[np.isfinite(best)]
            wanted += real.size
            hits += min(int(np.count_nonzero(scores >= real[-1])), real.size) if real.size else 0
    return hits / wanted if wanted else 1.0
