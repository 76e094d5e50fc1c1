"""Registry: publishing, listing, rollback and pruning."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from index.bundle import integrity
from index.bundle.bundle import Bundle
from index.bundle.integrity import stamp_path
from index.bundle.manifest import Manifest
from index.bundle.pointer import Pointer
from index.bundle.registries import open_registry
from index.bundle.registry import Registry
from index.errors import BundleInvalid, BundleNotFound, RegistryError


def test_publish_points_to_a_verified_copy(registry, bundles):
    assert registry.current() is None
    assert registry.list() == []
    name = registry.publish(bundles[0])
    assert name == bundles[0].name == registry.current()
    path = registry.path(name)
    assert path.parent == registry.root
    assert len(Bundle.load(path)) == 40
    assert stamp_path(path).is_file()
    assert {entry.name for entry in path.iterdir()} == {entry.name for entry in bundles[0].iterdir()}
    left = {entry.name for entry in registry.root.iterdir()}
    assert left == {name, f"{name}.stamp.json", "pointer.json", ".lock"}


def test_the_root_may_be_a_string_or_a_file_url(tmp_path, bundles, monkeypatch):
    assert Registry(str(tmp_path / "r")).publish(bundles[0]) == bundles[0].name
    for url in (f"file://{tmp_path}/r", f"local://{tmp_path}/r"):
        assert Registry(url).current() == bundles[0].name
        assert Registry(url).root == tmp_path / "r"
    monkeypatch.chdir(tmp_path)
    assert Registry("r").current() == bundles[0].name


@pytest.mark.parametrize(
    "url",
    ["gs://b/r", "memory://r", "http://host/r", "nonsense://r", "simplecache::s3://b/r", "file:///a::b"],
)
def test_other_urls_are_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match=rf"{url}.*must be a local path, a file:// URL or an S3 URL"):
        open_registry(url)
    assert list(tmp_path.iterdir()) == []


def test_where_links_are_impossible_files_are_copied(registry, bundles, monkeypatch):
    def no_link(_source, _target):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", no_link)
    path = registry.path(registry.publish(bundles[0]))
    assert (path / "vectors.npy").stat().st_nlink == 1
    assert not (path / "vectors.npy").stat().st_mode & 0o222
    assert len(Bundle.load(path, verify="full")) == 40


def test_a_full_disk_is_reported_and_changes_nothing(registry, bundles, monkeypatch):
    registry.publish(bundles[0])

    def full(_source, _target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(RegistryError, match=r"cannot be written.*No space left"):
        registry.publish(bundles[1])
    assert registry.current() == bundles[0].name
    assert [info.id for info in registry.list()] == [bundles[0].name]


def test_list_and_rollback(registry, bundles):
    for bundle in bundles:
        registry.publish(bundle)
    listed = registry.list()
    assert [info.id for info in listed] == [bundle.name for bundle in bundles]
    assert [info.current for info in listed] == [False, False, True]
    assert listed[0].items == 40
    assert listed[0].size == sum(entry.size for entry in Manifest.read(bundles[0]).files.values())
    assert min(listed[0].recall.values()) > 0.9
    assert not any(info.forced or info.problem for info in listed)
    assert registry.rollback() == bundles[1].name == registry.current()
    assert registry.rollback() == bundles[0].name == registry.current()
    with pytest.raises(RegistryError, match="no earlier bundle"):
        registry.rollback()
    assert registry.current() == bundles[0].name


def test_rollback_to_any_published_one(registry, bundles):
    oldest, middle, newest = (bundle.name for bundle in bundles)
    for bundle in bundles:
        registry.publish(bundle)
    assert registry.rollback(oldest) == oldest == registry.current()
    with pytest.raises(RegistryError, match="no earlier bundle"):
        registry.rollback()
    assert registry.rollback(newest) == newest  # forward again: what was current is now before it
    assert registry.rollback() == oldest
    registry.rollback(middle)
    for wrong, rule in (
        (middle, "is the current bundle already"),
        ("20200101T000000Z-000000", "no bundle"),
        ("..", "no b"),
    ):
        with pytest.raises((RegistryError, BundleNotFound), match=rule):
            registry.rollback(wrong)
    assert registry.current() == middle


def test_another_bundle_under_a_published_name_is_replaced(registry, bundles):
    registry.publish(bundles[1])
    path = registry.path(bundles[1].name)
    path.rename(registry.root / bundles[0].name)  # whole in itself, but not what its name says
    stamp_path(path).unlink()
    assert registry.publish(bundles[0]) == bundles[0].name
    assert Manifest.read(registry.path(bundles[0].name)) == Manifest.read(bundles[0])


def test_publishing_again_only_changes_the_pointer(registry, bundles):
    first, second = bundles[0], bundles[1]
    registry.publish(first)
    registry.publish(second)
    inode = (registry.path(first.name) / "vectors.npy").stat().st_ino
    registry.publish(first)
    registry.publish(first)
    assert registry.current() == first.name
    assert (registry.path(first.name) / "vectors.npy").stat().st_ino == inode
    assert registry.rollback() == second.name
    with pytest.raises(RegistryError, match="no earlier bundle"):
        registry.rollback()  # a bundle is in the history once


def test_publishing_repairs_a_damaged_copy(registry, bundles, monkeypatch):
    monkeypatch.setattr(os, "link", shutil.copyfile)
    path = registry.path(registry.publish(bundles[0]))
    (path / "report.json").write_text("{}")
    with pytest.raises(BundleInvalid):
        Bundle.load(path)
    registry.publish(bundles[0])
    assert len(Bundle.load(path, verify="full")) == 40


def test_a_damaged_bundle_is_refused_and_nothing_changes(registry, bundles, tmp_path, monkeypatch):
    monkeypatch.setattr("index.bundle.integrity._SMALL", 0)  # as if every file were large
    registry.publish(bundles[0])
    copy = tmp_path / bundles[1].name
    shutil.copytree(bundles[1], copy)
    for name in ("vectors.npy", "manifest.json", "encoder.onnx", "report.json", "indexed.npy"):
        path = copy / name
        whole = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(whole[:-5] + bytes(5))
        with pytest.raises(BundleInvalid, match=name):
            registry.publish(copy)
        path.unlink()
        with pytest.raises(BundleInvalid, match=name):
            registry.publish(copy)
        path.write_bytes(whole)
    assert registry.current() == bundles[0].name
    assert [info.id for info in registry.list()] == [bundles[0].name]
    assert registry.publish(copy) == bundles[1].name
    with pytest.raises(BundleNotFound, match="there is no bundle"):
        registry.publish(tmp_path / "none")


def test_rollback_refuses_a_damaged_bundle(registry, bundles, monkeypatch):
    monkeypatch.setattr(os, "link", shutil.copyfile)
    for bundle in bundles[:2]:
        registry.publish(bundle)
    (registry.path(bundles[0].name) / "index.faiss").write_bytes(b"")
    with pytest.raises(BundleInvalid, match=r"index\.faiss"):
        registry.rollback()
    assert registry.current() == bundles[1].name


def test_prune_keeps_what_was_published_last_and_the_current(registry, bundles):
    for bundle in bundles:
        registry.publish(bundle)
    registry.publish(bundles[0])
    assert registry.prune(1) == [bundles[1].name]
    assert [info.id for info in registry.list()] == [bundles[2].name, bundles[0].name]
    assert not stamp_path(registry.root / bundles[1].name).exists()
    assert registry.prune(1) == []
    assert registry.rollback() == bundles[2].name  # the pruned one is no longer in the history
    with pytest.raises(RegistryError, match="keep must be at least 1, got 0"):
        registry.prune(0)


def test_an_open_bundle_outlives_its_pruning(registry, bundles):
    registry.publish(bundles[0])
    opened = Bundle.load(registry.path(bundles[0].name))
    registry.publish(bundles[1])
    registry.prune(1)
    assert opened.search(opened.encode([opened.evaluation_queries.history(0)]), 5).rows.shape == (1, 5)


@pytest.mark.parametrize("name", ["../x", "", ".", "20261123T040501Z-zzzzzz", "20261123T040501Z-000000"])
def test_unknown_ids(registry, bundles, name):
    registry.publish(bundles[0])
    with pytest.raises(BundleNotFound, match="no bundle"):
        registry.path(name)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"format": 1}',
        '{"format": 1, "current": "../../etc", "previous": []}',
        '{"format": 1, "current": 3, "previous": []}',
        '{"format": 2, "current": "20261123T040501Z-000000", "previous": []}',
        '{"format": 1, "current": "20261123T040501Z-000000", "previous": 3}',
        '{"format": 1, "current": "20261123T040501Z-000000", "previous": [], "published": 3}',
        '{"format": 1, "current": "20261123T040501Z-000000", "previous": [], "published": ["../x"]}',
    ],
)
def test_a_bad_pointer_is_named(registry, bundles, text):
    registry.publish(bundles[0])
    registry.pointer.write_text(text)
    for call in (registry.current, registry.list, registry.rollback, lambda: registry.publish(bundles[1])):
        with pytest.raises(RegistryError, match=r"pointer\.json.*delete it and publish again"):
            call()
    registry.pointer.unlink()
    assert registry.publish(bundles[1]) == registry.current()


def test_a_pointer_that_cannot_be_read_now_is_not_to_be_deleted(registry, bundles, monkeypatch):
    """It holds the order of publication and the way back."""
    registry.publish(bundles[0])
    for code in (errno.EACCES, errno.EIO, errno.ESTALE):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", raising(code))
            with pytest.raises(RegistryError, match=r"pointer\.json: cannot be read .*; check its owner and its mount"):
                registry.current()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ESTALE])
def test_a_published_bundle_that_cannot_be_read_now_is_not_replaced(registry, bundles, monkeypatch, code):
    path = registry.path(registry.publish(bundles[0]))
    inode = path.stat().st_ino
    with monkeypatch.context() as patched:
        patched.setattr(integrity, "sha256_of", raising(code))
        with pytest.raises(BundleInvalid, match="cannot be read"):
            registry.publish(bundles[0])
    assert path.stat().st_ino == inode
    registry.publish(bundles[0])
    assert path.stat().st_ino == inode


def raising(code):
    def read(*_given):
        raise OSError(code, os.strerror(code))

    return read


def test_list_shows_problems(registry, bundles):
    for bundle in bundles:
        registry.publish(bundle)
    (registry.root / bundles[0].name / "manifest.json").chmod(0o644)
    (registry.root / bundles[0].name / "manifest.json").write_text("{}")
    (registry.root / bundles[1].name).rename(registry.root / "20200101T000000Z-000000")
    problems = {info.id: info.problem for info in registry.list()}
    assert "'format' is missing" in problems[bundles[0].name]
    assert problems["20200101T000000Z-000000"] == f"its manifest is that of {bundles[1].name}"
    assert problems[bundles[2].name] is None


def test_a_registry_that_is_a_file(tmp_path, bundles):
    (tmp_path / "file").touch()
    with pytest.raises(RegistryError, match="cannot be written"):
        Registry(tmp_path / "file").publish(bundles[0])
    with pytest.raises(RegistryError, match="a registry is a directory, not a file"):
        Registry(tmp_path / "file").list()


def test_a_rollback_to_the_current_bundle_leaves_the_history_as_it_is():
    first, second = "20260101T000000Z-aaaaaa", "20260102T000000Z-bbbbbb"
    pointer = Pointer(second, (first,), (first, second))
    assert pointer.roll_back(second, [first, second]) == pointer
