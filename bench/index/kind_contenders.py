"""Indexes of several libraries with one interface: built once from stored vectors, then asked for candidates.

Runs in the environment of bench/requirements/kinds.txt, so nothing here may import more than numpy, those libraries and
the parts of :mod:`index` that need numpy and faiss.
"""

import mmap
from collections.abc import Callable, Mapping
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


class UsearchContender:
    """usearch, reading the mapped file.

    Args:
        path: of the index.
        codes: ``i8`` or ``f16``.
    """

    least, low = OVER_FETCH, 8

    def __init__(self, path: Path, codes: str) -> None:
        from usearch.index import Index

        self._index = Index.restore(str(path), view=True)
        self._int8 = codes == "i8"

    def search(self, query: NDArray[np.float32], effort: int, fetch: int) -> NDArray[np.int64]:
        """See :meth:`CandidateIndex.search`."""
        self._index.expansion_search = effort
        asked = to_int8(query[0], 127 / float(np.abs(query).max())) if self._int8 else query[0]
        keys = self._index.search(asked, fetch, threads=1).keys.astype(np.int64)
        return np.pad(keys, (0, fetch - len(keys)), constant_values=-1)[None]


def to_int8(values: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    """Values times the scale, rounded and limited to ±127."""
    return np.clip(np.rint(values * np.float32(scale)), -127, 127).astype(np.int8)


def build_usearch(vectors: NDArray[np.float16], path: Path, codes: str) -> None:
    """A graph of usearch over ``i8`` or ``f16`` codes."""
    from usearch.index import Index

    graph = Index(ndim=vectors.shape[1], metric="ip", dtype=codes, connectivity=LINKS, expansion_add=CONSTRUCTION)
    scale = int8_scale(vectors)
    for start, block in blocks(vectors):
        rows = np.arange(start, start + len(block))
        graph.add(rows, to_int8(block, scale) if codes == "i8" else block.astype(np.float16), threads=1)
    graph.save(str(path))


class HnswlibContender:
    """hnswlib over float32 vectors, which it loads into its own memory."""

    least, low = OVER_FETCH, 8

    def __init__(self, path: Path, dim: int) -> None:
        import hnswlib

        self._index = hnswlib.Index(space="ip", dim=dim)
        self._index.load_index(str(path))
        self._index.set_num_threads(1)

    def search(self, query: NDArray[np.float32], effort: int, fetch: int) -> NDArray[np.int64]:
        """See :meth:`CandidateIndex.search`."""
        self._index.set_ef(max(effort, fetch))
        labels: NDArray[np.int64] = self._index.knn_query(query, k=fetch, num_threads=1)[0].astype(np.int64)
        return labels


def build_hnswlib(vectors: NDArray[np.float16], path: Path) -> None:
    """A graph of hnswlib."""
    import hnswlib

    graph = hnswlib.Index(space="ip", dim=vectors.shape[1])
    graph.init_index(max_elements=len(vectors), M=LINKS, ef_construction=CONSTRUCTION, random_seed=SEED)
    for _, block in blocks(vectors):
        graph.add_items(block, num_threads=1)
    graph.save_index(str(path))


class SvsContender:
    """A Vamana graph of Intel SVS, which it loads into its own memory.

    Args:
        path: directory of the graph.
        dim: Σd.
        codes: ``i8``, ``f16`` or ``lvq``.
    """

    least, low = OVER_FETCH, 8

    def __init__(self, path: Path, dim: int, codes: str) -> None:
        import svs

        self._svs = svs
        self._int8 = codes == "i8"
        stored = str(path / "data")
        if codes == "lvq":
            data = svs.LVQLoader(stored, padding=32)
        else:
            data = svs.VectorDataLoader(stored, svs.int8 if codes == "i8" else svs.float16, dims=dim)
        self._index = svs.Vamana(
            str(path / "config"),
            svs.GraphLoader(str(path / "graph")),
            data,
            svs.DistanceType.MIP,
            query_type=svs.int8 if codes == "i8" else svs.float32,
            num_threads=1,
        )
        self._effort = 0

    def search(self, query: NDArray[np.float32], effort: int, fetch: int) -> NDArray[np.int64]:
        """See :meth:`CandidateIndex.search`."""
        effort = max(effort, fetch)
        if effort != self._effort:
            parameters = self._index.search_parameters
            parameters.buffer_config = self._svs.SearchBufferConfig(effort)
            self._index.search_parameters, self._effort = parameters, effort
        asked = to_int8(query, 127 / float(np.abs(query).max())) if self._int8 else query
        found: NDArray[np.int64] = self._index.search(asked, fetch)[0].astype(np.int64)
        return found


def build_svs(vectors: NDArray[np.float16], path: Path, codes: str) -> None:
    """A Vamana graph over ``i8``, ``f16`` or ``lvq`` codes; LVQ ends the process on a processor not of Intel."""
    import svs

    path.mkdir(exist_ok=True)
    data: Any = np.asarray(vectors)
    if codes == "i8":
        scale = int8_scale(vectors)
        data = np.concatenate([to_int8(block, scale) for _, block in blocks(vectors)])
    elif codes == "lvq":
        svs.write_vecs(to_float32(vectors), str(path / "vectors.fvecs"))
        source = svs.VectorDataLoader(str(path / "vectors.fvecs"), svs.float32, dims=vectors.shape[1])
        data = svs.LVQLoader(source, primary=8, residual=0, padding=32)
    parameters = svs.VamanaBuildParameters(
        alpha=0.95, graph_max_degree=2 * LINKS, window_size=2 * CONSTRUCTION, prune_to=2 * LINKS - 4
    )
    graph = svs.Vamana.build(parameters, data, svs.DistanceType.MIP, num_threads=1)
    graph.save(str(path / "config"), str(path / "graph"), str(path / "data"))
    (path / "vectors.fvecs").unlink(missing_ok=True)


def int8_scale(vectors: NDArray[np.float16]) -> float:
    """The factor that takes all but one in 10,000 components into ±127."""
    return 127 / float(np.quantile(np.abs(sample(vectors)), 0.9999))


Build = Callable[[NDArray[np.float16], Path, Path], None]
Load = Callable[[NDArray[np.float16], Path, Path], tuple[CandidateIndex, NDArray[np.float16]]]


def _own(vectors: NDArray[np.float16], base: Path, path: Path) -> tuple[CandidateIndex, NDArray[np.float16]]:
    del path
    return FaissContender(file_pages(base), beam), vectors


def _huge(source: str) -> Load:
    def load(vectors: NDArray[np.float16], base: Path, path: Path) -> tuple[CandidateIndex, NDArray[np.float16]]:
        stored = base.with_name("vectors.npy")
        start = stored.stat().st_size - vectors.nbytes
        copied = anonymous_pages(stored, huge=source != "small")[start:].view(np.float16).reshape(vectors.shape)
        rows = np.load(path.with_suffix(".npy")) if source == "ordered" else None
        pages = anonymous_pages(path if source == "ordered" else base, huge=source != "small")
        return FaissContender(pages, beam, rows=rows), copied

    return load


def _ordered(vectors: NDArray[np.float16], base: Path, path: Path) -> tuple[CandidateIndex, NDArray[np.float16]]:
    del base
    return FaissContender(file_pages(path), beam, rows=np.load(path.with_suffix(".npy"))), vectors


def _projected(least: int) -> Load:
    def load(vectors: NDArray[np.float16], base: Path, path: Path) -> tuple[CandidateIndex, NDArray[np.float16]]:
        del base
        matrix = np.load(path.with_suffix(".npy"))
        return FaissContender(file_pages(path), beam, least=least, project=matrix), vectors

    return load


def _faiss(parameters: Callable[[int], Any], least: int, low: int) -> Load:
    def load(vectors: NDArray[np.float16], base: Path, path: Path) -> tuple[CandidateIndex, NDArray[np.float16]]:
        del base
        return FaissContender(file_pages(path), parameters, least=least, low=low), vectors

    return load


def _usearch(codes: str) -> Load:
    def load(vectors: NDArray[np.float16], base: Path, path: Path) -> tuple[CandidateIndex, NDArray[np.float16]]:
        del base
        return UsearchContender(path, codes), vectors

    return load


def _svs(codes: str) -> Load:
    def load(vectors: NDArray[np.float16], base: Path, path: Path) -> tuple[CandidateIndex, NDArray[np.float16]]:
        del base
        return SvsContender(path, vectors.shape[1], codes), vectors

    return load


def _build_base(vectors: NDArray[np.float16], base: Path, path: Path) -> None:
    del path
    if not base.exists():
        build_hnsw(vectors, base)


BASE = "hnsw sq8"
SAME_GRAPH = ("hnsw-sq8", "ordered")
"""Files with the links and codes of the product's graph."""

# Name → file (shared by contenders that differ in how they read it), build, load.
CONTENDERS: Mapping[str, tuple[str, Build, Load]] = {
    BASE: ("hnsw-sq8", _build_base, _own),
    "hnsw sq8, pages of 4 KiB": ("hnsw-sq8", _build_base, _huge("small")),
    "hnsw sq8, huge pages": ("hnsw-sq8", _build_base, _huge("huge")),
    "hnsw sq8, rows in order of the graph": ("ordered", lambda _, base, path: build_ordered(base, path), _ordered),
    "hnsw sq8, rows in order, huge pages": (
        "ordered",
        lambda _, base, path: build_ordered(base, path),
        _huge("ordered"),
    ),
    "hnsw sq8, lists of links kept full": (
        "hnsw-full",
        lambda vectors, _, path: build_hnsw(vectors, path, full=True),
        _faiss(beam, OVER_FETCH, 8),
    ),
    "hnsw sq8, links 24, beam 128": (
        "hnsw-24-128",
        lambda vectors, _, path: build_hnsw(vectors, path, construction=128),
        _faiss(beam, OVER_FETCH, 8),
    ),
    "hnsw pca 64, 100 re-scored": ("pca", lambda vectors, _, path: build_projected(vectors, path), _projected(100)),
    "hnsw pca 64, 200 re-scored": ("pca", lambda vectors, _, path: build_projected(vectors, path), _projected(200)),
    "hnsw pca 64, 400 re-scored": ("pca", lambda vectors, _, path: build_projected(vectors, path), _projected(400)),
    "usearch i8": ("usearch-i8", lambda vectors, _, path: build_usearch(vectors, path, "i8"), _usearch("i8")),
    "usearch f16": ("usearch-f16", lambda vectors, _, path: build_usearch(vectors, path, "f16"), _usearch("f16")),
    "svs i8": ("svs-i8", lambda vectors, _, path: build_svs(vectors, path, "i8"), _svs("i8")),
    "svs f16": ("svs-f16", lambda vectors, _, path: build_svs(vectors, path, "f16"), _svs("f16")),
    "svs lvq": ("svs-lvq", lambda vectors, _, path: build_svs(vectors, path, "lvq"), _svs("lvq")),
    "hnswlib": (
        "hnswlib",
        lambda vectors, _, path: build_hnswlib(vectors, path),
        lambda vectors, _, path: (HnswlibContender(path, vectors.shape[1]), vectors),
    ),
    "hnsw rabitq 4 bits": (
        "hnsw-rabitq",
        lambda vectors, _, path: build_graph_rabitq(vectors, path),
        _faiss(beam, OVER_FETCH, 8),
    ),
    "ivf rabitq, 200 re-scored": (
        "ivf-rabitq",
        lambda vectors, _, path: build_list_rabitq(vectors, path),
        _faiss(lists, 200, 4),
    ),
    "ivf rabitq, 400 re-scored": (
        "ivf-rabitq",
        lambda vectors, _, path: build_list_rabitq(vectors, path),
        _faiss(lists, 400, 4),
    ),
    "ivf pq fast scan, 200 re-scored": (
        "ivf-pq",
        lambda vectors, _, path: build_list_pq(vectors, path),
        _faiss(lists, 200, 4),
    ),
}
