"""Starts a process by a fork; leaves nothing open where the system gives none."""

import multiprocessing
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

_DESCRIPTORS: Final = Path("/proc/self/fd")


def forked(target: Callable[..., object], *given: object, name: str) -> BaseProcess:
    """Start a process. This process must have one thread.

    Args:
        target: is called in the new process.
        *given: its arguments.
        name: of the process.

    Raises:
        OSError: the system gives no process, memory or file descriptors.
    """
    process = multiprocessing.get_context("fork").Process(target=target, args=given, name=name)
    before, spare = _descriptors(), os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        process.start()
    except OSError:
        os.close(spare)  # the list needs a descriptor itself
        # The standard library leaves its pipes open then; with a try every half minute they would be all there are.
        for descriptor in _descriptors() - before:
            with suppress(OSError):
                os.close(descriptor)
        raise
    os.close(spare)
    return process


def _descriptors() -> set[int]:
    """The open file descriptors; that of the listing itself is closed again when it is asked about."""
    listed = list(_DESCRIPTORS.iterdir())
    return {int(path.name) for path in listed if path.is_symlink()}
