"""Runs calls that take longer than a recommendation in a few threads, so that they do not delay the event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import ENDING, NotReady, QueueFull

_T = TypeVar("_T")


class BoundedExecutor:
    """A bounded number of threads with a bounded queue.

    Args:
        threads: calls that run at the same time.
        bound: calls that run or wait; one more is refused.
    """

    def __init__(self, *, threads: int, bound: int = 64) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="bounded-executor")
        self._bound = bound
        self._pending = 0
        self._closed = False

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a call in one of the threads, and raise what it raises.

        Raises:
            QueueFull: too many calls run or wait.
            NotReady: the executor is closed, or was closed before this call started.
        """
        self._check_open()
        if self._pending >= self._bound:
            raise QueueFull(f"at most {self._bound} requests of this kind may wait at the same time; try again later")
        self._pending += 1
        future = self._executor.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and (task is None or not task.cancelling()):
                self._check_open()  # the call was cancelled, not the task that waits for it
            raise
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Refuse new and waiting calls; running calls go on to their end."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise NotReady(ENDING)
