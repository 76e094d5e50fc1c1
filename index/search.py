"""FAISS behind one face: approximate candidates, filters at any selectivity, exact scores.

With :mod:`index.build` the only module that imports faiss. What an index returns is only a list of candidates: rows
are scored again from the stored vectors, so every kind of index gives the same scores, and −1 never leaves.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.exact import check_allowed, check_k, check_queries, exact_top_k
from index.plan import OVER_FETCH, SCAN, Effort, Engine, IndexKind, Step, plan
from index.scoring import rank_again
from index.slots import SlotLayout

_GPU_LARGEST_K = 2048
_T = TypeVar("_T")
_ADD_ROWS = 65_536


class VectorIndex(Protocol):
    """An index that gives candidates; positions are places in the index, not rows of the catalogue."""

    engine: Engine
    dim: int

    def search(self, queries: NDArray[np.float32], step: Step, bitmap: NDArray[np.uint8] | None) -> NDArray[np.int64]:
        """Candidates of a ``scan`` or ``index`` step.

        Args:
            queries: (B, Σd) C-contiguous float32.
            step: from :func:`index.plan.plan`.
            bitmap: one bit per position, lowest bit first; only where ``engine.filters`` holds.

        Returns:
            (B, step.fetch) int64 positions, −1 = none.
        """
        ...


class CpuIndex:
    """A FAISS index on the CPU, mapped from its file; any number of threads may search it at once.

    Args:
        path: ``index.faiss``. Its hash must have been verified: FAISS does not survive hostile files.
        threads: OpenMP threads of one search. FAISS keeps the number per calling thread, so it is set on every call.

    Raises:
        SearchError: the file is not a readable index of a known kind.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        try:
            self._faiss_index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise SearchError(f"{path}: not a readable FAISS index ({_first_line(error)}); build it again") from error
        self._threads = threads
        self.engine = Engine(_kind(self._faiss_index), int(self._faiss_index.ntotal), _lists(self._faiss_index))
        self.dim = int(self._faiss_index.d)
        # Every kind can look at all rows; HNSW through the flat storage under its graph.
        is_hnsw = self.engine.kind == "hnsw"
        self._flat = faiss.downcast_index(self._faiss_index.storage) if is_hnsw else self._faiss_index
        if self._faiss_index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise SearchError(f"{path}: the index must use inner product; build it again")

    def search(self, queries: NDArray[np.float32], step: Step, bitmap: NDArray[np.uint8] | None) -> NDArray[np.int64]:
        """See :meth:`VectorIndex.search`."""
        faiss.omp_set_num_threads(self._threads)
        options: dict[str, Any] = {} if bitmap is None else {"sel": faiss.IDSelectorBitmap(bitmap)}
        target = self._faiss_index
        if self.engine.kind == "ivf":
            probes = step.effort if step.path == "index" else self.engine.lists
            parameters = faiss.SearchParametersIVF(nprobe=probes, **options)
        elif step.path == "index":
            parameters = faiss.SearchParametersHNSW(efSearch=step.effort, **options)
        else:
            target = self._flat
            parameters = faiss.SearchParameters(**options) if options else None
        return _search(target, queries, step.fetch, parameters)

    def to_gpu(self, vectors: NDArray[np.floating], positions: NDArray[np.int64] | None) -> tuple[Any, Any]:
        """Copy to GPU 0; IVF as it is, any other kind as fp16 flat from the stored vectors.

        Args:
            vectors: (n, Σd) stored vectors.
            positions: (rows,) int64 the row of each position; None when all rows are indexed.

        Returns:
            The resource object, to be kept alive, and the index that lives on it; use both from this thread only.
        """
        resources = faiss.StandardGpuResources()
        if self.engine.kind == "ivf":
            options = faiss.GpuClonerOptions()
            options.useFloat16 = True
            return resources, faiss.index_cpu_to_gpu(resources, 0, self._faiss_index, options)
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = True
        flat = faiss.GpuIndexFlatIP(resources, self.dim, config)
        for start in range(0, self.engine.rows, _ADD_ROWS):
            part = slice(start, min(start + _ADD_ROWS, self.engine.rows))
            block = vectors[part] if positions is None else vectors[positions[part]]
            flat.add(np.ascontiguousarray(block, dtype=np.float32))
        return resources, flat


class GpuIndex:
    """A copy of the index on the GPU: IVF as it is, flat and HNSW as an exact fp16 flat index.

    One resource object and one thread of its own for every call, because neither is safe even for concurrent readers
    (faiss #367). It never filters (``engine.filters`` is False): GPU indexes have ignored ``IDSelector`` silently.

    Args:
        on_cpu: the index to copy; not needed afterwards.
        vectors: (n, Σd) stored vectors, read in blocks.
        positions: (rows,) int64 the row of each position; None when all rows are indexed.

    Raises:
        SearchError: no GPU, or a FAISS without GPU support.
    """

    def __init__(self, on_cpu: CpuIndex, vectors: NDArray[np.floating], positions: NDArray[np.int64] | None) -> None:
        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() < 1:
            raise SearchError("device 'cuda' needs a GPU and the extra 'gpu' (faiss-gpu); use device 'cpu'")
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="faiss-gpu")
        weakref.finalize(self, self._worker.shutdown, wait=False)
        self._resources, self._faiss_index = self._alone(lambda: on_cpu.to_gpu(vectors, positions))
        kind: IndexKind = "ivf" if on_cpu.engine.kind == "ivf" else "flat"
        self.engine = Engine(kind, on_cpu.engine.rows, on_cpu.engine.lists, filters=False, largest_fetch=_GPU_LARGEST_K)
        self.dim = on_cpu.dim

    def search(self, queries: NDArray[np.float32], step: Step, bitmap: NDArray[np.uint8] | None) -> NDArray[np.int64]:
        """See :meth:`VectorIndex.search`."""
        if bitmap is not None:
            raise SearchError("a GPU index cannot filter; filter its candidates")
        parameters = faiss.SearchParametersIVF(nprobe=step.effort) if self.engine.kind == "ivf" else None
        return self._alone(lambda: _search(self._faiss_index, queries, step.fetch, parameters))

    def _alone(self, call: Callable[[], _T]) -> _T:
        return self._worker.submit(call).result()


class Searcher:
    """Top-k over the rows that have a slot, by whatever index there is.

    Args:
        vector_index: gives candidates; its position p is the p-th indexed row.
        vectors: (n, Σd) stored vectors of all rows, float16 or float32, may be memory-mapped.
        indexed: (n,) bool, the rows in the index, in order.
        layout: the slots.
        effort: search effort by skew.

    Raises:
        SearchError: the index has another number of rows than ``indexed`` marks, or other dimensions.
    """

    def __init__(
        self,
        vector_index: VectorIndex,
        vectors: NDArray[np.floating],
        indexed: NDArray[np.bool_],
        layout: SlotLayout,
        effort: Effort,
    ) -> None:
        rows = int(np.count_nonzero(indexed))
        if vector_index.dim != layout.dim:
            raise SearchError(f"the index has {vector_index.dim} dimensions, the slots {layout.dim}; build it again")
        if vector_index.engine.rows != rows:
            raise SearchError(f"the index holds {vector_index.engine.rows} rows, {rows} have a slot; build it again")
        self._index = vector_index
        self._vectors = vectors
        self._indexed = None if rows == indexed.shape[0] else indexed
        self._rows = None if self._indexed is None else np.flatnonzero(indexed)
        self._count = rows
        self._layout = layout
        self._effort = effort

    def search(
        self, queries: NDArray[np.floating], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k rows per query.

        Args:
            queries: (B, Σd), slot weights already multiplied in.
            k: at least 1; may exceed the number of rows.
            allowed: (n,) bool shared by all queries; None allows all.

        Returns:
            (B, k) int64 rows padded with −1 and (B, k) float32 scores padded with −inf, descending, ties by lower row;
            always min(k, allowed rows) of them. Rows without any slot are never among them.

        Raises:
            SearchError: a shape, dtype or value breaks a rule, or FAISS fails.
        """
        checked = check_queries(queries, self._layout.dim)
        check_k(k)
        count = self._count
        if allowed is not None:
            check_allowed(allowed, -1, self._vectors.shape[0])
            allowed = allowed if self._indexed is None else allowed & self._indexed
            count = int(np.count_nonzero(allowed))
            allowed = None if count == self._count else allowed
        if count == 0 or checked.shape[0] == 0:
            return _nothing(checked.shape[0], k)
        efforts = self._effort.of(checked, self._layout)
        if checked.shape[0] == 1 or (efforts == efforts[0]).all():
            return self._group(checked, k, allowed, count, int(efforts[0]))
        rows, scores = _nothing(checked.shape[0], k)
        for effort in np.unique(efforts):
            members = np.flatnonzero(efforts == effort)
            rows[members], scores[members] = self._group(checked[members], k, allowed, count, int(effort))
        return rows, scores

    def _group(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None, count: int, effort: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Queries of one effort; completes those for which the index found too few."""
        engine = self._index.engine
        step = plan(engine, k, count, effort, self._effort.per_k)
        candidates = self._candidates(queries, step, allowed)
        rows, scores = rank_again(queries, candidates, self._vectors, self._layout, k)
        short = np.flatnonzero(rows[:, min(k, count) - 1] < 0)
        if short.size == 0:
            return rows, scores
        whole = Step("scan" if engine.filters else "gather", min(k + OVER_FETCH, count), SCAN)
        again = self._candidates(queries[short], whole, allowed)
        rows[short], scores[short] = rank_again(queries[short], again, self._vectors, self._layout, k)
        return rows, scores

    def _candidates(
        self, queries: NDArray[np.float32], step: Step, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """(B, ·) int64 rows of the catalogue, all allowed, −1 = none."""
        if step.path == "gather":
            mask = self._indexed if allowed is None else allowed
            return exact_top_k(queries, self._vectors, step.fetch, allowed=mask)[0]
        if allowed is None or not self._index.engine.filters:
            bitmap = None
        else:
            bitmap = np.packbits(allowed if self._rows is None else allowed[self._rows], bitorder="little")
        positions = self._index.search(queries, step, bitmap)
        rows = positions if self._rows is None else np.where(positions < 0, -1, self._rows[positions])
        if allowed is not None and bitmap is None:
            rows = np.where((rows >= 0) & allowed[rows], rows, -1)
        return rows


def _search(
    faiss_index: Any,  # noqa: ANN401 - faiss has no types
    queries: NDArray[np.float32],
    fetch: int,
    parameters: Any,  # noqa: ANN401
) -> NDArray[np.int64]:
    try:
        _, positions = faiss_index.search(queries, fetch, params=parameters)
    except (RuntimeError, AssertionError) as error:
        raise SearchError(f"FAISS could not search {queries.shape} for {fetch} rows: {_first_line(error)}") from error
    found: NDArray[np.int64] = positions
    return found


def _nothing(queries: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), -np.inf, dtype=np.float32)


def _kind(faiss_index: Any) -> IndexKind:  # noqa: ANN401 - faiss has no types
    kinds: list[tuple[type, IndexKind]] = [
        (faiss.IndexHNSW, "hnsw"),
        (faiss.IndexIVF, "ivf"),
        (faiss.IndexFlatCodes, "flat"),
    ]
    for known, kind in kinds:
        if isinstance(faiss_index, known):
            return kind
    raise SearchError(f"an index of type {type(faiss_index).__name__} is not known; build it again")


def _lists(faiss_index: Any) -> int:  # noqa: ANN401 - faiss has no types
    return int(faiss_index.nlist) if isinstance(faiss_index, faiss.IndexIVF) else 0


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
