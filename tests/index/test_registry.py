"""Registry: publishing, moving the pointer, and dying at every step of it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from index.bundle import Bundle
from index.errors import BundleInvalid, BundleNotFound, GateRefused, RegistryError
from index.manifest import Manifest
from index.registry import Registry
from index.stamp import stamp_path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, make_bundle):
    """Three bundles, oldest first."""
    out = tmp_path_factory.mktemp("many")
    return [make_bundle(out, items=40, seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


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


def test_a_string_will_do_and_a_url_will_not(tmp_path, bundles):
    assert Registry(str(tmp_path / "r")).publish(bundles[0]) == bundles[0].name
    with pytest.raises(RegistryError, match=r"must be a local directory so far, got 's3://b/r'"):
        Registry("s3://b/r")


def test_where_links_are_impossible_files_are_copied(registry, bundles, monkeypatch):
    def no_link(_source, _target):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", no_link)
    path = registry.path(registry.publish(bundles[0]))
    assert (path / "vectors.npy").stat().st_nlink == 1
    assert not (path / "vectors.npy").stat().st_mode & 0o222
    assert len(Bundle.load(path, verify="full")) == 40


def test_a_full_disk_is_said_and_changes_nothing(registry, bundles, monkeypatch):
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


def test_publishing_again_only_points(registry, bundles):
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
    monkeypatch.setattr("index.stamp._SMALL", 0)  # as if every file were large
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


def test_the_gate(registry, tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("index.measure.Exact.recall", lambda *_: 0.42)
    weak = make_bundle(tmp_path, items=40, min_recall=0.9)
    with pytest.raises(GateRefused, match=r"recall@20 is below its bound 0.9: .*plain 0.4200.*--force"):
        registry.publish(weak)
    assert registry.current() is None
    name = registry.publish(weak, force=True)
    assert Bundle.load(registry.path(name)).manifest.forced
    assert registry.list()[0].forced
    assert not Manifest.read(weak).forced


def test_no_bound_no_gate(registry, tmp_path, make_bundle, monkeypatch):
    monkeypatch.setattr("index.measure.Exact.recall", lambda *_: 0.0)
    path = make_bundle(tmp_path, items=40, min_recall=None)
    assert not Bundle.load(registry.path(registry.publish(path, force=True))).manifest.forced


def test_rollback_refuses_a_damaged_bundle(registry, bundles, monkeypatch):
    monkeypatch.setattr(os, "link", shutil.copyfile)
    for bundle in bundles[:2]:
        registry.publish(bundle)
    (registry.path(bundles[0].name) / "index.faiss").write_bytes(b"")
    with pytest.raises(BundleInvalid, match=r"index\.faiss"):
        registry.rollback()
    assert registry.current() == bundles[1].name


def test_prune_keeps_the_newest_and_the_current(registry, bundles):
    for bundle in bundles:
        registry.publish(bundle)
    registry.publish(bundles[0])
    assert registry.prune(1) == [bundles[1].name]
    assert [info.id for info in registry.list()] == [bundles[0].name, bundles[2].name]
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
    assert opened.search(opened.encode([opened.probes.history(0)]), 5).rows.shape == (1, 5)


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


def test_list_shows_problems(registry, bundles):
    for bundle in bundles:
        registry.publish(bundle)
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
    with pytest.raises(RegistryError, match="cannot be read"):
        Registry(tmp_path / "file").list()


# Dying at every step. In one process: from the chosen call on, nothing reaches the disk any more, not even clean-up.


class Killed(BaseException):
    """The process is gone."""


CALLS = ["fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir"]


class Reaper:
    """Counts the calls that change the disk and lets none through after the last allowed one."""

    def __init__(self, monkeypatch, last):
        self.count, self.last = 0, last
        for name in CALLS:
            monkeypatch.setattr(os, name, self.guard(getattr(os, name)))

    def guard(self, call):
        def guarded(*args, **kwargs):
            self.count += 1
            if self.count > self.last:
                raise Killed
            return call(*args, **kwargs)

        return guarded


def check_whole(registry, allowed):
    """Whatever happened: the pointer names one of these, it loads, and what is listed is whole."""
    assert registry.current() in allowed
    Bundle.load(registry.path(registry.current()))
    for info in registry.list():
        assert info.problem is None
        Bundle.load(info.path, verify="full")


def each_death(tmp_path, act, prepare, check):
    """Run ``act`` again and again, dying one step later each time, until it survives; gives the number of deaths."""
    for last in range(200):
        registry = Registry(tmp_path / str(last))
        prepare(registry)
        with pytest.MonkeyPatch.context() as patch:
            Reaper(patch, last)
            try:
                act(registry)
            except Killed:
                survived = False
            else:
                survived = True
        check(registry)
        if survived:
            return last
    raise AssertionError("it never came to an end")


def test_publishing_killed_at_every_step(tmp_path, bundles):
    old, new = bundles[0], bundles[1]

    def check(registry):
        check_whole(registry, {old.name, new.name})
        assert registry.publish(bundles[2]) == registry.current()  # the next one is not hindered
        assert not [entry for entry in registry.root.iterdir() if entry.name.startswith(".aside")]
        assert not list(registry.root.glob(".*.part"))

    deaths = each_death(tmp_path, lambda registry: registry.publish(new), lambda registry: registry.publish(old), check)
    assert deaths > 20


def test_the_first_publish_killed_at_every_step(tmp_path, bundles):
    def check(registry):
        if registry.current() is not None:
            check_whole(registry, {bundles[0].name})
        assert registry.publish(bundles[0]) == registry.current()

    assert each_death(tmp_path, lambda registry: registry.publish(bundles[0]), lambda _: None, check) > 20


@pytest.mark.parametrize("act", ["rollback", "prune"])
def test_rollback_and_prune_killed_at_every_step(tmp_path, bundles, act):
    def prepare(registry):
        for bundle in bundles[1:]:
            registry.publish(bundle)

    def check(registry):
        check_whole(registry, {bundles[1].name, bundles[2].name})
        assert registry.publish(bundles[0]) == registry.current()

    def run(registry):
        return registry.rollback() if act == "rollback" else registry.prune(1)

    assert each_death(tmp_path, run, prepare, check) >= 3


SIGKILLED = """
import os, signal, sys
from pathlib import Path
from index.registry import Registry
root, bundle, name, last = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
call, count = getattr(os, name), 0
def guarded(*args, **kwargs):
    global count
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*args, **kwargs)
setattr(os, name, guarded)
Registry(root).publish(bundle)
"""


@pytest.mark.parametrize(("call", "last"), [("link", 3), ("rename", 1), ("replace", 2)])
def test_publishing_under_a_real_sigkill(registry, bundles, call, last):
    registry.publish(bundles[0])
    command = [sys.executable, "-c", SIGKILLED, str(registry.root), str(bundles[1]), call, str(last)]
    ended = subprocess.run(command, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    check_whole(registry, {bundles[0].name})
    assert registry.publish(bundles[1]) == registry.current()  # the lock went with its process
    check_whole(registry, {bundles[1].name})


def test_publishers_at_once(registry, bundles):
    start = threading.Barrier(6)

    def publish(bundle):
        start.wait()
        return Registry(registry.root).publish(bundle)

    with ThreadPoolExecutor(6) as pool:
        names = list(pool.map(publish, bundles * 2))
    assert set(names) == {bundle.name for bundle in bundles}
    check_whole(registry, set(names))
    raw = json.loads(registry.pointer.read_text())
    assert {raw["current"], *raw["previous"]} == set(names)
    assert len(raw["previous"]) == 2


def test_readers_never_see_a_broken_pointer(registry, bundles):
    registry.publish(bundles[0])
    done = threading.Event()
    seen = set()

    def read():
        while not done.is_set():
            seen.add(registry.current())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(10):
        registry.publish(bundles[turn % 2])
    done.set()
    reader.join()
    assert seen <= {bundles[0].name, bundles[1].name}
    assert seen
