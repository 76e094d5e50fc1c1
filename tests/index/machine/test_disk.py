"""Disk errors as one clear line, for every library that reports them."""

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from index.errors import DiskError
from index.machine.disk import describe_disk_error, free_space, is_disk_error, new_array_file, translate_disk_errors
from training.runs.disk import writing_run

VALUES = np.random.default_rng(0).random(200_000)


def by_safetensors(path: Path) -> None:
    save_file({"a": torch.from_numpy(VALUES)}, path)


def by_polars(path: Path) -> None:
    pl.DataFrame({"a": VALUES}).write_parquet(path)


def by_arrow(path: Path) -> None:
    pq.write_table(pa.table({"a": VALUES}), path)


def by_savez(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=VALUES)


def by_save(path: Path) -> None:
    np.save(path, VALUES)


def by_mapping(path: Path) -> None:
    new_array_file(path, np.float64, VALUES.shape)[:] = VALUES


def by_text(path: Path) -> None:
    path.write_text("x" * VALUES.nbytes)


WRITERS = [by_safetensors, by_polars, by_arrow, by_savez, by_save, by_mapping, by_text]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 10 KB, for real: the system refuses what is more with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("write", WRITERS)
def test_a_real_error_of_the_system_is_recognised(write: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught, writing_run(tmp_path):
        write(tmp_path / "file.npy")
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}: cannot be written: ")
    assert "ulimit -f" in line
    assert line.endswith("then start the same command again, it continues where it stopped")
    assert "\n" not in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("write", [by_savez, by_text])
def test_a_full_device(write: Callable[[Path], None]) -> None:
    full = Path("/dev/full")
    with (
        pytest.raises(DiskError, match=r"^/dev/full: cannot be written: No space left on device; "),
        translate_disk_errors(full),
    ):
        write(full)


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from index.machine.disk import new_array_file
try:
    new_array_file(Path(sys.argv[1]) / "a.npy", np.float32, (1_000_000,))[:] = 1
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount_point = tmp_path / "tiny"
    mount_point.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", mount_point]
    mounted = subprocess.run(command, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield mount_point
    subprocess.run(["umount", "-l", mount_point], check=True)  # lazily, as a mapped file may still be open


@pytest.mark.program("mount")
def test_a_mapped_file_without_space_is_refused_when_created(tiny: Path) -> None:
    """A page that cannot be written back is SIGBUS, which nothing can turn into a message."""
    done = subprocess.run([sys.executable, "-c", FULL, tiny], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(errno.ENOSPC)), done.stderr


@pytest.mark.program("mount")
@pytest.mark.parametrize("write", WRITERS)
def test_a_full_file_system(write: Callable[[Path], None], tiny: Path) -> None:
    (tiny / "ballast").write_bytes(bytes(200_000))
    with pytest.raises(DiskError) as caught, writing_run(tiny):
        write(tiny / "file.npy")
    assert re.search(r"No space left on device|requested and \d+ written", str(caught.value))
    assert re.search(r"[\d.]+ (KiB|bytes) are free there", str(caught.value))


@pytest.mark.program("mount")
@pytest.mark.parametrize("write", WRITERS)
def test_a_read_only_file_system(write: Callable[[Path], None], tiny: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    with pytest.raises(DiskError, match="Read-only file system") as caught, writing_run(tiny):
        write(tiny / "file.npy")
    assert "Make it writable" in str(caught.value)


@pytest.mark.program("mount")
def test_a_file_system_without_inodes(tiny: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=3", tiny], check=True)
    (tiny / "first").touch()
    (tiny / "second").touch()
    with pytest.raises(DiskError, match="no inode is left"), translate_disk_errors(tiny):
        (tiny / "third").touch()


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "Free some space, then"),
        (errno.EDQUOT, "raise the quota, then"),
        (errno.EROFS, "Make it writable"),
        (errno.EACCES, "Check owner and permissions"),
        (errno.EIO, "heck the disk and its mount"),
        (errno.ESTALE, "heck the disk and its mount"),
        (errno.EMFILE, "ulimit -n"),
    ],
)
def test_each_cause_has_its_remedy(code: int, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught, translate_disk_errors(tmp_path, again="do it again"):
        raise OSError(code, os.strerror(code), str(tmp_path / "part"))
    assert str(caught.value).startswith(f"{tmp_path}: cannot be written: {os.strerror(code)} ({tmp_path / 'part'}); ")
    assert remedy in str(caught.value)
    assert str(caught.value).endswith("then do it again")


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), ValueError("(os error 28)"), BrokenPipeError(32, "x")])
def test_other_errors_pass(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as caught, translate_disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_directory_that_cannot_be_made_or_was_removed(tmp_path: Path) -> None:
    for path in (Path("/proc/new"), tmp_path / "gone"):
        with pytest.raises(DiskError, match=f"{path}: cannot be written: No such file.* Choose another path, then"):  # noqa: SIM117
            with translate_disk_errors(path):
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))


def test_the_message_of_an_error_without_a_number(tmp_path: Path) -> None:
    line = describe_disk_error(OSError("something odd"), tmp_path / "not" / "there")
    assert line.startswith(f"{tmp_path / 'not' / 'there'}: cannot be written: something odd; ")
    assert "Check the path and the space left, then try again" in line
    assert not is_disk_error(OSError("something odd"))


def test_free_space_of_a_missing_path(tmp_path: Path) -> None:
    assert re.fullmatch(r"[\d.]+ (bytes|KiB|MiB|GiB|TiB) are free there(, but .*)?", free_space(tmp_path / "a" / "b"))


def test_a_mapped_file_is_zero_and_of_the_right_form(tmp_path: Path) -> None:
    made = new_array_file(tmp_path / "a.npy", np.float16, (3, 4))
    assert not made.any()
    made[1] = 2
    made.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), made)
    assert new_array_file(tmp_path / "b.npy", np.float32, (0, 4)).shape == (0, 4)


def test_the_message_of_a_failed_copy_names_the_target(tmp_path: Path) -> None:
    failed = OSError(errno.ENOSPC, "No space left on device", "/proc/source", None, "/dev/full/copy")
    said = describe_disk_error(failed, tmp_path)
    assert "(/dev/full/copy)" in said
    assert "/proc/source" not in said


def test_a_file_system_answers_where_a_name_alone_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "loop", tmp_path / ("a" * 300), tmp_path / "missing" / "file"):
        assert re.fullmatch(r"[\d.]+ .iB are free there", free_space(path)), path
    real, closed = os.statvfs, tmp_path / "closed" / "file"

    def failing(code: int) -> Callable[[Path], os.statvfs_result]:
        def fail(path: Path) -> os.statvfs_result:
            if path == closed:
                raise OSError(code, os.strerror(code))
            return real(path)

        return fail

    monkeypatch.setattr(os, "statvfs", failing(errno.EACCES))
    assert free_space(closed).endswith("are free there")
    monkeypatch.setattr(os, "statvfs", failing(errno.EIO))
    assert free_space(closed) == "its file system does not answer"
