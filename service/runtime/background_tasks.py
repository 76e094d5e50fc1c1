"""Runs background work in a thread with a priority of its own, beside the event loop.

Only work that rarely holds the interpreter's lock may run at a lower priority: a thread that loses its core while it
holds the lock makes the event loop wait until other threads release that core (docs/adr/0011).
"""

import asyncio
import atexit
import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

_T = TypeVar("_T")
_Call: TypeAlias = tuple[Future[Any], Callable[[], Any]]
_LOOP_TIMEOUT_S = 30.0
_END_LIMIT_S = 10.0
_STARTED: "WeakSet[Background]" = WeakSet()


class Background:
    """One thread that runs one call at a time.

    The end of the process waits some seconds for a running call, and no longer: a call may hang, as in a file system
    whose server is gone.

    Args:
        name: of the thread.
        nice: its priority as the operating system counts it: 0: that of the process; 10: a tenth of the time of
            threads that compete for the core; 19: hardly any.
        awaited: whether the end of the process waits for a running call.

    Attributes:
        busy_since: monotonic seconds when the running call began; None: no call runs.
    """

    def __init__(self, name: str, *, nice: int, awaited: bool = True) -> None:
        self._name = name
        self._nice = nice
        self._awaited = awaited
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.busy_since: float | None = None

    async def run(self, call: Callable[[], _T]) -> _T:
        """Run a call after the earlier ones, and raise what it raises.

        Raises:
            RuntimeError: the thread is closed.
        """
        if self._closed:
            raise RuntimeError(f"{self._name} is closed and runs no new call")
        result: Future[_T] = Future()
        self._calls.put((result, call))
        del call
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
            if self._awaited:
                _STARTED.add(self)
        return await asyncio.wrap_future(result)

    def close(self) -> None:
        """Refuse new calls and cancel those that wait; a running call goes on to its end."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                if (waiting := self._calls.get_nowait()) is not None:
                    waiting[0].cancel()
        self._calls.put(None)

    def join(self, patience_s: float) -> None:
        """Wait some seconds for the end of the closed thread."""
        if self._thread is not None:
            self._thread.join(max(patience_s, 0.0))

    def _work(self) -> None:
        if self._nice:
            lower_priority(self._nice)
        while (waiting := self._calls.get()) is not None:
            self.busy_since = monotonic()
            _answer(*waiting)
            del waiting  # an idle thread keeps nothing of its last call in memory
            self.busy_since = None


@atexit.register
def _end_all() -> None:
    """Wait for running calls. A thread in a library of C++ that goes on during the end of Python may crash it."""
    started, until = list(_STARTED), monotonic() + _END_LIMIT_S
    for background in started:
        background.close()
    for background in started:
        background.join(until - monotonic())


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


def _answer(result: "Future[_T]", call: Callable[[], _T]) -> None:
    """Run a call, unless its caller has gone, and hand over what it returns or raises."""
    if not result.set_running_or_notify_cancel():
        return
    try:
        result.set_result(call())
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        result.set_exception(error)
        del result  # a reference from the traceback of its own error would be a cycle


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
