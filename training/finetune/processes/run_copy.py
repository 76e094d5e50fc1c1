"""Copies what a run's processes read from the first process to machines that do not share its disk."""

import contextlib
import hashlib
import platform
import shutil
import uuid
from pathlib import Path

from training.errors import ConfigError
from training.finetune.distributed import ProcessGroup
from training.finetune.run_directory import RunDirectory

COPY_DIRECTORY = "copy"
_PIECE_BYTES = 64 << 20


class RunCopy:
    """The run directory as one process can read it: the first process's own, or a copy on this machine.

    Args:
        run_dir: at the path that this process was started with; the first process has claimed its own.
        processes: all processes of the run, which must all make one at the same time.
        must_share: refuse machines that do not share the first process's directory.

    Attributes:
        shared: whether this process sees the first process's directory.
        readable: the directory to read from; of a machine that does not share it ``copy`` inside of ``run_dir``.

    Raises:
        ConfigError: ``must_share`` and a process does not see the directory; raised in every process.
    """

    def __init__(self, run_dir: RunDirectory, processes: ProcessGroup, *, must_share: bool) -> None:
        self._run_dir, self._processes = run_dir, processes
        self.shared = self._is_shared(must_share=must_share)
        self.readable = run_dir if self.shared else RunDirectory(run_dir.path / COPY_DIRECTORY)
        self._anyone_copies = not all(processes.everyone(self.shared))

    def update(self, name: Path, *, replaces: bool = False) -> None:
        """Bring a directory of the run to every machine that does not share the first process's disk.

        Every process must call this. A copy that is the same already is kept.

        Args:
            name: relative to the run directory.
            replaces: remove copies of other directories beside it.
        """
        if not self._anyone_copies:
            return
        source, target = self._run_dir.path / name, self.readable.path / name
        files = self._processes.agreed(_files(source) if self._processes.first else {})
        copies = not self.shared and self._processes.first_here
        if any(self._processes.everyone(copies and _files(target) != files)):
            self._send(source, target, files, writes=copies)
        if replaces and copies:
            for path in target.parent.iterdir():
                if path != target:
                    shutil.rmtree(path, ignore_errors=True)
        self._processes.wait()

    def _send(self, source: Path, target: Path, files: dict[str, tuple[int, str]], *, writes: bool) -> None:
        aside = target.with_name(f".{target.name}.part")
        if writes:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        for name, (size, _) in files.items():
            with contextlib.ExitStack() as stack:
                reading = stack.enter_context((source / name).open("rb")) if self._processes.first else None
                if writes:
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                writing = stack.enter_context((aside / name).open("wb")) if writes else None
                for start in range(0, size, _PIECE_BYTES):
                    length = min(_PIECE_BYTES, size - start)
                    piece = self._processes.sent(b"" if reading is None else reading.read(length), length)
                    if writing is not None:
                        writing.write(piece)
        if writes:
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)

    def _is_shared(self, *, must_share: bool) -> bool:
        """Whether a file with a new name, written by the first process, is here too."""
        name = self._processes.agreed(f".seen-{uuid.uuid4().hex}")
        path = self._run_dir.path / name
        if self._processes.first:
            path.touch()
        self._processes.wait()
        sees = path.exists()
        found = self._processes.everyone((platform.node(), sees))
        if self._processes.first:
            path.unlink()
        for number, (machine, seen) in enumerate(found):
            if must_share and not seen:
                raise ConfigError(
                    f"process {number} on {machine} does not see the run directory of process 0 on {found[0][0]}; with "
                    "train.shard = true every process writes its part of a checkpoint, so put --run on a disk that all "
                    "machines share"
                )
        return sees


def _files(directory: Path) -> dict[str, tuple[int, str]]:
    """Relative path → size in bytes and SHA-256, of every file below a directory."""
    found: dict[str, tuple[int, str]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(directory).as_posix()] = (path.stat().st_size, digest)
    return found
