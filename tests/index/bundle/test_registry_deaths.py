"""Registry: killed at every step, and used by several processes at once."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from index.bundle.bundle import Bundle
from index.bundle.registry import Registry
from index.errors import BundleError

# Dying at every step. In one process: from the chosen call on, nothing reaches the disk any more, not even clean-up.


class Killed(BaseException):
    """The process was killed."""


CALLS = ["fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir"]


class Reaper:
    """Counts the calls that change the disk and lets none through after the last allowed one."""

    def __init__(self, monkeypatch, last):
        self.count, self.last = 0, last
        for name in CALLS:
            monkeypatch.setattr(os, name, self.guard(getattr(os, name)))

    def guard(self, call):
        def guarded(*args, **kwargs):
            self.count += 1
            if self.count > self.last:
                raise Killed
            return call(*args, **kwargs)

        return guarded


def check_whole(registry, allowed):
    """Whatever happened: the pointer names one of these, it loads, and what is listed is whole."""
    assert registry.current() in allowed
    Bundle.load(registry.path(registry.current()))
    for info in registry.list():
        assert info.problem is None
        Bundle.load(info.path, verify="full")


def each_death(tmp_path, act, prepare, check):
    """Run ``act`` again and again, dying one step later each time, until it survives; gives the number of deaths."""
    for last in range(200):
        registry = Registry(tmp_path / str(last))
        prepare(registry)
        with pytest.MonkeyPatch.context() as patch:
            Reaper(patch, last)
            try:
                act(registry)
            except Killed:
                survived = False
            else:
                survived = True
        check(registry)
        if survived:
            return last
    raise AssertionError("it never came to an end")


@pytest.mark.no_cover
def test_publishing_killed_at_every_step(tmp_path, bundles):
    old, new = bundles[0], bundles[1]

    def check(registry):
        check_whole(registry, {old.name, new.name})
        raw = json.loads(registry.pointer.read_text())
        assert [*raw["previous"], raw["current"]] == raw["published"] == [old.name, new.name][: len(raw["published"])]
        assert registry.publish(bundles[2]) == registry.current()  # the next one is not hindered
        assert not [entry for entry in registry.root.iterdir() if entry.name.startswith(".aside")]
        assert not list(registry.root.glob(".*.part"))

    deaths = each_death(tmp_path, lambda registry: registry.publish(new), lambda registry: registry.publish(old), check)
    assert deaths > 20


@pytest.mark.no_cover
def test_the_first_publish_killed_at_every_step(tmp_path, bundles):
    def check(registry):
        if registry.current() is not None:
            check_whole(registry, {bundles[0].name})
        assert registry.publish(bundles[0]) == registry.current()

    assert each_death(tmp_path, lambda registry: registry.publish(bundles[0]), lambda _: None, check) > 20


@pytest.mark.no_cover
@pytest.mark.parametrize("act", ["rollback", "rollback to", "prune"])
def test_rollback_and_prune_killed_at_every_step(tmp_path, bundles, act):
    """The order of publication is not that of the names, and stays whatever dies."""
    order = [bundles[0].name, bundles[2].name, bundles[1].name]

    def prepare(registry):
        for bundle in (bundles[0], bundles[2], bundles[1]):
            registry.publish(bundle)

    def check(registry):
        check_whole(registry, set(order[1:]))
        assert [info.id for info in registry.list() if info.published][-2:] == order[1:]
        assert registry.publish(bundles[0]) == registry.current()
        assert [info.id for info in registry.list()] == [*order[1:], bundles[0].name]

    def run(registry):
        if act == "prune":
            return registry.prune(1)
        return registry.rollback() if act == "rollback" else registry.rollback(bundles[2].name)

    assert each_death(tmp_path, run, prepare, check) >= 3


SIGKILLED = """
import os, signal, sys
from pathlib import Path
from index.bundle.registry import Registry
root, bundle, name, last = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
call, count = getattr(os, name), 0
def guarded(*args, **kwargs):
    global count
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*args, **kwargs)
setattr(os, name, guarded)
Registry(root).publish(bundle)
"""


@pytest.mark.parametrize(("call", "last"), [("link", 3), ("rename", 1), ("replace", 2)])
def test_publishing_under_a_real_sigkill(registry, bundles, call, last):
    registry.publish(bundles[0])
    command = [sys.executable, "-c", SIGKILLED, str(registry.root), str(bundles[1]), call, str(last)]
    ended = subprocess.run(command, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    check_whole(registry, {bundles[0].name})
    assert registry.publish(bundles[1]) == registry.current()  # the lock went with its process
    check_whole(registry, {bundles[1].name})


TOGETHER = """
import sys, time
from pathlib import Path
from index.bundle.registry import Registry
root, act, turns, start, stop = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5])
print("ready", flush=True)
while not start.exists():
    time.sleep(0.001)
turn = 0
while turn < turns or not stop.exists():
    turn += 1
    if act == "prune":
        Registry(root).prune(1)
    else:
        Registry(root).publish(Path(act))
"""


def together(registry, acts, turns, meanwhile=lambda: True):
    """Let one process per act go at the same moment, until each had its turns and `meanwhile` has seen enough."""
    start, stop = (registry.root.with_name(name) for name in ("start", "stop"))
    command = [sys.executable, "-c", TOGETHER, str(registry.root)]
    running = [
        subprocess.Popen(
            [*command, str(act), str(turns), str(start), str(stop)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for act in acts
    ]
    for process in running:
        assert process.stdout.readline() == b"ready\n"
    start.touch()
    while any(process.poll() is None for process in running):
        if meanwhile():
            stop.touch()
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()


def test_two_publishing_processes_at_once(registry, bundles):
    registry.publish(bundles[0])
    together(registry, bundles[1:], turns=1)
    check_whole(registry, {bundles[1].name, bundles[2].name})
    raw = json.loads(registry.pointer.read_text())
    assert [info.id for info in registry.list()] == [*raw["previous"], raw["current"]] == raw["published"]
    assert raw["previous"][0] == bundles[0].name  # nothing is lost: the first, then the loser of the race
    assert {raw["current"], raw["previous"][1]} == {bundles[1].name, bundles[2].name}
    assert registry.rollback() == raw["previous"][1]


def test_pruning_races_publishing(registry, bundles):
    """Whatever is pruned while others publish, the pointer never names a deleted bundle."""
    registry.publish(bundles[2])
    seen = set()

    def look():
        current = registry.current()
        try:
            Bundle.load(registry.root / current)
            seen.add(current)
        except BundleError:
            assert registry.current() != current  # it was overtaken and then pruned
        return len(seen) > 1

    together(registry, [bundles[0], bundles[1], "prune", "prune"], turns=6, meanwhile=look)
    check_whole(registry, {bundles[0].name, bundles[1].name})
    raw = json.loads(registry.pointer.read_text())
    assert all((registry.root / name).is_dir() for name in (*raw["previous"], *raw["published"]))
    assert raw["published"][-1] == raw["current"]


def test_publishers_at_once(registry, bundles):
    start = threading.Barrier(6)

    def publish(bundle):
        start.wait()
        return Registry(registry.root).publish(bundle)

    with ThreadPoolExecutor(6) as pool:
        names = list(pool.map(publish, bundles * 2))
    assert set(names) == {bundle.name for bundle in bundles}
    check_whole(registry, set(names))
    raw = json.loads(registry.pointer.read_text())
    assert {raw["current"], *raw["previous"]} == set(names)
    assert len(raw["previous"]) == 2


def test_readers_never_see_a_broken_pointer(registry, bundles):
    registry.publish(bundles[0])
    done = threading.Event()
    seen = set()

    def read():
        while not done.is_set():
            seen.add(registry.current())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(10):
        registry.publish(bundles[turn % 2])
    done.set()
    reader.join()
    assert seen <= {bundles[0].name, bundles[1].name}
    assert seen
