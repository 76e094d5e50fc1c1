"""The heap of the process: what loading a bundle used for a moment goes back to the system."""

import ctypes
import gc


def collect() -> None:
    """Collect garbage and, under glibc, give free memory back.

    Loading takes tens of megabytes for a moment (sorting ids, warming the encoder), which malloc would keep for good.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return  # another C library, which has its own ways
    trim(0)
