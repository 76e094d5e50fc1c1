"""Threads beside the event loop."""

import asyncio
import os
import subprocess
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


@pytest.mark.parametrize(("call", "waits"), [("time.sleep(0.7)", True), ("time.sleep(300)", False)])
def test_the_end_of_the_process_waits_for_a_running_call_but_not_for_ever(call: str, waits: bool) -> None:
    script = f"""
import asyncio, time
from service.runtime import background_tasks
background_tasks._END_LIMIT_S = 3.0
def work():
    {call}
    print("worked", flush=True)
async def main():
    task = asyncio.create_task(background_tasks.Background("one", nice=0).run(work))
    await asyncio.sleep(0.1)
    task.cancel()
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == ("worked\n" if waits else "")
