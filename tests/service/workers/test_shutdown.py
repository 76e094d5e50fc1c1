"""The shutdown of several workers when not all of them run: real processes, real signals, no connection reset."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.service.test_server import children, refuses_connections
from tests.service.workers.test_supervisor import ASK, NO_REDIS, answers, asked, patched, workers_of
from tests.support.processes import service_process
from tests.support.processes.service_process import Service
from tests.support.proxies.nginx import free_port
from tests.support.shops import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")

OK = b"HTTP/1.1 200 OK"


def waiting_for(pid: int, port: int) -> list[socket.socket]:
    """Requests of which some wait in the queue of a worker's socket, which accepts none of them."""
    os.kill(pid, signal.SIGSTOP)
    return asked(port, 40)


def test_what_waits_for_a_worker_that_is_dead_at_the_signal_is_answered(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Service], small_registry: Path
) -> None:
    patched(monkeypatch, "import service.workers.supervisor as s; s._FIRST_PAUSE_S = 600.0; s._LONGEST_PAUSE_S = 600.0")
    service = start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")
    victim, other = workers_of(service)
    waiting = waiting_for(victim, service.port)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: workers_of(service) == [other])
    service.process.send_signal(signal.SIGTERM)
    replies = answers(waiting)
    assert {reply[:15] for reply in replies} <= {OK, b"HTTP/1.1 503 Se"}
    assert all(b"retry-after:" in reply.lower() for reply in replies if not reply.startswith(OK))
    assert service.process.wait(60) == 0


def test_a_worker_that_dies_in_the_delay_is_replaced(start: Callable[..., Service], small_registry: Path) -> None:
    service = start(*("--registry", str(small_registry), *NO_REDIS, "--workers", "2"), VLM2REC_DRAIN_DELAY_S="600")
    victim, _ = workers_of(service)
    service.process.send_signal(signal.SIGTERM)
    eventually(lambda: service.call("GET", "/readyz")[0] == 503)
    waiting = waiting_for(victim, service.port)
    os.kill(victim, signal.SIGKILL)
    assert [reply[:15] for reply in answers(waiting)] == [OK] * 40
    code, lines = service.end()  # a second signal ends the delay, for the replacement too
    assert code == 0
    (ended,) = [line for line in lines if line["event"] == "worker ended in the shutdown"]
    assert ended["reason"] == "SIGKILL"


def test_a_worker_is_replaced_only_once_in_the_shutdown(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Service], small_registry: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "dies"
    patched(
        monkeypatch,
        "import os, service.workers.supervisor as s\n"
        f"run, flag = s.run_worker, {str(flag)!r}\n"
        "s.run_worker = lambda *given: os.kill(os.getpid(), 9) if os.path.exists(flag) else run(*given)",
    )
    service = start(*("--registry", str(small_registry), *NO_REDIS, "--workers", "2"), VLM2REC_DRAIN_DELAY_S="600")
    victim, other = workers_of(service)
    service.process.send_signal(signal.SIGTERM)
    eventually(lambda: service.call("GET", "/readyz")[0] == 503)
    flag.touch()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: listeners(service.port) == 1)
    assert workers_of(service) == [other]
    for _ in range(10):
        assert service.call("POST", "/recommend", {"items": ["i1"]})[0] == 200
    code, lines = service.end()
    assert code == 0
    assert len([line for line in lines if line["event"] == "worker ended in the shutdown"]) == 2


def listeners(port: int) -> int:
    """Listening sockets on a local port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(local.endswith(f":{port:04X}") and state == "0A" for _, local, _, state, *_ in rows)


def read_from(port: int) -> set[int]:
    """Ports of the clients of a local port from which every byte was read."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {
        int(remote.partition(":")[2], 16)
        for _, local, remote, state, queues, *_ in rows
        if local.endswith(f":{port:04X}") and state == "01" and not int(queues.partition(":")[2], 16)
    }


@contextlib.contextmanager
def late_second(
    monkeypatch: pytest.MonkeyPatch, registry: Path, flag: Path, then: str
) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """A service whose first worker answers while the second one waits for a file before it starts.

    Args:
        monkeypatch: for the command.
        registry: of bundles.
        flag: the file.
        then: what the second worker does then, of `run`, `given` and its socket `control` to the parent.

    Yields:
        Its port and the parent process.
    """
    patched(
        monkeypatch,
        "import os, time, service.workers.supervisor as s\n"
        f"run, flag = s.run_worker, {str(flag)!r}\n"
        "def late(*given):\n"
        "    if given[1].number == 1: return run(*given)\n"
        "    parent = os.getppid()\n"
        "    while not os.path.exists(flag) and os.getppid() == parent: time.sleep(.02)\n"
        "    control = given[3]\n"
        f"    {then}\n"
        "s.run_worker = late",
    )
    port = free_port()
    command = [*service_process.SERVE, "--registry", str(registry), "--port", str(port), *NO_REDIS, "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: len(children(process.pid)) == 2)
            yield port, process
        finally:
            process.kill()


def begun(port: int) -> tuple[list[socket.socket], list[socket.socket]]:
    """Requests whose last bytes are missing: those that a worker reads, and others, of which some wait for one."""
    clients = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(24)]
    for client in clients:
        client.sendall(ASK[:-5])
    read = eventually(lambda: read_from(port))
    reading = [client for client in clients if client.getsockname()[1] in read]
    return reading, [client for client in clients if client not in reading]


def completed(clients: list[socket.socket]) -> list[bytes]:
    """First bytes of the answers to requests that were begun."""
    for client in clients:
        client.sendall(ASK[-5:])
    return [reply[:15] for reply in answers(clients)]


def test_a_signal_before_all_answer_drains_those_that_do(
    monkeypatch: pytest.MonkeyPatch, small_registry: Path, tmp_path: Path
) -> None:
    flag = tmp_path / "starts"
    with late_second(monkeypatch, small_registry, flag, "return run(*given)") as (port, process):
        reading, waiting = begun(port)
        process.send_signal(signal.SIGTERM)
        flag.touch()  # the second one starts only now, and answers what waits for it
        assert completed(reading) == [OK] * len(reading)
        assert set(completed(waiting)) <= {OK, b"HTTP/1.1 503 Se"}
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "http://" not in output  # it was never ready


def test_the_workers_end_when_the_parent_dies_before_it_reads_what_they_said(
    monkeypatch: pytest.MonkeyPatch, small_registry: Path, tmp_path: Path
) -> None:
    """Their sockets then end with an error, of which uvloop tells no reader."""
    flag = tmp_path / "starts"
    with late_second(monkeypatch, small_registry, flag, "return run(*given)") as (port, process):
        pids = children(process.pid)
        process.send_signal(signal.SIGSTOP)
        flag.touch()
        assert [reply[:15] for reply in answers(asked(port, 24))] == [OK] * 24  # the second one has started too
        process.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert refuses_connections(port)


def test_a_start_that_fails_drains_the_workers_that_answer(
    monkeypatch: pytest.MonkeyPatch, small_registry: Path, tmp_path: Path
) -> None:
    flag, then = tmp_path / "fails", "control.send(s.FAILED + b'no memory'); return 3"
    with late_second(monkeypatch, small_registry, flag, then) as (port, process):
        reading, waiting = begun(port)
        flag.touch()
        eventually(lambda: len(children(process.pid)) == 1)
        assert completed(reading) == [OK] * len(reading)
        _, errors = process.communicate(timeout=60)
    for client in waiting:
        client.close()
    assert process.returncode == 2
    assert "error: no memory" in errors
