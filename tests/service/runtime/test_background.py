"""Threads beside the event loop."""

import asyncio
import os
import sys
import threading
from functools import partial

import pytest

from service.runtime.background_tasks import Background, lower_priority, run_in_loop


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only there a thread has a priority of its own")
def test_only_the_thread_with_a_nice_value_has_a_lower_priority() -> None:
    async def check() -> None:
        before = priority()
        patient, other = Background("patient", nice=19), Background("other", nice=0)
        assert await patient.run(priority) == 19
        assert await other.run(priority) == priority() == before
        assert await patient.run(lambda: lower_priority(5) or priority()) == 19  # never raised
        patient.close()
        other.close()

    asyncio.run(check())


def test_calls_run_one_at_a_time_in_order_and_errors_are_raised() -> None:
    async def check() -> None:
        background = Background("one", nice=0)
        order: list[int] = []
        await asyncio.gather(*(background.run(partial(order.append, number)) for number in range(20)))
        assert order == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await background.run(lambda: 1 // 0)
        background.close()
        with pytest.raises(RuntimeError):
            await background.run(lambda: 1)

    asyncio.run(check())


def test_a_call_runs_in_the_thread_of_the_loop() -> None:
    async def check() -> None:
        loop, here = asyncio.get_running_loop(), threading.get_ident()
        assert await asyncio.to_thread(run_in_loop, loop, threading.get_ident) == here
        assert await asyncio.to_thread(threading.get_ident) != here
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(run_in_loop, loop, lambda: 1 // 0)

    asyncio.run(check())
