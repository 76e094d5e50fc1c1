"""What must be true of several workers as it is of one process: bundles, hidden items, rates, metrics, bounds."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.service.workers.test_supervisor import NO_REDIS, workers_of
from tests.support.processes.service_process import Service
from tests.support.shops import ADMIN, Shop, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux")

IN_A_ROW = 16  # answers over connections of their own: that none is of one of two workers has a chance of 2⁻¹⁶


class Mapped(threading.Thread):
    """Looks which bundles the workers have mapped, many times a second.

    Attributes:
        most: of all workers together, at one moment.
    """

    def __init__(self, service: Service, registry: Path) -> None:
        super().__init__(daemon=True)
        self._service, self._pattern = service, re.compile(re.escape(str(registry)) + r"/([^/\s]+)/")
        self._end = threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self._end.wait(0.02):
            found: set[str] = set()
            with contextlib.suppress(OSError):  # a worker or the parent has ended meanwhile
                for pid in workers_of(self._service):
                    found |= set(self._pattern.findall(Path(f"/proc/{pid}/maps").read_text()))
            self.most = max(self.most, len(found))

    def end(self) -> int:
        self._end.set()
        self.join()
        return self.most


def everywhere(check: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Wait until a check holds for all workers, which are asked over new connections."""
    until, run = time.monotonic() + limit_s, 0
    while run < IN_A_ROW:
        run = run + 1 if check() else 0
        assert time.monotonic() < until


def test_swaps_pins_and_hidden_items_reach_all_workers_with_at_most_two_bundles_mapped(
    start: Callable[..., Service], shop: Shop
) -> None:
    service = start(
        *("--registry", str(shop.registry.root), "--embedded-redis", "--workers", "2"), VLM2REC_ADMIN_KEYS=ADMIN
    )
    first, second, third, fourth = [info.id for info in sorted(shop.registry.list(), key=lambda info: info.id)]
    mapped = Mapped(service, shop.registry.root)
    mapped.start()

    def answered_by(bundle_id: str) -> None:
        everywhere(lambda: answer(service)["bundle"] == bundle_id)

    answered_by(first)
    shop.point(second)  # moves the pointer
    answered_by(second)
    shop.point(third)
    time.sleep(0.6)  # the workers are in the middle of it when the pointer moves again
    shop.point(fourth)
    answered_by(fourth)
    as_admin = {"X_API_Key": ADMIN}
    # None has it mapped. Another worker may still free a bundle; then the answer is 503, to be tried again.
    eventually(lambda: service.call("POST", "/bundle/rollback", {"bundle": first}, **as_admin)[0] == 200)
    answered_by(first)
    os.kill(workers_of(service)[0], signal.SIGKILL)  # the replacement starts with the pinned bundle
    answered_by(first)
    eventually(lambda: service.call("POST", "/bundle/reload", None, **as_admin)[0] == 200)
    answered_by(fourth)
    hidden = answer(service)["items"][0]["item_id"]
    assert service.call("PUT", f"/items/{hidden}/availability", {"available": False}, **as_admin)[0] == 204
    everywhere(lambda: hidden not in [item["item_id"] for item in answer(service)["items"]])
    assert mapped.end() == 2
    _, lines = service.end()
    swaps = [line for line in lines if line["event"] == "bundle swapped"]
    compared = [line["bundle"] for line in swaps if line["comparison"] is not None]
    assert len(compared) == len(set(compared))  # one worker compares, the others follow its verdict
    assert {line["worker"] for line in swaps} == {1, 2}
    assert not [line for line in lines if line["event"] in {"watcher failed", "bundle refused"}]


@pytest.mark.slow
def test_hidden_items_and_pins_reach_every_worker_within_a_second(start: Callable[..., Service], shop: Shop) -> None:
    service = start(
        *("--registry", str(shop.registry.root), "--embedded-redis", "--workers", "2"), VLM2REC_ADMIN_KEYS=ADMIN
    )
    first, second, third, *_ = shop.ids
    shop.point(second)
    everywhere(lambda: answer(service)["bundle"] == second)  # each worker keeps the first one in memory
    clients = [http.client.HTTPConnection("127.0.0.1", service.port, timeout=60) for _ in range(2)]

    def asked() -> list[dict[str, Any]]:
        """The answers of both workers, over connections that are kept."""
        found = []
        for client in clients:
            client.request("POST", "/recommend", b'{"items": ["i1"], "k": 3}', {"content-type": "application/json"})
            found.append(json.loads(client.getresponse().read()))
        return found

    def took(method: str, path: str, body: Any, reached: Callable[[dict[str, Any]], bool]) -> float:
        """Seconds from the answer to an operator until every worker does it."""
        eventually(lambda: service.call(method, path, body, X_API_Key=ADMIN)[0] in {200, 204})
        began = time.monotonic()
        eventually(lambda: all(map(reached, asked())))
        return time.monotonic() - began

    def items(body: dict[str, Any]) -> list[str]:
        return [item["item_id"] for item in body["items"]]

    best = items(asked()[0])[0]
    assert [len(clients_of(pid, service.port)) for pid in workers_of(service)] == [1, 1]
    hidden, pinned = [], []
    for _ in range(3):  # a machine that is busy for a moment may make one of them late
        path = f"/items/{best}/availability"
        hidden.append(took("PUT", path, {"available": False}, lambda body: best not in items(body)))
        took("PUT", path, {"available": True}, lambda body: items(body)[0] == best)
        pinned.append(took("POST", "/bundle/rollback", {"bundle": first}, lambda body: body["bundle"] == first))
        took("POST", "/bundle/reload", None, lambda body: body["bundle"] == second)
    began = time.monotonic()
    shop.point(third)
    eventually(lambda: all(body["bundle"] == third for body in asked()))
    swapped_s = time.monotonic() - began
    for client in clients:
        client.close()
    assert swapped_s <= 15.0  # two polls, two loads of a small bundle one after the other, and a busy machine
    assert min(hidden) <= 1.0
    assert min(pinned) <= 1.0


def answer(service: Service) -> dict[str, Any]:
    status, body, _ = service.call("POST", "/recommend", {"items": ["i1"], "k": 3})
    assert status == 200
    found: dict[str, Any] = body
    return found


@pytest.mark.parametrize("connections", [1, 8])
def test_the_rate_limit_is_that_of_all_workers(
    start: Callable[..., Service], small_registry: Path, connections: int
) -> None:
    service = start(
        *("--registry", str(small_registry), *NO_REDIS, "--workers", "2"),
        VLM2REC_RATE_LIMIT="0.001",
        VLM2REC_RATE_BURST="20",
    )
    opened = [http.client.HTTPConnection("127.0.0.1", service.port, timeout=60) for _ in range(connections)]
    statuses = []
    for number in range(40):
        connection = opened[number % connections]
        connection.request("GET", "/items?limit=1")
        reply = connection.getresponse()
        reply.read()
        statuses.append(reply.status)
    for connection in opened:
        connection.close()
    assert statuses == [200] * 20 + [429] * 20


def test_requests_in_progress_are_bounded_for_all_workers_together(
    start: Callable[..., Service], small_registry: Path
) -> None:
    service = start(
        *("--registry", str(small_registry), *NO_REDIS, "--workers", "2"),
        VLM2REC_QUEUE_BOUND="12",
        VLM2REC_REQUEST_TIMEOUT_S="60",
    )
    head = b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 23\r\n\r\n"
    clients = [socket.create_connection(("127.0.0.1", service.port), timeout=60) for _ in range(100)]
    for client in clients:
        client.sendall(head)  # its body is missing: it stays in progress
    eventually(lambda: exposed(service, 'vlm2rec_shed_total{reason="refused"}') == 88)
    eventually(lambda: exposed(service, "vlm2rec_requests_in_progress") == 12)
    for client in clients:
        client.close()


@pytest.mark.parametrize("connections", [4, 8])
def test_few_long_lived_connections_are_spread_evenly(
    start: Callable[..., Service], small_registry: Path, connections: int
) -> None:
    service = start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")
    for number in range(3):
        opened = [http.client.HTTPConnection("127.0.0.1", service.port, timeout=60) for _ in range(connections)]
        for request in range(2):
            for connection in opened:
                connection.request("GET", "/items?limit=1", headers={"X-Request-ID": f"{number} {request}"})
                connection.getresponse().read()
        for connection in opened:
            connection.close()
        eventually(lambda: exposed(service, "vlm2rec_connections") <= 1)
    _, lines = service.end()
    for number in range(3):
        of_worker = [line["worker"] for line in lines if line.get("request_id") == f"{number} 1"]
        assert abs(of_worker.count(1) - of_worker.count(2)) <= 2
        assert len(of_worker) == connections


def test_open_connections_even_out_and_every_request_is_answered(
    start: Callable[..., Service], small_registry: Path
) -> None:
    service = start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")
    opened = [http.client.HTTPConnection("127.0.0.1", service.port, timeout=60) for _ in range(12)]
    ask_each(opened)
    first, second = workers_of(service)
    leaving = [client for client in opened if client.sock.getsockname()[1] in clients_of(second, service.port)]
    staying = [client for client in opened if client not in leaving]
    for client in leaving:
        client.close()
    eventually(lambda: not clients_of(second, service.port))
    count = len(clients_of(first, service.port))
    assert count == len(staying) >= 5

    def are_even() -> bool:
        ask_each(staying)
        return abs(len(clients_of(first, service.port)) - len(clients_of(second, service.port))) <= 1

    eventually(are_even, 30)
    for client in staying:
        client.close()


def ask_each(clients: list[http.client.HTTPConnection]) -> None:
    """Send a request over each connection; one that the last response ended is made again."""
    for client in clients:
        client.request("GET", "/items?limit=1")
        answer = client.getresponse()
        answer.read()
        assert answer.status == 200


def clients_of(pid: int, port: int) -> set[int]:
    """Ports of the clients that are connected to a process on its port."""
    found = psutil.Process(pid).net_connections("tcp")
    return {one.raddr[1] for one in found if one.laddr[1] == port and one.status == "ESTABLISHED"}


def exposed(service: Service, sample: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.rpartition(" ")[0] == sample]
    return float(values[0]) if values else 0.0


def test_metrics_are_those_of_all_workers_and_outlive_a_death(
    start: Callable[..., Service], small_registry: Path
) -> None:
    service = start("--registry", str(small_registry), *NO_REDIS, "--workers", "2")
    for _ in range(30):
        service.call("POST", "/recommend", {"items": ["i1"], "k": 3})
    asked = 'vlm2rec_requests_total{method="POST",route="/recommend",status="200"}'
    everywhere(lambda: exposed(service, asked) == 30)  # metrics are at most a second old
    for pid in workers_of(service):
        os.kill(pid, signal.SIGKILL)
        eventually(lambda gone=pid: gone not in workers_of(service) and len(workers_of(service)) == 2)
    everywhere(lambda: service.call("GET", "/readyz")[0] == 200)
    everywhere(lambda: exposed(service, asked) == 30)  # metrics are at most a second old
    assert exposed(service, "vlm2rec_workers_ready") == 2
    assert exposed(service, "vlm2rec_worker_restarts") == 2
