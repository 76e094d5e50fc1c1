"""Building a bundle: its content, its measured figures, and the leftovers of a killed build."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import REQUIRED_FILES, Manifest
from index.errors import BundleError, EncoderError, IndexSpecError, ItemTableError
from index.items.eval_queries import EvaluationQueries
from index.items.slots import Slot, SlotLayout
from index.search.query_plan import SCAN, Effort

NOW = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
NO_EVALUATION_QUERIES = EvaluationQueries(np.zeros((0, 3), np.int64), np.zeros(0, np.int64))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_a_bundle_describes_itself(tmp_path, make_bundle, make_table, layout, kind):
    path = make_bundle(tmp_path, kind)
    manifest = Manifest.read(path)
    assert manifest.id == path.name
    assert manifest.id.startswith("20261123T040500Z-")
    assert (manifest.items, manifest.indexed, manifest.max_history) == (300, 299, 12)
    assert manifest.layout == layout
    assert manifest.index.kind == kind
    assert manifest.index.reason.startswith("requested by name")
    assert manifest.index.parameters["codes"] == ("fp16" if kind == "flat" else "sq8")
    assert ("whose rounding alone leaves recall" in manifest.index.reason) == (kind != "flat")
    assert set(manifest.files) == set(REQUIRED_FILES)
    for name, entry in manifest.files.items():
        content = (path / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.size, entry.sha256)
        assert not (path / name).stat().st_mode & 0o222
    report = json.loads((path / "report.json").read_text())
    # 300 items: every seventh (43) lacks its picture, row 3 lacks everything.
    assert report["items"] == {
        "total": 300,
        "indexed": 299,
        "with_slot": {"text": 299, "image": 256, "behaviour": 299},
        "with_all_slots": 256,
    }
    # 1 % of 299 rows are 3; 0.1 % would be none, and is left out.
    kinds = ["plain", "filtered 50 %", "filtered 10 %", "filtered 1 %"]
    kinds += [f"{slot} {how}" for slot in layout.names for how in ("x3", "alone")] + ["plain top 200"]
    kinds += ["nearest 1 % excluded"]
    assert sorted(manifest.index.recall) == sorted(kinds)
    assert list(report["search_ms"]) == kinds
    assert report["index"] == manifest.index.model_dump(mode="json")
    assert all(value >= 0.95 for value in manifest.index.recall.values())
    assert report["index_bytes"] == (path / "index.faiss").stat().st_size
    assert sum(report["answers"]["slot_shares"].values()) == pytest.approx(1, abs=1e-3)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("bands", "which"),
    [
        (((0.4, 40), (1.0, SCAN)), "queries with unusual slot weights scan all rows"),
        (((1.0, SCAN),), "every query scans all rows"),
    ],
)
def test_the_reason_says_which_queries_scan_although_there_is_an_index(
    tmp_path, make_bundle, monkeypatch, bands, which
):
    def calibrated(*_given):
        return Effort((1 / 3,) * 3, bands, per_k=36)

    monkeypatch.setattr("index.evaluation.report.calibrate", calibrated)
    reason = Manifest.read(make_bundle(tmp_path, "hnsw")).index.reason
    assert f"; {which}, as no smaller effort reaches recall 0.97: choose ivf or a lower" in reason


def test_vectors_and_items_are_stored_unchanged(built, make_table):
    table = make_table()
    np.testing.assert_array_equal(np.load(built / "vectors.npy"), table.vectors)
    bundle = Bundle.load(built)
    assert [bundle.ids.id(row) for row in range(300)] == [table.ids.id(row) for row in range(300)]
    assert bundle.metadata.to_pydict() == table.metadata.to_pydict()
    assert {bundle.metadata.column(name).num_chunks for name in bundle.metadata.column_names} == {1}
    np.testing.assert_array_equal(bundle.popularity, table.popularity)


@pytest.mark.parametrize("codes", ["fp32", "fp16", "sq8"])
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_codes_by_name(tmp_path, make_bundle, kind, codes):
    path = make_bundle(tmp_path, kind, codes=codes)
    manifest = Manifest.read(path)
    assert manifest.index.parameters["codes"] == codes
    assert min(manifest.index.recall.values()) >= 0.95
    size = (path / "index.faiss").stat().st_size
    codes_alone = 299 * 12 * {"fp32": 4, "fp16": 2, "sq8": 1}[codes]
    if (kind, codes) == ("flat", "fp16"):  # the codes of the stored vectors, which are read where they lie
        assert size < 1000
    else:
        spec = IndexSpec(kind=kind, codes=codes)
        assert codes_alone < size < spec.size(kind, codes, 299, 12) + 2000


def test_codes_that_round_too_much_are_not_chosen(tmp_path, make_table, make_evaluation_queries, encoder_path):
    """One item a thousand times as long as the others leaves a byte no steps to tell the others apart."""
    table = make_table()
    vectors = table.vectors.copy()
    vectors[5] = 500
    long = replace(table, vectors=vectors)
    path = build_bundle(long, encoder_path, make_evaluation_queries(), tmp_path, IndexSpec(kind="ivf", threads=1))
    manifest = Manifest.read(path)
    assert manifest.index.parameters["codes"] == "fp16"
    assert "fp16, as the rounding of sq8 alone would leave recall 0." in manifest.index.reason
    by_name = build_bundle(
        long, encoder_path, make_evaluation_queries(), tmp_path, IndexSpec(kind="ivf", codes="sq8", threads=1)
    )
    assert Manifest.read(by_name).index.parameters["codes"] == "sq8"


def test_the_memory_limit_takes_precedence_over_rounding(tmp_path, make_bundle):
    spec = IndexSpec(kind="ivf")
    path = make_bundle(tmp_path, "ivf", memory_bytes=spec.size("ivf", "sq8", 299, 12))
    reason = Manifest.read(path).index.reason
    assert "sq8, as fp16 would not fit" in reason
    with pytest.raises(IndexSpecError, match="memory_bytes 10 is too small"):
        make_bundle(tmp_path, "ivf", memory_bytes=10)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_exclude_seen_is_stored(tmp_path, make_table, make_evaluation_queries, encoder_path, exclude_seen):
    bundle = build_bundle(make_table(), encoder_path, make_evaluation_queries(), tmp_path, exclude_seen=exclude_seen)
    assert Bundle.load(bundle).manifest.exclude_seen is exclude_seen


def test_one_item(tmp_path, make_table, encoder_path):
    for kind in ("auto", "hnsw", "ivf"):
        path = build_bundle(
            make_table(1), encoder_path, NO_EVALUATION_QUERIES, tmp_path / kind, IndexSpec(kind=kind, threads=1)
        )
        bundle = Bundle.load(path)
        found = bundle.search(bundle.encode([np.array([0])]), 3)
        assert found.rows.tolist() == [[0, -1, -1]]


def test_without_evaluation_queries_single_items_are_measured(tmp_path, make_table, encoder_path):
    path = build_bundle(make_table(60), encoder_path, NO_EVALUATION_QUERIES, tmp_path, IndexSpec(evaluation_queries=10))
    assert json.loads((path / "report.json").read_text())["probes"] == {"held_out": 0, "used": 10}


def test_a_single_slot_is_measured_plain_only(tmp_path, make_table, make_encoder):
    table = make_table(60)
    layout = SlotLayout((Slot("text", 6),))
    only = replace(table, layout=layout, vectors=layout.stack({"text": np.asarray(table.vectors[:, :6], np.float32)}))
    encoder = make_encoder(tmp_path / "e.onnx", layout)
    path = build_bundle(only, encoder, NO_EVALUATION_QUERIES, tmp_path / "out", IndexSpec(kind="hnsw", threads=1))
    manifest = Manifest.read(path)
    assert sorted(manifest.index.recall) == ["filtered 1 %", "filtered 10 %", "filtered 50 %", "plain"]
    assert manifest.dtype == "float32"


def test_same_content_in_the_same_second_is_one_bundle(tmp_path, make_table, encoder_path, monkeypatch):
    monkeypatch.setattr("index.evaluation.report.latency_ms", lambda *_: {"p50": 0.0, "p90": 0.0, "p99": 0.0})
    table = make_table(50)
    first, second = (
        build_bundle(table, encoder_path, NO_EVALUATION_QUERIES, tmp_path, IndexSpec(threads=1), now=NOW)
        for _ in range(2)
    )
    assert first == second
    assert [entry.name for entry in tmp_path.iterdir()] == [first.name]


def test_progress_names_every_stage(tmp_path, make_table, make_evaluation_queries, encoder_path):
    seen = []
    build_bundle(
        make_table(),
        encoder_path,
        make_evaluation_queries(),
        tmp_path,
        IndexSpec(kind="ivf", threads=1),
        progress=lambda stage, share: seen.append((stage, share)),
    )
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages == [
        *("vectors", "items", "codes", "train", "add", "write", "exact answers", "calibrate", "measure"),
        *("pictures", "hash"),
    ]
    assert all(0 <= share <= 1 for _, share in seen)


def test_refuses_tables(tmp_path, make_table, make_encoder, encoder_path):
    table = make_table(50)
    broken = table.vectors.copy()
    broken[7, 2] = np.nan
    with pytest.raises(IndexSpecError, match="item 'i7' has a vector that is not finite"):
        build_bundle(replace(table, vectors=broken), encoder_path, NO_EVALUATION_QUERIES, tmp_path)
    with pytest.raises(IndexSpecError, match="none of 50 items has a text or picture"):
        build_bundle(
            replace(table, vectors=np.zeros_like(table.vectors)), encoder_path, NO_EVALUATION_QUERIES, tmp_path
        )
    with pytest.raises(IndexSpecError, match="provenance of the item table must be JSON"):
        build_bundle(replace(table, model={"loss": float("inf")}), encoder_path, NO_EVALUATION_QUERIES, tmp_path)
    with pytest.raises(ItemTableError, match=r"rows of evaluation queries must lie in 0 … 49, got 50"):
        build_bundle(table, encoder_path, EvaluationQueries(np.array([[50]]), np.array([0])), tmp_path)
    other = make_encoder(tmp_path / "other.onnx", SlotLayout((Slot("text", 12),)))
    with pytest.raises(EncoderError, match="the encoder is for the slots"):
        build_bundle(table, other, NO_EVALUATION_QUERIES, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="the bundle cannot be written"):
        build_bundle(table, encoder_path, NO_EVALUATION_QUERIES, tmp_path / "file")
    assert {entry.name for entry in tmp_path.iterdir()} == {"other.onnx", "file"}


def test_a_failure_of_faiss_is_translated(tmp_path, make_table, encoder_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("faiss.write_index", fail)
    with pytest.raises(BundleError, match="FAISS could not build the index"):
        build_bundle(make_table(50), encoder_path, NO_EVALUATION_QUERIES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_cleans_up(tmp_path, make_table, encoder_path):
    def interrupt(stage, _share):
        if stage == "hash":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(make_table(50), encoder_path, NO_EVALUATION_QUERIES, tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from index.build.build import build_bundle
from index.items.item_table import ItemTable
from index.items.eval_queries import EvaluationQueries
import numpy as np
table, encoder, out, when = sys.argv[1:]
def die(stage, share):
    if stage == when:
        os.kill(os.getpid(), signal.SIGKILL)
evaluation_queries = EvaluationQueries(np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
build_bundle(ItemTable.load(Path(table)), Path(encoder), evaluation_queries, Path(out), progress=die)
"""


def test_a_killed_build_leaves_nothing_that_loads(tmp_path, make_table, encoder_path):
    table, out = make_table(50), tmp_path / "out"
    table.save(tmp_path / "table")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "table"), str(encoder_path), str(out)]
    for stage in ("train", "hash"):
        ended = subprocess.run([*command, stage], check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert len(list(out.iterdir())) == 1  # the second build cleared what the first had left
        assert all(entry.name.startswith(".building-") for entry in out.iterdir())
    path = build_bundle(table, encoder_path, NO_EVALUATION_QUERIES, out)
    assert list(out.iterdir()) == [path]


def test_a_running_build_is_not_removed(tmp_path, make_table, encoder_path):
    living = tmp_path / ".building-alive"
    living.mkdir()
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        build_bundle(make_table(50), encoder_path, NO_EVALUATION_QUERIES, tmp_path)
        assert living.is_dir()
    finally:
        os.close(descriptor)
    build_bundle(make_table(50), encoder_path, NO_EVALUATION_QUERIES, tmp_path)
    assert not living.exists()
