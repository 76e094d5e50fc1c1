"""Sends seeded requests that no HTTP library would send and checks what a server does with them.

It may answer 1xx to 4xx or 501, or close the connection, and must answer the next proper request. It may not answer
other 5xx, send what is no HTTP, answer pipelined requests out of order, or end.
"""

import json
import random
import re
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

_PATIENCE_S = 5.0
_SILENCE_S = 0.15  # after which an open connection counts as waiting for more
_PROPER_EVERY = 10
_PIPELINED = 12
_MOST_READ = 4 << 20
_NOT_IMPLEMENTED = "501"  # for what HTTP has and this service has not
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[^\r\n]*\r\n")
_BODY = json.dumps({"items": ["item-20", "item-21"], "k": 3}).encode()
_ROUTES = ("/recommend", "/similar", "/events", "/items?limit=2", "/users/u/history", "/livez", "/bundle", "/metrics")
_WORDS = (
    b"\x00",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b"\xff",
    b"HTTP/1.1",
    b"0\r\n\r\n",
    b"%",
    b"\x7f",
)


@dataclass(frozen=True, slots=True)
class Damaged:
    """Bytes that a case writes to a connection.

    Attributes:
        kind: which damage.
        parts: written one after the other.
        ends: what then becomes of the connection: ``open`` stays, ``half`` is shut down for writing, ``reset`` is torn.
        asked: ids of proper pipelined requests, which must be answered in this order: all of the first twelve, and
            after those as many as the server likes.
    """

    kind: str
    parts: tuple[bytes, ...]
    ends: str = "open"
    asked: tuple[str, ...] = ()


class DamagedRequests:
    """Sends cases to a port of this machine.

    Args:
        port: where the service listens.
        seed: the same one gives the same cases.
    """

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._seed = seed
        self._random = random.Random(seed)

    def run(self, cases: int) -> dict[str, Any]:
        """Counts of outcomes by kind; ``wrong`` lists forbidden outcomes with the bytes sent."""
        outcomes: dict[str, Counter[str]] = {}
        wrong: list[str] = []
        for number in range(cases):
            case = self.case()
            outcome = self._outcome(case)
            outcomes.setdefault(case.kind, Counter())[outcome] += 1
            if outcome.startswith(("5", "no HTTP", "unequal")) and outcome != _NOT_IMPLEMENTED:
                wrong.append(f"case {number} ({case.kind}): {outcome} to {b''.join(case.parts)[:200]!r}")
            if number % _PROPER_EVERY == 0 and not self._proper():
                wrong.append(f"after case {number} ({case.kind}): a proper request was not answered")
                break
        totals: Counter[str] = sum(outcomes.values(), Counter())
        return {
            "seed": self._seed,
            "cases": sum(totals.values()),
            "outcomes": dict(sorted(totals.items())),
            "kinds": {kind: dict(sorted(found.items())) for kind, found in sorted(outcomes.items())},
            "wrong": wrong[:50],
        }

    def case(self) -> Damaged:
        """The next case."""
        kinds = (
            self._mutated,
            self._mutated,
            self._request_line,
            self._headers,
            self._length,
            self._chunks,
            self._pipelined,
            self._broken_off,
            self._noise,
        )
        return self._random.choice(kinds)()

    def _mutated(self) -> Damaged:
        data = bytearray(_request("POST", "/recommend", _BODY))
        for _ in range(self._random.randint(1, 4)):
            at = self._random.randrange(len(data))
            action = self._random.randrange(4)
            if action == 0:
                data[at] = self._random.randrange(256)
            elif action == 1:
                data[at:at] = self._random.choice(_WORDS) * self._random.choice((1, 1, 3, 50))
            elif action == 2:
                del data[at : at + self._random.randint(1, 20)]
            else:
                data[at:at] = data[at : at + self._random.randint(1, 60)]
        return Damaged("mutated", self._torn(bytes(data)), self._random.choice(("open", "half")))

    def _request_line(self) -> Damaged:
        path = self._random.choice(_ROUTES)
        line = self._random.choice(
            (
                "GET",
                "GET ",
                f"GET {path}",
                f"GET {path} HTTP/9.9",
                f"GET {path} HTTP/1.1 HTTP/1.1",
                f"get {path} HTTP/1.1",
                f"G\x00T {path} HTTP/1.1",
                f"GET {path}\x00 HTTP/1.1",
                f"GET /items/{chr(self._random.randrange(128, 256))} HTTP/1.1",
                f"GET http://elsewhere{path} HTTP/1.1",
                "OPTIONS * HTTP/1.1",
                "CONNECT elsewhere:443 HTTP/1.1",
                "PRI * HTTP/2.0",
                f"GET /{'a' * self._random.choice((1_000, 70_000, 300_000))} HTTP/1.1",
                f"GET /items?{'limit=1&' * self._random.choice((100, 9_000))} HTTP/1.1",
                f"GET /items/%{self._random.choice(('', '0', 'zz', '00', 'ff', 'C0%AF', '2e%2e%2f'))} HTTP/1.1",
                f"GET //{path} HTTP/1.1",
                f"GET {path}#there HTTP/1.1",
                f"{'M' * self._random.choice((30, 9_000))} {path} HTTP/1.1",
                f"BREW {path} HTTP/1.1",
                f"TRACE {path} HTTP/1.1",
                f"GET\t{path}\tHTTP/1.1",
                "\r\n" * self._random.choice((1, 50)) + f"GET {path} HTTP/1.1",
                f"GET {path} HTTP/1.0",
            )
        )
        ending = self._random.choice(("\r\nHost: x\r\n\r\n", "\nHost: x\n\n", "\r\n\r\n", "\rHost: x\r\r"))
        return Damaged("request line", ((line + ending).encode("latin-1"),), self._random.choice(("open", "half")))

    def _headers(self) -> Damaged:
        bad = self._random.choice(
            (
                b"X: " + b"a" * self._random.choice((9_000, 70_000, 1_000_000)),
                b"\r\n".join(b"X-%d: y" % number for number in range(self._random.choice((150, 5_000)))),
                b"no colon",
                b": no name",
                b"X\x00: y",
                b"X: y\x00z",
                b"X: y\r\n folded",
                b"X : y",
                b"X-Request-ID: "
                + bytes(self._random.choices(range(1, 256), k=20)).replace(b"\r", b"").replace(b"\n", b""),
                b"X-Request-ID: a\r\nX-Request-ID: b",
                b"Host: y\r\nHost: z",
                b"Authorization: Bearer " + b"\xff" * 50,
                b"X-API-Key: \xe2\x82\xac",
                b"Content-Type: " + b"\xff;charset=" * 5,
                b"Expect: 100-continue",
                b"Expect: the-unexpected",
                b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\nSec-WebSocket-Version: 13",
                b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
                b"Connection: close, keep-alive, \xff",
                b"Content-Encoding: gzip",
                b"X-Forwarded-For: \x01",
                b"Range: bytes=0-1,2-3," + b"4-5," * 500,
            )
        )
        data = _request("POST", "/recommend", _BODY, bad)
        return Damaged("headers", self._torn(data), self._random.choice(("open", "half")))

    def _length(self) -> Damaged:
        length = self._random.choice(
            (
                "-1", "+5", "5, 5", "0x10", "1e3", "٣", "9" * 30, str(2**63), str(2**64), "", " ", "5\x00", "10000000",
                str(len(_BODY) - 3), str(len(_BODY) + 30), "0", f"{len(_BODY)}\r\nContent-Length: 5",
                f"{len(_BODY)}\r\nTransfer-Encoding: chunked", f"{len(_BODY)}\r\nContent-Length: {len(_BODY)}",
            )
        )  # fmt: skip
        head = (
            f"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
        return Damaged("length", self._torn(head.encode() + _BODY), self._random.choice(("open", "half")))

    def _chunks(self) -> Damaged:
        encoding = self._random.choice(
            ("chunked", "chunked", "chunked, chunked", "gzip, chunked", "identity", "\x0bchunked")
        )
        lines = (
            "POST /recommend HTTP/1.1",
            "Host: x",
            "Content-Type: application/json",
            f"Transfer-Encoding: {encoding}",
        )
        head = "\r\n".join((*lines, "", ""))
        body = self._random.choice(
            (
                b"%x\r\n%s\r\n0\r\n\r\n" % (len(_BODY), _BODY),
                b"%x;ext=%s\r\n%s\r\n0\r\n\r\n" % (len(_BODY), b"e" * self._random.choice((5, 70_000)), _BODY),
                b"zz\r\n" + _BODY,
                b"-1\r\n" + _BODY,
                b"f" * 40 + b"\r\n" + _BODY,
                b"7fffffffffffffff\r\n" + _BODY,
                b"5\r\n" + _BODY,
                b"0\r\nTrailer: x\r\n\r\n",
                b"0\r\n" + b"T: x\r\n" * 5_000 + b"\r\n",
                b"1\r\n{\r\n" * 3_000 + b"0\r\n\r\n",
                b"%x\n%s\n0\n\n" % (len(_BODY), _BODY),
                b"\r\n\r\n",
                b"%x\r\n%s" % (len(_BODY), _BODY),
            )
        )
        return Damaged("chunks", self._torn(head.encode() + body), self._random.choice(("open", "half")))

    def _pipelined(self) -> Damaged:
        asked = [
            f"pipelined-{self._random.getrandbits(40)}-{number}"
            for number in range(self._random.choice((2, 5, _PIPELINED, 60)))
        ]
        requests = []
        for name in asked:
            header = b"X-Request-ID: " + name.encode()
            if self._random.random() < 0.5:
                requests.append(_request("POST", "/recommend", self._random.choice((_BODY, b"{", b"[]")), header))
            else:
                requests.append(_request("GET", self._random.choice(_ROUTES), b"", header))
        return Damaged("pipelined", self._torn(b"".join(requests)), asked=tuple(asked))

    def _broken_off(self) -> Damaged:
        data = _request("POST", self._random.choice(_ROUTES), _BODY)
        cut = data[: self._random.randrange(len(data))]
        return Damaged("broken off", self._torn(cut), self._random.choice(("half", "reset", "reset")))

    def _noise(self) -> Damaged:
        start = self._random.choice(
            (b"", b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n", b"EHLO x\r\n")
        )
        size = self._random.choice((0, 1, 40, 5_000, 200_000))
        return Damaged(
            "noise", self._torn(start + self._random.randbytes(size)), self._random.choice(("open", "half", "reset"))
        )

    def _torn(self, data: bytes) -> tuple[bytes, ...]:
        """Split a case into one or several writes."""
        if self._random.random() < 0.7 or len(data) < 2:
            return (data,)
        cuts = sorted(self._random.sample(range(1, len(data)), min(len(data) - 1, self._random.randint(1, 5))))
        return tuple(data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True))

    def _outcome(self, case: Damaged) -> str:
        with socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for part in case.parts:
                    connection.sendall(part)
                    if len(case.parts) > 1:
                        time.sleep(0.001)
                if case.ends == "reset":
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return "left"
                if case.ends == "half":
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # closed while we wrote; an answer may be there all the same
            return _read(connection, case.asked)

    def _proper(self) -> bool:
        with socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE_S) as connection:
            connection.sendall(_request("POST", "/recommend", _BODY, b"Connection: close"))
            return _read(connection, (), silence_s=_PATIENCE_S) == "200"


def _request(method: str, path: str, body: bytes, header: bytes = b"X: y") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + header + b"\r\n\r\n" + body


def _read(connection: socket.socket, asked: tuple[str, ...], silence_s: float = _SILENCE_S) -> str:
    """The first status that is not 2xx, else the first status; ``closed`` or ``waiting`` without one."""
    data, ended = b"", "waiting"
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and len(data) < _MOST_READ:
        answers, rest = _answers(data)
        is_done = len(answers) >= max(len(asked), 1) and not rest
        connection.settimeout(0.02 if is_done else _PATIENCE_S if asked else silence_s)
        try:
            received = connection.recv(1 << 16)
        except TimeoutError:
            break
        except OSError:
            received = b""
        if not received:
            ended = "closed"
            break
        data += received
    answers, rest = _answers(data)
    if rest and not rest.startswith(b"HTTP/1."):
        return f"no HTTP: {rest[:60]!r}"
    if asked and not _in_order([name for _, name in answers], asked):
        return f"unequal: {len(answers)} answers to {len(asked)} requests"
    statuses = [status for status, _ in answers]
    return next((status for status in statuses if status[0] != "2"), statuses[0]) if statuses else ended


def _in_order(answered: list[str], asked: tuple[str, ...]) -> bool:
    """Whether pipelined requests were answered in their order; what follows the last may be a refusal without an id."""
    ours = [name for name in answered if name in asked]
    return (
        len(answered) - len(ours) <= 1 and ours == list(asked[: len(ours)]) and len(ours) >= min(len(asked), _PIPELINED)
    )


def _answers(data: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """(status, X-Request-ID) of the complete answers received, and the remaining bytes."""
    found: list[tuple[str, str]] = []
    while (line := _STATUS.match(data)) is not None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            break
        head = data[:end].lower()
        length = re.search(rb"content-length: *(\d+)", head)
        body = end + 4 + (int(length[1]) if length else 0)
        if not length and b"transfer-encoding: chunked" in head:
            body = data.find(b"0\r\n\r\n", end) + 5
        if not end < body <= len(data):
            if not length and b"connection: close" in head:
                found.append((line[1].decode(), ""))
                return found, b""
            break
        name = re.search(rb"x-request-id: *([^\r]*)", data[:end], re.IGNORECASE)
        found.append((line[1].decode(), name[1].decode("latin-1") if name else ""))
        data = data[body:]
    return found, data
