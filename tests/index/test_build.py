"""Building: what is in a bundle, what it measures of itself, and what a killed build leaves."""

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

from index.build import build_bundle
from index.bundle import Bundle
from index.errors import BundleError, EncoderError, IndexSpecError, ItemTableError
from index.index_spec import IndexSpec
from index.manifest import REQUIRED_FILES, Manifest
from index.probes import Probes
from index.slots import Slot, SlotLayout

NOW = datetime(2026, 11, 23, 4, 5, 6, tzinfo=UTC)
NO_PROBES = Probes(np.zeros((0, 3), np.int64), np.zeros(0, np.int64))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_a_bundle_describes_itself(tmp_path, make_bundle, make_table, layout, kind):
    path = make_bundle(tmp_path, kind)
    manifest = Manifest.read(path)
    assert manifest.id == path.name
    assert manifest.id.startswith("20261123T040500Z-")
    assert (manifest.items, manifest.indexed, manifest.max_history) == (300, 299, 12)
    assert manifest.layout == layout
    assert manifest.index.kind == kind
    assert manifest.index.reason == "asked for by name"
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
    kinds = ["plain"] + [f"{slot} {how}" for slot in layout.names for how in ("x3", "alone")]
    assert sorted(manifest.index.recall) == sorted(kinds)
    assert list(report["search_ms"]) == kinds
    assert report["index"] == manifest.index.model_dump(mode="json")
    assert all(value >= 0.95 for value in manifest.index.recall.values())
    assert report["index_bytes"] == (path / "index.faiss").stat().st_size
    assert sum(report["answers"]["slot_shares"].values()) == pytest.approx(1, abs=1e-3)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_vectors_and_items_arrive_unchanged(built, make_table):
    table = make_table()
    np.testing.assert_array_equal(np.load(built / "vectors.npy"), table.vectors)
    bundle = Bundle.load(built)
    assert [bundle.ids.id(row) for row in range(300)] == [table.ids.id(row) for row in range(300)]
    assert bundle.metadata.equals(table.metadata.combine_chunks())
    np.testing.assert_array_equal(bundle.popularity, table.popularity)


@pytest.mark.parametrize(
    ("rows", "kind", "why"),
    [
        (1, "flat", "up to 20000"),
        (20_000, "flat", "up to 20000"),
        (20_001, "hnsw", "the graph finds more"),
        (2_000_000, "hnsw", "up to 2000000"),
        (2_000_001, "ivf", "too much memory"),
    ],
)
def test_auto_chooses_by_size_and_says_why(rows, kind, why):
    chosen, reason = IndexSpec().choose(rows)
    assert chosen == kind
    assert why in reason
    assert str(rows) in reason


def test_list_count():
    assert IndexSpec().list_count(1_000_000) == 4000
    assert IndexSpec().list_count(3900) == 100  # 39 rows a list, not 249 lists
    assert IndexSpec(lists=7).list_count(1_000_000) == 7
    assert IndexSpec(lists=7).list_count(10) == 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"kind": "pq"}, "kind must be one of auto, flat, hnsw, ivf, got 'pq'"),
        ({"recall_k": 0}, r"recall_k must be 1 … 1000, got 0"),
        ({"links": 3}, "links must be 4"),
        ({"construction": 8}, "construction must be 32"),
        ({"threads": 0}, "threads must be 1"),
        ({"probes": 0}, "probes must be 1"),
        ({"lists": 0}, "lists must be 1"),
        ({"target_recall": float("nan")}, "target_recall must be 0 … 1, got nan"),
    ],
)
def test_refuses_specs(change, rule):
    with pytest.raises(IndexSpecError, match=rule):
        IndexSpec(**change)


def test_one_item(tmp_path, make_table, encoder_path):
    for kind in ("auto", "hnsw", "ivf"):
        path = build_bundle(make_table(1), encoder_path, NO_PROBES, tmp_path / kind, IndexSpec(kind=kind, threads=1))
        bundle = Bundle.load(path)
        found = bundle.search(bundle.encode([np.array([0])]), 3)
        assert found.rows.tolist() == [[0, -1, -1]]


def test_without_probes_single_items_are_measured(tmp_path, make_table, encoder_path):
    path = build_bundle(make_table(60), encoder_path, NO_PROBES, tmp_path, IndexSpec(probes=10))
    assert json.loads((path / "report.json").read_text())["probes"] == {"held_out": 0, "used": 10}


def test_a_single_slot_is_measured_plain_only(tmp_path, make_table, make_encoder):
    table = make_table(60)
    layout = SlotLayout((Slot("text", 6),))
    only = replace(table, layout=layout, vectors=layout.stack({"text": np.asarray(table.vectors[:, :6], np.float32)}))
    encoder = make_encoder(tmp_path / "e.onnx", layout)
    path = build_bundle(only, encoder, NO_PROBES, tmp_path / "out", IndexSpec(kind="hnsw", threads=1))
    manifest = Manifest.read(path)
    assert list(manifest.index.recall) == ["plain"]
    assert manifest.dtype == "float32"


def test_same_content_in_the_same_second_is_one_bundle(tmp_path, make_table, encoder_path, monkeypatch):
    monkeypatch.setattr("index.report.latency_ms", lambda *_: {"p50": 0.0, "p90": 0.0, "p99": 0.0})
    table = make_table(50)
    first, second = (
        build_bundle(table, encoder_path, NO_PROBES, tmp_path, IndexSpec(threads=1), now=NOW) for _ in range(2)
    )
    assert first == second
    assert [entry.name for entry in tmp_path.iterdir()] == [first.name]


def test_progress_names_every_stage(tmp_path, make_table, make_probes, encoder_path):
    seen = []
    build_bundle(
        make_table(),
        encoder_path,
        make_probes(),
        tmp_path,
        IndexSpec(kind="ivf", threads=1),
        progress=lambda stage, share: seen.append((stage, share)),
    )
    stages = list(dict.fromkeys(stage for stage, _ in seen))
    assert stages == ["vectors", "train", "add", "write", "exact answers", "calibrate", "measure", "pictures", "hash"]
    assert all(0 <= share <= 1 for _, share in seen)


def test_refuses_tables(tmp_path, make_table, make_encoder, encoder_path):
    table = make_table(50)
    broken = table.vectors.copy()
    broken[7, 2] = np.nan
    with pytest.raises(IndexSpecError, match="item 'i7' has a vector that is not finite"):
        build_bundle(replace(table, vectors=broken), encoder_path, NO_PROBES, tmp_path)
    with pytest.raises(IndexSpecError, match="none of 50 items has a text or picture"):
        build_bundle(replace(table, vectors=np.zeros_like(table.vectors)), encoder_path, NO_PROBES, tmp_path)
    with pytest.raises(IndexSpecError, match="provenance of the item table must be JSON"):
        build_bundle(replace(table, model={"loss": float("inf")}), encoder_path, NO_PROBES, tmp_path)
    with pytest.raises(ItemTableError, match=r"probe rows must lie in 0 … 49, got 50"):
        build_bundle(table, encoder_path, Probes(np.array([[50]]), np.array([0])), tmp_path)
    other = make_encoder(tmp_path / "other.onnx", SlotLayout((Slot("text", 12),)))
    with pytest.raises(EncoderError, match="the encoder is for the slots"):
        build_bundle(table, other, NO_PROBES, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="the bundle cannot be written"):
        build_bundle(table, encoder_path, NO_PROBES, tmp_path / "file")
    assert {entry.name for entry in tmp_path.iterdir()} == {"other.onnx", "file"}


def test_a_failure_of_faiss_is_translated(tmp_path, make_table, encoder_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("faiss.write_index", fail)
    with pytest.raises(BundleError, match="FAISS could not build the index"):
        build_bundle(make_table(50), encoder_path, NO_PROBES, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_cleans_up(tmp_path, make_table, encoder_path):
    def interrupt(stage, _share):
        if stage == "hash":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_bundle(make_table(50), encoder_path, NO_PROBES, tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from index.build import build_bundle
from index.item_table import ItemTable
from index.probes import Probes
import numpy as np
table, encoder, out, when = sys.argv[1:]
def die(stage, share):
    if stage == when:
        os.kill(os.getpid(), signal.SIGKILL)
probes = Probes(np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
build_bundle(ItemTable.load(Path(table)), Path(encoder), probes, Path(out), progress=die)
"""


def test_a_killed_build_leaves_nothing_that_loads(tmp_path, make_table, encoder_path):
    table, out = make_table(50), tmp_path / "out"
    table.save(tmp_path / "table")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "table"), str(encoder_path), str(out)]
    for stage in ("add", "hash"):
        ended = subprocess.run([*command, stage], check=False, capture_output=True)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert len(list(out.iterdir())) == 1  # the second build cleared what the first had left
        assert all(entry.name.startswith(".building-") for entry in out.iterdir())
    path = build_bundle(table, encoder_path, NO_PROBES, out)
    assert list(out.iterdir()) == [path]


def test_a_living_build_is_left_alone(tmp_path, make_table, encoder_path):
    living = tmp_path / ".building-alive"
    living.mkdir()
    descriptor = os.open(living, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        build_bundle(make_table(50), encoder_path, NO_PROBES, tmp_path)
        assert living.is_dir()
    finally:
        os.close(descriptor)
    build_bundle(make_table(50), encoder_path, NO_PROBES, tmp_path)
    assert not living.exists()
