"""Makes the soak's mixed requests and sends them at a constant rate, independent of the answers."""

import asyncio
import json
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from bench.load.shop import Shop

LEAST_ITEMS = 500
"""Items of the widest request; a catalogue needs as many."""

_PATIENCE_S = 10.0
_MOST_CONNECTIONS = 64
_USERS = 2_000
_IDLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with its kind.

    Attributes:
        kind: as the counts call it.
        data: what is written.
        leaves: bytes after which the client leaves, without an answer even if they are all; None: it stays.
    """

    kind: str
    data: bytes
    leaves: int | None = None


class Requests:
    """Makes random requests.

    Args:
        shop: whose items are asked with.
        paths: of the service's OpenAPI document, so that only what is there is asked.
        admin_key: for availability.
        seed: of everything.
    """

    def __init__(self, shop: Shop, paths: dict[str, Any], admin_key: str, seed: int) -> None:
        self._random = random.Random(seed)
        self._items = shop.items
        self._admin_key = admin_key
        kinds = [
            (120, self._for_user, "/recommend"),
            (48, self._with_options, "/recommend"),
            (1, self._widest, "/recommend"),
            (32, self._similar, "/similar"),
            (56, self._event, "/events"),
            (12, self._events, "/events"),
            (24, self._history, "/users/{user_id}/history"),
            (16, self._page, "/items"),
            (16, self._item, "/items/{item_id}"),
            (24, self._bad, "/recommend"),
            (16, self._leaving, "/recommend"),
            (4, self._erase, "/users/{user_id}"),
            (4, self._hide, "/items/{item_id}/availability"),
            (8, self._operations, "/livez"),
            (12, self._batch, "/recommend/batch"),
            (4, self._profile, "/users/{user_id}/profile"),
            (4, self._samples, "/users/samples"),
            (8, self._image, "/items/{item_id}/image"),
            (4, self._search, "/items"),
        ]
        there = [(weight, made) for weight, made, path in kinds if path in paths]
        self._kinds = [made for _, made in there]
        self._weights = [weight for weight, _ in there]

    def next(self) -> Asked:
        """The next request."""
        return self._random.choices(self._kinds, self._weights)[0]()

    def _user(self) -> str:
        return f"user {int(self._random.paretovariate(0.5)) % _USERS}"

    def _some(self, least: int, most: int) -> list[str]:
        return self._random.sample(self._items, self._random.randint(least, most))

    def _for_user(self) -> Asked:
        return _post("recommend", "/recommend", {"user_id": self._user(), "k": 20})

    def _with_options(self) -> Asked:
        return _post("recommend, options", "/recommend", self._options())

    def _options(self) -> dict[str, Any]:
        chance = self._random.random
        low = self._random.choice((1, 10, 1_000_000))
        options: dict[str, Any] = {
            "items": [{"item_id": item, "weight": self._random.uniform(-1, 2)} for item in self._some(0, 20)],
            "user_id": self._user() if chance() < 0.5 else None,
            "k": self._random.choice((1, 20, 100)),
            "offset": self._random.choice((0, 0, 50)),
            "exclude": self._some(0, 5),
            "explain": chance() < 0.5,
            "diversity": self._random.choice((0.0, 0.0, 0.3, 1.0)),
            "slot_weights": {"image": self._random.uniform(0, 3)},
            "fields": ["title", "price"] if chance() < 0.5 else None,
            "deadline_ms": self._random.choice((None, None, 1.0, 50.0)),
        }
        if chance() < 0.6:
            category = f"category {self._random.randrange(25)}"
            options["filter"] = {
                "must": [{"field": "price", "gte": low, "lt": low * self._random.uniform(1, 20)}],
                "must_not": [{"field": "category", "in": [category]}],
            }
        return options

    def _widest(self) -> Asked:
        widest = {"items": self._some(LEAST_ITEMS, LEAST_ITEMS), "k": 1000, "diversity": 1.0, "explain": True}
        return _post("recommend, widest", "/recommend", widest | {"fields": ["title"]})

    def _similar(self) -> Asked:
        return _post("similar", "/similar", {"item_id": self._random.choice(self._items), "k": 20, "explain": True})

    def _one_event(self) -> dict[str, Any]:
        chance = self._random.random()
        item = self._random.choice(self._items) if chance < 0.95 else f"unknown {int(chance * 1e6)}"
        event = {"user_id": self._user(), "item_id": item, "type": "view"}
        return event | ({"event_id": f"e{self._random.getrandbits(24)}"} if chance < 0.5 else {})

    def _event(self) -> Asked:
        return _post("events", "/events", self._one_event())

    def _events(self) -> Asked:
        return _post("events, bulk", "/events", {"events": [self._one_event() for _ in range(20)]})

    def _history(self) -> Asked:
        return _get("history", f"/users/{quote(self._user(), safe='')}/history")

    def _page(self) -> Asked:
        return _get("items", f"/items?limit={self._random.choice((1, 20, 200))}&cursor={self._random.randrange(1000)}")

    def _search(self) -> Asked:
        return _get("items, q", f"/items?q={quote(self._random.choice(('red', 'blue mug', 'nothing', 'é')))}")

    def _item(self) -> Asked:
        return _get("item", f"/items/{quote(self._random.choice(self._items), safe='')}")

    def _image(self) -> Asked:
        return _get("image", f"/items/{quote(self._random.choice(self._items), safe='')}/image")

    def _profile(self) -> Asked:
        return _get("profile", f"/users/{quote(self._user(), safe='')}/profile")

    def _samples(self) -> Asked:
        return _get("samples", "/users/samples")

    def _operations(self) -> Asked:
        return _get("operations", self._random.choice(("/livez", "/readyz", "/metrics", "/bundle", "/openapi.json")))

    def _erase(self) -> Asked:
        return Asked("erase", _request("DELETE", f"/users/{quote(self._user(), safe='')}"))

    def _hide(self) -> Asked:
        body = json.dumps({"available": self._random.random() < 0.5}).encode()
        path = f"/items/{quote(self._random.choice(self._items[:50]), safe='')}/availability"
        return Asked("availability", _request("PUT", path, body, f"X-API-Key: {self._admin_key}\r\n"))

    def _batch(self) -> Asked:
        members = [self._random.choice((self._options(), {"k": 0}, {"user_id": self._user()})) for _ in range(8)]
        return _post("batch", "/recommend/batch", {"requests": members})

    def _bad(self) -> Asked:
        body = self._random.choice(
            (
                b"{",
                b"[]",
                b"\xff\xfe",
                b'{"user_id": 7}',
                b'{"items": ["i"], "k": 100000}',
                b'{"items": ["i"], "filter": {"must": [{"field": "nothing", "eq": 1}]}}',
                json.dumps({"items": [f"unknown {self._random.getrandbits(60)}"], "what": 1}).encode(),
                b"[" * 2_000,
                b" " * 1_100_000,
            )
        )
        return Asked("bad", _request("POST", "/recommend", body))

    def _leaving(self) -> Asked:
        asked = self._random.choice((self._with_options, self._event, self._history))()
        cut = self._random.choice((len(asked.data), self._random.randrange(1, len(asked.data))))
        return Asked("leaving", asked.data, cut)


@dataclass
class Seen:
    """Outcomes: (due time, seconds from then, status) and counts; status 0 is no answer."""

    latencies: deque[tuple[float, float]] = field(default_factory=deque)
    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    failed: list[tuple[float, str, int, str]] = field(default_factory=list)


class SoakLoad:
    """A client with a few kept connections.

    Args:
        port: of the service on this machine.
        requests: what is asked.
        rate: requests a second, at random moments (Poisson).
        seed: of the moments.
    """

    def __init__(self, port: int, requests: Requests, rate: float, seed: int) -> None:
        self._port = port
        self._requests = requests
        self._rate = rate
        self._random = random.Random(seed)
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(_MOST_CONNECTIONS)
        self.seen = Seen()

    async def run(self, until: float) -> None:
        """Send requests until a moment (`time.monotonic`), then wait for the last answers."""
        due = time.monotonic()
        running: set[asyncio.Task[None]] = set()
        while due < until:
            due += self._random.expovariate(self._rate)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(self._ask(self._requests.next(), due))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running)
        for _, _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _ask(self, asked: Asked, due: float) -> None:
        async with self._slots:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    status, body = await self._exchange(asked)
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
                status, body = 0, repr(error).encode()
        if asked.leaves is not None:
            return
        self.seen.statuses.setdefault(asked.kind, Counter())[status] += 1
        if status == 0 or status >= 500:
            self.seen.failed.append((due, asked.kind, status, body[:300].decode("latin-1")))
        elif asked.kind != "bad":
            self.seen.latencies.append((due, time.monotonic() - due))

    async def _exchange(self, asked: Asked) -> tuple[int, bytes]:
        if asked.leaves is not None:
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(asked.data[: asked.leaves])
            await asyncio.sleep(0.002)
            writer.transport.abort()
            return 0, b""
        reader, writer = connection = await self._connection()
        try:
            writer.write(asked.data)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            at = head.find(b"content-length:")
            body = await reader.readexactly(int(head[at + 15 : head.index(b"\r", at)])) if at >= 0 else b""
        except BaseException:
            writer.transport.abort()
            raise
        if b"connection: close" in head:
            writer.close()
        else:
            self._idle.append((time.monotonic(), *connection))
        return int(head[9:12]), body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A recently used connection, which the server has not closed as idle, or a new one."""
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < _IDLE_S and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)


def _post(kind: str, path: str, body: dict[str, Any]) -> Asked:
    return Asked(kind, _request("POST", path, json.dumps(body).encode()))


def _get(kind: str, path: str) -> Asked:
    return Asked(kind, _request("GET", path))


def _request(method: str, path: str, body: bytes = b"", header: str = "") -> bytes:
    kind = "Content-Type: application/json\r\n" if body else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: soak\r\n{kind}{header}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
