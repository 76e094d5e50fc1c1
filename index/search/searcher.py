"""FAISS behind one face: approximate candidates, filters at any selectivity, exact scores.

With :mod:`index.build.faiss_file` the only module that imports faiss. What an index returns is only a list of
candidates: rows are scored again from the stored vectors, so every kind of index gives the same scores, and −1 never
leaves.
"""

import mmap
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from index.errors import SearchError
from index.items.slots import SlotLayout
from index.search.brute_force import check_k, check_queries, exact_top_k_among
from index.search.float16 import to_float32
from index.search.query_plan import OVER_FETCH, SPARE, Effort, Engine, IndexKind, Step, exact_step, plan
from index.search.row_mask import RowMask
from index.search.scoring import rank_again

_GPU_LARGEST_K = 2048
_GPU_ADVANTAGE = 100.0  # of memory bandwidth over one CPU core, in round numbers; only the choice of a path hangs on it
_T = TypeVar("_T")
_ADD_ROWS = 65_536


class VectorIndex(Protocol):
    """An index that gives candidates."""

    engine: Engine
    dim: int

    def search(self, queries: NDArray[np.float32], step: Step, allowed: RowMask | None) -> NDArray[np.int64]:
        """Candidates of a ``scan`` or ``index`` step.

        Args:
            queries: (B, Σd) C-contiguous float32.
            step: from :func:`index.search.query_plan.plan`.
            allowed: the rows that a ``scan`` looks at, None for all indexed ones; an ``index`` step leaves it alone.

        Returns:
            (B, step.fetch) int64 rows of the catalogue, the best first, −1 = none.
        """
        ...


class CpuIndex:
    """A FAISS index on the CPU, mapped from its file; any number of threads may search it at once.

    Every scan reads the stored vectors themselves, where they lie, so it is exact whatever the codes of the index are.
    A flat index of the same codes as the stored vectors has no rows of its own: nothing is kept twice.

    Args:
        path: ``index.faiss``. Its hash must have been verified: FAISS does not survive hostile files.
        vectors: (n, Σd) stored vectors, float16 or float32, C-contiguous, may be memory-mapped; read in place.
        indexed: (n,) bool, the rows in the index, in order.
        threads: OpenMP threads of one search. FAISS keeps the number per calling thread, so it is set on every call.

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
        held = int(self._faiss_index.ntotal)
        self._bare = kind == "flat" and held == 0
        if held != rows and not self._bare:
            raise SearchError(f"{path}: the index holds {held} rows, {rows} have a slot; build it again")
        self.engine = Engine(kind, rows, _lists(self._faiss_index))
        self._threads = threads
        self._everything = None if rows == indexed.shape[0] else np.packbits(indexed, bitorder="little")
        self._rows = None if rows == indexed.shape[0] else np.flatnonzero(indexed).astype(np.uint32)
        self._vectors = vectors  # the view below does not keep them alive
        self._stored = _view_of(vectors)

    def search(self, queries: NDArray[np.float32], step: Step, allowed: RowMask | None) -> NDArray[np.int64]:
        """See :meth:`VectorIndex.search`."""
        faiss.omp_set_num_threads(self._threads)
        if step.path == "scan" or self._bare:
            bitmap = self._everything if allowed is None or step.path == "index" else allowed.bitmap
            chosen = None if bitmap is None else faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bitmap))
            return _search(self._stored, queries, step.fetch, chosen)
        parameters = None
        if self.engine.kind == "ivf":
            parameters = faiss.SearchParametersIVF(nprobe=step.effort)
        elif self.engine.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(efSearch=step.effort)
        return as_rows(_search(self._faiss_index, queries, step.fetch, parameters), self._rows)

    def to_gpu(self) -> tuple[Any, Any]:
        """Copy to GPU 0; IVF as it is, any other kind as fp16 flat from the stored vectors.

        Returns:
            The resource object, to be kept alive, and the index that lives on it; use both from one thread only. The
            index gives positions, see :func:`as_rows`.
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
            flat.add(to_float32(self._vectors[part] if self._rows is None else self._vectors[self._rows[part]]))
        return resources, flat

    @property
    def rows(self) -> NDArray[np.uint32] | None:
        """(rows,) uint32 the row of each position in the index; None when position and row are the same."""
        return self._rows


class GpuIndex:
    """A copy of the index on the GPU: IVF as it is, flat and HNSW as an exact fp16 flat index.

    One resource object and one thread of its own for every call, because neither is safe even for concurrent readers
    (faiss #367). The GPU is never given a filter: its indexes have ignored ``IDSelector`` without a word (faiss #3114,
    #3924). Filters go by over-fetch or to the exact paths, and a ``scan`` is done on the CPU.

    Args:
        on_cpu: the index to copy; it keeps doing the scans.

    Raises:
        SearchError: no GPU, or a FAISS without GPU support.
    """

    def __init__(self, on_cpu: CpuIndex) -> None:
        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() < 1:
            raise SearchError("device 'cuda' needs a GPU and the extra 'gpu' (faiss-gpu); use device 'cpu'")
        self._on_cpu = on_cpu
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="faiss-gpu")
        weakref.finalize(self, self._worker.shutdown, wait=False)
        self._resources, self._faiss_index = self._alone(on_cpu.to_gpu)
        kind: IndexKind = "ivf" if on_cpu.engine.kind == "ivf" else "flat"
        self.engine = Engine(kind, on_cpu.engine.rows, on_cpu.engine.lists, _GPU_LARGEST_K, _GPU_ADVANTAGE)
        self.dim = on_cpu.dim

    def search(self, queries: NDArray[np.float32], step: Step, allowed: RowMask | None) -> NDArray[np.int64]:
        """See :meth:`VectorIndex.search`."""
        if step.path == "scan":
            return self._on_cpu.search(queries, step, allowed)
        parameters = faiss.SearchParametersIVF(nprobe=step.effort) if self.engine.kind == "ivf" else None
        positions = self._alone(lambda: _search(self._faiss_index, queries, step.fetch, parameters))
        return as_rows(positions, self._on_cpu.rows)

    def _alone(self, call: Callable[[], _T]) -> _T:
        return self._worker.submit(call).result()


class Searcher:
    """Top-k over the rows that have a slot, by whatever index there is.

    Args:
        vector_index: gives candidates.
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
        self._indexed = indexed
        self._count = rows
        self._layout = layout
        self._effort = effort

    def search(
        self, queries: NDArray[np.floating], k: int, allowed: RowMask | NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best k rows per query.

        Args:
            queries: (B, Σd), slot weights already multiplied in.
            k: at least 1; may exceed the number of rows.
            allowed: shared by all queries; a plain (n,) bool is counted anew at every call. None allows all.

        Returns:
            (B, k) int64 rows padded with −1 and (B, k) float32 scores padded with −inf, descending, ties by lower row;
            always min(k, allowed rows) of them. Rows without any slot are never among them.

        Raises:
            SearchError: a shape, dtype or value breaks a rule, or FAISS fails.
        """
        checked = check_queries(queries, self._layout.dim)
        check_k(k)
        narrowed = self._narrowed(allowed)
        if checked.shape[0] == 0 or (narrowed is not None and narrowed.count == 0):
            return _nothing(checked.shape[0], k)
        efforts = self._effort.of(checked, self._layout)
        if checked.shape[0] == 1 or (efforts == efforts[0]).all():
            return self._group(checked, k, narrowed, int(efforts[0]))
        rows, scores = _nothing(checked.shape[0], k)
        for effort in np.unique(efforts):
            members = np.flatnonzero(efforts == effort)
            rows[members], scores[members] = self._group(checked[members], k, narrowed, int(effort))
        return rows, scores

    def exact(
        self, queries: NDArray[np.floating], k: int, allowed: RowMask | NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As :meth:`search`, but every allowed row is looked at: what the answers of an index are held against.

        On the CPU whatever the index lives on; nearly all of it is one call without the interpreter's lock.
        """
        checked = check_queries(queries, self._layout.dim)
        check_k(k)
        narrowed = self._narrowed(allowed)
        count = self._count if narrowed is None else narrowed.count
        if checked.shape[0] == 0 or count == 0:
            return _nothing(checked.shape[0], k)
        candidates = self._candidates(checked, exact_step(self._index.engine, k, count), narrowed)
        return rank_again(checked, candidates, self._vectors, self._layout, k)

    def planned(self, query: NDArray[np.float32], k: int, allowed: RowMask | NDArray[np.bool_] | None = None) -> Step:
        """The step that :meth:`search` would begin with for one query (Σd,), for benches and reports."""
        effort = int(self._effort.of(check_queries(query[None], self._layout.dim), self._layout)[0])
        return self._plan(k, self._narrowed(allowed), effort)

    def _narrowed(self, allowed: RowMask | NDArray[np.bool_] | None) -> RowMask | None:
        """The filter, counted; None when it allows every row that can be found."""
        if isinstance(allowed, np.ndarray):
            allowed = RowMask.of(allowed, self._indexed)
        if allowed is not None and allowed.indexed is not self._indexed:
            raise SearchError("the allowed rows were counted for another bundle; ask this one's `allowed`")
        return None if allowed is None or allowed.count == self._count else allowed

    def _plan(self, k: int, allowed: RowMask | None, effort: int) -> Step:
        count, taken = (self._count, 0) if allowed is None else (allowed.count, allowed.taken)
        return plan(self._index.engine, k, count, effort, self._effort, taken)

    def _group(
        self, queries: NDArray[np.float32], k: int, allowed: RowMask | None, effort: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Queries of one effort; those for which the index found too few are answered exactly."""
        step = self._plan(k, allowed, effort)
        candidates = self._candidates(queries, step, allowed)[:, : k + OVER_FETCH]
        rows, scores = rank_again(queries, candidates, self._vectors, self._layout, k)
        if step.path != "index":
            return rows, scores
        count = self._count if allowed is None else allowed.count
        enough = min(k if allowed is None else k + SPARE, count)
        short = np.flatnonzero((candidates >= 0).sum(axis=1) < enough)
        if short.size:
            again = self._candidates(queries[short], exact_step(self._index.engine, k, count), allowed)
            rows[short], scores[short] = rank_again(queries[short], again, self._vectors, self._layout, k)
        return rows, scores

    def _candidates(self, queries: NDArray[np.float32], step: Step, allowed: RowMask | None) -> NDArray[np.int64]:
        """(B, ·) int64 rows of the catalogue, all allowed, the index's best first, −1 = none, only at the end."""
        if step.path == "gather" and allowed is not None:
            return exact_top_k_among(queries, self._vectors, step.fetch, allowed.rows)[0]
        rows = self._index.search(queries, step, allowed)
        if allowed is None or step.path == "scan":
            return rows
        rows = np.where((rows >= 0) & allowed.findable[rows], rows, -1)
        return np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), axis=1)


def as_rows(positions: NDArray[np.int64], rows: NDArray[np.integer] | None) -> NDArray[np.int64]:
    """Positions in an index, −1 = none, as rows of the catalogue.

    Args:
        positions: int64 of any shape.
        rows: (·,) int64 or uint32, the row of each position; None when they are the same.
    """
    return positions if rows is None else np.where(positions < 0, np.int64(-1), rows[positions])


def _mapped(path: Path) -> tuple[Any, NDArray[np.uint8]]:
    """An index that reads its codes and lists or neighbours in the mapped file, and the bytes that must outlive it."""
    try:
        with path.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        pages = np.frombuffer(mapping, dtype=np.uint8)
        faiss_index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(pages), pages.size))
    except (OSError, ValueError, RuntimeError) as error:
        raise SearchError(f"{path}: not a readable FAISS index ({_first_line(error)}); build it again") from error
    mapping.madvise(mmap.MADV_DONTNEED)  # what was copied is never read here again; the rest comes back when it is
    return faiss_index, pages


def _view_of(vectors: NDArray[np.floating]) -> Any:  # noqa: ANN401 - faiss has no types
    """A flat FAISS index over stored vectors where they lie; they must outlive it."""
    if vectors.dtype == np.float16:
        flat = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        flat = faiss.IndexFlatIP(vectors.shape[1])
    unowned = faiss.MaybeOwnedVectorUInt8()  # named, as what it lends of itself does not keep it alive
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
