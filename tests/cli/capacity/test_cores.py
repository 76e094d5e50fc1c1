"""Threads share cores in slices; expected times are computed by hand."""

import pytest
import simpy

from cli.capacity.cores import Cores, Thread

SLICE_MS = 2.0


class Machine:
    """Some threads on some cores, and when their jobs ended."""

    def __init__(self, cores: int, threads: int, *, wake_ms: float = 0.0, slowness: float = 1.0) -> None:
        self.environment = simpy.Environment()
        shared = Cores(self.environment, cores, SLICE_MS)
        self.threads = [Thread(shared, wake_ms=wake_ms, slowness=lambda: slowness) for _ in range(threads)]
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
    machine = Machine(cores=2, threads=1)
    for name, cost_ms in (("a", 1.0), ("b", 2.0), ("c", 0.5)):
        machine.add(0, name, cost_ms)
    machine.add(0, "urgent", 1.0, at_ms=0.5, first=True)
    assert machine.run() == {"a": 1.0, "urgent": 2.0, "b": 4.0, "c": 4.5}


def test_as_many_threads_as_cores_do_not_wait() -> None:
    machine = Machine(cores=2, threads=2)
    machine.add(0, "a", 10.0)
    machine.add(1, "b", 7.0, at_ms=1.0)
    assert machine.run() == {"a": 10.0, "b": 8.0}


def test_more_threads_than_cores_take_turns_of_a_slice() -> None:
    machine = Machine(cores=1, threads=2)
    machine.add(0, "long", 10.0)
    machine.add(1, "short", 3.0)
    # long 0-2, short 2-4, long 4-6, short 6-7, long 7-13
    assert machine.run() == {"short": 7.0, "long": 13.0}


def test_a_thread_whose_slice_is_over_makes_way_at_once() -> None:
    machine = Machine(cores=1, threads=2)
    machine.add(0, "long", 10.0)
    machine.add(1, "short", 1.0, at_ms=5.0)
    assert machine.run() == {"short": 6.0, "long": 11.0}


def test_a_thread_in_its_slice_keeps_its_core_until_the_slice_is_over() -> None:
    machine = Machine(cores=1, threads=2)
    machine.add(0, "long", 10.0)
    machine.add(1, "short", 1.0, at_ms=0.5)
    assert machine.run() == {"short": 3.0, "long": 11.0}


def test_only_an_idle_core_takes_time_to_wake() -> None:
    machine = Machine(cores=1, threads=2, wake_ms=0.5)
    machine.add(0, "first", 1.0)
    machine.add(1, "behind", 1.0, at_ms=1.0)
    machine.add(0, "later", 1.0, at_ms=10.0)
    assert machine.run() == {"first": 1.5, "behind": 2.5, "later": 11.5}
    assert machine.threads[0].used_ms == pytest.approx(2.0)


def test_a_slow_thread_takes_longer_also_where_it_is_interrupted() -> None:
    machine = Machine(cores=1, threads=2, slowness=2.0)
    machine.add(0, "long", 3.0)
    machine.add(1, "short", 1.0, at_ms=3.0)
    assert machine.run() == {"short": 5.0, "long": 8.0}
