"""BoundedExecutor: its calls are bounded, and closing it leaves no caller waiting."""

import asyncio
import threading

import pytest

from service.errors import NotReady, QueueFull
from service.runtime.bounded_executor import BoundedExecutor


def test_calls_are_bounded_and_errors_are_raised() -> None:
    async def check() -> None:
        executor, may_end = BoundedExecutor(threads=1, bound=2), threading.Event()
        waiting = [asyncio.ensure_future(executor.run(lambda: may_end.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="at most 2 requests"):
            await executor.run(lambda: 1)
        may_end.set()
        assert await asyncio.gather(*waiting) == [True, True]
        with pytest.raises(ZeroDivisionError):
            await executor.run(lambda: 1 // 0)
        executor.close()

    asyncio.run(asyncio.wait_for(check(), 20))


def test_close_finishes_a_running_call_and_refuses_the_others() -> None:
    async def check() -> None:
        executor, begun, may_end = BoundedExecutor(threads=1), threading.Event(), threading.Event()

        def slow() -> str:
            begun.set()
            assert may_end.wait(10)
            return "answered"

        first, second = (asyncio.ensure_future(executor.run(slow)) for _ in range(2))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        executor.close()
        may_end.set()
        assert await first == "answered"
        with pytest.raises(NotReady, match="ask another replica"):
            await second
        with pytest.raises(NotReady):
            await executor.run(lambda: 1)

    asyncio.run(asyncio.wait_for(check(), 20))


def test_a_cancelled_caller_gets_no_error_of_the_end() -> None:
    async def check() -> None:
        executor, begun, may_end = BoundedExecutor(threads=1), threading.Event(), threading.Event()

        def slow() -> bool:
            begun.set()
            return may_end.wait(10)

        busy, waiting = (asyncio.ensure_future(executor.run(slow)) for _ in range(2))
        while not begun.is_set():  # until then the first is as refused as the second
            await asyncio.sleep(0.001)
        waiting.cancel()
        executor.close()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await busy

    asyncio.run(asyncio.wait_for(check(), 20))
