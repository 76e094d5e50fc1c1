"""Hashing a loaded bundle in the background finds changes that the stamp misses, can be stopped, names the file."""

import hashlib
import os
import shutil
import threading

import pytest

from index.bundle.bundle import Bundle
from index.bundle.integrity import hash_files, sha256_of, write_stamp
from index.bundle.manifest import REQUIRED_FILES, Manifest
from index.errors import BundleInvalid, BundleNotFound


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("index.bundle.integrity._BLOCK", 64)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
def test_hashing_in_blocks_equals_the_hash_of_the_file(tmp_path, small_blocks, size):
    content = bytes(range(256)) * 4
    (tmp_path / "x").write_bytes(content[:size])
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content[:size]).hexdigest()


def test_an_intact_bundle(built):
    assert Bundle.load(built).verify_in_full() is True


@pytest.mark.parametrize("name", sorted(REQUIRED_FILES))
def test_finds_changes_after_loading(copied, monkeypatch, name):
    """A byte is changed in place with size and time kept: the stamp misses it, the hash finds it."""
    monkeypatch.setattr("index.bundle.integrity._SMALL", 0)
    write_stamp(copied, Manifest.read(copied))
    loaded = Bundle.load(copied)
    path = copied / name
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    os.utime(path, ns=(before, before))
    with pytest.raises(BundleInvalid, match=rf"{name}: its content was altered"):
        loaded.verify_in_full()


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b""), "has 0 bytes"),
        (lambda path: (path.unlink(), path.mkdir()), "must be a regular file"),
    ],
)
def test_finds_deleted_files(copied, damage, rule):
    loaded = Bundle.load(copied)
    damage(copied / "report.json")
    with pytest.raises(BundleInvalid, match=rf"report\.json: .*{rule}"):
        loaded.verify_in_full()


def test_a_pruned_bundle_is_not_called_altered(copied):
    loaded = Bundle.load(copied)
    shutil.rmtree(copied)
    with pytest.raises(BundleNotFound, match="was deleted while it was verified"):
        loaded.verify_in_full()


def test_stops_between_any_two_blocks(copied, small_blocks):
    """Stopped at its n-th check it reads no further, for every n."""
    manifest = Manifest.read(copied)
    looks = sum(entry.size // 64 + (entry.size % 64 > 0) + 1 for entry in manifest.files.values())
    assert hash_files(copied, manifest, _after(looks)) is True
    for allowed in (0, 1, 2, looks // 2, looks - 1):
        stop = _after(allowed)
        assert hash_files(copied, manifest, stop) is False
        assert stop.looks == allowed + 1


def _after(looks):
    """A `stop` that returns True after a number of calls, and counts them."""

    def stop():
        stop.looks += 1
        return stop.looks > looks

    stop.looks = 0
    return stop


def test_runs_beside_searches(built):
    loaded = Bundle.load(built)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(loaded.verify_in_full()))
    thread.start()
    query = loaded.vectors(loaded.indexed.nonzero()[0][:1])
    rows = [int(loaded.search(query, 1).rows[0, 0]) for _ in range(20)]
    thread.join()
    assert (outcome, set(rows)) == ([True], {0})
