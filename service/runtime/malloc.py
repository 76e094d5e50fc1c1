"""The heap of the process: what loading a bundle used for a moment goes back to the system."""

import ctypes
import gc

# Of glibc's malloc.h.
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_ARENAS = 2
_MAPPED_FROM = 4 * 2**20


def settle() -> None:
    """Keep the heap from growing with every swap, under glibc; before the first thread starts.

    Bundles are loaded in threads, and each of up to eight heaps a core would keep what one of them left in pieces.
    Blocks from 4 MiB on are always mapped alone and go back at once: glibc would raise that bound to what it saw freed,
    up to 32 MiB. Smaller ones, such as a request's, come from the heap as before. Measured: docs/fuzzing.md.
    """
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library, which has its own ways
    option(_M_ARENA_MAX, _ARENAS)
    option(_M_MMAP_THRESHOLD, _MAPPED_FROM)


def collect() -> None:
    """Collect garbage and, under glibc, give free memory back.

    Loading takes tens of megabytes for a moment (sorting ids, warming the encoder), which malloc would keep for good.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # as above
    trim(0)
