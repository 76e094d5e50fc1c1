"""Finds items in Milvus: candidates there, exact scores and item-to-item lists here.

Milvus returns candidates by inner product with their vectors. The rows that may not be answered are removed here, and
the others are scored again in float32, so that scores, ties and attribution are those of FAISS. A filter is pushed down
as an expression; hidden items and what has no expression are removed here. If too few candidates remain, the search is
repeated with more of them, at last exactly on the stored vectors of the bundle.
"""

from collections.abc import Sequence
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.bundle.bundle import Bundle
from index.lists.list_query import ListQuery
from index.search.brute_force import check_k, check_queries
from index.search.query_plan import OVER_FETCH
from index.search.row_mask import RowMask
from index.search.scoring import FoundVectors, ScoredRows, best_of, whole_scores
from service.errors import BundleRefused, RetrieverUnavailable
from service.retrieval.guard import Guard
from service.retrieval.milvus.client import MOST_BYTES, MOST_ROWS, FoundRows, MilvusClient
from service.retrieval.milvus.collection_record import CollectionRecord, collection_of
from service.retrieval.milvus.expression import expression_of
from service.retrieval.milvus.scalar_fields import kinds_of
from service.retrieval.milvus.stored_vectors import StoredVectors

_FEW_ROWS: Final = 256  # so few allowed rows are all scored: exact, and no graph is good at them
_WIDER: Final = 4  # times as many candidates where too few were allowed
_MOST_RECORDS: Final = 8

_Scored = tuple[NDArray[np.int64], NDArray[np.float32]]


class MilvusRetriever:
    """Searches the collection of a bundle in Milvus.

    Args:
        client: calls Milvus.
        guard: decides whether Milvus is called.
        stored: reads vectors of histories and of listed items; None: they are read from the file of the bundle.

    Attributes:
        waits: True.
    """

    waits = True

    def __init__(self, client: MilvusClient, guard: Guard, stored: StoredVectors | None = None) -> None:
        self._client = client
        self._guard = guard
        self._stored = stored
        self._records: dict[str, CollectionRecord] = {}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def check(self, bundle_id: str) -> None:
        """Check that the collection of a bundle was checked and is loaded; see `Retriever.check`."""
        name = collection_of(bundle_id)
        record = self._client.record(bundle_id)
        if record is None:
            raise BundleRefused(
                "retrieval",
                f"{bundle_id}: Milvus has no checked collection {name}; push it with `vlm2rec index push`",
            )
        if not self._client.is_loaded(name):
            raise BundleRefused("retrieval", f"{bundle_id}: the collection {name} is not loaded; load it in Milvus")
        self._keep(record)

    def warm_up(self, bundle: Bundle) -> None:
        """Run encoder and search once; see `Retriever.warm_up`."""
        record = self._record_of(bundle)
        if not _fits(record, bundle):
            raise BundleRefused("retrieval", f"{bundle.id}: its collection holds other items; push it again")
        bundle.warm_up(partial(self.search, bundle))

    def search(
        self,
        bundle: Bundle,
        queries: NDArray[np.floating],
        k: int,
        *,
        allowed: RowMask | None = None,
        histories: Sequence[ListQuery | None] | None = None,
    ) -> ScoredRows:
        """The best k items per query; see `Retriever.search`."""
        checked = check_queries(queries, bundle.layout.dim)
        check_k(k)
        count = bundle.manifest.indexed if allowed is None else allowed.count
        if not checked.shape[0] or not count:
            return ScoredRows(*_padded(checked.shape[0], k))
        kept = k + OVER_FETCH if bundle.searcher.lists_add(histories) else k
        found, vectors = self._found(bundle, checked, min(k, count), kept, allowed)
        if vectors is None or self._stored is None:
            read = None if vectors is None else partial(vectors.of, others=bundle.vectors)
            return ScoredRows(*bundle.searcher.with_lists(checked, found, k, allowed, histories, read), vectors)
        listed = _ListedVectors(bundle, self._stored, vectors)
        rows, scores = bundle.searcher.with_lists(checked, found, k, allowed, histories, listed.read)
        return ScoredRows(rows, scores, listed.vectors)

    def vectors(self, bundle: Bundle, rows: NDArray[np.int64]) -> FoundVectors | None:
        """Stored vectors of rows; see `Retriever.vectors`."""
        if self._stored is None:
            return None
        self._record_of(bundle)
        return self._stored.of(bundle, rows)

    def _found(
        self, bundle: Bundle, queries: NDArray[np.float32], enough: int, kept: int, allowed: RowMask | None
    ) -> tuple[_Scored, FoundVectors | None]:
        """The best ``kept`` rows by slots, at least ``enough`` of them, and the vectors that came with them."""
        few = allowed is not None and allowed.count <= _FEW_ROWS
        if few and allowed is not None and self._stored is not None:
            vectors = self._stored.of(bundle, allowed.rows).of(allowed.rows, bundle.vectors)
            return _rescored(bundle, queries, [FoundRows(allowed.rows, vectors)] * len(queries), kept)
        fetch = 0 if few else kept + OVER_FETCH
        while 0 < fetch <= MOST_ROWS:
            answers = [
                _allowed_of(answer, allowed, len(bundle)) for answer in self._ask(bundle, queries, fetch, allowed)
            ]
            if all(answer.rows.size >= enough for answer in answers):
                return _rescored(bundle, queries, answers, kept)
            fetch = min(fetch * _WIDER, MOST_ROWS) if fetch < MOST_ROWS else 0
        # Few rows without a cache, or seldom: thousands of hidden items nearer than the others, or a very large k.
        return bundle.searcher.exact(queries, kept, allowed), None

    def _ask(
        self, bundle: Bundle, queries: NDArray[np.float32], fetch: int, allowed: RowMask | None
    ) -> list[FoundRows]:
        record = self._record_of(bundle)
        kinds = kinds_of(bundle.metadata, record.fields)
        expression = expression_of(None if allowed is None else allowed.rule, record.fields, kinds)
        # Without the vectors in the answer, those of the bundle are read.
        name, with_vectors = collection_of(bundle.id), fetch * queries.nbytes <= MOST_BYTES
        probe = partial(self._client.search, name, np.zeros((1, record.dim), dtype=np.float32), 1, "", record.ef)
        work = partial(self._client.search, name, queries, fetch, expression, record.ef, vectors=with_vectors)
        return self._guard.call(work, probe)

    def _record_of(self, bundle: Bundle) -> CollectionRecord:
        """The record of a bundle that is served.

        Raises:
            RetrieverUnavailable: Milvus does not answer, or holds nothing that was checked for it.
        """
        record = self._records.get(bundle.id)
        if record is None:
            read = partial(self._client.record, bundle.id)
            record = self._guard.call(read, read)
            if record is None:
                raise RetrieverUnavailable(f"{bundle.id}: Milvus has no checked collection of it; push it again")
            if not _fits(record, bundle):  # of a bundle that was activated while Milvus did not answer
                raise RetrieverUnavailable(f"{bundle.id}: its collection holds other items; push it again")
            self._keep(record)
        return record

    def _keep(self, record: CollectionRecord) -> None:
        if len(self._records) >= _MOST_RECORDS:
            self._records = {}
        self._records[record.bundle] = record


class _ListedVectors:
    """Reads the vectors of listed items that a search by vectors did not find.

    Args:
        bundle: whose rows they are.
        stored: reads vectors.
        found: those that the search found.

    Attributes:
        vectors: those that were found and those that were read.
    """

    def __init__(self, bundle: Bundle, stored: StoredVectors, found: FoundVectors) -> None:
        self._bundle = bundle
        self._stored = stored
        self.vectors = found

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of rows; see `index.search.searcher.Searcher.with_lists`."""
        real = np.unique(rows)
        unknown = real[~self.vectors.has(real)]
        if unknown.size:
            self.vectors = self.vectors.joined_with(self._stored.of(self._bundle, unknown))
        return self.vectors.of(rows, self._bundle.vectors)


def _fits(record: CollectionRecord, bundle: Bundle) -> bool:
    """Whether a record is of exactly this bundle."""
    return (record.content, record.rows) == (bundle.manifest.content, bundle.manifest.indexed)


def _allowed_of(answer: FoundRows, allowed: RowMask | None, items: int) -> FoundRows:
    """The rows of an answer that may be returned.

    Raises:
        RetrieverUnavailable: a row lies outside the catalogue.
    """
    if answer.rows.size and answer.rows.max() >= items:
        raise RetrieverUnavailable(f"Milvus found row {answer.rows.max()} of {items}; push the bundle again")
    if allowed is None:
        return answer
    kept = allowed.findable[answer.rows]
    return FoundRows(answer.rows[kept], None if answer.vectors is None else answer.vectors[kept])


def _rescored(
    bundle: Bundle, queries: NDArray[np.float32], answers: Sequence[FoundRows], kept: int
) -> tuple[_Scored, FoundVectors | None]:
    """The best rows by exact scores, from the vectors that came with them, else from those of the bundle."""
    width = max(kept, *(answer.rows.size for answer in answers))
    rows, scores = _padded(len(answers), width)
    vectors = np.zeros((len(answers), width, queries.shape[1]), dtype=np.float32)
    for number, answer in enumerate(answers):
        rows[number, : answer.rows.size] = answer.rows
        read = bundle.vectors(answer.rows) if answer.vectors is None else answer.vectors
        vectors[number, : answer.rows.size] = read
    scores = whole_scores(queries, vectors)
    scores[rows < 0] = -np.inf
    real = rows >= 0
    different, first = np.unique(rows[real], return_index=True)
    return best_of(rows, scores, kept), FoundVectors(different, vectors[real][first])


def _padded(queries: int, k: int) -> _Scored:
    return np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32)
