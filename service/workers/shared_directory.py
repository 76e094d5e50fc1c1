"""Makes the directory of the files that the workers of a service map."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_MEMORY: Final = "/dev/shm"  # noqa: S108 - a file there has a name of its own
_SHARED_BYTES: Final = 4 << 20  # of each worker, and of what all share; far more than they begin with
_PREFIX: Final = "vlm2rec-workers-"


@contextmanager
def shared_directory(count: int) -> Iterator[Path]:
    """A directory for as long as the context lasts: in memory, if there is room.

    Args:
        count: number of workers.

    Raises:
        OSError: no directory for temporary files can be written.
    """
    try:
        has_room = shutil.disk_usage(_MEMORY).free > _SHARED_BYTES * (1 + count)  # 64 MiB in a container of Docker
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_MEMORY if has_room else None))
    except OSError:
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
