"""Several workers under load: swaps mix no answer, and killed workers lose no acknowledged event."""

import http.client
import json
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.load.swap import Server, expected, mixed, point_to, prepare_swaps, store_histories
from tests.service.bundles.test_swap_under_load import asking
from tests.service.http.test_graceful_shutdown import stored
from tests.service.workers.test_supervisor import workers_of
from tests.support.processes.service_process import Service
from tests.support.shops import eventually

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="several workers need Linux"),
]


def test_no_answer_mixes_two_bundles_while_the_workers_swap(day_bundles: list[Path], tmp_path: Path) -> None:
    setup = prepare_swaps(tmp_path, day_bundles[:3], histories=32)
    server = Server(setup.registry, tmp_path, VLM2REC_POLL_MS="50", workers=2)
    try:
        store_histories(server, setup)
        with asking(server, setup) as answers:
            for bundle_id in [bundle_id for kind, bundle_id in setup.swaps if kind == "good"]:
                marker = f'"bundle":"{bundle_id}"'.encode()
                point_to(setup.registry, bundle_id)
                eventually(lambda marker=marker: all(marker in answer.body for answer in answers[-24:]), 60)
    finally:
        server.end()
    assert len(answers) > 72
    assert mixed(answers, expected(setup)) == []


class EventClient(threading.Thread):
    """Sends one event after the other over a connection that is kept; connects again when it is lost.

    Attributes:
        acknowledged: ids of the events that were stored.
        statuses: of all answers.
        lost: requests without an answer.
    """

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._ended = threading.Event()
        self.acknowledged: list[str] = []
        self.statuses: set[int] = set()
        self.lost = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._ended.is_set():
            event_id = uuid.uuid4().hex
            body = json.dumps({"user_id": "anna", "item_id": "i1", "event_id": event_id})
            try:
                connection.request("POST", "/events", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                self.lost += 1
                connection.close()
                continue
            self.statuses.add(answer.status)
            if answer.status == 200:
                self.acknowledged.append(event_id)
        connection.close()

    def end(self) -> None:
        self._ended.set()
        self.join(60)
        assert not self.is_alive()


def all_go_on(clients: list[EventClient]) -> None:
    before = [len(client.acknowledged) for client in clients]
    eventually(lambda: all(len(c.acknowledged) > had + 20 for c, had in zip(clients, before, strict=True)), 60)


def test_killed_workers_lose_requests_in_progress_and_no_acknowledged_event(
    start: Callable[..., Service], small_registry: Path, redis_url: str
) -> None:
    prefix = f"test-deaths-{os.getpid()}"
    service = start(
        *("--registry", str(small_registry), "--redis", redis_url, "--workers", "2"),
        VLM2REC_REDIS_PREFIX=prefix,
        VLM2REC_EVENT_IDS_CAP="100000",
        VLM2REC_REDIS_TIMEOUT_MS="5000",
    )
    clients = [EventClient(service.port) for _ in range(4)]
    for client in clients:
        client.start()
    for victim in workers_of(service):
        all_go_on(clients)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda victim=victim: victim not in workers_of(service) and len(workers_of(service)) == 2)
    all_go_on(clients)
    for client in clients:
        client.end()
    assert {status for client in clients for status in client.statuses} == {200}
    assert 1 <= sum(client.lost for client in clients) <= 2 * len(clients)  # a client has one request in progress
    assert {event_id for client in clients for event_id in client.acknowledged} <= stored(redis_url, prefix)
