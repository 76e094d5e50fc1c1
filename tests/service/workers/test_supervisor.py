"""Several workers as their users run them: one port, one parent, real signals and real deaths."""

import http.client
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pytest

from service.workers import supervisor
from service.workers.worker_process import FAILED, STARTED
from tests.service.http.test_graceful_shutdown import stored, under_load
from tests.service.test_server import children, refused, refuses_connections
from tests.support.processes import service_process
from tests.support.processes.service_process import Service, has_read_all
from tests.support.shops import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")

NO_REDIS = ("--redis", "unix:///nonexistent/redis.sock")
ASK = (
    b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b'content-length: 23\r\nconnection: close\r\n\r\n{"items": ["i1"],"k":3}'
)


def workers_of(service: Service) -> list[int]:
    """Process ids of the workers: the children of the parent that listen on its port, by worker number."""
    found = [pid for pid in children(service.process.pid) if b"redis-server" not in cmdline(pid)]
    return sorted(found)


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def asked(port: int, count: int) -> list[socket.socket]:
    """Connections of their own, each with a request that has no answer yet."""
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(count)]
    for client in sockets:
        client.sendall(ASK)
    return sockets


def answers(sockets: list[socket.socket]) -> list[bytes]:
    """What comes until the end of each connection; a reset raises."""
    read = [b"".join(iter(lambda client=client: client.recv(65_536), b"")) for client in sockets]
    for client in sockets:
        client.close()
    return read


@pytest.fixture
def two(start: Callable[..., Service], small_registry: Path) -> Service:
    return start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")


def test_both_answer_on_one_port_and_the_redis_is_the_parents(
    start: Callable[..., Service], small_registry: Path
) -> None:
    service = start("--registry", str(small_registry), "--embedded-redis", "--workers", "2")
    pids = workers_of(service)
    assert len(pids) == 2
    (redis,) = children(service.process.pid) - set(pids)
    assert service.call("POST", "/events", {"user_id": "anna", "item_id": "i1"})[0] == 200
    ids = set()
    for _ in range(40):  # a connection each, so both get some
        status, body, headers = service.call("POST", "/recommend", {"user_id": "anna", "k": 3})
        assert (status, body["history_used"]) == (200, 1)
        ids.add(headers["X-Request-ID"])
    assert len(ids) == 40
    for pid in pids:  # after requests: what a worker loads late counts too
        mapped = {Path(line.split()[-1]).name for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
        assert any(name.startswith("_swigfaiss") for name in mapped)
        heavy = ["torch", "polars", "_parquet", "sklearn", "transformers"]
        if find_spec("pandas") is None:  # else pyarrow imports it by itself when it makes an array of a list
            heavy.append("pandas")
        assert [name for name in mapped if any(word in name for word in heavy)] == []
    os.kill(pids[0], signal.SIGKILL)
    eventually(lambda: len(workers_of(service)) == 2)
    assert redis in children(service.process.pid)
    code, lines = service.end()
    assert code == 0
    assert not Path(f"/proc/{redis}").exists()
    assert {line["worker"] for line in lines if line["event"] == "request"} == {1, 2}
    assert {line.get("worker") for line in lines} == {1, 2}


def test_what_waits_for_a_worker_that_dies_is_answered_by_its_replacement(two: Service) -> None:
    victim, other = workers_of(two)
    os.kill(victim, signal.SIGSTOP)  # it accepts nothing: what comes waits in the queue of its socket
    waiting = asked(two.port, 40)
    os.kill(victim, signal.SIGKILL)
    killed_at = monotonic()
    replies = answers(waiting)
    assert monotonic() - killed_at < 10.0  # .25 s, the start, and what a busy machine adds
    assert [reply[:15] for reply in replies] == [b"HTTP/1.1 200 OK"] * 40
    assert other in workers_of(two)
    code, lines = two.end()
    assert code == 0
    (ended,) = [line for line in lines if line["event"] == "worker ended"]
    assert (ended["reason"], ended["starts_again_s"] < 1.0) == ("SIGKILL", True)


def test_a_worker_that_dies_again_and_again_is_started_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Service], small_registry: Path
) -> None:
    patched(monkeypatch, "from service.workers import supervisor; supervisor._SETTLED_S = 600.0")  # a busy machine
    service = start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")
    stays, *_ = workers_of(service)
    for _ in range(3):
        eventually(lambda: len(workers_of(service)) == 2)
        os.kill(next(pid for pid in workers_of(service) if pid != stays), signal.SIGKILL)
        eventually(lambda: workers_of(service) == [stays])
    _, lines = service.end()
    assert [line["starts_again_s"] for line in lines if line["event"] == "worker ended"] == [0.25, 0.5, 1.0]


@pytest.mark.parametrize(("by", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_signal_drains_all_workers(two: Service, by: signal.Signals, code: int) -> None:
    begun = asked_in_part(two.port, 12)
    two.process.send_signal(by)
    for pid in workers_of(two):
        os.kill(pid, by)  # as a terminal and systemd do; it changes nothing
    eventually(lambda: refuses_connections(two.port))
    for client in begun:
        client.sendall(ASK[-5:])
    assert [reply[:15] for reply in answers(begun)] == [b"HTTP/1.1 200 OK"] * 12
    assert two.process.wait(60) == code


def asked_in_part(port: int, count: int) -> list[socket.socket]:
    """Connections, spread over the workers, with a request whose last bytes are missing."""
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(count)]
    for client in sockets:
        client.sendall(ASK[:-5])
    eventually(lambda: has_read_all(port))
    return sockets


@pytest.mark.parametrize("delay", ["0", "600"])
def test_nothing_fails_but_with_503_and_no_acknowledged_event_is_lost(
    start: Callable[..., Service], small_registry: Path, redis_url: str, delay: str
) -> None:
    prefix = f"test-workers-{os.getpid()}-{delay}"
    service = start(
        *("--registry", str(small_registry), "--redis", redis_url, "--workers", "2"),
        VLM2REC_REDIS_PREFIX=prefix,
        VLM2REC_DRAIN_DELAY_S=delay,
        VLM2REC_EVENT_IDS_CAP="100000",
        VLM2REC_REDIS_TIMEOUT_MS="5000",
    )

    def end(_clients: list[Any]) -> None:
        service.process.terminate()
        if delay != "0":
            eventually(lambda: service.call("GET", "/readyz")[0] == 503)
            assert service.call("POST", "/recommend", {"items": ["i1"]})[0] == 200
            service.process.terminate()  # enough of the delay

    clients = under_load(service, end)
    service.process.communicate(timeout=60)
    assert service.process.returncode == 0
    for client in clients:
        assert {status for status, _, _ in client.answers} <= {200, 503}
    acknowledged = {event_id for client in clients for event_id in client.acknowledged}
    assert len(acknowledged) > 40
    assert acknowledged <= stored(redis_url, prefix)


def test_the_workers_end_when_the_parent_is_killed(two: Service) -> None:
    pids = workers_of(two)
    (shared,) = set(re.findall(r"(/\S+)/board$", Path(f"/proc/{pids[0]}/maps").read_text(), re.MULTILINE))
    assert Path(shared).is_dir()
    two.process.kill()
    two.process.wait(60)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert refuses_connections(two.port)
    assert not Path(shared).exists()


def test_ready_is_when_all_are(two: Service) -> None:
    assert two.call("GET", "/readyz")[0] == 200

    def is_seen_unready() -> bool:  # a worker may be replaced between two questions: then another one is killed
        os.kill(workers_of(two)[0], signal.SIGKILL)
        return any(ready_soon(two.port) == 503 for _ in range(30))

    eventually(is_seen_unready)
    eventually(lambda: ready_soon(two.port) == 200)


def ready_soon(port: int) -> int:
    """Status of /readyz; 0 where the connection waits for the worker that is being replaced."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.1)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    except TimeoutError:
        return 0
    finally:
        connection.close()


def patched(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the next service run some code before the command."""
    command = f"import sys; sys.argv[0] = 'vlm2rec'\n{code}\nfrom cli.main import main; main()"
    monkeypatch.setattr(service_process, "SERVE", [sys.executable, "-c", command, "serve"])
    monkeypatch.setattr("tests.service.test_server.SERVE", [sys.executable, "-c", command, "serve"])


def test_a_worker_that_hangs_is_replaced(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Service], small_registry: Path
) -> None:
    patched(
        monkeypatch,
        "from service.runtime import worker_board; worker_board.LATE_S = 0.5\n"
        "from service.workers import supervisor; supervisor._HUNG_S = 3.0",
    )
    service = start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")
    hanging = workers_of(service)[0]
    os.kill(hanging, signal.SIGSTOP)
    eventually(lambda: not Path(f"/proc/{hanging}").exists(), 60)
    eventually(lambda: len(workers_of(service)) == 2)
    _, lines = service.end()
    hung = next(line for line in lines if line["event"] == "worker hangs; it is killed")
    ended = next(line for line in lines if line["event"] == "worker ended")
    assert (hung["worker"], ended["reason"]) == (ended["worker"], "SIGKILL")


def test_a_replacement_that_hangs_in_its_start_is_replaced(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Service], small_registry: Path, tmp_path: Path
) -> None:
    flag, hangs = tmp_path / "flag", tmp_path / "hangs"
    patched(
        monkeypatch,
        "import os, pathlib, time, service.workers.supervisor as s\n"
        f"run, flag, hangs = s.run_worker, pathlib.Path({str(flag)!r}), pathlib.Path({str(hangs)!r})\n"
        "def late(*given):\n"
        "    if not flag.exists(): return run(*given)\n"
        "    hangs.write_text(str(os.getpid()))\n"
        "    flag.unlink()\n"
        "    time.sleep(600)\n"
        "s.run_worker = late",
    )
    service = start(*("--registry", str(small_registry), *NO_REDIS, "--workers", "2"), VLM2REC_START_TIMEOUT_S="10")
    victim, other = workers_of(service)
    flag.touch()
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: hangs.exists() and not flag.exists())
    hanging = int(hangs.read_text())
    eventually(lambda: hanging not in workers_of(service) and len(workers_of(service)) == 2)
    waiting = asked(service.port, 12)  # over both sockets
    assert [reply[:15] for reply in answers(waiting)] == [b"HTTP/1.1 200 OK"] * 12
    assert other in workers_of(service)
    _, lines = service.end()
    (late,) = [line for line in lines if line["event"] == "worker did not start in time; it is killed"]
    assert [line["worker"] for line in lines if line["event"] == "worker ended"] == [late["worker"]] * 2


def test_a_worker_that_drains_is_silent_and_not_killed_for_it(
    parent: supervisor.Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event loop gives no more signs of life; the time of the drain bounds it."""
    monkeypatch.setattr(supervisor, "_HUNG_S", 0.0)
    killed: list[str] = []
    worker = parent._workers[0]
    worker.process, worker.answers = SimpleNamespace(kill=lambda: killed.append("hung")), True  # type: ignore[assignment]
    parent._ends = True
    parent._end_if_hung(worker)
    assert not killed
    parent._ends = False
    parent._end_if_hung(worker)
    assert killed == ["hung"]


def test_a_worker_that_answers_after_a_long_start_is_not_taken_for_hung(
    parent: supervisor.Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last sign of life before is that of the start."""
    monkeypatch.setattr(supervisor, "_HUNG_S", 0.2)
    killed: list[str] = []
    worker = parent._workers[0]
    parent._board.reset(worker.place.number)
    sleep(0.3)
    worker.process = SimpleNamespace(kill=lambda: killed.append("hung"))  # type: ignore[assignment]
    worker.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with worker.control, theirs:
        theirs.send(STARTED)
        parent._hear(worker)
        parent._end_if_hung(worker)
    assert worker.answers
    assert not killed


def test_what_a_worker_said_is_read_after_its_end_with_an_order_unread(parent: supervisor.Supervisor) -> None:
    """The end of a socket that has unread data is a reset, which is reported once, before what was sent."""
    worker = parent._workers[0]
    worker.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent._selector.register(worker.control, selectors.EVENT_READ)
    worker.order(signal.SIGTERM)
    theirs.send(FAILED + b"no bundle")
    theirs.close()
    while worker.control is not None:
        parent._hear(worker)
    assert worker.failure == "no bundle"


def test_the_log_says_why_a_worker_could_not_start_in_the_shutdown(parent: supervisor.Supervisor) -> None:
    worker = parent._workers[0]
    worker.failure = "no bundle"
    said: list[Any] = []
    parent._log = SimpleNamespace(error=lambda event, **about: said.append((event, about)))  # type: ignore[assignment]
    parent._start_last(worker, "exit code 1")
    about = {"worker": 1, "reason": "exit code 1", "detail": "no bundle"}
    assert said == [("worker ended in the shutdown", about)]


def test_workers_that_never_answer_end_the_command(monkeypatch: pytest.MonkeyPatch, small_registry: Path) -> None:
    patched(
        monkeypatch,
        "import os, service.workers.supervisor as s\n"
        "s.run_worker = lambda *_: os.kill(os.getpid(), 9)\n"
        "s._FIRST_PAUSE_S = 0.01",
    )
    message = refused("--registry", str(small_registry), "--port", "0", "--workers", "2", *NO_REDIS)
    ended = "error: workers ended or could not be started 5 times before all of them answered, the last time: SIGKILL"
    assert ended in message


@pytest.mark.parametrize(("by", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_before_all_answer_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, small_registry: Path, by: signal.Signals, code: int
) -> None:
    patched(monkeypatch, "import time, service.workers.supervisor as s\ns.run_worker = lambda *_: time.sleep(600)")
    command = [*service_process.SERVE, "--registry", str(small_registry), "--port", "0", "--workers", "2", *NO_REDIS]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    eventually(lambda: len(children(process.pid)) == 2)
    pids = children(process.pid)
    process.send_signal(by)
    assert process.wait(60) == code
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_a_worker_refuses_is_reported_as_by_one_process(tmp_path: Path, small_registry: Path) -> None:
    message = refused("--registry", str(tmp_path), "--port", "0", "--workers", "2")
    assert f"error: no bundle is published in {tmp_path}; publish one with `vlm2rec index publish" in message
    message = refused("--registry", str(small_registry), "--workers", "3", VLM2REC_QUEUE_BOUND="5")
    assert "error: workers must be at most 2 here, received 3" in message


def test_a_port_of_another_service_is_refused(two: Service, small_registry: Path) -> None:
    for workers in ("1", "2"):
        message = refused("--registry", str(small_registry), "--port", str(two.port), "--workers", workers)
        assert f"error: port {two.port} on 127.0.0.1 cannot be used (Address already in use)" in message
