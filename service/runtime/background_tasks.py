"""Background: a thread for work that nobody waits for, beside the event loop that answers requests.

Only work that hardly ever holds the interpreter's lock may step back behind others: a thread that is put off the core
while it holds the lock keeps the event loop waiting for as long as others want the core (docs/adr/0009).
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
_LOOP_ANSWERS_S = 30.0


class Background:
    """One thread, with one thing to do at a time.

    Args:
        name: of the thread.
        nice: its priority as the operating system counts it: 0 that of the process, 10 a tenth of the time of others
            who want the cores, 19 hardly any.
    """

    def __init__(self, name: str, *, nice: int) -> None:
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix=name, initializer=partial(_step_back, nice) if nice else None
        )

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


def _step_back(nice: int) -> None:
    """Lower the priority of the calling thread; on Linux, where a thread has one of its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
