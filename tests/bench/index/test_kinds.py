import json
from pathlib import Path

import numpy as np
import pytest

from bench.index import kind_faiss, kinds
from bench.index.kind_faiss import (
    FaissContender,
    anonymous_pages,
    beam,
    breadth_first,
    build_hnsw,
    build_ordered,
    build_projected,
    file_pages,
)
from bench.index.kind_libraries import to_int8
from bench.index.kind_timing import Queries, Search, least_effort
from index.items.slots import Slot, SlotLayout

LAYOUT = SlotLayout((Slot("text", 48), Slot("image", 48)))


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((400, LAYOUT.dim)).astype(np.float16)


@pytest.fixture
def one_query(vectors):
    query = vectors[7:8].astype(np.float32)
    exact = np.sort(query @ vectors.astype(np.float32).T)[0, ::-1]
    return Queries(query, exact[19:20] - 1e-3, None, 1.0)


def test_a_breadth_first_order_takes_near_rows_first_and_unreachable_ones_last():
    near = np.array([[3, -1], [0, 2], [1, -1], [4, 2], [0, 3], [0, 1]])
    assert breadth_first(near, 0).tolist() == [0, 3, 4, 2, 1, 5]


def test_int8_rounds_and_limits():
    assert to_int8(np.array([0.26, -0.74, 3.0, -3.0], np.float32), 10).tolist() == [3, -7, 30, -30]
    assert to_int8(np.array([30.0, -30.0], np.float32), 10).tolist() == [127, -127]


@pytest.mark.parametrize("huge", [True, False])
def test_anonymous_pages_hold_the_file_from_the_start_of_a_huge_page(tmp_path, huge):
    content = bytes(range(256)) * 40 + b"end"
    (tmp_path / "file").write_bytes(content)
    pages = anonymous_pages(tmp_path / "file", huge=huge)
    assert pages.tobytes() == content
    assert pages.ctypes.data % (2 << 20) == 0


def test_rows_in_another_order_are_found_as_before(tmp_path, vectors, one_query):
    build_hnsw(vectors, tmp_path / "base")
    build_ordered(tmp_path / "base", tmp_path / "ordered")
    order = np.load(tmp_path / "ordered.npy")
    assert np.array_equal(np.sort(order), np.arange(400))
    assert not np.array_equal(order, np.arange(400))
    before = FaissContender(file_pages(tmp_path / "base"), beam)
    after = FaissContender(file_pages(tmp_path / "ordered"), beam, rows=order)
    assert after.search(one_query.queries, 400, 20).tolist() == before.search(one_query.queries, 400, 20).tolist()


def test_a_projection_on_the_vectors_own_directions_loses_nothing(tmp_path, one_query, vectors, monkeypatch):
    monkeypatch.setattr(kind_faiss, "_PROJECTED", 8)
    some = np.random.default_rng(1).standard_normal((400, 8)).astype(np.float32)
    flat = (some @ np.random.default_rng(2).standard_normal((8, LAYOUT.dim))).astype(np.float16)
    build_projected(flat, tmp_path / "pca")
    matrix = np.load(tmp_path / "pca.npy")
    assert matrix.shape == (LAYOUT.dim, 8)
    exact = one_query.queries @ flat.astype(np.float32).T
    np.testing.assert_allclose((one_query.queries @ matrix) @ (flat @ matrix).T, exact, rtol=1e-2, atol=0.05)


class TruthFrom:
    """Finds the exact rows from an effort on, and none below it."""

    least, low = 36, 10

    def __init__(self, vectors, effort):
        self._vectors, self._effort = vectors.astype(np.float32), effort

    def search(self, query, effort, fetch):
        if effort < self._effort:
            return np.full((1, fetch), -1)
        return np.argsort(-(query @ self._vectors.T), axis=1)[:, :fetch]


def test_the_least_effort_is_the_first_step_that_reaches_the_recall(vectors, one_query):
    search = Search(TruthFrom(vectors, 40), vectors, np.arange(400))
    effort, recall = least_effort(search, one_query, 0.97)
    assert recall == 1.0
    assert effort == 44  # 10 × 1.12^13 = 43.6; the step before it, 38.97, is below 40
    assert least_effort(Search(TruthFrom(vectors, 10**9), vectors, np.arange(400)), one_query, 0.97) is None


def test_excluded_rows_are_dropped_and_all_allowed_ones_found(vectors):
    allowed = np.arange(400) % 2 == 0
    query = vectors[7:8].astype(np.float32)
    exact = np.sort((query @ vectors[allowed].astype(np.float32).T)[0])[::-1]
    kind = Queries(query, exact[19:20] - 1e-3, allowed, 0.5)
    search = Search(TruthFrom(vectors, 0), vectors, np.arange(400))
    np.testing.assert_allclose(search(kind, 0, 10), exact[:20], rtol=1e-4)


def test_the_table_gives_the_least_time_and_the_median_ratio_with_its_range():
    found = {"us": {"plain": [100.0, 90.0, 110.0], "image alone": []}, "base_us": {"plain": [200.0, 270.0, 165.0]}}
    found["base_us"]["image alone"] = []
    lines = list(kinds.table({"one": found | {"bytes": 2_000_000, "build_processor_s": 3.2}}))
    assert lines[2] == "| one | 2 | 3 | 90 (2.00; 1.50–3.00) | – |"


def test_efforts_of_a_bundle_are_those_of_its_manifest_and_a_narrow_filter_scans(tmp_path):
    layout = kinds.LAYOUT
    index = {
        "effort": {"typical": [1 / 3] * 3, "bands": [[0.5, 40], [1.0, 90]], "per_k": 36, "growth": 1.0},
        "recall": {"plain": 0.98, "text alone": 0.97, "filtered 50 %": 0.99, "filtered 10 %": 1.0},
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"index": index}))
    plain = np.ones((3, layout.dim), np.float32)
    alone = plain * layout.weights({"image": 0.0, "behaviour": 0.0})
    half = np.arange(100_000) % 2 == 0
    tenth = np.arange(100_000) % 100 == 0
    written = {
        "names": np.array(list(index["recall"])),
        "rows": np.arange(100_000),
        **{f"{name} queries": plain for name in index["recall"]},
        "text alone queries": alone,
        "filtered 50 % allowed": np.packbits(half),
        "filtered 10 % allowed": np.packbits(tenth),
    }
    np.savez(tmp_path / "queries.npz", **written)
    efforts = kinds.bundle_efforts(tmp_path, tmp_path / "queries.npz")
    assert efforts["plain"] == (40, 0.98)
    assert efforts["text alone"] == (90, 0.97)
    assert efforts["filtered 50 %"] == (120, 0.99)  # three times the candidates at growth 1
    assert efforts["filtered 10 %"] is None


def test_a_contender_that_fails_is_recorded_with_its_reason(tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise kinds.subprocess.CalledProcessError(1, ["x"], stderr="only on other hardware\ntraceback\n")

    monkeypatch.setattr(kinds, "measured", fails)
    monkeypatch.setattr(kinds, "write_queries", lambda *_: None)
    out = tmp_path / "out.json"
    monkeypatch.setattr(kinds, "bundle_efforts", lambda *_: {})
    places = ["--bundle", str(tmp_path), "--work", str(tmp_path), "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["kinds", "--only", "svs lvq", *places])
    kinds.main()
    assert json.loads(Path(out).read_text())["measurements"]["svs lvq"]["failed"] == "only on other hardware"
    assert "svs lvq: only on other hardware" in capsys.readouterr().err
