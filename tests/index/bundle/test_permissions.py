"""Permissions of published bundles: read-only files, removable directories."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from index.bundle.bundle import Bundle
from index.bundle.integrity import stamp_path
from index.bundle.registry import Registry
from tests.support.environments import without_coverage

NOBODY = 65_534


def modes(directory: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in directory.iterdir()}


def test_files_of_a_built_and_of_a_published_bundle_are_read_only(registry, bundles):
    assert modes(bundles[0]) == {0o444}
    path = registry.path(registry.publish(bundles[0]))
    assert modes(path) == {0o444}
    assert path.stat().st_mode & 0o200  # it can be removed


def test_a_writable_file_is_copied_not_linked(registry, bundles, tmp_path):
    given = tmp_path / bundles[0].name
    shutil.copytree(bundles[0], given)
    (given / "index.faiss").chmod(0o644)
    path = registry.path(registry.publish(given))
    assert modes(path) == {0o444}
    assert (path / "index.faiss").stat().st_nlink == 1
    assert (path / "vectors.npy").stat().st_nlink == 2
    os.truncate(given / "index.faiss", 0)
    assert len(Bundle.load(path, verify="full")) == 40


def test_publishing_again_removes_the_write_permission(registry, bundles):
    path = registry.path(registry.publish(bundles[0]))
    (path / "manifest.json").chmod(0o644)
    registry.publish(bundles[0])
    assert modes(path) == {0o444}


@pytest.fixture
def open_to_all(bundles) -> Iterator[Path]:
    """A directory that user 65534 may write to, with three bundles to publish."""
    if os.geteuid() != 0:
        pytest.skip("only root can run a part of the test as another user; other tests run it as this user")
    directory = Path(tempfile.mkdtemp())
    try:
        for bundle in bundles:
            shutil.copytree(bundle, directory / "built" / bundle.name)
        for path in (directory, *directory.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        yield directory
    finally:
        shutil.rmtree(directory)


AS_NOBODY = """
import encodings.cp437, os, sys
from pathlib import Path
from index.bundle.registry import Registry
Registry(sys.argv[1] + "/as-root").publish(next(Path(sys.argv[1], "built").iterdir()))  # imports all that it needs
os.setgroups([]); os.setgid(65534); os.setuid(65534)
registry, built = Registry(sys.argv[1] + "/registry"), sorted(Path(sys.argv[1], "built").iterdir())
for bundle in built:
    registry.publish(bundle)
for info in registry.list():
    for path in info.path.iterdir():
        try:
            path.open("r+b")
        except PermissionError:
            continue
        sys.exit(f"{path} can be written to")
    info.path.chmod(0o555)
registry.publish(built[2])  # the one that is there is only pointed to
assert registry.prune(1) == [built[0].name]  # the second is the way back
"""


def test_another_user_than_root_cannot_write_to_a_file_and_prunes_read_only_directories(open_to_all):
    ran = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(open_to_all)],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        env=without_coverage(),
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr


PRUNES_ANOTHERS = """
import os, sys
from index.errors import RegistryError
from index.bundle.registry import Registry
os.setgroups([]); os.setgid(65534); os.setuid(65534)
registry = Registry(sys.argv[1] + "/registry")
before = registry.pointer.read_bytes()
try:
    registry.prune(1)
except RegistryError as error:
    assert "Operation not permitted" in str(error), error
else:
    sys.exit("it pruned a directory that it may not write to")
assert registry.pointer.read_bytes() == before
"""


def test_a_directory_of_another_user_without_write_permission_is_refused_before_anything_changes(open_to_all):
    registry = Registry(open_to_all / "registry")
    built = sorted((open_to_all / "built").iterdir())
    for bundle in built:
        registry.publish(bundle)
    registry.path(built[0].name).chmod(0o555)
    for path in (registry.root, registry.root / ".lock", registry.pointer):
        os.chown(path, NOBODY, NOBODY)
    ran = subprocess.run(
        [sys.executable, "-c", PRUNES_ANOTHERS, str(open_to_all)],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
        env=without_coverage(),
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
    assert stamp_path(registry.path(built[0].name)).is_file()


def test_read_only_leftovers_of_a_killed_writer_are_removed(registry, bundles):
    registry.publish(bundles[0])
    aside = registry.root / ".aside-dead"
    (aside / "deep").mkdir(parents=True)
    (aside / "deep" / "file").touch()
    for directory in (aside / "deep", aside):
        directory.chmod(0o555)
    registry.publish(bundles[1])
    assert not aside.exists()


def test_of_a_linked_bundle_the_link_is_removed_and_the_target_stays(registry, bundles, tmp_path):
    """It ended with half of the pruning done, and no later writer could remove what was left."""
    for bundle in bundles:
        registry.publish(bundle)
    linked, elsewhere = registry.root / bundles[0].name, tmp_path / "elsewhere"
    shutil.move(linked, elsewhere)
    linked.symlink_to(elsewhere)
    elsewhere.chmod(0o555)
    assert registry.prune(1) == [bundles[0].name]
    assert not linked.is_symlink()
    assert Bundle.load(elsewhere).id == bundles[0].name
    assert elsewhere.stat().st_mode & 0o777 == 0o555
    (registry.root / ".aside-left").symlink_to(elsewhere)  # what an earlier version left
    registry.publish(bundles[0])
    assert not (registry.root / ".aside-left").is_symlink()
    assert Bundle.load(elsewhere).id == bundles[0].name
