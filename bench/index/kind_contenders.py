"""Names the contenders of `make bench-kinds`, how each is built and how each is loaded.

Runs in the environment of bench/requirements/kinds.txt, so nothing here may import more than numpy, those libraries and
the parts of :mod:`index` that need numpy and faiss.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.index.kind_faiss import (
    CandidateIndex,
    FaissContender,
    anonymous_pages,
    beam,
    build_graph_rabitq,
    build_hnsw,
    build_list_pq,
    build_list_rabitq,
    build_ordered,
    build_projected,
    file_pages,
    lists,
)
from bench.index.kind_libraries import (
    HnswlibContender,
    SvsContender,
    UsearchContender,
    build_hnswlib,
    build_svs,
    build_usearch,
)
from index.search.query_plan import OVER_FETCH

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
