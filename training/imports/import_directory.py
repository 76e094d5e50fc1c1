"""Writes the directory of an import under a temporary name and renames it when it is complete."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index.machine.locks import directory_lock
from training.data.event_weights import EVENTS_FILE
from training.errors import DatasetError, RunBusy
from training.imports.item_pictures import link_or_copy
from training.runs.lock import run_lock

RECORD_FILE = "import.json"
FETCHES_FILE = "image-fetches.jsonl"
IMAGES = "images"
_OURS = frozenset({
    RECORD_FILE, FETCHES_FILE, IMAGES, "items.csv", "items.parquet", "interactions.csv", "interactions.parquet",
})  # fmt: skip
_WRITTEN_BY_USERS = frozenset({EVENTS_FILE})
_VERSION = 1


@contextlib.contextmanager
def new_directory(directory: Path, source: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty directory for an import; rename it to ``directory`` when the block ends without an error.

    With ``force`` an earlier import is replaced; its fetched pictures and its ``events.toml`` are kept. Any other
    content is refused.

    Args:
        directory: of the data set.
        source: of the import; must not be inside ``directory``.
        force: replace an earlier import.

    Yields:
        A temporary directory beside ``directory``, on the same file system.

    Raises:
        DatasetError: ``directory`` holds something other than an import, or cannot be written.
        RunBusy: another import into the same directory, or a fetch of pictures for it, is running.
    """
    target = directory.resolve()
    if source.resolve().is_relative_to(target):
        raise DatasetError(f"{directory}: the source {source} lies in it; choose another directory for the data set")
    if Path.cwd().is_relative_to(target):
        raise DatasetError(f"{directory}: the current directory lies in it and would be replaced; name a new directory")
    partial = directory.with_name(f".{directory.name}.importing")
    old = directory.with_name(f".{directory.name}.replaced")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            try:
                _put_back(old, directory)
                _check_target(directory, force=force)
                _empty(partial)
                with run_lock(directory) if directory.exists() else contextlib.nullcontext():
                    yield partial
                    _keep_fetched(directory, partial)
                    _keep_written_by_users(directory, partial)
                    _replace(partial, directory, old)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise not_written(directory, error) from error


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Write the record of an import, which also marks the directory as an import."""
    text = json.dumps({"version": _VERSION, **record}, indent=2, ensure_ascii=False) + "\n"
    (directory / RECORD_FILE).write_text(text, encoding="utf-8")


def not_written(path: Path, error: OSError) -> DatasetError:
    """The error of a file or directory that cannot be written."""
    problem = os.strerror(error.errno) if error.errno else str(error)
    existing = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
    with contextlib.suppress(OSError):
        free = f", {shutil.disk_usage(existing).free / (1 << 30):.1f} GiB are free"
        return DatasetError(
            f"{error.filename or path}: cannot be written ({problem}{free}); make room or choose "
            "another directory, and start again"
        )
    return DatasetError(f"{path}: cannot be written ({problem}); choose another directory")


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[None]:
    partial.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(directory_lock(partial))
        except BlockingIOError as error:
            raise RunBusy(
                f"{partial}: another import into this directory is running; wait until it has ended"
            ) from error
        # Another import may have renamed or removed the directory since it was opened.
        if not partial.exists() or not os.path.samestat(os.fstat(descriptor), partial.stat()):
            raise RunBusy(f"{partial}: another import into this directory has just ended; start again")
        yield


def _check_target(directory: Path, *, force: bool) -> None:
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise DatasetError(f"{directory}: must be a directory or a new path, it is a file or link; choose another path")
    names = sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []
    if not names:
        return
    if RECORD_FILE not in names:
        raise DatasetError(
            f"{directory}: holds {names[0]!r} and no {RECORD_FILE}, so no import made it; choose another "
            "directory or empty it"
        )
    foreign = [name for name in names if name not in _OURS | _WRITTEN_BY_USERS]
    if foreign:
        raise DatasetError(f"{directory}: holds {foreign[0]!r}, which no import made; move it away, then start again")
    if not force:
        raise DatasetError(f"{directory}: holds an earlier import; --force replaces it (fetched pictures are kept)")


def _put_back(old: Path, directory: Path) -> None:
    """Restore the earlier import after a kill between the two renames of :func:`_replace`."""
    if old.is_dir() and not directory.exists():
        old.rename(directory)


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _keep_fetched(directory: Path, partial: Path) -> None:
    """Link the fetched pictures of the earlier import and copy the list of fetches."""
    fetches = directory / FETCHES_FILE
    if not fetches.is_file():
        return
    shutil.copyfile(fetches, partial / FETCHES_FILE)
    if (directory / IMAGES).is_dir():
        shutil.copytree(directory / IMAGES, partial / IMAGES, dirs_exist_ok=True, copy_function=_link_new)


def _keep_written_by_users(directory: Path, partial: Path) -> None:
    """Copy what users add to an import: the new tables are read by the same rules."""
    for name in _WRITTEN_BY_USERS:
        if os.path.lexists(directory / name):
            shutil.copy2(directory / name, partial / name, follow_symlinks=False)


def _link_new(source: str, target: str) -> None:
    if not Path(target).exists():
        link_or_copy(Path(source), Path(target))


def _replace(partial: Path, directory: Path, old: Path) -> None:
    for path in (*partial.iterdir(), partial):
        _sync(path)
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists() and any(directory.iterdir()):
        directory.rename(old)
    partial.rename(directory)
    _sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
