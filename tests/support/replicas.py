"""Three replicas of the service on one registry and one Redis, and clients that load them through a proxy."""

import http.client
import json
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tests.support.processes.service_process import Service
from tests.support.proxies.nginx import free_port

JSON = {"content-type": "application/json"}
_STOPPED_S, _RUNNING_S = 0.15, 0.03
_PAUSE_S = 0.01  # between two requests of a client, so that replicas that start get the processor too


class Replicas:
    """Service processes on fixed ports, so that one that is started again has the address of before.

    Args:
        registry: that all of them read.
        redis_url: of their Redis.
        prefix: of their keys.
        count: how many.
    """

    def __init__(self, registry: Path, redis_url: str, prefix: str, count: int = 3) -> None:
        self._arguments = ("--registry", str(registry), "--redis", redis_url)
        self._environment = {
            "VLM2REC_REDIS_PREFIX": prefix,
            "VLM2REC_DRAIN_DELAY_S": "2",
            "VLM2REC_ACCESS_LOG": "off",
            "VLM2REC_REDIS_TIMEOUT_MS": "5000",  # a replica that is stopped now and then reads replies late
            "VLM2REC_POLL_MS": "100",
            "OMP_NUM_THREADS": "1",
        }
        self.ports = [free_port() for _ in range(count)]
        self.running: list[Service] = []
        try:
            for port in self.ports:
                self.running.append(self._start(port))
        except BaseException:
            self.end()
            raise

    def drain(self, number: int) -> int:
        """Send SIGTERM and wait for the end; the exit code."""
        return self.running[number].end(signal.SIGTERM)[0]

    def kill(self, number: int) -> None:
        """End a replica by SIGKILL."""
        assert self.running[number].end(signal.SIGKILL)[0] == -signal.SIGKILL

    def start(self, number: int) -> None:
        """Start a replica again."""
        self.running[number] = self._start(self.ports[number])

    def answered(self, number: int) -> float:
        """Recommendations with 200 that a replica has answered since its start."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[number], timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        counted = [line for line in lines if line.startswith("vlm2rec_requests_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in counted if '"/recommend"' in line and '"200"' in line)

    @contextmanager
    def slow(self, number: int) -> Iterator[None]:
        """Stop a replica most of the time, as on a machine that others use."""
        ended, process = threading.Event(), self.running[number].process

        def hold() -> None:
            while not ended.wait(_RUNNING_S):
                process.send_signal(signal.SIGSTOP)
                ended.wait(_STOPPED_S)
                process.send_signal(signal.SIGCONT)

        holder = threading.Thread(target=hold)
        holder.start()
        try:
            yield
        finally:
            ended.set()
            holder.join()

    def end(self) -> None:
        """End all that still run."""
        for service in self.running:
            if service.process.poll() is None:
                service.end(signal.SIGKILL)

    def _start(self, port: int) -> Service:
        return Service(*self._arguments, "--port", str(port), **self._environment)


@dataclass(frozen=True)
class Answer:
    """An answer that a client got, or why it got none."""

    asked: str
    status: int
    retry_after: str | None
    body: Any
    seconds: float
    failure: str = ""


class ProxyClient(threading.Thread):
    """Sends one request after the other through a proxy until it is ended; a 503 with Retry-After is sent again.

    Args:
        port: of the proxy.
        path: of the route.
        bodies: sent in turns, those of events each with an event id of its own.

    Attributes:
        answers: all of them, in order.
        acknowledged: event ids by item, of the events that were answered with 200.
    """

    def __init__(self, port: int, path: str, bodies: list[dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self.answers: list[Answer] = []
        self.acknowledged: list[str] = []
        self._port, self._path, self._bodies = port, path, bodies
        self._ended = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        number = 0
        while not self._ended.is_set():
            body = dict(self._bodies[number % len(self._bodies)])
            if self._path == "/events":
                body["event_id"] = uuid.uuid4().hex
            while (answer := self._sent(connection, body)).status == 503 and answer.retry_after:
                self._ended.wait(0.05)
            if self._path == "/events" and answer.status == 200:
                self.acknowledged.append(body["event_id"])
            number += 1
            self._ended.wait(_PAUSE_S)
        connection.close()

    def end(self) -> None:
        self._ended.set()
        self.join(60)

    def _sent(self, connection: http.client.HTTPConnection, body: dict[str, Any]) -> Answer:
        asked, began = json.dumps(body), monotonic()
        try:
            connection.request("POST", self._path, asked, JSON)
            got = connection.getresponse()
            retry_after, text = got.headers["Retry-After"], got.read()
            found = Answer(asked, got.status, retry_after, json.loads(text), monotonic() - began)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            found = Answer(asked, 0, None, None, monotonic() - began, repr(error))
        self.answers.append(found)
        return found
