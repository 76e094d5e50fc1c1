"""A FAISS index of stored vectors on the CPU or GPU: returns candidates, never scores; and a graph of near vectors.

Only this module and :mod:`index.build.faiss_file` import faiss.
"""

import mmap
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.search.float16 import to_float32
from index.search.query_plan import IndexCapabilities, IndexKind, SearchStep
from index.search.row_mask import RowMask

_GPU_LARGEST_K = 2048
_GPU_SPEEDUP = 100.0  # rough ratio of memory bandwidth to one CPU core; it only affects the choice of a path
_T = TypeVar("_T")
_ADD_ROWS = 65_536
_GRAPH_LINKS, _GRAPH_CONSTRUCTION, _GRAPH_EFFORT = 24, 64, 256  # as of an index of a bundle, and how far is searched
_GRAPH_ROWS = 4_096


class VectorIndex(Protocol):
    """An index that returns candidates.

    Attributes:
        capabilities: kind, size and limits.
        dim: Σd of its vectors.
    """

    capabilities: IndexCapabilities
    dim: int

    def search(self, queries: NDArray[np.float32], step: SearchStep, allowed: RowMask | None) -> NDArray[np.int64]:
        """Find the candidates of a ``scan`` or ``index`` step.

        Args:
            queries: (B, Σd) C-contiguous float32.
            step: from :func:`index.search.query_plan.plan`.
            allowed: the rows that a ``scan`` reads, None for all indexed rows; an ``index`` step ignores it.

        Returns:
            (B, step.fetch) int64 rows of the catalogue, the best first, −1 = none.

        Raises:
            SearchError: FAISS failed.
        """
        ...


class CpuIndex:
    """A FAISS index on the CPU, memory-mapped from its file; any number of threads may search it at once.

    A scan reads the stored vectors in place, so it is exact for any codes of the index. A flat index with the codes of
    the stored vectors has no rows of its own, so no vector is stored twice.

    Args:
        path: ``index.faiss``. Its hash must have been verified: FAISS crashes on hostile files.
        vectors: (n, Σd) stored vectors, float16 or float32, C-contiguous, may be memory-mapped; read in place.
        indexed: (n,) bool, the rows in the index.
        threads: OpenMP threads of one search. FAISS keeps the number per calling thread, so every call sets it.

    Raises:
        SearchError: the file is not a readable index of a known kind, or does not fit the vectors.
    """

    def __init__(
        self, path: Path, vectors: NDArray[np.floating], indexed: NDArray[np.bool_], *, threads: int = 1
    ) -> None:
        self._faiss_index, self._pages = _mapped(path)
        rows, kind = int(np.count_nonzero(indexed)), _kind(self._faiss_index)
        if self._faiss_index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise SearchError(f"{path}: the index must use inner product; build it again")
        self.dim = int(self._faiss_index.d)
        if self.dim != vectors.shape[1]:
            raise SearchError(
                f"{path}: the index has {self.dim} dimensions, the vectors {vectors.shape[1]}; build it again"
            )
        if not vectors.flags.c_contiguous or vectors.dtype not in (np.float16, np.float32):
            raise SearchError(f"vectors must be contiguous float16 or float32 to be read in place, got {vectors.dtype}")
        stored = int(self._faiss_index.ntotal)
        self._scan_only = kind == "flat" and stored == 0
        if stored != rows and not self._scan_only:
            raise SearchError(f"{path}: the index holds {stored} rows, {rows} have a slot; build it again")
        self.capabilities = IndexCapabilities(kind, rows, _lists(self._faiss_index))
        self._threads = threads
        self._all_rows = None if rows == indexed.shape[0] else np.packbits(indexed, bitorder="little")
        self._rows = None if rows == indexed.shape[0] else np.flatnonzero(indexed).astype(np.uint32)
        self._vectors = vectors  # the index below does not keep them alive
        self._scan_index = _view_of(vectors)

    def search(self, queries: NDArray[np.float32], step: SearchStep, allowed: RowMask | None) -> NDArray[np.int64]:
        """See :meth:`VectorIndex.search`."""
        faiss.omp_set_num_threads(self._threads)
        if step.path == "scan" or self._scan_only:
            bitmap = self._all_rows if allowed is None or step.path == "index" else allowed.bitmap
            selector = None if bitmap is None else faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bitmap))
            return _search(self._scan_index, queries, step.fetch, selector)
        parameters = None
        if self.capabilities.kind == "ivf":
            parameters = faiss.SearchParametersIVF(nprobe=step.effort)
        elif self.capabilities.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=step.effort)
        return positions_to_rows(_search(self._faiss_index, queries, step.fetch, parameters), self._rows)

    def to_gpu(self) -> tuple[Any, Any]:
        """Copy to GPU 0: IVF as it is, any other kind as an fp16 flat index of the stored vectors.

        Returns:
            The GPU resources, which must be kept alive, and the index; use both from one thread only. The index returns
            positions, see :func:`positions_to_rows`.
        """
        resources = faiss.StandardGpuResources()
        if self.capabilities.kind == "ivf":
            options = faiss.GpuClonerOptions()
            options.useFloat16 = True
            return resources, faiss.index_cpu_to_gpu(resources, 0, self._faiss_index, options)
        config = faiss.GpuIndexFlatConfig()
        config.useFloat16 = True
        flat = faiss.GpuIndexFlatIP(resources, self.dim, config)
        for start in range(0, self.capabilities.rows, _ADD_ROWS):
            part = slice(start, min(start + _ADD_ROWS, self.capabilities.rows))
            flat.add(to_float32(self._vectors[part] if self._rows is None else self._vectors[self._rows[part]]))
        return resources, flat

    @property
    def rows(self) -> NDArray[np.uint32] | None:
        """(rows,) uint32 row of each position in the index; None if position and row are the same."""
        return self._rows


def has_gpu_support() -> bool:
    """Whether this FAISS is built for GPUs, with or without one here."""
    return hasattr(faiss, "StandardGpuResources")


class GpuIndex:
    """A copy of the index on the GPU: IVF as it is, flat and HNSW as an exact fp16 flat index.

    All calls run on one thread with one resource object, because concurrent searches are not safe (faiss #367). The GPU
    index never gets a filter, because GPU indexes silently ignored ``IDSelector`` (faiss #3114, #3924): filters use
    over-fetch or the exact paths, and a ``scan`` runs on the CPU.

    Args:
        on_cpu: the index to copy; it runs the scans.

    Raises:
        SearchError: there is no GPU, or FAISS lacks GPU support.
    """

    def __init__(self, on_cpu: CpuIndex) -> None:
        if not has_gpu_support() or faiss.get_num_gpus() < 1:
            raise SearchError("device 'cuda' needs a GPU and the extra 'gpu' (faiss-gpu); use device 'cpu'")
        self._on_cpu = on_cpu
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="faiss-gpu")
        weakref.finalize(self, self._worker.shutdown, wait=False)
        self._resources, self._faiss_index = self._on_gpu_thread(on_cpu.to_gpu)
        kind: IndexKind = "ivf" if on_cpu.capabilities.kind == "ivf" else "flat"
        self.capabilities = IndexCapabilities(
            kind, on_cpu.capabilities.rows, on_cpu.capabilities.lists, _GPU_LARGEST_K, _GPU_SPEEDUP
        )
        self.dim = on_cpu.dim

    def search(self, queries: NDArray[np.float32], step: SearchStep, allowed: RowMask | None) -> NDArray[np.int64]:
        """See :meth:`VectorIndex.search`."""
        if step.path == "scan":
            return self._on_cpu.search(queries, step, allowed)
        parameters = faiss.SearchParametersIVF(nprobe=step.effort) if self.capabilities.kind == "ivf" else None
        positions = self._on_gpu_thread(lambda: _search(self._faiss_index, queries, step.fetch, parameters))
        return positions_to_rows(positions, self._on_cpu.rows)

    def _on_gpu_thread(self, call: Callable[[], _T]) -> _T:
        return self._worker.submit(call).result()


def nearest_of_all(
    vectors: NDArray[np.float32], count: int, *, threads: int, added: Callable[[int], None]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The nearest vectors of each vector by inner product, nearly all of them, from a graph (HNSW) in memory.

    The graph is built in one thread, as with several it would depend on how they take turns. Each search is of one
    query alone, so the result is the same for any number of threads.

    Args:
        vectors: (n, d) C-contiguous float32.
        count: at least 1; each vector is among its own nearest ones.
        threads: of the searches.
        added: called after every block that is added, with the number of vectors in the graph.

    Yields:
        (m, count) int64 rows, the nearest first, −1 = none, and (m, count) float32 products of m vectors after another.
    """
    before = faiss.omp_get_max_threads()
    graph = faiss.IndexHNSWFlat(vectors.shape[1], _GRAPH_LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = _GRAPH_CONSTRUCTION
    parameters = faiss.SearchParametersHNSW(efSearch=max(_GRAPH_EFFORT, 2 * count))
    try:
        for start in range(0, len(vectors), _GRAPH_ROWS):
            faiss.omp_set_num_threads(1)
            graph.add(vectors[start : start + _GRAPH_ROWS])
            added(graph.ntotal)
        for start in range(0, len(vectors), _GRAPH_ROWS):
            faiss.omp_set_num_threads(threads)
            products, rows = graph.search(vectors[start : start + _GRAPH_ROWS], count, params=parameters)
            yield rows, products
    finally:
        faiss.omp_set_num_threads(before)


def positions_to_rows(positions: NDArray[np.int64], rows: NDArray[np.integer] | None) -> NDArray[np.int64]:
    """Convert positions in an index to rows of the catalogue.

    Args:
        positions: int64 of any shape, −1 = none.
        rows: (r,) int64 or uint32 row of each position; None if position and row are the same.

    Returns:
        int64 rows of the shape of ``positions``, −1 = none.
    """
    return positions if rows is None else np.where(positions < 0, np.int64(-1), rows[positions])


def _mapped(path: Path) -> tuple[Any, NDArray[np.uint8]]:
    """An index that reads its codes and lists or links from the mapped file, and the mapping, which must outlive it."""
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        pages = np.frombuffer(mapping, dtype=np.uint8)
        faiss_index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(pages), pages.size))
    except (OSError, ValueError, RuntimeError) as error:
        raise SearchError(f"{path}: not a readable FAISS index ({_first_line(error)}); build it again") from error
    mapping.madvise(mmap.MADV_DONTNEED)  # copied pages are not read again; other pages are loaded when read
    return faiss_index, pages


def _view_of(vectors: NDArray[np.floating]) -> Any:  # noqa: ANN401 - faiss has no types
    """A flat FAISS index that reads stored vectors in place; the vectors must outlive it."""
    if vectors.dtype == np.float16:
        flat = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        flat = faiss.IndexFlatIP(vectors.shape[1])
    unowned = faiss.MaybeOwnedVectorUInt8()  # a variable, because its `owner` does not keep it alive
    flat.codes = faiss.MaybeOwnedVectorUInt8.create_view(
        faiss.swig_ptr(vectors.reshape(-1).view(np.uint8)), vectors.nbytes, unowned.owner
    )
    flat.ntotal = vectors.shape[0]
    return flat


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
    typed: NDArray[np.int64] = positions
    return typed


def _kind(faiss_index: Any) -> IndexKind:  # noqa: ANN401 - faiss has no types
    kinds: list[tuple[type, IndexKind]] = [
        (faiss.IndexHNSW, "hnsw"),
        (faiss.IndexIVF, "ivf"),
        (faiss.IndexFlatCodes, "flat"),
    ]
    for known, kind in kinds:
        if isinstance(faiss_index, known):
            return kind
    raise SearchError(f"an index of type {type(faiss_index).__name__} is not supported; build it again")


def _lists(faiss_index: Any) -> int:  # noqa: ANN401 - faiss has no types
    return int(faiss_index.nlist) if isinstance(faiss_index, faiss.IndexIVF) else 0


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
