"""Threads share a core in slices, and work is longer by the pauses in it; expected times are computed by hand."""

from collections.abc import Sequence

import numpy as np
import pytest
import simpy

from cli.capacity.core import Pauses, SimulatedCore, Thread

SLICE_MS = 2.0


class Machine:
    """Some threads on one core, and when their jobs ended."""

    def __init__(self, threads: int, *, wake_ms: float = 0.0, pauses: Sequence[tuple[float, float]] = ()) -> None:
        self.environment = simpy.Environment()
        core = SimulatedCore(self.environment, SLICE_MS, pauses=Pauses(iter(pauses)))
        self.threads = [Thread(core, wake_ms=wake_ms) for _ in range(threads)]
        self.ended: dict[str, float] = {}

    def add(self, thread: int, name: str, cost_ms: float, at_ms: float = 0.0, *, first: bool = False) -> None:
        def due() -> "simpy.events.ProcessGenerator":
            yield self.environment.timeout(at_ms)
            add = self.threads[thread].add_first if first else self.threads[thread].add
            add(lambda: cost_ms, lambda: self.ended.update({name: self.environment.now}))

        self.environment.process(due())

    def run(self) -> dict[str, float]:
        self.environment.run()
        return {name: pytest.approx(moment) for name, moment in self.ended.items()}


def test_a_thread_does_its_jobs_one_after_the_other() -> None:
    machine = Machine(threads=1)
    for name, cost_ms in (("a", 1.0), ("b", 2.0), ("c", 0.5)):
        machine.add(0, name, cost_ms)
    machine.add(0, "urgent", 1.0, at_ms=0.5, first=True)
    assert machine.run() == {"a": 1.0, "urgent": 2.0, "b": 4.0, "c": 4.5}


def test_two_threads_take_turns_of_a_slice() -> None:
    machine = Machine(threads=2)
    machine.add(0, "long", 10.0)
    machine.add(1, "short", 3.0)
    # A slice of 2 ms is over at a tick of 4 ms: long 0-4, short 4-7, long 7-13.
    assert machine.run() == {"short": 7.0, "long": 13.0}


def test_a_thread_whose_slice_is_over_makes_way_at_once() -> None:
    machine = Machine(threads=2)
    machine.add(0, "long", 10.0)
    machine.add(1, "short", 1.0, at_ms=5.0)
    assert machine.run() == {"short": 6.0, "long": 11.0}


def test_a_thread_in_its_slice_keeps_the_core_until_a_tick() -> None:
    machine = Machine(threads=2)
    machine.add(0, "long", 10.0)
    machine.add(1, "short", 1.0, at_ms=0.5)
    assert machine.run() == {"short": 5.0, "long": 11.0}, "a slice of 2 ms is over at a tick of 4 ms"


def test_only_an_idle_core_takes_time_to_wake() -> None:
    machine = Machine(threads=2, wake_ms=0.5)
    machine.add(0, "first", 1.0)
    machine.add(1, "behind", 1.0, at_ms=1.0)
    machine.add(0, "later", 1.0, at_ms=10.0)
    assert machine.run() == {"first": 1.5, "behind": 2.5, "later": 11.5}


def test_work_ends_later_by_the_pauses_in_it() -> None:
    machine = Machine(threads=1, pauses=[(1.0, 0.5), (2.0, 3.0), (20.0, 4.0)])
    machine.add(0, "before", 1.0)
    machine.add(0, "over two pauses", 2.0)
    machine.add(0, "begins in a pause", 1.0, at_ms=21.0)
    machine.add(0, "after", 1.0, at_ms=30.0)
    assert machine.run() == {"before": 1.0, "over two pauses": 6.5, "begins in a pause": 25.0, "after": 31.0}


def test_pauses_stop_all_threads_of_the_core() -> None:
    machine = Machine(threads=2, pauses=[(0.5, 10.0)])
    machine.add(0, "long", 3.0)
    machine.add(1, "short", 1.0, at_ms=1.0)
    # Both are due for the core at 12 ms: long 0-0.5, 10.5-12, a slice of which 11.5 ms were over, then short.
    assert machine.run() == {"long": 14.0, "short": 13.0}


@pytest.mark.parametrize("seed", range(3))
def test_what_was_worked_until_the_end_of_work_is_that_work(seed: int) -> None:
    rng = np.random.default_rng(seed)
    begins_ms = rng.uniform(0, 100, 40).cumsum().tolist()
    pauses = Pauses(iter([(begin_ms, float(rng.uniform(0, 30))) for begin_ms in begins_ms]))
    for began_ms, work_ms in rng.uniform(0.1, 500, (200, 2)).tolist():
        end_ms = pauses.end(began_ms, work_ms)
        assert end_ms >= began_ms + work_ms - 1e-6
        assert pauses.worked(end_ms) - pauses.worked(began_ms) == pytest.approx(work_ms)
