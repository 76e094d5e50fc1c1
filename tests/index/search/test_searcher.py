"""The searcher: FAISS files, stored vectors read in place, completion of short results.

Properties of all kinds of index are in test_filtered_search.py.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from index.errors import SearchError
from index.items.slots import Slot, SlotLayout
from index.search import searcher as search_module
from index.search.brute_force import exact_top_k
from index.search.query_plan import GROWTH, SCAN, Effort, IndexCapabilities, SearchStep
from index.search.row_mask import RowMask
from index.search.scoring import rescore
from index.search.searcher import Searcher
from index.search.vector_index import CpuIndex

LAYOUT = SlotLayout((Slot("text", 6), Slot("image", 4), Slot("behaviour", 2)))
ROWS = 3000
KINDS = ["bare", "flat", "hnsw", "ivf"]


def make_vectors(rows=ROWS, seed=0, dtype=np.float16):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, LAYOUT.dim))
    raw = (centres[rng.integers(0, 20, rows)] + 0.5 * rng.normal(size=(rows, LAYOUT.dim))).astype(np.float32)
    slots = {slot.name: raw[:, LAYOUT.slice(slot.name)].copy() for slot in LAYOUT.slots}
    slots["image"][::3] = 0
    for block in slots.values():
        block[5::50] = 0  # 60 rows without any slot
    vectors = LAYOUT.stack(slots).astype(dtype)
    vectors[11] = vectors[12] = vectors[13]  # equal scores
    return vectors


def write(kind, vectors, path, codes=faiss.ScalarQuantizer.QT_fp16):
    """An index of indexed rows; ``bare`` is a flat one without rows, as the build writes it."""
    product, dim = faiss.METRIC_INNER_PRODUCT, vectors.shape[1]
    if kind in {"flat", "bare"}:
        built = faiss.IndexScalarQuantizer(dim, codes, product)
    elif kind == "hnsw":
        built = faiss.IndexHNSWSQ(dim, codes, 16, product)
    else:
        built = faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, 40, codes, product, False)
    if kind != "bare":
        built.train(vectors.astype(np.float32))
        built.add(vectors.astype(np.float32))
    faiss.write_index(built, str(path))
    return path


def effort_for(kind):
    typical = (0.5, 0.3, 0.2)
    bands = {
        "bare": ((1.0, SCAN),),
        "flat": ((1.0, SCAN),),
        "hnsw": ((0.3, 32), (1.0, 64)),
        "ivf": ((0.3, 12), (0.6, 20), (1.0, SCAN)),
    }
    return Effort(typical, bands[kind], per_k=36, growth=GROWTH.get(kind, 0.0))


@pytest.fixture(scope="module")
def vectors():
    return make_vectors()


@pytest.fixture(scope="module")
def indexed(vectors):
    return (vectors != 0).any(axis=1)


@pytest.fixture(scope="module")
def files(vectors, indexed, tmp_path_factory):
    directory = tmp_path_factory.mktemp("faiss")
    return {kind: write(kind, vectors[indexed], directory / f"{kind}.faiss") for kind in KINDS}


@pytest.fixture(scope="module")
def searchers(files, vectors, indexed):
    return {kind: searcher_of(kind, files[kind], vectors, indexed) for kind in KINDS}


def searcher_of(kind, path, vectors, indexed):
    return Searcher(CpuIndex(path, vectors, indexed), vectors, indexed, LAYOUT, effort_for(kind))


def exact_rows(queries, vectors, k, mask):
    rows, _ = exact_top_k(queries, vectors, min(k + 16, len(vectors)), allowed=mask)
    return rescore(queries, rows, vectors, k)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_vectors_are_scored_in_full(tmp_path, kind):
    vectors = make_vectors(400, dtype=np.float32)
    indexed = (vectors != 0).any(axis=1)
    path = write(kind, vectors[indexed], tmp_path / "x.faiss")
    searcher = Searcher(
        CpuIndex(path, vectors, indexed), vectors, indexed, LAYOUT, Effort((0.5, 0.3, 0.2), ((1.0, SCAN),), 36)
    )
    queries = np.random.default_rng(1).normal(size=(20, LAYOUT.dim)).astype(np.float32)
    rows, scores = searcher.search(queries, 20)
    want_rows, want_scores = exact_rows(queries, vectors, 20, indexed)
    np.testing.assert_array_equal(rows, want_rows)
    np.testing.assert_array_equal(scores, want_scores)


@pytest.mark.parametrize("kind", KINDS)
def test_without_gaps_rows_are_positions(tmp_path, kind):
    vectors = make_vectors(400)
    vectors = vectors[(vectors != 0).any(axis=1)]
    indexed = np.ones(len(vectors), bool)
    searcher = Searcher(
        CpuIndex(write(kind, vectors, tmp_path / "x.faiss"), vectors, indexed),
        vectors,
        indexed,
        LAYOUT,
        Effort((0.5, 0.3, 0.2), ((1.0, 64 if kind == "hnsw" else SCAN),), 36),
    )
    queries = vectors[:30].astype(np.float32)
    rows, scores = searcher.search(queries, 3)
    assert (rows[:, 0] <= np.arange(30)).all()  # itself, or an equal vector in a lower row
    np.testing.assert_allclose(scores[:, 0], 1.0, atol=2e-3)
    allowed = np.arange(len(vectors)) % 2 == 0
    assert (searcher.search(queries, 3, allowed)[0] % 2 == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_exact_search_finds_every_row_whatever_the_index_finds(files, vectors, indexed, kind, share):
    blind = Effort((0.5, 0.3, 0.2), ((1.0, 1),), 36)  # one list, or a beam of one
    searcher = Searcher(CpuIndex(files[kind], vectors, indexed), vectors, indexed, LAYOUT, blind)
    queries = np.random.default_rng(2).normal(size=(20, LAYOUT.dim)).astype(np.float32)
    mask = None if share == 1 else np.random.default_rng(3).random(ROWS) < share
    rows, scores = searcher.exact(queries, 40, mask)
    want_rows, want_scores = exact_rows(queries, vectors, 40, indexed if mask is None else indexed & mask)
    np.testing.assert_array_equal(rows, want_rows)
    np.testing.assert_array_equal(scores, want_scores)
    if kind == "ivf" and share == 1:
        assert not np.array_equal(searcher.search(queries, 40)[0], want_rows)
    assert (searcher.exact(queries, 4, np.zeros(ROWS, bool))[0] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_get_the_same_answers(searchers, kind):
    rng = np.random.default_rng(3)
    queries = rng.normal(size=(64, LAYOUT.dim)).astype(np.float32)
    masks = [None, rng.random(ROWS) < 0.5, rng.random(ROWS) < 0.05, rng.random(ROWS) < 0.3]

    def ask(number):
        return searchers[kind].search(queries[number : number + 1], 20, masks[number % 4])[0]

    alone = [ask(number) for number in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(64)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_queries_and_nothing_allowed(searchers):
    for kind in KINDS:
        rows, scores = searchers[kind].search(np.zeros((0, LAYOUT.dim), np.float32), 4)
        assert rows.shape == scores.shape == (0, 4)
        rows, scores = searchers[kind].search(np.ones((2, LAYOUT.dim), np.float32), 4, np.zeros(ROWS, bool))
        assert (rows == -1).all()
        assert np.isneginf(scores).all()


def test_a_mask_of_rows_without_slots_only_finds_nothing(searchers, indexed):
    assert (searchers["hnsw"].search(np.ones((1, LAYOUT.dim), np.float32), 4, ~indexed)[0] == -1).all()


@pytest.mark.parametrize(
    ("queries", "k", "allowed", "rule"),
    [
        (np.zeros((1, 3), np.float32), 5, None, "queries must be"),
        (np.full((1, 12), np.inf, np.float32), 5, None, "query 0 is not"),
        (np.zeros((1, 12), np.float32), -1, None, "k must be at least 1, got -1"),
        (np.zeros((1, 12), np.float32), 5, np.ones(7, bool), "allowed must be bool of shape"),
    ],
)
def test_refuses(searchers, queries, k, allowed, rule):
    with pytest.raises(SearchError, match=rule):
        searchers["flat"].search(queries, k, allowed)


def test_refuses_files(tmp_path, files, vectors, indexed):
    (tmp_path / "noise.faiss").write_bytes(b"not an index" * 50)
    (tmp_path / "cut.faiss").write_bytes(files["ivf"].read_bytes()[:2000])
    (tmp_path / "empty.faiss").touch()
    for name in ("none", "noise", "cut", "empty"):
        with pytest.raises(SearchError, match=rf"{name}\.faiss: not a readable FAISS index"):
            CpuIndex(tmp_path / f"{name}.faiss", vectors, indexed)
    l2 = faiss.IndexFlatL2(4)
    faiss.write_index(l2, str(tmp_path / "l2.faiss"))
    with pytest.raises(SearchError, match="must use inner product"):
        CpuIndex(tmp_path / "l2.faiss", vectors, indexed)
    lsh = faiss.IndexPreTransform(faiss.IndexFlatIP(4))
    faiss.write_index(lsh, str(tmp_path / "other.faiss"))
    with pytest.raises(SearchError, match="is not supported"):
        CpuIndex(tmp_path / "other.faiss", vectors, indexed)
    with pytest.raises(SearchError, match=r"holds 2940 rows, 3000 have a slot"):
        CpuIndex(files["flat"], vectors, np.ones(ROWS, bool))
    with pytest.raises(SearchError, match=r"has 12 dimensions, the vectors 6"):
        CpuIndex(files["flat"], vectors[:, :6], indexed)
    for unreadable in (np.asfortranarray(vectors), vectors.astype(np.float64)):
        with pytest.raises(SearchError, match="vectors must be contiguous float16 or float32"):
            CpuIndex(files["flat"], unreadable, indexed)


def test_refuses_parts_that_do_not_fit(files, vectors, indexed):
    narrow = SlotLayout((Slot("text", 6),))
    on_cpu = CpuIndex(files["flat"], vectors, indexed)
    with pytest.raises(SearchError, match="has 12 dimensions, the slots 6"):
        Searcher(on_cpu, vectors, indexed, narrow, effort_for("flat"))
    with pytest.raises(SearchError, match="holds 2940 rows, 3000 have a slot"):
        Searcher(on_cpu, vectors, np.ones(ROWS, bool), LAYOUT, effort_for("flat"))
    searcher = Searcher(on_cpu, vectors, indexed, LAYOUT, effort_for("flat"))
    foreign = RowMask.of(np.ones(ROWS, bool), indexed.copy())
    with pytest.raises(SearchError, match="counted for another bundle"):
        searcher.search(np.zeros((1, LAYOUT.dim), np.float32), 5, foreign)


def test_a_failure_of_faiss_is_translated(files, vectors, indexed, monkeypatch):
    index = CpuIndex(files["flat"], vectors, indexed)
    monkeypatch.setattr(index, "_scan_index", faiss.IndexFlatIP(5))
    with pytest.raises(SearchError, match="FAISS could not search"):
        index.search(np.zeros((1, 12), np.float32), SearchStep("scan", 3, SCAN), None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_scan_reads_the_stored_vectors_in_place(tmp_path, dtype):
    """No copy: what is written into the array is what the next scan finds; and it lives as long as the index does."""
    stored = make_vectors(200, dtype=dtype)
    stored[5] = 0
    indexed = (stored != 0).any(axis=1)
    index = CpuIndex(write("bare", stored, tmp_path / "x.faiss"), stored, indexed)
    query = np.ones((1, LAYOUT.dim), np.float32)
    stored[7] = 9
    assert index.search(query, SearchStep("scan", 1, SCAN), None).tolist() == [[7]]
    del stored
    assert index.search(query, SearchStep("index", 1, SCAN), None).tolist() == [[7]]
    found = index.search(-query, SearchStep("scan", 200, SCAN), None)[0]
    assert set(found[found >= 0].tolist()) == set(np.flatnonzero(indexed).tolist())  # never a row without a slot


def test_the_scan_index_keeps_its_vectors_alive():
    """Under a glibc that overwrites what is freed, the process used to die here."""
    code = """if True:
        import numpy as np
        from index.search.vector_index import _view_of
        stored = np.ones((64, 8), np.float16)
        print(_view_of(stored).search(np.ones((1, 8), np.float32), 1)[0][0, 0])
    """
    strict = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "MALLOC_PERTURB_": "165"}
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=strict)
    assert (ran.returncode, ran.stdout) == (0, "8.0\n"), ran.stderr


class Forgetful:
    """An index whose graph returns enough rows for the first query only."""

    dim = LAYOUT.dim

    def __init__(self, stored):
        self.stored = stored.astype(np.float32)
        self.capabilities = IndexCapabilities("hnsw", len(stored))
        self.calls = []

    def search(self, queries, step, allowed):
        self.calls.append((step.path, len(queries)))
        scores = queries @ self.stored.T
        if allowed is not None and step.path == "scan":
            scores[:, ~allowed.findable] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, : step.fetch]
        if step.path == "index":
            rows[1:, 5:] = -1
        return rows


def test_short_results_are_completed_by_a_scan(vectors, indexed, monkeypatch):
    monkeypatch.setattr(search_module, "plan", lambda *_: SearchStep("index", 36, 40))
    vectors = vectors[indexed]
    indexed = np.ones(len(vectors), bool)
    forgetful = Forgetful(vectors)
    searcher = Searcher(forgetful, vectors, indexed, LAYOUT, Effort((0.5, 0.3, 0.2), ((1.0, 40),), 36))
    queries = np.random.default_rng(0).normal(size=(3, LAYOUT.dim)).astype(np.float32)
    rows, _ = searcher.search(queries, 20)
    assert forgetful.calls == [("index", 3), ("scan", 2)]
    np.testing.assert_array_equal(rows, exact_rows(queries, vectors, 20, indexed)[0])


@pytest.mark.parametrize(("excluded", "completed"), [(12, False), (13, True)])
def test_an_over_fetch_must_leave_more_than_k_rows(vectors, indexed, monkeypatch, excluded, completed):
    """Of 40 candidates 28 must be allowed for k = 20; the last ones that an index finds are its least certain."""
    monkeypatch.setattr(search_module, "plan", lambda *_: SearchStep("index", 40, 40))
    vectors = vectors[indexed]
    indexed = np.ones(len(vectors), bool)
    forgetful = Forgetful(vectors)
    searcher = Searcher(forgetful, vectors, indexed, LAYOUT, Effort((0.5, 0.3, 0.2), ((1.0, 40),), 36))
    query = np.random.default_rng(0).normal(size=(1, LAYOUT.dim)).astype(np.float32)
    allowed = np.ones(len(vectors), bool)
    allowed[np.argsort(-(query @ forgetful.stored.T)[0], kind="stable")[:excluded]] = False
    rows, _ = searcher.search(query, 20, allowed)
    assert [path for path, _ in forgetful.calls] == (["index", "scan"] if completed else ["index"])
    np.testing.assert_array_equal(rows, exact_rows(query, vectors, 20, allowed)[0])
