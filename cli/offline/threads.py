"""Sets the number of PyTorch threads in the offline commands."""

import os
from typing import Annotated, Final

import typer

from index.machine.cores import available_cores

MOST_THREADS: Final = 1024
"""More than a machine has cores. A library that cannot start its threads may end the process."""
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, max=MOST_THREADS, help="CPU threads; default: all cores.")
]


def set_torch_threads(threads: int | None) -> None:
    """Set the number of threads that PyTorch computes with.

    Args:
        threads: at least 1; None: ``OMP_NUM_THREADS`` if set, else the cores available to this process.
    """
    if threads is None:
        if "OMP_NUM_THREADS" in os.environ or available_cores() >= len(os.sched_getaffinity(0)):
            return  # PyTorch's own default is right
        threads = available_cores()
    import torch

    torch.set_num_threads(threads)
