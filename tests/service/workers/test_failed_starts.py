"""A system that gives no process, and a pause of the whole service, end no worker that runs."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import StartError
from service.workers import supervisor
from service.workers.supervisor import Supervisor
from tests.service.workers.test_supervisor import NO_REDIS, answers, asked, patched, workers_of
from tests.support.processes.service_process import Service
from tests.support.shops import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")


def fail(*_: object) -> None:
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("function", ["os.fork", "socket.socketpair"])
def test_a_failed_start_is_tried_again_after_a_pause_and_leaves_nothing_open(
    parent: Supervisor, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    parent._has_answered = parent._was_ready = True
    said: list[Any] = []
    parent._log = SimpleNamespace(error=lambda event, **about: said.append((event, about)))  # type: ignore[assignment]
    monkeypatch.setattr(function, fail)
    worker, before = parent._workers[0], descriptors()
    for pause_s in (0.25, 0.5, 1.0):
        began = monotonic()
        parent._start(worker)
        assert pause_s <= worker.due_at - began < pause_s + 1.0
        about = {"worker": 1, "reason": "Resource temporarily unavailable", "starts_again_s": pause_s}
        assert said.pop() == ("worker could not be started", about)
    assert (worker.process, worker.control, descriptors()) == (None, None, before)
    parent._kill_all()
    assert parent._board.restarts() == 0


def test_starts_that_fail_before_all_answered_end_in_one_error(
    parent: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("os.fork", fail)
    said = "could not be started 5 times before all of them answered, the last time: Resource temporarily unavailable"
    with pytest.raises(StartError, match=said):
        parent.run()


def test_a_failed_start_in_the_shutdown_is_tried_until_the_end_of_the_drain(
    parent: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections may wait in the socket of that worker."""
    monkeypatch.setattr("os.fork", fail)
    parent._has_answered = parent._was_ready = True
    parent._begin_shutdown()
    worker = parent._workers[0]
    parent._start(worker)
    assert worker.is_last
    assert worker.due_at < inf
    parent._end_at_once()
    assert [one.due_at for one in parent._workers] == [inf, inf]


def test_the_others_go_on_while_the_system_gives_no_process(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Service], small_registry: Path, tmp_path: Path
) -> None:
    full = tmp_path / "full"
    patched(
        monkeypatch,
        "import errno, os, pathlib\n"
        f"fork, full = os.fork, pathlib.Path({str(full)!r})\n"
        "def limited():\n"
        "    if full.exists(): raise OSError(errno.EAGAIN, 'no process')\n"
        "    return fork()\n"
        "os.fork = limited",
    )
    service = start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")
    victim, other = workers_of(service)
    full.touch()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: workers_of(service) == [other])
    waiting = asked(service.port, 8)  # over both sockets
    sleep(1.0)
    assert (service.process.poll(), workers_of(service)) == (None, [other])
    full.unlink()
    assert [reply[:15] for reply in answers(waiting)] == [b"HTTP/1.1 200 OK"] * 8
    assert len(workers_of(service)) == 2
    code, lines = service.end()
    assert code == 0
    failed = [line["reason"] for line in lines if line["event"] == "worker could not be started"]
    assert failed
    assert set(failed) == {"no process"}


def test_a_pause_of_the_whole_service_kills_no_worker(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Service], small_registry: Path
) -> None:
    """As by `docker pause` or a terminal; the parent may run first afterwards."""
    patched(
        monkeypatch,
        "from service.workers import supervisor; supervisor._HUNG_S = 4.0; supervisor._LATE_STEP_S = 2.0",
    )
    service = start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")
    pids = workers_of(service)
    for pid in (service.process.pid, *pids):
        os.kill(pid, signal.SIGSTOP)
    sleep(5.0)
    service.process.send_signal(signal.SIGCONT)
    sleep(1.5)  # several steps of the parent
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert [reply[:15] for reply in answers(asked(service.port, 8))] == [b"HTTP/1.1 200 OK"] * 8
    assert workers_of(service) == pids
    code, lines = service.end()
    assert code == 0
    (paused,) = [line for line in lines if line["event"] == "service was paused"]
    assert 5.0 <= paused["paused_s"] < 60.0
    assert not [line for line in lines if line["event"] == "worker ended"]


def test_workers_have_their_time_anew_after_a_pause(parent: Supervisor) -> None:
    killed: list[str] = []
    parent._log = SimpleNamespace(warning=lambda *_, **__: None, error=lambda *_, **__: None)  # type: ignore[assignment]
    now = monotonic()
    for worker, name in zip(parent._workers, ("answers", "starts"), strict=True):
        worker.process = SimpleNamespace(kill=lambda name=name: killed.append(name))  # type: ignore[assignment]
        worker.started_at = now - 7200.0  # more than VLM2REC_START_TIMEOUT_S
    parent._workers[0].answers = True
    parent._board.silence_s = lambda _: 3600.0  # type: ignore[method-assign]
    parent._kill_at = now - 1.0
    parent._stepped_at = now - 3600.0
    parent._notice_pause()
    for worker in parent._workers:
        parent._end_if_hung(worker)
    assert killed == []
    assert 10.0 < parent._kill_at - now < 20.0  # of a shutdown: time to end what was in progress
    parent._notice_pause()
    parent._resumed_at = now - 1800.0
    for worker in parent._workers:
        parent._end_if_hung(worker)
    assert killed == ["answers", "starts"]
    for worker in parent._workers:
        worker.process = None


def test_only_sockets_of_the_failed_start_are_closed(parent: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    parent._has_answered = parent._was_ready = True
    one, two = socket.socketpair()
    with one, two:
        monkeypatch.setattr("os.fork", fail)
        parent._start(parent._workers[0])
        one.send(b"x")
        assert two.recv(1) == b"x"


_WITH_FEW_DESCRIPTORS = """
import os, resource
from service.workers.fork import _descriptors, forked
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
_descriptors()
for free in (1, 2, 3, 4, 5):
    before, held = len(_descriptors()), []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for descriptor in held[-free:]:
            os.close(descriptor)
    try:
        forked(print, name="w").join()
    except OSError:
        pass
    else:
        assert free > 3
    for descriptor in held[:-free]:
        os.close(descriptor)
    assert len(_descriptors()) <= before + 1, free  # a process that ran has one until it is closed
"""


def test_nothing_stays_open_where_there_are_no_descriptors_left() -> None:
    subprocess.run([sys.executable, "-c", _WITH_FEW_DESCRIPTORS], check=True, timeout=60)
