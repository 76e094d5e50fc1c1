"""Errors that no hash detects: content that was wrong before it was hashed, and paths that are not files."""

import json
import os
import zipfile

import numpy as np
import pytest

from index.bundle.bundle import Bundle
from index.bundle.integrity import stamp_path, verify_files, write_stamp
from index.bundle.manifest import MANIFEST_FILE, EffortRecord, Manifest
from index.bundle.registry import Registry
from index.errors import BundleInvalid, ItemTableError
from index.items.eval_queries import EvaluationQueries
from index.search.popularity import by_popularity


@pytest.fixture
def with_vectors(copied, reseal):
    """Change the stored vectors of the copy and seal it."""

    def change(row, part, value):
        vectors = np.load(copied / "vectors.npy")
        vectors[row, part] = value
        np.save(copied / "vectors.npy", vectors)
        reseal(copied)
        return copied

    return change


@pytest.mark.parametrize("blocks", [64, 65_536])
@pytest.mark.parametrize(
    ("row", "part", "value", "rule"),
    [
        (0, 5, np.nan, "the vector in row 0 is not finite"),
        (299, 11, np.inf, "the vector in row 299 is not finite"),
        (64, slice(0, 6), 0, "row 64: slot 'text' is zero, but its missing-modality code is PRESENT"),
        (3, 11, 0.1, "row 3: the behaviour slot is imputed, but no slot is present"),
    ],
)
def test_every_vector_is_checked_by_full_verification_and_by_publishing(
    with_vectors, tmp_path, monkeypatch, blocks, row, part, value, rule
):
    monkeypatch.setattr("index.bundle.files._BLOCK_ROWS", blocks)
    monkeypatch.setattr("index.items.modality_status._BLOCK_ROWS", blocks)
    bundle = with_vectors(row, part, value)
    assert len(Bundle.load(bundle)) == 300  # a start does not read every vector
    with pytest.raises(BundleInvalid, match=rf"vectors\.npy: {rule}"):
        Bundle.load(bundle, verify="full")
    registry = Registry(tmp_path / "registry")
    with pytest.raises(BundleInvalid, match=rule):
        registry.publish(bundle)
    assert registry.current() is None


@pytest.mark.parametrize(
    ("bands", "rule"),
    [
        (((0.5, 8),), "skews must ascend to 1"),
        (((0.5, 8), (0.2, 8), (1.0, 9)), "skews must ascend to 1"),
        (((0.5, -1), (1.0, 9)), "an effort must lie in 0"),
        (((0.5, 8), (1.0, 2**31)), "an effort must lie in 0"),
    ],
)
def test_refuses_efforts(bands, rule):
    with pytest.raises(ValueError, match=rule):
        EffortRecord(typical=(1.0,), bands=bands, per_k=36, growth=1.0)
    assert EffortRecord(typical=(1.0,), bands=((0.5, 0), (0.5, 8), (1.0, 2**20)), per_k=36, growth=1.0).per_k == 36


def test_refuses_an_effort_of_other_slots_and_nan(copied):
    raw = json.loads((copied / MANIFEST_FILE).read_text())
    for typical, rule in (([0.5, 0.5], "needs a share for each of 3 slots"), ([0.5, 0.5, float("nan")], "finite")):
        raw["index"]["effort"]["typical"] = typical
        (copied / MANIFEST_FILE).write_text(json.dumps(raw))
        with pytest.raises(BundleInvalid, match=rule):
            Manifest.read(copied)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_manifest_that_is_not_a_file(copied, make):
    """Reading a pipe or /dev/zero would never end."""
    (copied / MANIFEST_FILE).unlink()
    make(copied / MANIFEST_FILE)
    with pytest.raises(BundleInvalid, match=r"manifest\.json: must be a regular file"):
        Bundle.load(copied)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_stamp_that_is_not_a_file_is_ignored(copied, make):
    make(stamp_path(copied))
    assert len(Bundle.load(copied)) == 300


def test_an_endless_stamp_is_ignored(copied):
    manifest = Manifest.read(copied)
    write_stamp(copied, manifest)
    with stamp_path(copied).open("r+b") as file:
        file.truncate(1 << 40)
    verify_files(copied, manifest)


def test_an_empty_directory_is_not_a_bundle(tmp_path):
    with pytest.raises(BundleInvalid, match=r"manifest\.json"):
        Bundle.load(tmp_path)


def _squeezed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("histories", "targets"):
            with archive.open(f"{name}.npy", "w") as member:
                np.save(member, np.zeros((1000, 1000), np.int64))


@pytest.mark.parametrize(
    ("write", "rule"),
    [
        (_squeezed, "histories.npy must be stored without compression"),
        (lambda path: np.savez(path, histories=np.zeros((1, 1)), targets=np.zeros(1)), "must hold 64-bit integers"),
        (lambda path: np.savez(path, histories=np.zeros((1, 1), int)), "cannot be read"),
        (lambda path: np.savez(path, histories=np.array([[None]]), targets=np.zeros(1, int)), "not an npy file"),
        (lambda path: np.savez(path, histories=np.zeros((2, 3), int).T, targets=np.zeros(3, int)), "C order"),
    ],
)
def test_refuses_evaluation_queries(tmp_path, write, rule):
    write(tmp_path / "probes.npz")
    with pytest.raises(ItemTableError, match=rule):
        EvaluationQueries.load(tmp_path / "probes.npz")


def test_evaluation_queries_of_any_memory_layout_are_saved_in_order(tmp_path):
    EvaluationQueries(np.arange(6).reshape(2, 3).T, np.array([0, 1, 2])).save(tmp_path / "probes.npz")
    assert EvaluationQueries.load(tmp_path / "probes.npz").histories.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("largest", [0, 1, 40, 2**40, 2**62])
def test_popularity_is_ordered_as_by_a_stable_sort(largest):
    counts = np.random.default_rng(0).integers(0, min(largest, 40) + 1, 500)
    counts[123] = largest
    expected = sorted(range(500), key=lambda row: (-counts[row], row))
    assert by_popularity(counts).tolist() == expected
    assert by_popularity(counts[123:124]).tolist() == [0]
