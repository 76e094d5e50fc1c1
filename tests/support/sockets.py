"""Runs a real server in a thread, with clients that send correct or malformed bytes over sockets."""

import asyncio
import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog import get_logger

from service.api.requests.request_body import read_json
from service.errors import RequestRefused
from service.http.admission import Admission
from service.http.config import GuardedConfig
from service.http.connections import ConnectionLimits, Connections
from service.http.graceful_shutdown import GuardedServer
from service.http.problems import answer_error
from service.http.request_context import context_of
from service.http.request_middleware import RequestMiddleware
from service.settings.groups import HttpLimits, ObservabilitySettings
from service.telemetry.metrics import Metrics
from tests.support.shops import eventually

BIG_ANSWER = 4_000_000
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def post(body: bytes, length: int | None = None, path: str = "/") -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    return head.encode() + body


def answering(released: threading.Event, steps: threading.Semaphore) -> ASGIApp:
    """Reads bodies as the service does; `/big` answers megabytes, `/slow` once it is released, `/step` one a step."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer: Response
        if scope["method"] == "POST":
            try:
                answer = PlainTextResponse(str(await read_json(Request(scope, receive)))[:100])
            except RequestRefused as error:
                answer = answer_error(error, request_id=context_of(scope).trace.request_id, retry_after_s=1)
        else:
            while scope["path"] == "/slow" and not released.is_set():
                await asyncio.sleep(0.01)
            while scope["path"] == "/step" and not steps.acquire(blocking=False):
                await asyncio.sleep(0.01)
            answer = PlainTextResponse("x" * (BIG_ANSWER if scope["path"] == "/big" else 10))
        await answer(scope, receive, send)

    return app


@dataclass
class Running:
    """A server that answers on a port of its own.

    Attributes:
        port: where.
        connections: all of it.
        drops: why connections were ended, counted.
        released: set: `/slow` is answered.
        steps: each lets one `/step` be answered.
        refused_s: of each request that was turned away, the seconds until its refusal was written.
    """

    port: int
    connections: Connections
    drops: Counter[str]
    released: threading.Event
    steps: threading.Semaphore
    refused_s: list[float]
    clients: list["Client"] = field(default_factory=list)

    def open(self, *sent: bytes) -> "Client":
        """A client that is closed at the end at the latest."""
        client = Client(self.port)
        self.clients.append(client)
        for part in sent:
            client.socket.sendall(part)
        return client

    def received(self, client: "Client") -> int:
        """How many bytes of an unfinished head or body the server has read from a client, with their time noted."""
        address = client.socket.getsockname()
        return sum(held._unused_bytes for held in tuple(self.connections._open) if held.client == address)  # type: ignore[attr-defined]


class Client:
    """One connection of a client."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._buffer = b""

    def send(self, data: bytes) -> Self:
        self.socket.sendall(data)
        return self

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, headers, body."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return int(first.split()[1]), headers, body

    def is_closed(self, seconds: float = 60.0) -> bool:
        """Whether the server ends the connection within some time, having nothing more to say."""
        self.socket.settimeout(seconds or 1e-3)
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        self.socket.close()

    def _more(self) -> None:
        received = self.socket.recv(65_536)
        if not received:
            raise EOFError(f"closed after {self._buffer[:200]!r}")
        self._buffer += received


@contextlib.contextmanager
def running(
    limits: ConnectionLimits, *, bodies: int = 1_000_000, keep_alive_s: int = 5, admission: Admission | None = None
) -> Iterator[Running]:
    """Run a server until the end of the context; every connection is gone then."""
    drops: Counter[str] = Counter()
    refused_s: list[float] = []

    def turned_away(refused: list[tuple[str, float]]) -> None:
        drops.update(f"turned away: {method}" for method, _ in refused)
        refused_s.extend(seconds for _, seconds in refused)

    connections = Connections(
        limits,
        retry_after_s=7,
        on_drop=lambda reason: drops.update([reason]),
        on_turned_away=turned_away,
    )
    released, steps = threading.Event(), threading.Semaphore(0)
    whole = RequestMiddleware(
        answering(released, steps),
        metrics=Metrics(),
        log=get_logger(),
        limits=HttpLimits(body_limit_bytes=100_000, bodies_limit_bytes=bodies, retry_after_s=7),
        observability=ObservabilitySettings(),
    )
    listener = socket.create_server(("127.0.0.1", 0))
    config = GuardedConfig(
        whole,
        connections,
        admission or Admission(10_000),
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=2,
    )
    server = GuardedServer(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    eventually(lambda: server.started)
    ours = Running(listener.getsockname()[1], connections, drops, released, steps, refused_s)
    try:
        yield ours
    finally:
        released.set()
        steps.release(100)
        for client in ours.clients:
            client.close()
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


@contextlib.contextmanager
def regular(port: int) -> Iterator[list[float]]:
    """A well-behaved client meanwhile: a new connection for every request; gives how long each took, in seconds."""
    took: list[float] = []
    ended = threading.Event()
    failures: list[Exception] = []

    def ask() -> None:
        try:
            while not ended.is_set():
                begun = time.monotonic()
                with contextlib.closing(Client(port)) as client:
                    assert client.send(GET).answer()[0] == 200
                took.append(time.monotonic() - begun)
                ended.wait(0.02)
        except (OSError, EOFError, AssertionError) as failure:
            failures.append(failure)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join(60)
    assert not failures, failures[0]
    assert took
