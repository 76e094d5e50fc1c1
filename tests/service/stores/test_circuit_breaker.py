"""The circuit breaker, with a clock that the test moves."""

from typing import Any

import pytest

from service.stores.circuit_breaker import BreakerState, CircuitBreaker, WorstState


class Bench:
    def __init__(self, **options: Any) -> None:
        self.time = 100.0
        self.states: list[BreakerState] = []
        self.breaker = CircuitBreaker(
            **{"failures": 3, "patience_s": 1.0, "first_pause_s": 0.125, "longest_pause_s": 0.5} | options,
            clock=lambda: self.time,
            on_change=self.states.append,
        )

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            self.breaker.failed(self.breaker.now)


def test_three_failures_in_a_row_open_it_and_two_do_not() -> None:
    bench = Bench()
    bench.fail(2)
    assert (bench.breaker.state, bench.breaker.lets_through) == ("closed", True)
    bench.fail()
    assert (bench.breaker.state, bench.breaker.lets_through) == ("open", False)
    assert bench.states == ["open"]


def test_an_answer_between_failures_begins_the_count_anew() -> None:
    bench = Bench()
    for _ in range(5):
        bench.fail(2)
        bench.breaker.succeeded()
    assert bench.breaker.state == "closed"
    assert bench.states == []


@pytest.mark.parametrize(("lasted", "state"), [(0.875, "closed"), (1.0, "open")])
def test_one_call_that_took_the_whole_patience_opens_it(lasted: float, state: BreakerState) -> None:
    bench = Bench()
    began = bench.breaker.now
    bench.time += lasted
    bench.breaker.failed(began)
    assert bench.breaker.state == state


def test_patience_counts_from_the_first_of_the_failures_in_a_row() -> None:
    bench = Bench()
    bench.fail()
    bench.time += 0.75
    bench.breaker.succeeded()
    bench.time += 0.75
    bench.fail()
    assert bench.breaker.state == "closed"
    bench.time += 1.0
    bench.fail()
    assert bench.breaker.state == "open"


def test_one_probe_at_a_time_and_not_before_its_time() -> None:
    bench = Bench()
    assert not bench.breaker.take_probe()  # none is needed
    bench.fail(3)
    assert bench.breaker.pause_s == 0.125
    assert not bench.breaker.take_probe()
    bench.time += 0.125
    assert bench.breaker.pause_s == 0
    assert bench.breaker.take_probe()
    assert (bench.breaker.state, bench.breaker.lets_through) == ("half_open", False)
    bench.time += 100
    assert not bench.breaker.take_probe()
    bench.breaker.succeeded()
    assert (bench.breaker.state, bench.breaker.lets_through) == ("closed", True)
    assert bench.states == ["open", "half_open", "closed"]


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_recovery() -> None:
    bench = Bench()
    bench.fail(3)
    pauses = []
    for _ in range(5):
        pauses.append(bench.breaker.pause_s)
        bench.time += bench.breaker.pause_s
        assert bench.breaker.take_probe()
        bench.fail()
        assert bench.breaker.state == "open"
    assert pauses == [0.125, 0.25, 0.5, 0.5, 0.5]
    bench.time += 0.5
    assert bench.breaker.take_probe()
    bench.breaker.succeeded()
    bench.fail(3)
    assert bench.breaker.pause_s == 0.125


def test_calls_let_through_before_it_opened_change_nothing_afterwards() -> None:
    bench = Bench()
    bench.fail(3)
    bench.fail(10)
    bench.breaker.succeeded()
    assert (bench.breaker.state, bench.breaker.pause_s) == ("open", 0.125)
    assert bench.states == ["open"]


def test_after_a_recovery_it_takes_three_failures_again() -> None:
    bench = Bench()
    bench.fail(3)
    bench.time += 1
    assert bench.breaker.take_probe()
    bench.breaker.succeeded()
    bench.fail(2)
    assert bench.breaker.state == "closed"
    bench.fail()
    assert bench.breaker.state == "open"


def test_changes_of_the_worst_state_are_reported() -> None:
    states: list[BreakerState] = []
    worst = WorstState(states.append)
    reads, writes = worst.of("reads"), worst.of("writes")
    reads("open")
    writes("open")
    reads("half_open")
    reads("closed")
    writes("half_open")
    writes("closed")
    assert states == ["open", "half_open", "closed"]
    WorstState(None).of("alone")("open")  # without a callback
