"""Calls that read files of a file system that may hang."""

import asyncio
import threading

import pytest

from service.errors import FilesUnavailable
from service.runtime import file_calls
from service.runtime.file_calls import FileCalls


def test_results_and_errors_are_those_of_the_call() -> None:
    async def check() -> None:
        calls = FileCalls("files")
        assert await calls.run(lambda: 7, patience_s=60) == 7
        with pytest.raises(FileNotFoundError):
            await calls.run(lambda: open("/nonexistent/file"), patience_s=60)  # noqa: PTH123, SIM115
        with pytest.raises(TimeoutError, match="of the system"):  # not taken for a call that hangs
            await calls.run(timed_out, patience_s=60)
        calls.close()
        with pytest.raises(RuntimeError):
            await calls.run(lambda: 7, patience_s=60)

    asyncio.run(check())


def timed_out() -> None:
    raise TimeoutError(110, "of the system")


def test_what_waits_behind_a_call_that_hangs_is_refused_and_never_starts() -> None:
    async def check() -> None:
        calls, go_on, started = FileCalls("files"), threading.Event(), threading.Event()
        for call in (lambda: go_on.wait(60), started.set, started.set):
            with pytest.raises(FilesUnavailable):
                await calls.run(call, patience_s=0.05)
        go_on.set()
        assert await calls.run(lambda: 7, patience_s=60) == 7
        assert not started.is_set()
        calls.close()

    asyncio.run(check())


def test_another_thread_takes_over_after_twice_as_long_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(file_calls, "monotonic", lambda: now[0])
    monkeypatch.setattr("service.runtime.background_tasks.monotonic", lambda: now[0])

    async def check() -> None:
        calls, go_on, hanging = FileCalls("files"), threading.Event(), []

        def hang() -> None:
            hanging.append(threading.get_ident())
            go_on.wait(60)

        for _ in range(61 + 121 + 10):
            with pytest.raises(FilesUnavailable):
                await calls.run(hang, patience_s=0.02)
            now[0] += 1
        assert len(hanging) == len(set(hanging)) == 3  # at once, after 60 seconds, and after 120 more
        go_on.set()
        calls.close()

    asyncio.run(check())
