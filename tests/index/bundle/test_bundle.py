"""A bundle's results against brute force, and its errors for invalid input."""

import datetime as dt
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.index_spec import IndexSpec
from index.errors import BundleInvalid, BundleNotFound, EncoderError, SearchError
from index.filters.filters import compile_filter
from index.items.modality_status import ModalityStatus
from index.search.brute_force import exact_top_k
from index.search.encoder import OnnxSequenceEncoder


@pytest.fixture(scope="module")
def bundle(built):
    return Bundle.load(built)


def test_attributes(bundle, built, layout, make_table, make_evaluation_queries):
    assert bundle.id == built.name == bundle.manifest.id
    assert bundle.path == built
    assert len(bundle) == len(bundle.ids) == 300
    assert bundle.layout == layout
    assert bundle.max_history == 12
    assert np.flatnonzero(~bundle.indexed).tolist() == [3]
    np.testing.assert_array_equal(bundle.evaluation_queries.targets, make_evaluation_queries().targets)
    assert bundle.missing.shape == (300, 3)
    # every seventh item lacks its picture, row 3 everything: text, image, behaviour
    assert bundle.missing[[0, 1, 3, 7]].tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 3], [0, 1, 0]]
    assert np.count_nonzero(bundle.missing) == 43 + 3


@pytest.mark.parametrize(("verify", "ahead"), [("stamp", ["items.arrow", "index.faiss", "vectors.npy"]), ("full", [])])
def test_large_files_are_read_ahead_unless_hashing_has_read_them(built, monkeypatch, verify, ahead):
    calls = []
    monkeypatch.setattr("index.bundle.bundle.read_ahead", calls.extend)
    Bundle.load(built, verify=verify)
    assert [path.relative_to(built).as_posix() for path in calls] == ahead


def flags_of(name: str) -> list[set[str]]:
    """Flags of the mappings of a file in this process; ``rr`` is that of random reads."""
    flags: list[set[str]] = []
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            here = line.endswith(name)
        elif here and line.startswith("VmFlags:"):
            flags.append(set(line.split()[1:]))
    return flags


@pytest.mark.parametrize("ahead", [True, False])
def test_pages_around_a_vector_are_read_only_where_vectors_are_searched(built: Path, ahead: bool) -> None:
    vectors = str(built / "vectors.npy")
    before = flags_of(vectors)
    bundle = Bundle.load(built, ahead=ahead)
    found = flags_of(vectors)
    assert len(found) == len(before) + 1
    assert sum("rr" in flags for flags in found) - sum("rr" in flags for flags in before) == int(not ahead)
    assert all("rr" not in flags for flags in flags_of(str(built / "index.faiss")))
    del bundle


def test_an_invalid_bundle_is_not_read_ahead(tmp_path, built, monkeypatch):
    damaged = shutil.copytree(built, tmp_path / built.name)
    (damaged / "index.faiss").write_bytes(b"endless")
    monkeypatch.setattr("index.bundle.bundle.read_ahead", lambda paths: pytest.fail("read before it was verified"))
    with pytest.raises(BundleInvalid):
        Bundle.load(damaged)


def test_reasons_pass_from_the_table_into_the_bundle(tmp_path, make_table, make_evaluation_queries, encoder_path):
    table = make_table(20)
    record = table.missing_record()
    record[7, 1] = ModalityStatus.UNREADABLE
    path = build_bundle(
        replace(table, missing=record), encoder_path, make_evaluation_queries(20), tmp_path, IndexSpec(threads=1)
    )
    assert Bundle.load(path).missing.tolist() == record.tolist()
    assert record[7].tolist() == [0, 2, 0]


def test_encode_is_the_mean_of_the_newest_twelve(bundle, make_table):
    vectors = make_table().vectors.astype(np.float64)
    histories = [np.array([5]), np.array([1, 2, 3]), np.arange(40, 60)]
    want = [vectors[5], vectors[[1, 2, 3]].mean(axis=0), vectors[48:60].mean(axis=0)]
    np.testing.assert_allclose(bundle.encode(histories), want, atol=1e-6)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_search_equals_numpy(tmp_path, make_bundle, make_table, kind):
    loaded = Bundle.load(make_bundle(tmp_path, kind, target_recall=1.0))
    vectors = make_table().vectors.astype(np.float64)
    queries = loaded.encode(
        [loaded.evaluation_queries.history(query) for query in range(len(loaded.evaluation_queries))]
    )
    allowed = compile_filter(loaded.metadata, {"must": [{"field": "category", "in": ["shoes", "hats"]}]})
    assert int(allowed.sum()) == 200
    for mask in (None, allowed):
        found = loaded.search(queries, 10, allowed=mask)
        scores = queries @ vectors.T
        scores[:, 3] = -np.inf
        if mask is not None:
            scores[:, ~mask] = -np.inf
        best = -np.sort(-scores, axis=1)[:, :10]
        np.testing.assert_allclose(found.scores, best, atol=1e-5)
        np.testing.assert_allclose(found.scores, np.take_along_axis(scores, found.rows, axis=1), atol=1e-5)


def test_contributions_sum_to_the_score(bundle, layout, make_table):
    queries = bundle.encode([np.array([5]), np.array([8, 9])]) * layout.weights({"image": 10.0, "behaviour": 0.0})
    found = bundle.search(queries, 400)
    parts = bundle.contributions(queries, found.rows)
    assert parts.shape == (2, 400, 3)
    real = found.rows >= 0
    np.testing.assert_allclose(parts.sum(axis=2)[real], found.scores[real], rtol=1e-6, atol=1e-6)
    assert (parts[~real] == 0).all()
    assert (parts[..., 2] == 0).all()  # behaviour weighs nothing
    vectors = make_table().vectors.astype(np.float64)
    row = found.rows[1, 4]
    by_hand = [queries[1, layout.slice(name)] @ vectors[row, layout.slice(name)] for name in layout.names]
    np.testing.assert_allclose(parts[1, 4], by_hand, atol=1e-5)
    without_picture = found.rows % 7 == 0
    assert (parts[..., 1][without_picture & real] == 0).all()


def test_popular_by_hand(bundle):
    # popularity of row r is (299 − r) mod 50, so rows 0, 50, 100 … lead with 49 events, in that order
    total = sum((299 - row) % 50 for row in range(300))
    top = bundle.popular(7)
    assert top.rows.tolist() == [[0, 50, 100, 150, 200, 250, 1]]
    np.testing.assert_allclose(top.scores, [[49 / total] * 6 + [48 / total]], rtol=1e-6)
    last = np.zeros(300, bool)
    last[[299, 3, 249]] = True
    few = bundle.popular(5, allowed=last)
    assert few.rows.tolist() == [[3, 249, 299, -1, -1]]  # row 3 has no slot, yet can be popular
    assert few.scores[0, 1:].tolist() == [0, 0, -np.inf, -np.inf]
    assert sorted(bundle.popular(1000).rows[0, :300].tolist()) == list(range(300))


def test_popular_without_any_event(tmp_path, make_table, make_evaluation_queries, encoder_path):
    table = make_table(20)
    quiet = replace(table, popularity=np.zeros(20, np.int64))
    path = build_bundle(quiet, encoder_path, make_evaluation_queries(20), tmp_path, IndexSpec(threads=1))
    assert Bundle.load(path).popular(2).scores.tolist() == [[0, 0]]


def test_fields(bundle):
    assert bundle.fields(1) == {
        "title": "item 1",
        "image": "images/1.png",
        "category": "hats",
        "price": 1.0,
        "tags": ["new"],
    }
    assert bundle.fields(0, ["tags", "image", "nothing"]) == {"tags": ["sale"], "image": None}
    assert bundle.fields(0, []) == {}


def test_fields_are_ready_for_json(tmp_path, make_table, make_evaluation_queries, encoder_path):
    metadata = pa.table(
        {
            "real": pa.array([float("nan"), 1.5], pa.float32()),
            "far": pa.array([float("inf"), -2.0]),
            "day": pa.array([dt.date(2026, 1, 2), None]),
            "at": pa.array([0, None], pa.timestamp("s", "UTC")),
            "cost": pa.array([Decimal("1.25"), None]),
            "raw": pa.array([b"\x01\xff", None]),
            "small": pa.array([np.float16(0.5), None], pa.float16()),
            "parts": [{"a": [1.0, float("nan")]}, None],
            "wait": pa.array([5, None], pa.duration("s")),
            "yes": [True, None],
        }
    )
    table = replace(make_table(2), metadata=metadata)
    path = build_bundle(table, encoder_path, make_evaluation_queries(2), tmp_path, IndexSpec(threads=1))
    loaded = Bundle.load(path)
    assert loaded.fields(0) == {
        "real": None,
        "far": None,
        "day": "2026-01-02",
        "at": "1970-01-01T00:00:00+00:00",
        "cost": 1.25,
        "raw": "01ff",
        "small": 0.5,
        "parts": {"a": [1.0, None]},
        "wait": "0:00:05",
        "yes": True,
    }
    assert set(loaded.fields(1).values()) == {1.5, -2.0, None}


def test_a_catalogue_without_metadata(tmp_path, make_table, make_evaluation_queries, encoder_path):
    bare = replace(make_table(20), metadata=pa.table({"x": range(20)}).drop_columns(["x"]))
    assert bare.metadata.num_rows == 20
    loaded = Bundle.load(build_bundle(bare, encoder_path, make_evaluation_queries(20), tmp_path, IndexSpec(threads=1)))
    assert loaded.fields(3) == {}


def test_vectors(bundle, make_table):
    rows = np.array([[0, 5], [299, 3]])
    np.testing.assert_array_equal(bundle.vectors(rows), make_table().vectors[rows].astype(np.float32))
    assert bundle.vectors(np.zeros((0,), np.int64)).shape == (0, 12)


@pytest.mark.parametrize("row", [-1, 300, 10**12])
def test_refuses_rows(bundle, row):
    for call in (
        lambda: bundle.vectors(np.array([row])),
        lambda: bundle.encode([np.array([0, row])]),
        lambda: bundle.fields(row),
    ):
        with pytest.raises(SearchError, match=rf"rows must lie in 0 … 299, got {row}"):
            call()


def test_refuses_invalid_arguments(bundle):
    query = np.ones((1, 12), np.float32)
    with pytest.raises(EncoderError, match="history 1 must be"):
        bundle.encode([np.array([0]), np.zeros(0, np.int64)])
    with pytest.raises(SearchError, match=r"rows must lie in -1 … 299, got -2"):
        bundle.contributions(query, np.array([[-2]]))
    with pytest.raises(SearchError, match=r"rows must be \(1, k\), got \(2, 1\)"):
        bundle.contributions(query, np.array([[0], [1]]))
    with pytest.raises(SearchError, match="k must be at least 1, got 0"):
        bundle.popular(0)
    with pytest.raises(SearchError, match="allowed must be bool"):
        bundle.popular(1, allowed=np.ones(300))
    with pytest.raises(SearchError, match="k must be at least 1"):
        bundle.search(query, 0)


def test_loading_refuses(built, tmp_path):
    with pytest.raises(BundleNotFound, match="there is no bundle"):
        Bundle.load(tmp_path / "none")
    with pytest.raises(SearchError, match="threads must be at least 1"):
        Bundle.load(built, threads=0)
    with pytest.raises(EncoderError, match="device must be one of cpu, cuda, got 'tpu'"):
        Bundle.load(built, device="tpu")


def test_on_a_gpu_the_index_is_copied_there(built, encoder_path, monkeypatch):
    """Not run on a GPU: stand-ins show only that device 'cuda' reaches the encoder and the GPU index."""
    calls = []

    def on_gpu(on_cpu):
        calls.append(on_cpu.capabilities.rows)
        return on_cpu

    def encoder(path, *, device, threads):
        calls.append((path.name, device, threads))
        return OnnxSequenceEncoder(path, threads=threads)

    monkeypatch.setattr("index.bundle.files.GpuIndex", on_gpu)
    monkeypatch.setattr("index.bundle.files.OnnxSequenceEncoder", encoder)
    loaded = Bundle.load(built, device="cuda", threads=2)
    assert calls == [("encoder.onnx", "cuda", 2), 299]
    assert loaded.search(np.ones((1, 12), np.float32), 3).rows.min() >= 0


def test_warm_up_and_many_threads(bundle):
    bundle.warm_up()
    queries = bundle.encode([np.array([row]) for row in range(40)])
    want = exact_top_k(queries, bundle.vectors(np.arange(300)), 5, allowed=bundle.indexed)[0]

    def ask(number):
        query = bundle.encode([np.array([number])])
        found = bundle.search(query, 5)
        bundle.contributions(query, found.rows)
        return found.rows[0], bundle.fields(int(found.rows[0, 0]))["title"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(40)))
    for (rows, title), wanted in zip(answers, want, strict=True):
        assert set(rows.tolist()) == set(wanted.tolist())
        assert title == f"item {rows[0]}"
