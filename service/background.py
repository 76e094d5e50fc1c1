"""Background: a thread of the lowest priority, for work that nobody waits for."""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")
_LOWEST = 19


class Background:
    """One thread that leaves the cores to whoever answers requests.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_step_back)

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a call after those that were given before; what it raises comes through."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Take no more work; a call in progress ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _step_back() -> None:
    """Lower the priority of the calling thread; on Linux, where a thread has one of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
