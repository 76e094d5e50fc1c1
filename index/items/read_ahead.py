"""Reading ahead: the files of a bundle come from the disk in one go, not page by page as searches happen to need them.

A graph is read in no order. Mapped and not in memory, its first searches waited for the disk thousands of times, two
seconds in all for a million items; read from end to end it takes a tenth of that. The system's own advice for it,
``POSIX_FADV_WILLNEED``, reads no more than a few MiB on Linux however much is asked for.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

_LARGEST_SHARE = 0.5  # of the machine's memory; more would drive out what others keep there
_PIECE_BYTES = 1 << 22


def read_ahead(paths: Iterable[Path]) -> None:
    """Begin to read files into the system's cache, one after the other, while the caller goes on.

    A file that cannot be read is left to whoever opens it, who says what is wrong with it.

    Args:
        paths: of files that were verified, so that each of them has an end; nothing is done if together they are larger
            than half of the machine's memory. A container's own bound is not asked for: there the cache gives way.
    """
    threading.Thread(target=_read, args=(tuple(paths),), name="read-ahead", daemon=True).start()


def _read(paths: tuple[Path, ...]) -> None:
    piece = bytearray(_PIECE_BYTES)
    try:
        if sum(path.stat().st_size for path in paths) > _LARGEST_SHARE * _memory_bytes():
            return
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(piece):  # without the interpreter's lock
                    pass
    except OSError:
        return


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
