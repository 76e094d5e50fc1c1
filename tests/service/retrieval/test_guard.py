"""The circuit breaker before a store: it stops calls, and one probe lets them through again."""

import threading
from collections.abc import Callable

import pytest

from service.errors import RetrieverUnavailable
from service.retrieval.guard import Guard
from service.stores.circuit_breaker import CircuitBreaker
from tests.support.shops import eventually


class Store:
    """Answers or fails, and counts its calls."""

    def __init__(self) -> None:
        self.now, self.answers, self.calls, self.probes = 0.0, True, 0, 0
        self.observed: list[bool] = []
        breaker = CircuitBreaker(failures=3, patience_s=60.0, first_pause_s=1.0, clock=lambda: self.now)
        self.breaker = breaker
        self.guard = Guard(breaker, lambda _seconds, answered: self.observed.append(answered))

    def call(self) -> str:
        return self.guard.call(self._work, self._probe)

    def _work(self) -> str:
        self.calls += 1
        if not self.answers:
            raise RetrieverUnavailable("down")
        return "found"

    def _probe(self) -> None:
        self.probes += 1
        if not self.answers:
            raise RetrieverUnavailable("still down")


@pytest.fixture
def store() -> Store:
    return Store()


def fail(store: Store, times: int) -> None:
    store.answers = False
    for _ in range(times):
        with pytest.raises(RetrieverUnavailable, match="down"):
            store.call()


def probed(store: Store, number: int) -> Callable[[], bool]:
    return lambda: store.probes == number and store.breaker.state != "half_open"


def test_calls_go_through_while_the_store_answers(store: Store) -> None:
    assert [store.call() for _ in range(5)] == ["found"] * 5
    assert store.observed == [True] * 5


def test_three_failures_in_a_row_stop_the_calls(store: Store) -> None:
    fail(store, 2)
    store.answers = True
    store.call()
    fail(store, 3)
    with pytest.raises(RetrieverUnavailable, match="did not answer lately"):
        store.call()
    assert (store.calls, store.probes) == (6, 0)
    assert store.observed == [False, False, True, False, False, False]


def test_one_probe_at_a_time_closes_it_again(store: Store) -> None:
    fail(store, 3)
    store.now = 1.5
    with pytest.raises(RetrieverUnavailable):
        store.call()
    eventually(probed(store, 1))
    assert store.breaker.state == "open"
    store.answers, store.now = True, 10.0
    with pytest.raises(RetrieverUnavailable):
        store.call()  # this one is not the probe
    eventually(probed(store, 2))
    assert store.call() == "found"
    assert store.calls == 4


def test_another_error_is_no_failure_of_the_store(store: Store) -> None:
    def wrong() -> None:
        raise ValueError("a fault of ours")

    for _ in range(5):
        with pytest.raises(ValueError, match="a fault of ours"):
            store.guard.call(wrong, wrong)
    assert store.call() == "found"


def test_many_threads_make_one_probe(store: Store) -> None:
    fail(store, 3)
    store.now = 2.0
    ready = threading.Barrier(8)

    def ask() -> None:
        ready.wait()
        with pytest.raises(RetrieverUnavailable):
            store.call()

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(probed(store, 1))
    assert store.probes == 1
