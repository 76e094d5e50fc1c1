"""Locks between processes: who gets them, and that a killed process gives them back."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import Timeout

from index.machine.locks import directory_lock, file_lock

HOLDS = """
import sys, time
from pathlib import Path
from index.machine.locks import directory_lock, file_lock
kind, path = sys.argv[1], Path(sys.argv[2])
with file_lock(path) if kind == "file" else directory_lock(path, shared=kind == "shared"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def held_elsewhere(kind: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", HOLDS, kind, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_a_file_lock_is_exclusive_until_its_process_is_killed(tmp_path: Path) -> None:
    with held_elsewhere("file", tmp_path / "lock") as holder:
        with pytest.raises(Timeout), file_lock(tmp_path / "lock"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with file_lock(tmp_path / "lock"):
            assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


def test_a_waiting_file_lock_gets_its_turn(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with file_lock(tmp_path / "lock", wait=True):
            order.append("second")

    with file_lock(tmp_path / "lock"):
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.2)
        order.append("first")
    waiting.join(60)
    assert order == ["first", "second"]


def test_a_file_that_cannot_be_opened_is_not_a_taken_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as caught, file_lock(tmp_path / "file" / "lock"):
        pass
    assert not isinstance(caught.value, Timeout)


@pytest.mark.parametrize(
    ("theirs", "ours", "free"),
    [("exclusive", False, False), ("exclusive", True, False), ("shared", False, False), ("shared", True, True)],
)
def test_a_directory_lock_is_shared_only_among_those_that_share_it(
    tmp_path: Path, theirs: str, ours: bool, free: bool
) -> None:
    with held_elsewhere(theirs, tmp_path) as holder:
        with (
            contextlib.nullcontext() if free else pytest.raises(BlockingIOError),
            directory_lock(tmp_path, shared=ours),
        ):
            assert free
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with directory_lock(tmp_path):
            assert not list(tmp_path.iterdir())


def test_a_directory_lock_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="link"), directory_lock(tmp_path / "link"):
        pass


def test_an_error_of_the_block_passes_and_frees_the_directory(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="of the block"), directory_lock(tmp_path):
        raise BlockingIOError("of the block")
    with directory_lock(tmp_path):
        pass
