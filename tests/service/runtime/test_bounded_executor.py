"""BoundedExecutor: bounded, and after its end nobody waits for it."""

import asyncio
import threading

import pytest

from service.errors import NotReady, QueueFull
from service.runtime.bounded_executor import BoundedExecutor


def test_calls_are_bounded_and_errors_come_through() -> None:
    async def check() -> None:
        lane, may_end = BoundedExecutor(threads=1, bound=2), threading.Event()
        waiting = [asyncio.ensure_future(lane.run(lambda: may_end.wait(10))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="at most 2 requests"):
            await lane.run(lambda: 1)
        may_end.set()
        assert await asyncio.gather(*waiting) == [True, True]
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 // 0)
        lane.close()

    asyncio.run(asyncio.wait_for(check(), 20))


def test_at_the_end_a_call_in_progress_is_answered_and_others_are_refused() -> None:
    async def check() -> None:
        lane, begun, may_end = BoundedExecutor(threads=1), threading.Event(), threading.Event()

        def slow() -> str:
            begun.set()
            assert may_end.wait(10)
            return "answered"

        first, second = (asyncio.ensure_future(lane.run(slow)) for _ in range(2))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        lane.close()
        may_end.set()
        assert await first == "answered"
        with pytest.raises(NotReady, match="ask another replica"):
            await second
        with pytest.raises(NotReady):
            await lane.run(lambda: 1)

    asyncio.run(asyncio.wait_for(check(), 20))


def test_whoever_is_cancelled_is_not_told_of_the_end() -> None:
    async def check() -> None:
        lane, may_end = BoundedExecutor(threads=1), threading.Event()
        busy, waiting = (asyncio.ensure_future(lane.run(lambda: may_end.wait(10))) for _ in range(2))
        await asyncio.sleep(0)
        waiting.cancel()
        lane.close()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await busy

    asyncio.run(asyncio.wait_for(check(), 20))
