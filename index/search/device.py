"""Chooses the device of encoder and index where it is not named."""

from functools import cache
from pathlib import Path
from typing import Final, Literal

from index.search.encoder import has_cuda_provider
from index.search.vector_index import has_gpu_support

_GPUS: Final = Path("proc/driver/nvidia/gpus")


@cache
def available_device(root: Path = Path("/")) -> Literal["cpu", "cuda"]:
    """Device ``cuda`` if both libraries can use it and the driver shows a GPU, otherwise ``cpu``.

    It is determined once in a process. The driver is not asked: a process that has used CUDA may not fork workers. If
    the GPU then fails, loading a bundle says why, and the CPU does not take over.

    Args:
        root: root of the file system with ``proc``.
    """
    try:
        has_gpu = any((root / _GPUS).iterdir())
    except OSError:
        has_gpu = False
    return "cuda" if has_gpu and has_cuda_provider() and has_gpu_support() else "cpu"
