"""Indexes of usearch, hnswlib and Intel SVS, with the interface of :mod:`bench.index.kind_faiss`.

Each library is imported where it is used: one that is missing or fails takes no other contender with it.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.index.kind_faiss import CONSTRUCTION, LINKS, SEED, blocks, sample
from index.search.float16 import to_float32
from index.search.query_plan import OVER_FETCH


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
