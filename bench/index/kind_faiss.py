"""Indexes of FAISS with the interface of every contender: built once from stored vectors, then asked for candidates.

Runs in the environment of bench/requirements/kinds.txt, so nothing here may import more than numpy, those libraries and
the parts of :mod:`index` that need numpy and faiss.
"""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from index.search.float16 import to_float32
from index.search.query_plan import OVER_FETCH

LINKS, CONSTRUCTION = 24, 64  # of every graph, as the product builds its own
SEED = 0

_BLOCK = 65_536
_SAMPLE = 100_000
_PROJECTED = 64
_HUGE_PAGE = 2 << 20


class CandidateIndex(Protocol):
    """One index, loaded.

    Attributes:
        least: least number of candidates that are re-scored.
        low: least effort; candidates are never fewer than ``least``.
    """

    least: int
    low: int

    def search(self, query: NDArray[np.float32], effort: int, fetch: int) -> NDArray[np.int64]:
        """(1, fetch) rows of the indexed vectors, the best first, −1 = none.

        Args:
            query: (1, Σd) float32.
            effort: beam of a graph, or number of lists.
            fetch: number of candidates.
        """
        ...


def blocks(vectors: NDArray[np.float16]) -> Any:  # noqa: ANN401 - a generator of pairs
    """Pairs of first row and (b, Σd) float32 vectors, from the first row to the last."""
    for start in range(0, len(vectors), _BLOCK):
        yield start, to_float32(vectors[start : start + _BLOCK])


def sample(vectors: NDArray[np.float16], most: int = _SAMPLE) -> NDArray[np.float32]:
    """At most ``most`` random vectors, as float32."""
    if len(vectors) <= most:
        return to_float32(vectors)
    return to_float32(vectors[np.sort(np.random.default_rng(SEED).choice(len(vectors), most, replace=False))])


def anonymous_pages(path: Path, *, huge: bool) -> NDArray[np.uint8]:
    """A copy of a file in anonymous memory, in huge pages or explicitly not."""
    size = path.stat().st_size
    mapping = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    pages = np.frombuffer(mapping, dtype=np.uint8)
    start = -pages.ctypes.data % _HUGE_PAGE
    with path.open("rb", buffering=0) as file:
        done = 0
        while done < size:
            done += file.readinto(memoryview(mapping)[start + done : start + size]) or 0
    return pages[start : start + size]


def file_pages(path: Path) -> NDArray[np.uint8]:
    """A file, mapped."""
    with path.open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)


class FaissContender:
    """A FAISS index of any kind, read from the mapping of its file.

    Args:
        pages: of the file.
        parameters: the search parameters of an effort.
        least: least number of candidates.
        low: least effort.
        project: (Σd, d) float32, by which queries are multiplied; None: not at all.
        rows: (n,) row of each position; None if they are the same.
    """

    def __init__(
        self,
        pages: NDArray[np.uint8],
        parameters: Callable[[int], Any],
        *,
        least: int = OVER_FETCH,
        low: int = 8,
        project: NDArray[np.float32] | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._pages = pages
        self._index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(pages), pages.size))
        self._parameters, self._project, self._rows = parameters, project, rows
        self._made: dict[int, Any] = {}
        self.least, self.low = least, low

    def search(self, query: NDArray[np.float32], effort: int, fetch: int) -> NDArray[np.int64]:
        """See :meth:`CandidateIndex.search`."""
        if effort not in self._made:
            self._made[effort] = self._parameters(effort)
        asked = query if self._project is None else query @ self._project
        positions: NDArray[np.int64] = self._index.search(asked, fetch, params=self._made[effort])[1]
        return positions if self._rows is None else self._rows[positions]


def beam(effort: int) -> Any:  # noqa: ANN401 - faiss has no types
    """Search parameters of a graph."""
    return faiss.SearchParametersHNSW(efSearch=effort)


def lists(effort: int) -> Any:  # noqa: ANN401
    """Search parameters of inverted lists."""
    return faiss.SearchParametersIVF(nprobe=effort)


def build_hnsw(
    vectors: NDArray[np.float16], path: Path, *, construction: int = CONSTRUCTION, full: bool = False
) -> None:
    """The product's own graph over sq8 codes; with ``full`` a row keeps links that pruning would drop, up to 48."""
    graph = faiss.IndexHNSWSQ(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.keep_max_size_level0 = full
    _fill_graph(graph, vectors, path, construction=construction)


def build_projected(vectors: NDArray[np.float16], path: Path) -> None:
    """A graph over sq8 codes of the 64 directions with the most energy; the matrix lies beside it."""
    some = sample(vectors)
    _, directions = np.linalg.eigh(some.T @ some)  # not centred, as inner products are to stay
    matrix = np.ascontiguousarray(directions[:, : -_PROJECTED - 1 : -1], dtype=np.float32)
    np.save(path.with_suffix(".npy"), matrix)
    graph = faiss.IndexHNSWSQ(_PROJECTED, faiss.ScalarQuantizer.QT_8bit, LINKS, faiss.METRIC_INNER_PRODUCT)
    _fill_graph(graph, vectors, path, matrix)


def build_graph_rabitq(vectors: NDArray[np.float16], path: Path) -> None:
    """A graph over RaBitQ codes of four bits a component."""
    graph = faiss.IndexHNSWRaBitQ(vectors.shape[1], LINKS, 4, faiss.METRIC_INNER_PRODUCT)
    _fill_graph(graph, vectors, path)


def _fill_graph(
    graph: Any,  # noqa: ANN401 - faiss has no types
    vectors: NDArray[np.float16],
    path: Path,
    matrix: NDArray[np.float32] | None = None,
    construction: int = CONSTRUCTION,
) -> None:
    graph.hnsw.efConstruction = construction
    some = sample(vectors)
    graph.train(some if matrix is None else some @ matrix)
    for _, block in blocks(vectors):
        graph.add(block if matrix is None else block @ matrix)
    faiss.write_index(graph, str(path))


def build_ordered(base: Path, path: Path) -> None:
    """The product's graph with its rows in breadth-first order of its links, so that neighbours lie close together."""
    graph = faiss.read_index(str(base))
    links = faiss.vector_to_array(graph.hnsw.neighbors)
    starts = faiss.vector_to_array(graph.hnsw.offsets)[:-1].astype(np.int64)
    near = links[starts[:, None] + np.arange(graph.hnsw.nb_neighbors(0))]
    order = breadth_first(near, int(graph.hnsw.entry_point))
    graph.permute_entries(order)
    np.save(path.with_suffix(".npy"), order)
    faiss.write_index(graph, str(path))


def breadth_first(near: NDArray[np.integer], first: int) -> NDArray[np.int64]:
    """Rows in the order in which a breadth-first walk from ``first`` reaches them, then those it does not reach.

    Args:
        near: (n, links) neighbours of each row, −1 = none.
        first: a row.

    Returns:
        (n,) int64, a permutation.
    """
    seen = np.zeros(len(near), dtype=np.bool_)
    seen[first] = True
    level = np.array([first], dtype=np.int64)
    order = [level]
    while level.size:
        found = near[level].ravel()
        found = found[found >= 0]
        found = found[~seen[found]]
        firsts = np.sort(np.unique(found, return_index=True)[1])
        level = found[firsts].astype(np.int64)
        seen[level] = True
        order.append(level)
    order.append(np.flatnonzero(~seen))
    return np.concatenate(order)


def _list_count(rows: int) -> int:
    return int(4 * np.sqrt(rows))


def build_list_rabitq(vectors: NDArray[np.float16], path: Path) -> None:
    """Inverted lists of RaBitQ codes, read by fast scan."""
    dim, count = vectors.shape[1], _list_count(len(vectors))
    coarse = faiss.IndexFlatIP(dim)
    _fill_lists(faiss.IndexIVFRaBitQFastScan(coarse, dim, count, faiss.METRIC_INNER_PRODUCT), vectors, path)


def build_list_pq(vectors: NDArray[np.float16], path: Path) -> None:
    """Inverted lists of product quantisation, 4 bits for two components, read by fast scan."""
    dim, count = vectors.shape[1], _list_count(len(vectors))
    coarse = faiss.IndexFlatIP(dim)
    inverted = faiss.IndexIVFPQFastScan(coarse, dim, count, dim // 2, 4, faiss.METRIC_INNER_PRODUCT)
    _fill_lists(inverted, vectors, path)


def _fill_lists(inverted: Any, vectors: NDArray[np.float16], path: Path) -> None:  # noqa: ANN401
    inverted.cp.niter, inverted.cp.spherical, inverted.cp.seed = 5, True, SEED
    inverted.train(sample(vectors, 48 * inverted.nlist))
    for _, block in blocks(vectors):
        inverted.add(block)
    faiss.write_index(inverted, str(path))
