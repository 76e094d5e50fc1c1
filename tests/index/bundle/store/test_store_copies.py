"""Copies of bundles from an object store: downloads that fail or break off, their bound, and damaged ones."""

import threading

import pytest

from index.bundle.bundle import Bundle
from index.bundle.manifest import VECTORS_FILE
from index.bundle.store import bundle_cache
from index.bundle.store.bundle_cache import DownloadStopped
from index.errors import RegistryError, StoreUnavailable

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
