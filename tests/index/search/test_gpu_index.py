"""The logic around a GPU index, with FAISS's CPU classes in its place: the calls that reach it and their thread.

None of it was run on a GPU; run bench/gpu/gpu_index.py there.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.errors import SearchError
from index.search import vector_index as search_module
from index.search.query_plan import SCAN, Effort, IndexCapabilities, SearchStep
from index.search.searcher import Searcher
from index.search.vector_index import CpuIndex, GpuIndex

ROWS = 3000
KINDS = ["flat", "hnsw", "ivf"]


class FakeGpu:
    """Replaces faiss-gpu: records its calls, never filters, refuses more than 2048 candidates."""

    def __init__(self, inner, threads):
        self.inner = inner
        self.threads = threads

    def add(self, block):
        self.inner.add(block)

    def search(self, queries, k, params=None):
        self.threads.add(threading.get_ident())
        assert k <= 2048
        assert params is None or (params.sel is None and params.nprobe <= 2048)
        return self.inner.search(queries, k, params=params)


@pytest.fixture
def gpu(monkeypatch):
    used = set()
    config = type("Config", (), {})
    made = {"resources": 0}

    def resources():
        made["resources"] += 1
        return object()

    monkeypatch.setattr(faiss, "StandardGpuResources", resources, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "GpuClonerOptions", config, raising=False)
    monkeypatch.setattr(faiss, "GpuIndexFlatConfig", config, raising=False)
    monkeypatch.setattr(
        faiss, "GpuIndexFlatIP", lambda _res, dim, _config: FakeGpu(faiss.IndexFlatIP(dim), used), raising=False
    )
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda _res, _device, index, _options: FakeGpu(index, used), raising=False
    )
    return used, made


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, make_bundle):
    """A bundle a kind, and its vectors; row 3 has no slot, so rows and positions in the index differ."""
    bundles = {}
    for kind in KINDS:
        bundle = Bundle.load(make_bundle(tmp_path_factory.mktemp("gpu"), kind, items=ROWS))
        bundles[kind] = (bundle, np.load(bundle.path / "vectors.npy"))
    return bundles


def on_gpu(bundle, vectors):
    record = bundle.manifest.index.effort
    effort = Effort(record.typical, record.bands, record.per_k, record.growth)
    index = GpuIndex(CpuIndex(bundle.path / "index.faiss", vectors, bundle.indexed))
    return index, Searcher(index, vectors, bundle.indexed, bundle.layout, effort)


@pytest.mark.parametrize("kind", KINDS)
def test_results_equal_the_cpu_and_no_filter_reaches_the_gpu(loaded, gpu, check_answer, brute_force, kind):
    used, made = gpu
    bundle, vectors = loaded[kind]
    index, searcher = on_gpu(bundle, vectors)
    assert index.capabilities.kind == ("ivf" if kind == "ivf" else "flat")
    rng = np.random.default_rng(0)
    for share in (None, 0.9, 0.3, 0.05, 0.01, 0.0):
        for k in (5, 100, 2500):
            queries = rng.normal(size=(3, bundle.layout.dim)).astype(np.float32)
            allowed = None if share is None else rng.random(ROWS) < share
            mask = bundle.indexed if allowed is None else bundle.indexed & allowed
            rows, scores = searcher.search(queries, k, allowed)
            check_answer(rows, scores, queries, vectors, mask, k)
            if kind != "ivf" and mask.any():
                np.testing.assert_array_equal(rows, brute_force(queries, vectors, bundle.layout, mask, k)[0])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: searcher.search(queries, 5), range(8)))
    assert len(used) == 1  # one thread uses the GPU, whatever thread calls
    assert used != {threading.get_ident()}
    assert made["resources"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_hides_the_best_is_completed(loaded, gpu, brute_force, kind):
    """All allowed rows lie on the far side of the query, so over-fetch finds none of them."""
    bundle, vectors = loaded[kind]
    _, searcher = on_gpu(bundle, vectors)
    query = np.random.default_rng(2).normal(size=(1, bundle.layout.dim)).astype(np.float32)
    scores = vectors.astype(np.float32) @ query[0]
    allowed = scores < np.median(scores)
    assert searcher.planned(query[0], 20, allowed).path == "index"
    rows, _ = searcher.search(query, 20, allowed)
    want = brute_force(query, vectors, bundle.layout, bundle.indexed & allowed, 20)[0]
    np.testing.assert_array_equal(rows, want)


def test_beyond_the_cap_of_the_gpu_the_stored_vectors_are_scanned(loaded, gpu, brute_force):
    used, _ = gpu
    bundle, vectors = loaded["flat"]
    _, searcher = on_gpu(bundle, vectors)
    query = np.ones((1, bundle.layout.dim), np.float32)
    searcher.search(query, 2032)  # 2032 + 16 candidates are the most that a GPU gives
    assert len(used) == 1
    used.clear()
    rows, _ = searcher.search(query, 2033)
    assert not used
    np.testing.assert_array_equal(rows, brute_force(query, vectors, bundle.layout, bundle.indexed, 2033)[0])


def test_the_message_without_a_gpu(loaded, monkeypatch):
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    with pytest.raises(SearchError, match=r"needs a GPU and the extra 'gpu'"):
        on_gpu(*loaded["flat"])


@pytest.mark.parametrize("gaps", [False, True])
def test_every_indexed_row_is_added_in_blocks(tmp_path, gpu, monkeypatch, gaps):
    monkeypatch.setattr(search_module, "_ADD_ROWS", 64)
    vectors = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float16)
    indexed = np.ones(400, bool)
    if gaps:
        indexed[::7] = False
        vectors[~indexed] = 0
    bare = faiss.IndexScalarQuantizer(12, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    faiss.write_index(bare, str(tmp_path / "x.faiss"))
    index = GpuIndex(CpuIndex(tmp_path / "x.faiss", vectors, indexed))
    rows = int(indexed.sum())
    assert index.capabilities == IndexCapabilities("flat", rows, 0, largest_fetch=2048, speedup=100)
    found = index.search(vectors[1:2].astype(np.float32), SearchStep("index", rows, SCAN), None)
    assert sorted(found[0].tolist()) == np.flatnonzero(indexed).tolist()
