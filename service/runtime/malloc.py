"""Sets glibc's malloc so that memory used while a bundle is loaded goes back to the operating system."""

import ctypes
import gc

# Of glibc's malloc.h.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_ARENAS = 2
_MAPPED_FROM = 4 * 2**20


def configure() -> None:
    """Keep memory from growing with every swap of bundles, under glibc; call it before the first thread starts.

    Bundles are loaded in threads, and each of up to eight arenas per core would keep fragments of one of them. Blocks
    from 4 MiB on are always mapped separately and returned at once; by default glibc raises that threshold to the
    largest block it saw freed, up to 32 MiB. Smaller blocks, such as those of a request, are not affected. Measured:
    docs/fuzzing.md.
    """
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library than glibc
    option(_M_ARENA_MAX, _ARENAS)
    option(_M_MMAP_THRESHOLD, _MAPPED_FROM)


def collect() -> None:
    """Collect garbage and, under glibc, return free memory to the operating system.

    Loading a bundle takes tens of megabytes for a moment (sorting ids, warming up the encoder), which malloc would
    keep.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # another C library than glibc
    trim(0)
