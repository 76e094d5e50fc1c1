"""Sets glibc's malloc so that memory used while a bundle is loaded goes back to the operating system."""

import ctypes
import gc

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_ARENAS = 2
_MAPPED_FROM = 4 * 2**20
_TRIMMED_FROM = 32 * 2**20


def configure() -> None:
    """Keep memory from growing with every swap of bundles, under glibc; call it before the first thread starts.

    Bundles are loaded in threads, and each of up to eight arenas per core would keep fragments of one of them. Blocks
    from 4 MiB on are always mapped separately and returned at once; by default glibc raises that threshold to the
    largest block it saw freed, up to 32 MiB. Measured: docs/fuzzing.md.

    A fixed threshold of mapping also fixes that of trimming, at 128 KiB: a batch of searches would give its arrays of
    1 MiB back and fault every page in again (30 faults an answer with item-to-item lists, 0 with this setting).
    """
    try:
        option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library than glibc
    option(_M_ARENA_MAX, _ARENAS)
    option(_M_MMAP_THRESHOLD, _MAPPED_FROM)
    option(_M_TRIM_THRESHOLD, _TRIMMED_FROM)


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
