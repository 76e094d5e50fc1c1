"""After SIGTERM under load requests fail only with 503, and no acknowledged event is lost."""

import asyncio
import http.client
import json
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.bundle.bundle import Bundle
from service.bundles.active_bundle import ActiveBundle
from service.errors import NotReady
from service.http.admission import Admission
from service.http.config import GuardedConfig
from service.http.connections import ConnectionLimits, Connections
from service.http.graceful_shutdown import DrainingServer, drop_new_connections
from tests.support.processes.service_process import Service
from tests.support.shops import eventually
from tests.support.stores.real_redis import open_histories
from tests.support.wire import Wire, Wires

JSON = {"content-type": "application/json"}


class Client(threading.Thread):
    """Asks one request after the other over a connection kept alive, until nobody listens any more.

    Attributes:
        answers: status, whether the answer ended the connection, and Retry-After, in order.
        acknowledged: ids of the events that were stored.
        failures: what went wrong after a connection was made.
    """

    def __init__(self, port: int, path: str) -> None:
        super().__init__(daemon=True)
        self.port, self.path = port, path
        self.answers: list[tuple[int, bool, str | None]] = []
        self.acknowledged: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        while True:
            if connection.sock is None:
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
            event_id = uuid.uuid4().hex
            body: dict[str, Any] = {"items": ["i1", "i2"], "k": 5}
            if self.path == "/events":
                body = {"user_id": "anna", "item_id": "i1", "event_id": event_id}
            try:
                connection.request("POST", self.path, json.dumps(body), JSON)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                return
            self.answers.append((answer.status, answer.will_close, answer.headers["Retry-After"]))
            if answer.status == 200 and self.path == "/events":
                self.acknowledged.append(event_id)
            if answer.will_close:
                connection.close()


def under_load(service: Service, end: Callable[[list[Client]], None]) -> list[Client]:
    clients = [Client(service.port, path) for path in ("/recommend", "/recommend", "/events", "/events")]
    for client in clients:
        client.start()
    eventually(lambda: all(len(client.answers) > 20 for client in clients), 60)
    end(clients)
    for client in clients:
        client.join(60)
        assert not client.is_alive()
    assert [client.failures for client in clients] == [[]] * 4
    return clients


def stored(url: str, prefix: str) -> set[str]:
    async def read() -> set[str]:
        sessions = open_histories(url, prefix=prefix, timeout_s=10)
        ids = {str(event.event_id) for event in await sessions.stream()}
        await sessions.close()
        return ids

    return asyncio.run(read())


@pytest.mark.parametrize("delay", ["0", "600"])
def test_nothing_fails_but_with_503_and_no_acknowledged_event_is_lost(
    start: Callable[..., Service], small_registry: Path, redis_url: str, delay: str
) -> None:
    prefix = f"test-{uuid.uuid4().hex}"
    service = start(
        "--registry",
        str(small_registry),
        "--redis",
        redis_url,
        VLM2REC_REDIS_PREFIX=prefix,
        VLM2REC_DRAIN_DELAY_S=delay,
        VLM2REC_EVENT_IDS_CAP="100000",
        VLM2REC_REDIS_TIMEOUT_MS="5000",
    )

    def end(clients: list[Client]) -> None:
        service.process.terminate()
        if delay != "0":
            eventually(lambda: service.call("GET", "/readyz")[0] == 503)
            eventually(lambda: all(client.answers[-1][1] for client in clients), 60)
            asked = [len(client.answers) for client in clients]
            eventually(lambda: all(len(c.answers) > had + 5 for c, had in zip(clients, asked, strict=True)), 60)
            for client, had in zip(clients, asked, strict=True):  # not ready, and yet it answers
                assert {answer[:2] for answer in client.answers[had : had + 5]} == {(200, True)}
            service.process.terminate()  # enough of the delay

    clients = under_load(service, end)
    service.process.communicate(timeout=60)
    assert service.process.returncode == 0
    for client in clients:
        assert {status for status, _, _ in client.answers} <= {200, 503}
        assert all(after == "1" and closes for status, closes, after in client.answers if status == 503)
    acknowledged = {event_id for client in clients for event_id in client.acknowledged}
    assert len(acknowledged) > 40
    assert acknowledged <= stored(redis_url, prefix)


def test_a_second_signal_ends_the_delay(start: Callable[..., Service], small_registry: Path) -> None:
    service = start("--registry", str(small_registry), "--redis", "unix:///nonexistent", VLM2REC_DRAIN_DELAY_S="600")
    service.process.terminate()
    eventually(lambda: service.call("GET", "/readyz")[0] == 503)
    assert service.call("POST", "/recommend", {"items": ["i1"]})[0] == 200
    assert service.end()[0] == 0


def test_leaving_is_not_draining(bundle: Bundle) -> None:
    current = ActiveBundle()
    with pytest.raises(NotReady, match="no bundle"):
        current.check_ready()
    current.swap(bundle)
    current.check_ready()
    current.leave()
    current.admit()
    with pytest.raises(NotReady, match="is ending"):
        current.check_ready()
    current.drain()
    for check in (current.admit, current.check_ready):
        with pytest.raises(NotReady, match="is ending"):
            check()
    assert current.get() is bundle


def test_an_open_connection_gets_its_refusal_before_it_is_closed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.graceful_shutdown._LINGER_S", 60.0)
    current = ActiveBundle()
    current.swap(bundle)

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        try:
            current.admit()
        except NotReady:
            status = 503
        else:
            status = 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        return await reader.readuntil(b"\r\n\r\n")

    async def steps() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            limits = ConnectionLimits(connections=64, request_s=10.0)
            connections = Connections(limits, retry_after_s=1)
            config = GuardedConfig(app, connections, Admission(64), lifespan="off", log_config=None)
            server = DrainingServer(config, current, delay_s=0.0)
            served = asyncio.create_task(server._serve([listener]))
            address = listener.getsockname()
            connection = await asyncio.open_connection(*address)
            other = await asyncio.open_connection(*address)
            assert (await ask(*connection)).startswith(b"HTTP/1.1 200 ")
            server.should_exit = True
            while listener.fileno() >= 0:  # until the server has closed it
                await asyncio.sleep(0.01)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)
            for reader, writer in (connection, other):
                answer = await ask(reader, writer)
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"connection: close" in answer
                assert await reader.read() == b""
                writer.close()
            await served

    asyncio.run(steps())


@pytest.mark.skipif(sys.platform != "linux", reason="there are no such filters elsewhere")
def test_the_last_of_several_pipelined_responses_announces_the_end() -> None:
    requests = b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(3))

    async def answered() -> Wire:
        return await Wires(headers=[(b"connection", b"close")]).wire(requests, wanted=3)

    wire = asyncio.run(answered())
    assert wire.answers() == [b"GET /0 ", b"GET /1 ", b"GET /2 "]
    assert wire.sent.count(b"connection: close") == 1
    assert wire.sent.rpartition(b"HTTP/1.1 200 OK")[2].count(b"connection: close") == 1
    assert wire.ended


def test_a_listener_that_drops_new_connections_keeps_earlier_ones() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        early = socket.create_connection(listener.getsockname())
        drop_new_connections(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), timeout=0.3)
        accepted, _ = listener.accept()
        early.sendall(b"still heard")
        assert accepted.recv(100) == b"still heard"
        early.close()
        accepted.close()
