"""The thread pool of the event loop."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from fastapi.testclient import TestClient

from service.lifecycle import THREADS, started_pool

NAME = "event-loop-pool"


def running() -> int:
    return sum(thread.name.startswith(NAME) for thread in threading.enumerate())


@pytest.mark.parametrize("threads", [1, 3])
def test_all_threads_run_from_the_start(threads: int) -> None:
    before = running()
    with started_pool(threads) as pool:
        assert running() == before + threads
        assert sorted(pool.map(lambda number: number, range(20))) == list(range(20))
        assert running() == before + threads
    assert running() == before


def test_the_threads_run_when_the_service_is_ready_and_end_with_it(
    open_client: Callable[..., AbstractContextManager[TestClient]],
) -> None:
    before = running()
    with open_client() as client:
        assert client.get("/readyz").status_code == 200
        assert running() == before + THREADS
    assert running() == before
