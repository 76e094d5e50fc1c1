"""Copies of bundles from an object store: downloads that fail or break off, their bound, and damaged ones."""

import errno
import os
import threading

import pytest

from index.bundle import integrity
from index.bundle.bundle import Bundle
from index.bundle.manifest import VECTORS_FILE
from index.bundle.store import bundle_cache, store_registry
from index.bundle.store.bundle_cache import DownloadStopped
from index.errors import BundleInvalid, RegistryError, StoreUnavailable

FAULTS = ("gone", "half", "lie", "altered", "missing", "denied")


@pytest.mark.parametrize("ending", ["manifest.json", "vectors.npy"])
def test_a_faulty_download_leaves_no_copy_and_the_next_one_succeeds(opened, bundles, s3, ending):
    name = opened().publish(bundles[0])
    for fault in FAULTS:
        registry = opened(f"reader-{fault}")
        with s3.faulty(lambda method, key, fault=fault: fault if method == "GET" and key.endswith(ending) else None):
            with pytest.raises(StoreUnavailable):
                registry.path(name)
            assert not registry.has_copy(name)
        assert len(Bundle.load(registry.path(name), verify="full")) == 40


def test_a_broken_download_goes_on_where_it_ended(opened, bundles, s3, monkeypatch):
    name = opened().publish(bundles[0])
    monkeypatch.setattr(bundle_cache, "BLOCK_BYTES", 1000)
    arrived: list[int] = []
    with pytest.raises(DownloadStopped):
        opened("b").download(name, stop=lambda: len(arrived) > 20, progress=arrived.append)
    s3.requests.clear()
    rest: list[int] = []
    path = opened("b").download(name, progress=rest.append)
    total = sum(file.stat().st_size for file in path.iterdir()) - (path / "manifest.json").stat().st_size
    assert sum(arrived) + sum(rest) == total
    assert len(Bundle.load(path, verify="full")) == 40
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".download")] == []


def test_two_processes_download_a_bundle_once(opened, bundles, s3):
    name = opened().publish(bundles[0])
    s3.requests.clear()
    readers = [threading.Thread(target=opened("b").path, args=(name,)) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    assert s3.asked("GET", VECTORS_FILE) == 1


def test_the_copies_are_bounded(opened, bundles, s3):
    registry = opened()
    sizes = []
    for bundle in bundles:
        registry.publish(bundle)
        sizes.append(registry.list()[-1].size)
    first, second, third = (bundle.name for bundle in bundles)
    reader = opened("b", cache_bytes=2 * max(sizes))
    for name in (first, second, third):
        reader.path(name)
    assert [reader.has_copy(name) for name in (first, second, third)] == [False, True, True]
    with pytest.raises(RegistryError, match="VLM2REC_REGISTRY_CACHE_MB"):
        reader.download(first, keep={second})  # the current bundle stays, too
    reader.path(first)
    assert [reader.has_copy(name) for name in (first, second, third)] == [True, False, True]


def test_a_damaged_copy_is_dropped(opened, bundles):
    name = opened().publish(bundles[0])
    registry = opened("b")
    path = registry.path(name)
    assert not registry.drop_if_damaged(name)
    (path / VECTORS_FILE).chmod(0o644)
    with (path / VECTORS_FILE).open("r+b") as file:
        file.seek(200)
        file.write(b"\xff\xff\xff")
    assert registry.drop_if_damaged(name)
    assert not registry.has_copy(name)
    assert len(Bundle.load(registry.path(name), verify="full")) == 40


def test_a_copy_that_cannot_be_read_now_stays(opened, bundles, monkeypatch):
    """Without the store it may be the only bundle that can be served."""

    def lacking(*_given):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    name = opened().publish(bundles[0])
    registry = opened("b")
    registry.path(name)
    monkeypatch.setattr(integrity, "sha256_of", lacking)
    assert not registry.drop_if_damaged(name)
    assert registry.has_copy(name)


@pytest.fixture
def published(opened, bundles):
    """The ids of three published bundles, and the bytes of the largest one."""
    for bundle in bundles:
        opened().publish(bundle)
    return [bundle.name for bundle in bundles], max(info.size for info in opened().list())


def test_what_is_being_verified_is_not_removed_to_make_room(opened, published, monkeypatch):
    (first, second, third), size = published
    reader, load = opened("b", cache_bytes=int(2.5 * size)), store_registry.Bundle.load

    def others_need_room(path, **options):
        for name in (first, second, third):
            opened("b", cache_bytes=int(2.5 * size)).download(name)
        assert [path.name for path in reader.root.glob(".verify-*")]
        return load(path, **options)

    monkeypatch.setattr(store_registry.Bundle, "load", others_need_room)
    assert len(reader.load_verified(first)) == 40
    assert [reader.has_copy(name) for name in (first, second, third)] == [False, True, True]
    assert not list(reader.root.glob(".verify-*"))


def test_what_a_killed_verification_left_makes_room(opened, published):
    (first, *_), size = published
    reader = opened("b", cache_bytes=int(1.5 * size))
    left = reader.root / ".verify-killed"
    left.mkdir(parents=True)
    (left / "vectors.npy").write_bytes(bytes(size))
    reader.path(first)
    assert not left.exists()


def test_a_copy_that_another_process_has_just_renamed_stays(opened, published, monkeypatch):
    (first, second, third), size = published
    one, other = (opened("b", cache_bytes=int(2.5 * size)) for _ in range(2))
    one.path(first)
    stamp = bundle_cache.write_stamp

    def others_need_room(path, manifest):
        monkeypatch.setattr(bundle_cache, "write_stamp", stamp)
        other.path(third)
        stamp(path, manifest)

    monkeypatch.setattr(bundle_cache, "write_stamp", others_need_room)
    assert len(Bundle.load(one.path(second), verify="full")) == 40
    assert [one.has_copy(name) for name in (first, second, third)] == [False, True, True]


def test_a_copy_that_was_replaced_meanwhile_is_not_dropped(opened, published, monkeypatch):
    (first, *_), _ = published
    reader, hash_files = opened("b"), bundle_cache.hash_files
    (reader.path(first) / VECTORS_FILE).unlink()

    def others_were_faster(*arguments):
        monkeypatch.setattr(bundle_cache, "hash_files", hash_files)
        assert opened("b").drop_if_damaged(first)
        opened("b").path(first)
        raise BundleInvalid("the copy before")

    monkeypatch.setattr(bundle_cache, "hash_files", others_were_faster)
    assert reader.drop_if_damaged(first)
    assert reader.has_copy(first)
