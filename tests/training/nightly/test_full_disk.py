"""A full, read-only or broken disk at any step: one clear line, exit code 2, and the next job resumes."""

import errno
import io
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from safetensors import SafetensorError

from cli.main import main
from tests.support.tiny_model import TINY_VLM
from training.encoder.onnx_export import ExportParity

if TYPE_CHECKING:
    from conftest import Shop

Run = tuple[Path, dict[str, Any]]

CODES = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EFBIG)
JOBS = ("train", "embed", "embed --no-vlm", "fit-encoder", "evaluate", "reindex")
CONFIG = f"""{TINY_VLM}[train]
steps = 2
batch_size = 4
checkpoint_steps = 1
log_every = 1
[encoder]
epochs = 2
"""


class Disk:
    """Counts the calls that write below a directory, and from one of them on refuses all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        self._home = str(home)
        self.count = 0
        self.last: int | None = None
        self.code = errno.ENOSPC
        for name in ("fsync", "mkdir", "posix_fallocate", "rename", "replace", "link"):
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name), number=name in {"fsync", "posix_fallocate"}))
        for module in (
            "runs.checkpoints",
            "encoder.fit",
            "encoder.projection",
            "encoder.averaging",
            "encoder.encoder_files",
        ):
            real = getattr(__import__(f"training.{module}", fromlist=["save_file"]), "save_file")  # noqa: B009
            monkeypatch.setattr(f"training.{module}.save_file", self._guarded(real, place=1, rust=SafetensorError))
        parquet = self._guarded(pl.DataFrame.write_parquet, place=1, rust=pl.exceptions.ComputeError)
        monkeypatch.setattr(pl.DataFrame, "write_parquet", parquet)
        monkeypatch.setattr(io, "open", self._opening(io.open))
        monkeypatch.setattr("builtins.open", self._opening(open))

    def step(self, path: object, rust: type[Exception] | None = None) -> None:
        if not isinstance(path, int) and not os.fspath(path).startswith(self._home):  # type: ignore[call-overload]
            return
        self.count += 1
        if self.last is not None and self.count > self.last:
            if rust is not None:
                raise rust(f"I/O error: {os.strerror(self.code)} (os error {self.code})")
            raise OSError(self.code, os.strerror(self.code))

    def _guarded(
        self, real: Callable[..., Any], *, place: int = 0, rust: type[Exception] | None = None, number: bool = False
    ) -> Callable[..., Any]:
        def guarded(*given: Any, **options: Any) -> Any:
            self.step(0 if number else given[place], rust)
            return real(*given, **options)

        return guarded

    def _opening(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opening(file: Any, mode: str = "r", *given: Any, **options: Any) -> Any:
            if set(mode) & set("wxa+"):
                self.step(file)
            return real(file, mode, *given, **options)

        return opening


@pytest.fixture
def jobs(own: "Shop", ring_run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], list[str]]:
    """The command line of a job, for a home that is a copy of the shop, with something to do for each job."""

    def use_the_ring_s(_encoder: object, _layout: object, path: Path, *, seed: int) -> ExportParity:
        path.write_bytes((ring_run[0] / "encoder" / "encoder.onnx").read_bytes())
        return ExportParity(seed, 0.0)

    monkeypatch.setattr("training.encoder.encoder_files.export_encoder", use_the_ring_s)
    own.set(0, text="another text")
    (own.home / "own.toml").write_text(CONFIG)

    def words(job: str, home: Path) -> list[str]:
        run = home / ("fresh" if job in {"train", "embed --no-vlm"} else "run")
        more = {
            "train": ["--config", str(home / "own.toml"), "--resume", "--threads", "1"],
            "fit-encoder": ["--config", str(home / "own.toml")],
            "evaluate": ["--targets", "5"],
            "reindex": ["--registry", str(home / "bundles"), "--threads", "1"],
        }
        name, *options = job.split()
        return [name, str(home / "data"), "--run", str(run), *options, *more.get(job, [])]

    return words


def run_main(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the command line, called in this process."""
    monkeypatch.setattr("sys.argv", ["vlm2rec", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


class Home:
    """One copy of a shop after another."""

    def __init__(self, source: Path, place: Path) -> None:
        self._source, self._place, self._number = source, place, 0

    def __call__(self) -> Path:
        self._number += 1
        return Path(shutil.copytree(self._source, self._place / f"copy-{self._number}"))


def fail_everywhere(
    job: str,
    jobs: Callable[[str, Path], list[str]],
    copies: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chosen: Callable[[int], list[int]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        home = copies()
        disk = Disk(patch, home)
        assert run_main(jobs(job, home), monkeypatch) == 0
        steps = disk.count
    assert steps > 3, "the job wrote nothing that is watched"
    for number in chosen(steps):
        home = copies()
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, home)
            disk.last, disk.code = number, CODES[number % len(CODES)]
            code = run_main(jobs(job, home), monkeypatch)
        said = capsys.readouterr()
        if job == "train" and "no report: " in said.out:  # a page that cannot be written makes no training fail
            assert (code, "cannot be written: " in said.out) == (0, True), (number, said)
            continue
        assert code == 2, (number, said)
        (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
        assert re.search(rf"cannot be written: {re.escape(os.strerror(disk.code))}", line), (number, line)
        assert re.search(r"(are free there|a file may have).*, then ", line), (number, line)
        assert "Traceback" not in said.err + said.out
        assert run_main(jobs(job, home), monkeypatch) == 0, (number, capsys.readouterr())


@pytest.mark.parametrize("job", JOBS)
def test_a_bad_disk_at_some_steps(
    job: str,
    own: "Shop",
    jobs: Callable[[str, Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copies = Home(own.home, tmp_path)
    fail_everywhere(job, jobs, copies, monkeypatch, capsys, lambda steps: [0, steps // 2])


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_bad_disk_at_every_step(
    job: str,
    own: "Shop",
    jobs: Callable[[str, Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copies = Home(own.home, tmp_path)
    fail_everywhere(job, jobs, copies, monkeypatch, capsys, lambda steps: list(range(steps)))


def said_of_failure(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    """The error line of a job that ended with 2, after a look at what else it said."""
    said = capsys.readouterr()
    assert code == 2, said
    assert "Traceback" not in said.err + said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert "cannot be written: " in line
    return line


@pytest.mark.parametrize("job", JOBS)
def test_a_limit_on_the_size_of_files(
    job: str,
    own: "Shop",
    jobs: Callable[[str, Path], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A real refusal by the system, which needs no root: no file may grow beyond 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        code = run_main(jobs(job, own.home), monkeypatch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "ulimit -f" in said_of_failure(code, capsys)
    assert run_main(jobs(job, own.home), monkeypatch) == 0


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """Mounts a small file system of that name, or mounts it again with other options."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    made: list[Path] = []

    def mount(name: str, options: str) -> Path:
        place = tmp_path / name
        new = place not in made
        place.mkdir(exist_ok=True)
        words = ["-t", "tmpfs", "-o", options, "tmpfs"] if new else ["-o", f"remount,{options}"]
        done = subprocess.run(["mount", *words, str(place)], check=False, capture_output=True, text=True)
        if done.returncode and new:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        assert not done.returncode, done.stderr
        made.extend([place] if new else [])
        return place

    yield mount
    for place in made:  # lazily, as mapped files may still be open
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_file_system_that_is_full_or_read_only(
    job: str,
    own: "Shop",
    jobs: Callable[[str, Path], list[str]],
    mount: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = mount("full", "size=100m")
    home = Path(shutil.copytree(own.home, place / "home"))
    capsys.readouterr()
    refused = 0
    for free in (4, 64, 256):  # KiB
        mount("full", f"size={(shutil.disk_usage(place).used >> 10) + free}k")
        code = run_main(jobs(job, home), monkeypatch)
        mount("full", "size=100m")
        if code == 0:
            break
        refused += 1
        assert re.search("No space left on device|requested and", said_of_failure(code, capsys))
    assert refused
    assert run_main(jobs(job, home), monkeypatch) == 0
    home = Path(shutil.copytree(own.home, mount("read-only", "size=100m") / "home"))
    mount("read-only", "ro")
    capsys.readouterr()
    assert "Read-only file system" in said_of_failure(run_main(jobs(job, home), monkeypatch), capsys)
    mount("read-only", "rw")
    assert run_main(jobs(job, home), monkeypatch) == 0
