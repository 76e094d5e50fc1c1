"""BoundedExecutor: a few threads for what takes longer than a recommendation, so that the event loop goes on beside
it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import ENDING, NotReady, QueueFull

_T = TypeVar("_T")


class BoundedExecutor:
    """A bounded number of threads, with a bounded number of calls at work or waiting for them.

    Args:
        threads: calls at work at the same time.
        bound: calls at work and waiting together; one more is refused.
    """

    def __init__(self, *, threads: int, bound: int = 64) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="slow-lane")
        self._bound = bound
        self._inside = 0
        self._closed = False

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a call in one of the threads; what it raises comes through.

        Raises:
            QueueFull: too many wait already.
            NotReady: the lane is closed, or was before this call was begun.
        """
        self._check_open()
        if self._inside >= self._bound:
            raise QueueFull(f"at most {self._bound} requests of this kind may wait at the same time; try again later")
        self._inside += 1
        future = self._executor.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and (task is None or not task.cancelling()):
                self._check_open()  # the call was cancelled, not whoever waits for it
            raise
        finally:
            self._inside -= 1

    def close(self) -> None:
        """Take no more work; calls in progress end by themselves, those that only wait are refused."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _check_open(self) -> None:
        if self._closed:
            raise NotReady(ENDING)
