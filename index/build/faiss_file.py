"""index.faiss: what it should be, trained, filled and written.

With :mod:`index.search.searcher` the only module that imports faiss.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.bundle.index_spec import Choice, Codes, IndexSpec
from index.bundle.manifest import FAISS_FILE
from index.errors import BundleError
from index.evaluation.measure import probe_queries, query_kinds
from index.evaluation.report import Draft
from index.machine.disk import free_space
from index.search.brute_force import exact_top_k
from index.search.float16 import to_float32
from index.search.query_plan import OVER_FETCH, SCAN, Effort, Engine, Step
from index.search.row_mask import RowMask
from index.search.scoring import rank_again
from index.search.searcher import Searcher, as_rows

Progress = Callable[[str, float], None]

_BLOCK_ROWS = 65_536
_SMALLEST_STEP = 5000  # rows between two signs of life
_TRAINING_ROWS_PER_LIST = 64
_KMEANS_ROUNDS = 10
_RANGE_ROWS = 100_000  # rows that show sq8 the range of each component
_ROUNDING_ROWS = 1_000_000
_ROUNDING_QUERIES = 64
_ROUNDING_PART = 1 / 3  # of the recall that may be missing, what rounding may take


def write_index(draft: Draft, progress: Progress) -> tuple[Choice, dict[str, int | str]]:
    """Choose, train, fill and write the index of a bundle that has its vectors, encoder and probes already.

    Args:
        draft: the bundle so far.
        progress: called with the name of a stage and the share of it that is done, 0 … 1.

    Returns:
        What was built and why, and the parameters it was built with.

    Raises:
        IndexSpecError: nothing that was asked for fits ``memory_bytes``.
        BundleError: FAISS failed.
    """
    with _faiss_threads(draft.spec.threads):
        choice = _chosen(draft, progress)
        parameters = _write_faiss(
            choice, draft.vectors, np.flatnonzero(draft.indexed), draft.directory / FAISS_FILE, draft.spec, progress
        )
    return choice, parameters


def _chosen(draft: Draft, progress: Progress) -> Choice:
    """What the specification chooses; bytes as codes only where their rounding was measured to cost next to nothing."""
    spec, rows = draft.spec, int(draft.indexed.sum())
    choice = spec.choose(rows, draft.table.layout.dim, _stored(draft.vectors))
    if spec.codes != "auto" or choice.codes != "sq8":
        return choice
    size = spec.size(choice.kind, "fp16", rows, draft.table.layout.dim, _stored(draft.vectors))
    if spec.memory_bytes is not None and size > spec.memory_bytes:
        return replace(choice, reason=f"{choice.reason}; sq8, as fp16 would not fit {spec.memory_bytes} bytes")
    found = _rounding_recall(draft, lambda share: progress("codes", share))
    if 1 - found <= (1 - spec.target_recall) * _ROUNDING_PART:
        return replace(choice, reason=f"{choice.reason}; sq8, whose rounding alone leaves recall {found:.4f}")
    reason = f"{choice.reason}; fp16, as the rounding of sq8 alone would leave recall {found:.4f}"
    return replace(choice, codes="fp16", reason=reason, bytes=size)


def _stored(vectors: NDArray[np.floating]) -> Codes:
    return "fp16" if vectors.dtype == np.float16 else "fp32"


class _Rounded:
    """Every row as sq8, looked at one by one: whatever is not found was lost by rounding alone."""

    def __init__(self, vectors: NDArray[np.floating], rows: NDArray[np.int64]) -> None:
        self.dim = vectors.shape[1]
        self.engine = Engine("flat", rows.shape[0])
        self._rows = rows
        self._codes = faiss.IndexScalarQuantizer(self.dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        self._codes.train(to_float32(vectors[_sample(rows, _RANGE_ROWS, 0)]))
        for start in range(0, rows.shape[0], _BLOCK_ROWS):
            self._codes.add(to_float32(vectors[rows[start : start + _BLOCK_ROWS]]))

    def search(self, queries: NDArray[np.float32], step: Step, allowed: RowMask | None) -> NDArray[np.int64]:
        """See :class:`index.search.searcher.VectorIndex`; there is never a filter here."""
        del allowed
        return as_rows(self._codes.search(queries, step.fetch)[1], self._rows)


def _rounding_recall(draft: Draft, progress: Callable[[float], None]) -> float:
    """Recall@k that sq8 leaves to an index that looks at every row: the worst kind of query, 0 … 1."""
    spec, layout = draft.spec, draft.table.layout
    rows = _sample(np.flatnonzero(draft.indexed), _ROUNDING_ROWS, spec.seed)
    mask = np.zeros(len(draft.table), dtype=np.bool_)
    mask[rows] = True
    queries = probe_queries(draft.encoder, draft.vectors, draft.indexed, draft.probes, _ROUNDING_QUERIES)
    kinds = query_kinds(queries, layout, draft.presence)
    scan = Effort((1 / len(layout.slots),) * len(layout.slots), ((1.0, SCAN),), per_k=1)
    searcher = Searcher(_Rounded(draft.vectors, rows), draft.vectors, mask, layout, scan)
    worst = 1.0
    for done, asked in enumerate(kinds.values()):
        progress(done / len(kinds))
        exact, _ = exact_top_k(asked, draft.vectors, spec.recall_k + OVER_FETCH, allowed=mask)
        k = min(spec.recall_k, rows.shape[0])
        _, wanted = rank_again(asked, exact, draft.vectors, layout, k)
        worst = min(worst, float((searcher.search(asked, k)[1] >= wanted[:, -1:]).mean()))
    return worst


def _sample(rows: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """The rows, or ``most`` of them at random, ascending."""
    if rows.shape[0] <= most:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _write_faiss(
    choice: Choice,
    vectors: NDArray[np.floating],
    rows: NDArray[np.int64],
    path: Path,
    spec: IndexSpec,
    progress: Progress,
) -> dict[str, int | str]:
    """Train, add and write the index; gives what it was built with."""
    if choice.kind == "flat" and choice.codes == _stored(vectors):
        rows = rows[:0]  # the stored vectors themselves are scanned
    lists = spec.list_count(rows.shape[0])
    faiss_index, parameters = _empty_index(choice, vectors.shape[1], lists, spec)
    wanted = lists * _TRAINING_ROWS_PER_LIST if choice.kind == "ivf" else _RANGE_ROWS
    step = min(_BLOCK_ROWS, max(_SMALLEST_STEP, rows.shape[0] // 100))
    try:
        progress("train", 0.0)
        if rows.size:
            sample = to_float32(vectors[_sample(rows, wanted, spec.seed)])
            if choice.kind == "ivf":
                _train_lists(faiss_index, sample, spec.seed, progress)
            faiss_index.train(sample)  # what is left: the ranges of sq8
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


def _empty_index(choice: Choice, dim: int, lists: int, spec: IndexSpec) -> tuple[Any, dict[str, int | str]]:
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
    """k-means of the lists, a round at a time: a million rows take minutes, which FAISS would spend without a sign."""
    clustering = faiss.Clustering(sample.shape[1], inverted.nlist)
    clustering.niter, clustering.seed, clustering.spherical = 1, seed, True
    for round_number in range(_KMEANS_ROUNDS):
        progress("train", round_number / _KMEANS_ROUNDS)
        clustering.train(sample, inverted.quantizer)  # goes on from the centroids that it has


@contextlib.contextmanager
def _faiss_threads(threads: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
