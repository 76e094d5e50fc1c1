"""Sends requests at random moments of a constant rate (Poisson), independent of the answers.

    python -m bench.load.open_loop --port 8000 --rate 500 --seconds 10 --bodies bodies.jsonl

Prints one JSON object. Latency counts from the moment a request was due, so a stall of the server counts for every
request that waited meanwhile. Plain sockets and a kernel timer instead of an event loop: the waits of asyncio, uvloop
and epoll itself are rounded to milliseconds, and the client must leave the other core to the server.
"""

import argparse
import ctypes
import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LIBC = ctypes.CDLL(None, use_errno=True)
_HEAD = b"POST %s HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_MONOTONIC, _NONBLOCK, _ABSOLUTE = 1, 0o4000, 1
_PATIENCE_S = 2.0
_LATE_S = 1.0
_MOST_CONNECTIONS = 1000

# due, answered (perf_counter seconds), status, degraded (0 or 1), and of a refusal the milliseconds inside the server:
# from the first bytes of the request to those of the answer, as the server says
Record = tuple[float, float, int, int, float]
Keep = Callable[[bytes, float, float, int, bytes], None]


class Client:
    """Connections to one server and the outcomes of the requests.

    Args:
        port: where it listens on this machine.
        keep: called with each request, the times it was due and answered (perf_counter seconds), status and body.
    """

    def __init__(self, port: int, keep: Keep | None = None) -> None:
        self._keep = keep
        self._address = ("127.0.0.1", port)
        self._poll = select.epoll()
        self._timer = _LIBC.timerfd_create(_MONOTONIC, _NONBLOCK)
        self._poll.register(self._timer, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._idle: list[int] = []
        self._unsent: dict[int, bytes] = {}
        self._busy: dict[int, tuple[float, bytearray, bytes]] = {}
        self.records: list[Record] = []

    def run(self, requests: Sequence[bytes], due: NDArray[np.float64]) -> None:
        """Send each request when it is due (perf_counter seconds, ascending), over as few connections as it takes."""
        moments, number, waiting = due.tolist(), 0, deque[tuple[bytes, float]]()
        while number < len(moments) or waiting or self._busy:
            now = time.perf_counter()
            while number < len(moments) and moments[number] <= now:
                waiting.append((requests[number % len(requests)], moments[number]))
                number += 1
            while waiting and (self._idle or len(self._sockets) < _MOST_CONNECTIONS):
                self._send(*waiting.popleft())
            if now > moments[-1] + _PATIENCE_S:
                break
            self._alarm(moments[number] if number < len(moments) else moments[-1] + 2 * _PATIENCE_S)
            for descriptor, _ in self._poll.poll(_PATIENCE_S):
                if descriptor != self._timer:
                    self._receive(descriptor)
        self.records += [(was_due, 0.0, 0, 0, 0.0) for was_due in (*(d for _, d in waiting), *moments[number:])]
        self.records += [(was_due, 0.0, 0, 0, 0.0) for was_due, *_ in self._busy.values()]

    def close(self) -> None:
        """Close every connection."""
        for connection in self._sockets.values():
            connection.close()
        self._poll.close()
        os.close(self._timer)

    def _alarm(self, moment: float) -> None:
        """Make the timer readable at a moment; a moment in the past at once."""
        when = (ctypes.c_long * 4)(0, 0, int(moment), int(moment % 1 * 1e9))
        _LIBC.timerfd_settime(self._timer, _ABSOLUTE, when, None)

    def _send(self, request: bytes, due: float) -> None:
        if self._idle:
            descriptor = self._idle.pop()
            self._busy[descriptor] = (due, bytearray(), request)
            self._write(descriptor, request)
            return
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect_ex(self._address)
        descriptor = connection.fileno()
        self._sockets[descriptor], self._unsent[descriptor] = connection, request
        self._busy[descriptor] = (due, bytearray(), request)
        self._poll.register(descriptor, select.EPOLLOUT)  # until it is connected: a full backlog must not hold us up

    def _write(self, descriptor: int, request: bytes) -> None:
        try:
            self._sockets[descriptor].send(request)
        except OSError:
            self._closed(descriptor)

    def _receive(self, descriptor: int) -> None:
        if descriptor in self._unsent:
            self._poll.modify(descriptor, select.EPOLLIN)
            self._write(descriptor, self._unsent.pop(descriptor))
            return
        try:
            data = self._sockets[descriptor].recv(1 << 18)
        except OSError:
            data = b""
        if not data:
            self._closed(descriptor)
            return
        due, buffer, request = self._busy[descriptor]
        buffer += data
        body = buffer.find(b"\r\n\r\n") + 4
        if body < 4 or not _complete(buffer, body):
            return
        del self._busy[descriptor]
        self._idle.append(descriptor)
        if b"\r\nconnection: close\r\n" in buffer[:body].lower():  # no request may follow it (RFC 9112, 9.6)
            self._closed(descriptor)
        answered, status = time.perf_counter(), int(buffer[9:12])
        self.records.append((due, answered, status, *_kind(buffer, body)))
        if self._keep is not None:
            self._keep(request, due, answered, status, bytes(buffer[body:]))

    def _closed(self, descriptor: int) -> None:
        """The server ended a connection: no harm to an idle one, a failed request on a busy one."""
        self._poll.unregister(descriptor)
        self._sockets.pop(descriptor).close()
        if descriptor in self._busy:
            due, _, request = self._busy.pop(descriptor)
            self.records.append((due, time.perf_counter(), 0, 0, 0.0))
            if self._keep is not None:
                self._keep(request, due, time.perf_counter(), 0, b"")
        else:
            self._idle.remove(descriptor)


def _complete(buffer: bytearray, body: int) -> bool:
    head = buffer[:body].lower()
    at = head.find(b"content-length:")
    if at < 0:
        return buffer.endswith(b"0\r\n\r\n")  # chunked
    return len(buffer) - body >= int(head[at + 15 : head.index(b"\r", at)])


def _kind(buffer: bytearray, body: int) -> tuple[int, float]:
    """Whether an answer is degraded, and the milliseconds in Server-Timing of an answer other than 200."""
    if buffer[9:12] == b"200":
        return int(buffer.find(b'"degraded":"', body) >= 0), 0.0
    at = buffer.find(b"total;dur=", 0, body)
    return 0, float(buffer[at + 10 : buffer.index(b"\r", at)].split(b",")[0]) if at >= 0 else float("nan")


def requests_of(path: str, bodies: Sequence[bytes]) -> list[bytes]:
    """Complete POST requests as bytes."""
    return [_HEAD % (path.encode(), len(body)) + body for body in bodies]


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """When requests are due: seconds from the start, ascending, a Poisson process."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(1.5 * rate * seconds) + 100).cumsum()
    due: NDArray[np.float64] = gaps[gaps < seconds]
    return due


def open_loop(port: int, path: str, bodies: Sequence[bytes], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Offer requests at a rate for a while; figures as :func:`summary` gives them."""
    client = Client(port)
    started = time.perf_counter() + 0.05
    cpu = time.process_time()
    try:
        client.run(requests_of(path, bodies), started + arrivals(rate, seconds, seed))
    finally:
        client.close()
    return summary(client.records, started, seconds) | {"client_cpu": (time.process_time() - cpu) / seconds}


def summary(records: Sequence[Record], started: float, seconds: float) -> dict[str, Any]:
    """Rates a second, latencies in milliseconds, shares of what was offered.

    ``good`` are whole answers within a second of the moment they were due, ``degraded`` those that say they are less,
    ``late`` those after that second, ``refused`` 429 and 503, ``errors`` all else and what was never answered.
    Latencies are of all answers with 200, degraded and late ones included, and of no others: what is refused or never
    answered has no part in them. A refusal has two of its own: ``refusal_server_…``, as the server says, and
    ``refusal_client_…``, from the moment when the request was due. ``good_by_second`` is the share by the second in
    which a request was due.
    """
    due, answered, status, degraded, refusal_ms = np.array(records, dtype=np.float64).reshape(-1, 5).T
    ok = status == 200
    late = ok & (answered - due > _LATE_S)
    good = ok & ~late & (degraded == 0)
    refused = np.isin(status, (429, 503))
    latency_ms = 1000 * (answered - due)[ok]
    seconds_of = (due - started).astype(int)
    offered = np.bincount(seconds_of, minlength=1)
    found: dict[str, Any] = {
        "offered": len(due) / seconds,
        "good": float(good.sum()) / seconds,
        "degraded": float((ok & ~late & (degraded == 1)).sum()) / seconds,
        "late": float(late.sum()) / seconds,
        "refused": float(refused.sum()) / seconds,
        "errors": int((~ok & ~refused).sum()),
        "good_by_second": [round(float(share), 4) for share in np.bincount(seconds_of, good) / np.maximum(offered, 1)],
    }
    if ok.any():
        found |= dict(
            zip(("p50_ms", "p90_ms", "p99_ms"), np.percentile(latency_ms, [50, 90, 99]).tolist(), strict=True)
        )
    if refused.any():
        for place, refusals_ms in (("server", refusal_ms), ("client", 1000 * (answered - due))):
            p50, p99 = np.percentile(refusals_ms[refused], [50, 99]).tolist()
            found |= {f"refusal_{place}_p50_ms": p50, f"refusal_{place}_p99_ms": p99}
    return found


def main() -> None:
    """Offer load and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/recommend")
    parser.add_argument("--rate", type=float, required=True, help="requests a second")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="a JSON body a line")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bodies = options.bodies.read_bytes().splitlines()
    if not bodies:
        parser.error(f"--bodies must hold a JSON body a line; {options.bodies} is empty")
    if min(options.rate, options.seconds) <= 0:
        parser.error("--rate and --seconds must be above 0")
    found = open_loop(options.port, options.path, bodies, options.rate, options.seconds, options.seed)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
