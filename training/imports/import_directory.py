"""The directory that an import makes: written aside, then renamed, so that a killed import leaves nothing half."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from index.machine.locks import directory_lock
from training.errors import DatasetError, RunBusy
from training.runs.lock import run_lock

RECORD_FILE = "import.json"
FETCHES_FILE = "image-fetches.jsonl"
IMAGES = "images"
_OURS = frozenset({
    RECORD_FILE, FETCHES_FILE, IMAGES, "items.csv", "items.parquet", "interactions.csv", "interactions.parquet",
})  # fmt: skip
_VERSION = 1


@contextlib.contextmanager
def new_directory(directory: Path, source: Path, *, force: bool) -> Iterator[Path]:
    """A directory to write an import into, which takes its place when the block ends without an error.

    An earlier import in its place is replaced if wished; pictures that were fetched for it are kept. Anything else
    there is left alone.

    Args:
        directory: where the data set goes.
        source: what is imported, which must not be inside ``directory``.
        force: whether an earlier import may be replaced.

    Yields:
        An empty directory beside ``directory``, on the same file system.

    Raises:
        DatasetError: there is something else in its place, or it cannot be written.
        RunBusy: another import into the same place, or a fetch of pictures for it, is at work.
    """
    place = directory.resolve()
    if source.resolve().is_relative_to(place):
        raise DatasetError(f"{directory}: the source {source} lies in it; choose another place for the data set")
    if Path.cwd().is_relative_to(place):
        raise DatasetError(f"{directory}: the present directory lies in it and would be replaced; name a new directory")
    aside = directory.with_name(f".{directory.name}.importing")
    old = directory.with_name(f".{directory.name}.replaced")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(aside):
            try:
                _put_back(old, directory)
                _check_place(directory, force=force)
                _empty(aside)
                with run_lock(directory) if directory.exists() else contextlib.nullcontext():
                    yield aside
                    _keep_fetched(directory, aside)
                    _replace(aside, directory, old)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise not_written(directory, error) from error


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Write what an import did, by which it is known as one later."""
    text = json.dumps({"version": _VERSION, **record}, indent=2, ensure_ascii=False) + "\n"
    (directory / RECORD_FILE).write_text(text, encoding="utf-8")


def not_written(path: Path, error: OSError) -> DatasetError:
    """The error of a file or directory that cannot be written."""
    problem = os.strerror(error.errno) if error.errno else str(error)
    place = next((one for one in (path, *path.parents) if one.exists()), Path("/"))
    with contextlib.suppress(OSError):
        free = f", {shutil.disk_usage(place).free / (1 << 30):.1f} GiB are free"
        return DatasetError(
            f"{error.filename or path}: cannot be written ({problem}{free}); make room or choose "
            "another place, and start again"
        )
    return DatasetError(f"{path}: cannot be written ({problem}); choose another place")


@contextlib.contextmanager
def _locked(aside: Path) -> Iterator[None]:
    aside.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(directory_lock(aside))
        except BlockingIOError as error:
            raise RunBusy(f"{aside}: another import into this place is at work; wait until it has ended") from error
        # Another import may have put it in place, or removed it, since it was opened.
        if not aside.exists() or not os.path.samestat(os.fstat(descriptor), aside.stat()):
            raise RunBusy(f"{aside}: another import into this place has just ended; start again")
        yield


def _check_place(directory: Path, *, force: bool) -> None:
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise DatasetError(
            f"{directory}: must be a directory or a new path, it is a file or link; choose another place"
        )
    names = sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []
    if not names:
        return
    if RECORD_FILE not in names:
        raise DatasetError(
            f"{directory}: holds {names[0]!r} and no {RECORD_FILE}, so no import made it; choose another "
            "place or empty it"
        )
    foreign = [name for name in names if name not in _OURS]
    if foreign:
        raise DatasetError(f"{directory}: holds {foreign[0]!r}, which no import made; move it away, then start again")
    if not force:
        raise DatasetError(f"{directory}: holds an earlier import; --force replaces it (fetched pictures are kept)")


def _put_back(old: Path, directory: Path) -> None:
    """After a kill between the two renames of :func:`_replace` the earlier import stands aside alone."""
    if old.is_dir() and not directory.exists():
        old.rename(directory)


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _keep_fetched(directory: Path, aside: Path) -> None:
    """Take over the pictures that were fetched for the earlier import, by link, with the list of them."""
    fetches = directory / FETCHES_FILE
    if not fetches.is_file():
        return
    shutil.copyfile(fetches, aside / FETCHES_FILE)
    if (directory / IMAGES).is_dir():
        shutil.copytree(directory / IMAGES, aside / IMAGES, dirs_exist_ok=True, copy_function=_link_new)


def _link_new(source: str, target: str) -> None:
    if not Path(target).exists():
        os.link(source, target)


def _replace(aside: Path, directory: Path, old: Path) -> None:
    for path in (*aside.iterdir(), aside):
        _sync(path)
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists() and any(directory.iterdir()):
        directory.rename(old)
    aside.rename(directory)
    _sync(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
