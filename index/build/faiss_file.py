"""Chooses, trains, fills and writes ``index.faiss``.

Only this module and :mod:`index.search.vector_index` import faiss.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.bundle.index_spec import Codes, IndexChoice, IndexSpec
from index.bundle.manifest import FAISS_FILE
from index.errors import BundleError
from index.evaluation.measure import encoded, evaluation_histories, query_kinds
from index.evaluation.report import BundleDraft
from index.machine.disk import free_space
from index.search.brute_force import exact_top_k
from index.search.float16 import to_float32
from index.search.query_plan import OVER_FETCH, SCAN, Effort, IndexCapabilities, SearchStep
from index.search.row_mask import RowMask
from index.search.scoring import rescore
from index.search.searcher import Searcher
from index.search.vector_index import positions_to_rows

Progress = Callable[[str, float], None]

_BLOCK_ROWS = 65_536
_SMALLEST_STEP = 5000  # rows between two calls of progress, at least
_TRAINING_ROWS_PER_LIST = 64
_KMEANS_ROUNDS = 10
_RANGE_ROWS = 100_000  # rows from which sq8 learns the range of each component
_ROUNDING_ROWS = 1_000_000
_ROUNDING_QUERIES = 64
_ROUNDING_PART = 1 / 3  # part of the recall below 1 that rounding may cost


def write_index(draft: BundleDraft, progress: Progress) -> tuple[IndexChoice, dict[str, int | str]]:
    """Choose, train, fill and write the index of a bundle.

    Args:
        draft: the bundle, with its vectors, encoder and evaluation queries.
        progress: called with the name of a stage and the share of it done, 0 … 1.

    Returns:
        The choice with its reason, and the parameters of the index by name.

    Raises:
        IndexSpecError: no allowed kind and codes fit ``memory_bytes``.
        BundleError: FAISS failed.
    """
    with _faiss_threads(draft.spec.threads):
        choice = _choose(draft, progress)
        parameters = _write_faiss(
            choice, draft.vectors, np.flatnonzero(draft.indexed), draft.directory / FAISS_FILE, draft.spec, progress
        )
    return choice, parameters


def _choose(draft: BundleDraft, progress: Progress) -> IndexChoice:
    """The choice of the specification, with sq8 only if its rounding is measured to cost next to no recall."""
    spec, rows = draft.spec, int(draft.indexed.sum())
    choice = spec.choose(rows, draft.table.layout.dim, _stored(draft.vectors))
    if spec.codes != "auto" or choice.codes != "sq8":
        return choice
    size = spec.size(choice.kind, "fp16", rows, draft.table.layout.dim, _stored(draft.vectors))
    if spec.memory_bytes is not None and size > spec.memory_bytes:
        return replace(choice, reason=f"{choice.reason}; sq8, as fp16 would not fit {spec.memory_bytes} bytes")
    recall = _rounding_recall(draft, lambda share: progress("codes", share))
    if 1 - recall <= (1 - spec.target_recall) * _ROUNDING_PART:
        return replace(choice, reason=f"{choice.reason}; sq8, whose rounding alone leaves recall {recall:.4f}")
    reason = f"{choice.reason}; fp16, as the rounding of sq8 alone would leave recall {recall:.4f}"
    return replace(choice, codes="fp16", reason=reason, bytes=size)


def _stored(vectors: NDArray[np.floating]) -> Codes:
    return "fp16" if vectors.dtype == np.float16 else "fp32"


class _Sq8FlatIndex:
    """A flat sq8 index: a row that a scan of it misses was lost by rounding alone."""

    def __init__(self, vectors: NDArray[np.floating], rows: NDArray[np.int64]) -> None:
        self.dim = vectors.shape[1]
        self.capabilities = IndexCapabilities("flat", rows.shape[0])
        self._rows = rows
        self._codes = faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        self._codes.train(to_float32(vectors[_sample(rows, _RANGE_ROWS, 0)]))
        for start in range(0, rows.shape[0], _BLOCK_ROWS):
            self._codes.add(to_float32(vectors[rows[start : start + _BLOCK_ROWS]]))

    def search(self, queries: NDArray[np.float32], step: SearchStep, allowed: RowMask | None) -> NDArray[np.int64]:
        """See :meth:`index.search.vector_index.VectorIndex.search`; filters are not supported."""
        del allowed
        return positions_to_rows(self._codes.search(queries, step.fetch)[1], self._rows)


def _rounding_recall(draft: BundleDraft, progress: Callable[[float], None]) -> float:
    """Recall@k of a scan of sq8 codes for the worst kind of query, 0 … 1."""
    spec, layout = draft.spec, draft.table.layout
    rows = _sample(np.flatnonzero(draft.indexed), _ROUNDING_ROWS, spec.seed)
    mask = np.zeros(len(draft.table), dtype=np.bool_)
    mask[rows] = True
    histories = evaluation_histories(draft.indexed, draft.evaluation_queries, _ROUNDING_QUERIES)
    queries = encoded(draft.encoder, draft.vectors, histories)
    kinds = query_kinds(queries, layout, draft.presence)
    scan = Effort((1 / len(layout.slots),) * len(layout.slots), ((1.0, SCAN),), per_k=1)
    searcher = Searcher(_Sq8FlatIndex(draft.vectors, rows), draft.vectors, mask, layout, scan)
    worst = 1.0
    for done, kind_queries in enumerate(kinds.values()):
        progress(done / len(kinds))
        exact, _ = exact_top_k(kind_queries, draft.vectors, spec.recall_k + OVER_FETCH, allowed=mask)
        k = min(spec.recall_k, rows.shape[0])
        _, exact_scores = rescore(kind_queries, exact, draft.vectors, k)
        worst = min(worst, float((searcher.search(kind_queries, k)[1] >= exact_scores[:, -1:]).mean()))
    return worst


def _sample(rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """The rows, or a random sample of ``most`` of them, ascending."""
    if rows.shape[0] <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _write_faiss(
    choice: IndexChoice,
    vectors: NDArray[np.floating],
    rows: NDArray[np.int64],
    path: Path,
    spec: IndexSpec,
    progress: Progress,
) -> dict[str, int | str]:
    """Train, fill and write the index; returns its parameters by name."""
    if choice.kind == "flat" and choice.codes == _stored(vectors):
        rows = rows[:0]  # a scan reads the stored vectors themselves
    lists = spec.list_count(rows.shape[0])
    faiss_index, parameters = _empty_index(choice, vectors.shape[1], lists, spec)
    training_rows = lists * _TRAINING_ROWS_PER_LIST if choice.kind == "ivf" else _RANGE_ROWS
    step = min(_BLOCK_ROWS, max(_SMALLEST_STEP, rows.shape[0] // 100))
    try:
        progress("train", 0.0)
        if rows.size:
            sample = to_float32(vectors[_sample(rows, training_rows, spec.seed)])
            if choice.kind == "ivf":
                _train_lists(faiss_index, sample, spec.seed, progress)
            faiss_index.train(sample)  # the remaining training: the ranges of sq8
        for start in range(0, rows.shape[0], step):
            progress("add", start / rows.shape[0])
            faiss_index.add(to_float32(vectors[rows[start : start + step]]))
        progress("write", 0.0)
        faiss.write_index(faiss_index, str(path))
    except RuntimeError as error:
        raise BundleError(
            f"{path}: FAISS could not build the index ({error}); check memory and disk space: {free_space(path)}"
        ) from error
    return parameters


def _empty_index(choice: IndexChoice, dim: int, lists: int, spec: IndexSpec) -> tuple[Any, dict[str, int | str]]:
    """An untrained index, and its parameters."""
    product = faiss.METRIC_INNER_PRODUCT
    kinds = {"fp16": faiss.ScalarQuantizer.QT_fp16, "sq8": faiss.ScalarQuantizer.QT_8bit}
    codes = kinds.get(choice.codes)  # none for fp32
    if choice.kind == "flat":
        flat = faiss.IndexFlatIP(dim) if codes is None else faiss.IndexScalarQuantizer(dim, codes, product)
        return flat, {"codes": choice.codes}
    if choice.kind == "hnsw":
        full = codes is None
        graph = (
            faiss.IndexHNSWFlat(dim, spec.links, product)
            if full
            else faiss.IndexHNSWSQ(dim, codes, spec.links, product)
        )
        graph.hnsw.efConstruction = spec.construction
        return graph, {"codes": choice.codes, "links": spec.links, "construction": spec.construction}
    centroids = faiss.IndexFlatIP(dim)
    if codes is None:
        inverted = faiss.IndexIVFFlat(centroids, dim, lists, product)
    else:
        inverted = faiss.IndexIVFScalarQuantizer(centroids, dim, lists, codes, product, False)
    return inverted, {"codes": choice.codes, "lists": lists, "seed": spec.seed}


def _train_lists(inverted: Any, sample: NDArray[np.float32], seed: int, progress: Progress) -> None:  # noqa: ANN401
    """Run k-means for the lists one round at a time, so that minutes of training report progress."""
    clustering = faiss.Clustering(sample.shape[1], inverted.nlist)
    clustering.niter, clustering.seed, clustering.spherical = 1, seed, True
    for round_number in range(_KMEANS_ROUNDS):
        progress("train", round_number / _KMEANS_ROUNDS)
        clustering.train(sample, inverted.quantizer)  # continues from its current centroids


@contextlib.contextmanager
def _faiss_threads(threads: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
