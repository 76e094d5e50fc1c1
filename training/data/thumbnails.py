"""Makes thumbnails of a catalogue's pictures in shards, so that a killed job loses one shard.

A thumbnail is upright, composed over white, and free of metadata (EXIF, comments, profiles). A shard is named by a hash
of its source files.
"""

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.errors import ItemTableError
from index.items.thumbnails import MAX_SIDE, Thumbnails, write_thumbnails
from index.machine.cores import available_cores
from training.data.dataset import Dataset
from training.data.picture_reader import open_picture
from training.data.stored.stored_pictures import PictureFile
from training.errors import PictureError

MARK = "thumbnails"
"""Key of an item table's provenance under which :data:`VERSION` stands."""
QUALITY = 80
VERSION = f"1: {MAX_SIDE} px, JPEG {QUALITY}"
"""Changes with the way thumbnails are made, so that all are made again."""
_SHARD_ITEMS = 512
_MOST_THREADS = 16

Progress = Callable[[int, int], None]
"""Called with the number of items done and of all."""


@dataclass(frozen=True)
class MadeThumbnails:
    """The thumbnails of a catalogue, with counts.

    Attributes:
        thumbnails: rows as in the data set; None if no item has a readable picture.
        made: thumbnails made from files, by this call or an interrupted one.
        kept: thumbnails copied from earlier ones.
        unreadable: files that could not be used and were skipped.
    """

    thumbnails: Thumbnails | None
    made: int
    kept: int
    unreadable: int


def make_thumbnails(
    dataset: Dataset,
    path: Path,
    *,
    kept: Thumbnails | None = None,
    was: NDArray[np.int64] | None = None,
    progress: Progress = lambda _done, _all: None,
) -> MadeThumbnails:
    """Make the thumbnails of a catalogue; the next call resumes an interrupted one.

    Args:
        dataset: the catalogue.
        path: the file to write; its directory is made if needed.
        kept: earlier thumbnails to copy from; None makes all.
        was: (n,) int64, the row of ``kept`` with the same picture, −1 if the thumbnail must be made.
        progress: called with the numbers of finished and of all thumbnails; an error that it raises ends the work.

    Returns:
        The thumbnails, mapped from ``path``, with counts.

    Raises:
        ItemTableError: a shard was damaged during the call.
    """
    rows = len(dataset)
    source = np.full(rows, -1, dtype=np.int64) if kept is None or was is None else was
    wanted = np.flatnonzero(source < 0)
    work = path.with_name(f"{path.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    named, made, shards = 0, 0, list[tuple[Path, int]]()
    with ThreadPoolExecutor(min(_MOST_THREADS, available_cores())) as pool:
        for start in range(0, len(wanted), _SHARD_ITEMS):
            progress(start, len(wanted))
            files = [dataset.image_path(row) for row in wanted[start : start + _SHARD_ITEMS].tolist()]
            named += sum(file is not None for file in files)
            shard = work / f"{_digest(files)}.npy"
            made += _shard(shard, files, pool)
            shards.append((shard, len(files)))
    fresh = _every(shards)
    with write_thumbnails(path, rows) as writer:
        for before in source.tolist():
            writer.add(next(fresh) if before < 0 or kept is None else kept.get(before))
    progress(len(wanted), len(wanted))
    shutil.rmtree(work, ignore_errors=True)
    found = Thumbnails.load(path, rows)
    return MadeThumbnails(found if found.count else None, made, found.count - made, named - made)


def make_thumbnail(path: PictureFile, side: int = MAX_SIDE) -> bytes | None:
    """A JPEG of at most ``side`` pixels a side; None if the picture cannot be used."""
    try:
        picture = open_picture(path, side**2)
    except PictureError:
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    # Pillow copies a comment of the source; a new picture has no metadata.
    bare = Image.new("RGB", picture.size)
    bare.paste(picture)
    content = io.BytesIO()
    bare.save(content, "JPEG", quality=QUALITY, optimize=True)
    return content.getvalue()


def _shard(path: Path, files: Sequence[PictureFile | None], pool: ThreadPoolExecutor) -> int:
    """Make a shard unless it exists and is complete; return its number of thumbnails."""
    try:
        return Thumbnails.load(path, len(files)).count
    except ItemTableError:
        pass  # not made yet, or cut short
    with write_thumbnails(path, len(files)) as writer:
        for picture in pool.map(lambda file: None if file is None else make_thumbnail(file), files):
            writer.add(picture)
    return Thumbnails.load(path, len(files)).count


def _digest(files: Sequence[PictureFile | None]) -> str:
    """32 hex digits over names, sizes and modification times."""
    digest = hashlib.sha256(VERSION.encode())
    for file in files:
        stamp = "none"
        if file is not None:
            try:
                status = file.stat()
                stamp = f"{file}\0{status.st_size}\0{status.st_mtime_ns}"
            except OSError:
                stamp = f"{file}\0gone"
        digest.update(stamp.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:32]


def _every(shards: Sequence[tuple[Path, int]]) -> Iterator[bytes | None]:
    """All thumbnails of all shards in order, with one shard open at a time."""
    for path, rows in shards:
        shard = Thumbnails.load(path, rows)
        for row in range(rows):
            yield shard.get(row)
