"""Beyond the bound on connections slow and idle ones are closed, and further ones are refused with Retry-After."""

import json
import time
from dataclasses import replace

import pytest

from service.http.admission import Admission
from service.http.connections import ConnectionLimits
from tests.support.shops import eventually
from tests.support.sockets import GET, Client, post, regular, running

LIMITS = ConnectionLimits(connections=20, request_s=30, spare=5, crowded_s=0.3, linger_s=0.3)
SLOW = GET.replace(b"/", b"/slow", 1)


def is_refused_with_retry_after(client: Client) -> None:
    status, headers, body = client.answer()
    assert (status, headers["retry-after"], headers["connection"]) == (503, "7", "close")
    assert json.loads(body)["type"] == "urn:vlm2rec:problem:crowded"
    assert headers["x-request-id"]
    assert client.is_closed()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nx-a: ", post(b"1", 50)], ids=["silent", "head", "body"])
def test_slow_clients_give_way_to_a_regular_one(sent: bytes) -> None:
    with running(LIMITS) as server:
        slow = [server.open(sent) for _ in range(LIMITS.connections)]
        time.sleep(LIMITS.crowded_s + 0.1)
        with regular(server.port) as took:
            for _ in range(5):  # those who come again and again do not keep it out either
                time.sleep(LIMITS.crowded_s)
                slow += [server.open(sent) for _ in range(LIMITS.connections // 4)]
            eventually(lambda: len(took) > 5)
        assert server.drops["crowded"] >= LIMITS.connections
        assert set(server.drops) == {"crowded"}


def test_an_idle_connection_gives_way() -> None:
    with running(LIMITS, keep_alive_s=60) as server:
        idle = [server.open(GET) for _ in range(LIMITS.connections)]
        assert [client.answer()[0] for client in idle] == [200] * LIMITS.connections
        assert not idle[0].is_closed(LIMITS.crowded_s + 0.1)
        assert server.open(GET).answer()[0] == 200
        assert all(client.is_closed() for client in idle)


def test_busy_connections_stay_and_one_more_is_refused_with_retry_after() -> None:
    admission = Admission(10_000)
    with running(LIMITS, keep_alive_s=60, admission=admission) as server:
        busy = [server.open(SLOW) for _ in range(LIMITS.connections)]
        eventually(lambda: admission.in_progress == LIMITS.connections)
        is_refused_with_retry_after(server.open(GET))
        is_refused_with_retry_after(server.open(post(b"1")))
        is_refused_with_retry_after(server.open(post(b" " * 90_000)))
        server.released.set()
        assert [client.answer()[0] for client in busy] == [200] * LIMITS.connections
        assert busy[0].send(GET).answer()[0] == 200
        eventually(lambda: server.drops == {"crowded": 3})


@pytest.mark.parametrize("path", [b"/livez", b"/readyz", b"/metrics"])
def test_health_checks_are_answered_all_the_same(path: bytes) -> None:
    admission = Admission(10_000)
    with running(LIMITS, admission=admission) as server:
        busy = [server.open(SLOW) for _ in range(LIMITS.connections)]
        eventually(lambda: admission.in_progress == LIMITS.connections)
        checked = server.open(GET.replace(b"/", path, 1))
        status, headers, _ = checked.answer()
        assert (status, headers["connection"]) == (200, "close")
        server.released.set()
        assert [client.answer()[0] for client in busy] == [200] * LIMITS.connections


def test_connections_far_beyond_the_bound_are_refused_at_once() -> None:
    admission = Admission(10_000)
    with running(replace(LIMITS, crowded_s=60), admission=admission) as server:  # nobody gives way
        busy = [server.open(SLOW) for _ in range(LIMITS.connections)]
        eventually(lambda: admission.in_progress == LIMITS.connections)
        waiting = [server.open() for _ in range(LIMITS.spare)]
        eventually(lambda: len(server.connections) == LIMITS.connections + LIMITS.spare)
        for _ in range(50):
            is_refused_with_retry_after(server.open())
        assert not waiting[0].is_closed(0.0)
        server.released.set()
        assert [client.answer()[0] for client in busy] == [200] * LIMITS.connections
        for client in (*busy, *waiting):
            client.close()
        eventually(lambda: len(server.connections) == 0)
        assert server.open(GET).answer()[0] == 200
