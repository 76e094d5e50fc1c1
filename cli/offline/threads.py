"""Threads of PyTorch in the offline commands."""

import os

from index.machine.cores import available_cores


def set_torch_threads(threads: int | None) -> None:
    """Let PyTorch compute with so many threads.

    Args:
        threads: at least 1; None: as many as there are cores for this process, unless ``OMP_NUM_THREADS`` says.
    """
    if threads is None:
        if "OMP_NUM_THREADS" in os.environ or available_cores() >= len(os.sched_getaffinity(0)):
            return  # what PyTorch does by itself
        threads = available_cores()
    import torch

    torch.set_num_threads(threads)
