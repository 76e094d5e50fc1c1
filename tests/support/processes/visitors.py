"""Visitors who send events until they are acknowledged, and know what must then be stored and counted.

Each purchase of a user has a power of four as its value, in thousandths. So the digits of the user's revenue to base 4
say how often each purchase was counted.
"""

import http.client
import json
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from service.stores.protocols import session_owner

MOST_PURCHASES = 20
"""Purchases of a user with a digit of their own; the values stay below the largest that is accepted."""

_K = 6
_PATIENCE_S = 60.0
_PAUSE_S = 0.02
_FIRST_TIMESTAMP = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Purchase:
    """A purchase of an item that was shown in an answer of an arm.

    Attributes:
        user: who bought.
        digit: exponent of its value.
        asked_at: monotonic seconds before the request of the answer.
        acknowledged_at: monotonic seconds.
        same_connection: whether the answer and the event came over one connection, so from one process.
    """

    user: str
    digit: int
    asked_at: float
    acknowledged_at: float
    same_connection: bool


class Visitor(threading.Thread):
    """A client of the service for a few users of its own; it may be driven as a thread or visit by visit.

    Args:
        port: of the service.
        users: their ids.
        seed: of what they do.

    Attributes:
        ended: ends the thread.
        failure: what the service should not have answered.
        events: all events, as they were sent, in order; all are acknowledged once the thread has ended.
        histories: items by user in the order that the history must have.
        impressions: the same of impressions.
        owners: by event id the user id that the export must have.
        purchases: those in arms.
        pairs: by user and measure the pairs of request and item that may count, once each.
        asked: requests for recommendations by user.
    """

    def __init__(self, port: int, users: Sequence[str], seed: int) -> None:
        super().__init__()
        self.ended = threading.Event()
        self.failure: Exception | None = None
        self.events: list[dict[str, Any]] = []
        self.histories: dict[str, list[str]] = defaultdict(list)
        self.impressions: dict[str, list[str]] = defaultdict(list)
        self.owners: dict[str, str] = {}
        self.purchases: list[Purchase] = []
        self.pairs: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
        self.asked: Counter[str] = Counter()
        self._users = users
        self._random = random.Random(seed)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
        self._connections = 0
        self._digits: Counter[str] = Counter()
        self._sessions = 0

    def run(self) -> None:
        """Visit until `ended` is set."""
        try:
            while not self.ended.wait(_PAUSE_S):
                self.visit()
        except Exception as error:  # noqa: BLE001 - the test that joins this thread raises it
            self.failure = error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def visit(self) -> None:
        """Ask for recommendations; then impressions, purchases, one of them repeated, and a click."""
        user = self._random.choice(self._users)
        self.asked[user] += 1
        asked_at = monotonic()
        status, answer = self._call("POST", "/recommend", {"user_id": user, "k": _K, "exclude_seen": False})
        assert status in {0, 200, 503}, answer
        connections = self._connections
        if status != 200 or "arm" not in answer:
            self._send([self._event(user, "i1", type="cart")])
            return
        shown, request = [item["item_id"] for item in answer["items"]], answer["request_id"]
        assert len(shown) == _K
        self._send([self._event(user, item, type="impression", request_id=request) for item in shown])
        for item in self._random.sample(shown, 2):
            if self._digits[user] < MOST_PURCHASES:
                digit, self._digits[user] = self._digits[user], self._digits[user] + 1
                bought = {"type": "purchase", "value": 4**digit / 1000, "request_id": request}
                self._send([self._event(user, item, **bought)])
                same = self._connections == connections
                self.purchases.append(Purchase(user, digit, asked_at, monotonic(), same))
                if self._random.random() < 0.3:
                    self._send([self._event(user, item, **bought)])
        self._send([self._event(user, self._random.choice(shown), type="click", request_id=request)])
        if self._random.random() < 0.2:
            self._visit_without_name(user, shown[:2])

    def _visit_without_name(self, user: str, items: Sequence[str]) -> None:
        """Look at items as an anonymous session and log in."""
        self._sessions += 1
        session = f"{user}-{self._sessions}"
        for item in items:
            self._send([self._event(user, item, type="cart", session_id=session)])
        self._until_done(f"/users/{user}/merge", {"session_id": session})

    def _event(self, user: str, item: str, **more: Any) -> dict[str, Any]:
        """An event of a user, or of a session that will be merged into the user."""
        number = len(self.events)
        event_id = f"{self._users[0]}-{number}"
        session = more.get("session_id")
        whose = {"user_id": user} if session is None else {}
        event = {**whose, "item_id": item, "event_id": event_id, "timestamp": _FIRST_TIMESTAMP + number, **more}
        self.events.append(event)
        self.owners[event_id] = user if session is None else session_owner(session)
        (self.impressions if event["type"] == "impression" else self.histories)[user].append(item)
        measure = {"impression": "impressions", "click": "clicks", "purchase": "conversions"}.get(event["type"])
        if measure is not None:
            self.pairs[user, measure].add((event["request_id"], item))
        return event

    def _send(self, events: list[dict[str, Any]]) -> None:
        body = events[0] if len(events) == 1 else {"events": events}
        answer = self._until_done("/events", body)
        assert answer["stored"] + answer["duplicates"] == len(events), answer

    def _until_done(self, path: str, body: Any) -> Any:
        """Repeat a request until it is answered with 200."""
        until = monotonic() + _PATIENCE_S
        while True:
            status, answer = self._call("POST", path, body)
            if status == 200:
                return answer
            assert status in {0, 503}, answer
            assert monotonic() < until, f"not acknowledged within {_PATIENCE_S:g} s: {answer}"
            threading.Event().wait(_PAUSE_S)

    def _call(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and answer; status 0 without one."""
        if self._connection.sock is None:
            self._connections += 1
        try:
            self._connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
            answer = self._connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return 0, repr(error)
