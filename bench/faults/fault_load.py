"""Sends recommendations and events at constant rates during the fault run and records every outcome."""

import gc
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.faults.fault_setup import FaultSetup
from bench.load.open_loop import Client, arrivals, requests_of
from index.bundle.bundle import Bundle
from index.bundle.registry import Registry
from service.stores.history_keys import BUCKETS, keys_of, stream_key

USERS = 200
_SEPARATOR = "\x1f"
_K = 20
_EVENT_PATH = "/events"
_DEGRADED = b'"degraded":"'


@dataclass(frozen=True, slots=True)
class SentEvent:
    """An event of the run, with a number and a time that no other event in Redis has."""

    user_id: str
    item_id: str
    number: int

    @property
    def event_id(self) -> str:
        """Id of the event, unique in the run."""
        return f"event-{self.number}"

    @property
    def timestamp(self) -> int:
        """Seconds; a whole number, so that it is stored as it was sent."""
        return 1_700_000_000 + self.number

    @property
    def step(self) -> str:
        """The event as the user's history stores it."""
        return f"{self.user_id} {self.item_id}{_SEPARATOR}{self.timestamp}"

    def body(self) -> dict[str, Any]:
        """The body of the request."""
        return {
            "user_id": self.user_id,
            "item_id": self.item_id,
            "event_id": self.event_id,
            "timestamp": self.timestamp,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a request.

    Attributes:
        due: perf_counter seconds.
        answered: perf_counter seconds.
        status: of the answer; 0 when the connection failed or no answer came.
        degraded: the reason that the answer gives; empty when it is whole or none.
        event: the event that was sent; None for a recommendation.
    """

    due: float
    answered: float
    status: int
    degraded: str
    event: SentEvent | None


class FaultLoad:
    """Makes requests for made users of a bundle.

    Args:
        registry: of the bundle.
        rate: recommendations a second.
        event_rate: events a second.
    """

    def __init__(self, registry: Path, rate: float, event_rate: float) -> None:
        published = Registry(registry)
        bundle = Bundle.load(published.path(str(published.current())))
        self._rng = np.random.default_rng(0)
        self._items = [bundle.ids.id(int(row)) for row in self._rng.choice(len(bundle), min(500, len(bundle)), False)]
        self._rate = rate
        self._event_rate = event_rate
        self._number = 0
        self.events: list[SentEvent] = []

    def first_histories(self) -> list[SentEvent]:
        """Ten events for every user."""
        return [self._event(f"user-{user}") for user in range(USERS) for _ in range(10)]

    def run(self, setup: FaultSetup, seconds: float, outcomes: list[Outcome]) -> "RunningLoad":
        """Offer load for a while, in a thread of its own."""
        return RunningLoad(self, setup, seconds, outcomes)

    def requests(self, seconds: float, seed: int) -> tuple[list[bytes], Any, dict[bytes, SentEvent]]:
        """Requests, their due times (seconds from the start), and the event of each event request."""
        reads, writes = arrivals(self._rate, seconds, seed), arrivals(self._event_rate, seconds, seed + 1)
        asked = [{"user_id": f"user-{user}", "k": _K} for user in self._rng.integers(USERS, size=len(reads))]
        events = [self._event(f"user-{user}") for user in self._rng.integers(USERS, size=len(writes))]
        sent = [
            *requests_of("/recommend", [json.dumps(body).encode() for body in asked]),
            *requests_of(_EVENT_PATH, [json.dumps(event.body()).encode() for event in events]),
        ]
        due = np.concatenate([reads, writes])
        order = np.argsort(due, kind="stable")
        return [sent[at] for at in order], due[order], dict(zip(sent[len(reads) :], events, strict=True))

    def _event(self, user_id: str) -> SentEvent:
        self._number += 1
        event = SentEvent(user_id, self._items[int(self._rng.integers(len(self._items)))], self._number)
        self.events.append(event)
        return event


class RunningLoad:
    """Load that a thread offers.

    Attributes:
        started: perf_counter seconds of its begin.
        events: that are among it.
    """

    def __init__(self, load: FaultLoad, setup: FaultSetup, seconds: float, outcomes: list[Outcome]) -> None:
        requests, due, self._sent = load.requests(seconds, seed=len(load.events))
        self.events = list(self._sent.values())
        self._outcomes = outcomes
        self._client = Client(setup.port, self._keep)
        self.started = time.perf_counter() + 0.1
        self._thread = threading.Thread(target=self._client.run, args=(requests, self.started + due))
        gc.disable()  # a collection would hold up the client, not the service
        self._thread.start()

    def wait_until(self, seconds: float) -> None:
        """Wait until a number of seconds after the start."""
        time.sleep(max(self.started + seconds - time.perf_counter(), 0.0))

    def join(self) -> None:
        """Wait until every request is answered or has failed."""
        self._thread.join()
        gc.enable()
        self._client.close()
        unanswered = [record[0] for record in self._client.records if record[1] == 0]
        self._outcomes += [Outcome(due, float("inf"), 0, "", None) for due in unanswered]

    def _keep(self, request: bytes, due: float, at: float, status: int, body: bytes) -> None:
        start = body.find(_DEGRADED) + len(_DEGRADED)
        reason = body[start : body.index(b'"', start)].decode() if start >= len(_DEGRADED) else ""
        self._outcomes.append(Outcome(due, at, status, reason, self._sent.get(request)))


def lost_and_doubled(setup: FaultSetup, acknowledged: Sequence[SentEvent]) -> tuple[list[SentEvent], list[str]]:
    """Acknowledged events missing in the stream or the history of Redis, and entries stored twice."""
    with setup.admin() as admin:
        streams = [admin.xrange(stream_key("vlm2rec", bucket)) for bucket in range(BUCKETS)]
        streamed = Counter(fields["event_id"] for entries in streams for _, fields in entries)
        kept: Counter[str] = Counter()
        for user in {event.user_id for event in acknowledged}:
            steps = admin.lrange(keys_of("vlm2rec", user).history, 0, -1)
            kept.update(f"{user} {step.rpartition(_SEPARATOR)[0]}" for step in steps)
    lost = [event for event in acknowledged if not streamed[event.event_id] or not kept[event.step]]
    return lost, [name for found in (streamed, kept) for name, count in found.items() if count > 1]
