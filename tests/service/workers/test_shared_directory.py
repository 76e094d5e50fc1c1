"""The directory that the workers of a service share: removed at the end, and by the next service after a kill."""

import errno
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.errors import StartError
from service.runtime.worker_board import WorkerBoard
from service.workers import shared_directory as module
from service.workers.shared_directory import shared_directory


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Directories of this test in place of those in memory and of the one for temporary files."""
    for name in ("memory", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(module, "_MEMORY", str(tmp_path / "memory"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


@contextmanager
def _killed_service(*, has_worker: bool) -> Iterator[Path]:
    """The directory of a service whose parent was killed, and whose worker, if it has one, still runs."""
    reads, writes = os.pipe()
    parent = os.fork()
    if parent == 0:
        with shared_directory(2) as directory:
            (directory / "board").touch()
            worker = os.fork() if has_worker else 0
            if has_worker and worker == 0:
                signal.pause()
            os.write(writes, f"{directory} {worker}".encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    name, worker_pid = os.read(reads, 4096).decode().split()
    for end in (reads, writes):
        os.close(end)
    try:
        yield Path(name)
    finally:
        if has_worker:
            os.kill(int(worker_pid), signal.SIGKILL)


def test_it_is_removed_at_the_end(places: Path) -> None:
    with shared_directory(2) as directory:
        assert directory.parent == places / "memory"
        assert directory.stat().st_mode & 0o777 == 0o700
    assert list(places.rglob("*/*")) == []


def test_without_memory_it_is_among_the_temporary_files(places: Path) -> None:
    (places / "memory").rmdir()
    with shared_directory(2) as directory:
        assert directory.parent == places / "temporary"


@pytest.mark.parametrize("has_memory", [True, False])
def test_without_room_the_error_names_places_bytes_and_the_remedy(
    places: Path, monkeypatch: pytest.MonkeyPatch, has_memory: bool
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    free = {str(places / "memory"): 10**9 if has_memory else 1000, str(places / "temporary"): 2000}
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: SimpleNamespace(free=free[str(place)]))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StartError) as caught, shared_directory(2) as directory:
        WorkerBoard(directory, 2)
    message = str(caught.value)
    assert "for the files that 2 workers share: 12,582,912 bytes are needed, " in message
    assert f"{places / 'memory'} has {'1,000,000,000' if has_memory else '1,000'} bytes free" in message
    assert (f"{places / 'temporary'} has 2,000 bytes free" in message) is not has_memory
    assert "docker run --shm-size 256m" in message
    assert list(places.rglob("*/*")) == []


def test_without_any_place_for_it_the_error_says_so(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memory", "temporary"):
        (places / name).rmdir()
    message = r"no room .*memory has none \(No such file or directory\); give .*temporary"
    with pytest.raises(StartError, match=message), shared_directory(2):
        pass


def test_an_error_of_another_file_is_left_as_it_is(places: Path) -> None:
    with pytest.raises(OSError, match="another"), shared_directory(2):
        raise OSError(errno.ENOSPC, "another", str(places / "another"))


def test_that_of_a_service_that_was_killed_is_removed_by_the_next_one() -> None:
    """Each took some MiB of memory, which a pod has until it ends, however often its container is started again."""
    with _killed_service(has_worker=False) as left:
        assert left.exists()
        with shared_directory(2) as directory:
            assert not left.exists()
            assert directory.exists()


def test_that_of_a_worker_whose_parent_was_killed_stays_while_it_runs() -> None:
    """It answers what it has begun."""
    with _killed_service(has_worker=True) as left, shared_directory(2):
        assert left.exists()


@pytest.mark.parametrize("place", ["memory", "temporary"])
def test_that_of_another_service_stays(place: str, places: Path) -> None:
    if place == "temporary":
        (places / "memory").rmdir()
    with shared_directory(2) as other:
        with shared_directory(2) as directory:
            assert other.exists()
            assert directory != other
        assert other.exists()


def test_a_link_is_not_followed(places: Path) -> None:
    (places / "mine").mkdir()
    (places / "mine" / "file").touch()
    (places / "temporary" / "vlm2rec-shared-link").symlink_to(places / "mine")
    with shared_directory(2):
        assert (places / "mine" / "file").exists()
