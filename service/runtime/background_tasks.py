"""Runs background work in a thread with a priority of its own, beside the event loop.

Only work that rarely holds the interpreter's lock may run at a lower priority: a thread that loses its core while it
holds the lock makes the event loop wait until other threads release that core (docs/adr/0011).
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

_T = TypeVar("_T")
_LOOP_TIMEOUT_S = 30.0


class Background:
    """One thread that runs one call at a time.

    Args:
        name: of the thread.
        nice: its priority as the operating system counts it: 0: that of the process; 10: a tenth of the time of
            threads that compete for the core; 19: hardly any.
    """

    def __init__(self, name: str, *, nice: int) -> None:
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix=name, initializer=partial(lower_priority, nice) if nice else None
        )

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a call after the earlier ones, and raise what it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Refuse new calls; a running call goes on to its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def run_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], _T]) -> _T:
    """Run a call in the thread of the event loop, wait for it, and raise what it raises.

    Args:
        loop: runs in another thread.
        call: takes about as long as a request.

    Raises:
        TimeoutError: the loop has ended.
    """
    result: Future[_T] = Future()
    loop.call_soon_threadsafe(partial(_set_result, result, call))
    return result.result(_LOOP_TIMEOUT_S)


def _set_result(result: "Future[_T]", call: Callable[[], _T]) -> None:
    try:
        result.set_result(call())
    except Exception as error:  # noqa: BLE001 - the thread that waits gets it
        result.set_exception(error)


def lower_priority(nice: int) -> None:
    """Lower the priority of the calling thread, on Linux, where each thread has its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
