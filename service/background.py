"""Background: a thread for work that nobody waits for, beside the event loop that answers requests.

Only work that hardly ever holds the interpreter's lock may run at the lowest priority: a thread that is put off the
core while it holds the lock keeps the event loop waiting for as long as others want the core (docs/adr/0005).
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
_LOWEST = 19
_LOOP_ANSWERS_S = 30.0


class Background:
    """One thread, with one thing to do at a time.

    Args:
        name: of the thread.
        lowest: let it step back behind everybody else who wants the cores.
    """

    def __init__(self, name: str, *, lowest: bool) -> None:
        begin = _step_back if lowest else None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin)

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a call after those that were given before; what it raises comes through."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self) -> None:
        """Take no more work; a call in progress ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def run_in_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], _T]) -> _T:
    """Run a call in the event loop's own thread and wait for it; what it raises comes through.

    Args:
        loop: that runs in another thread.
        call: takes about as long as a request does.

    Raises:
        TimeoutError: the loop has ended.
    """
    answer: Future[_T] = Future()
    loop.call_soon_threadsafe(partial(_answer, answer, call))
    return answer.result(_LOOP_ANSWERS_S)


def _answer(answer: "Future[_T]", call: Callable[[], _T]) -> None:
    try:
        answer.set_result(call())
    except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
        answer.set_exception(error)


def _step_back() -> None:
    """Lower the priority of the calling thread; on Linux, where a thread has one of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
