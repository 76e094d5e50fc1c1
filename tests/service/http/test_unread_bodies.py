"""A request that is answered before its body arrived keeps its connection for seconds and a few MiB, not for longer."""

import contextlib
import time
from dataclasses import replace

import pytest

from service.http.admission import Admission
from service.http.connections import ConnectionLimits
from tests.service.http.test_overload import filled
from tests.support.shops import eventually
from tests.support.sockets import GET, Client, post, running

LIMITS = ConnectionLimits(connections=64, request_s=30.0, linger_s=0.3, rest_s=0.5, rest_bytes=1_000_000)
PATIENT = replace(LIMITS, linger_s=60.0, rest_s=60.0)  # where it is about bytes
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: text/plain\r\n"
HUGE = HEAD + b"content-length: 100000000000\r\n\r\n"
LARGE = HEAD + b"content-length: 900000\r\n\r\n"  # within the bound
MOST = 20_000_000  # of them most are in the buffers of both sockets
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\nffffff\r\n"
EXPECTING = HEAD + b"content-length: 900000\r\nexpect: 100-continue\r\n\r\n"


def sent_until_blocked(client: Client, most: int) -> int:
    """How many bytes a client can send before the server takes no more for half a second; at most so many."""
    client.socket.settimeout(0.5)
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            sent += client.socket.send(b"x" * 100_000)
    client.socket.settimeout(60)
    return sent


@pytest.mark.parametrize("request_head", [HUGE, EXPECTING])
def test_a_refusal_of_a_body_that_is_not_read_ends_the_connection(request_head: bytes) -> None:
    with running(LIMITS) as server:
        client = server.open(request_head)
        status, headers, _ = client.answer()
        assert (status, headers["connection"]) == (415, "close")
        begun = time.monotonic()
        assert client.is_closed()  # for writing; it still reads
        assert time.monotonic() - begun < 5.0
        eventually(lambda: len(server.connections) == 0, 10.0)


@pytest.mark.parametrize("request_head", [HUGE, CHUNKED])
def test_a_refused_client_sends_a_few_megabytes_in_vain(request_head: bytes) -> None:
    with running(PATIENT) as server:
        client = server.open(request_head)
        assert client.answer()[0] == 415
        assert sent_until_blocked(client, 1 << 30) < MOST


def test_a_small_body_may_arrive_after_its_refusal_and_the_connection_stays() -> None:
    with running(PATIENT) as server:
        client = server.open(LARGE)
        status, headers, _ = client.answer()
        assert (status, "connection" in headers) == (415, False)
        assert client.send(b"x" * 900_000 + GET).answer()[0] == 200
        for _ in range(3):  # each has the whole of the bound
            assert client.send(LARGE).answer()[0] == 415
            assert client.send(b"x" * 900_000 + GET).answer()[0] == 200
        assert client.send(HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n").answer()[0] == 415
        assert client.send(GET).answer()[0] == 200


def test_a_body_that_does_not_arrive_after_its_refusal_ends_the_connection_in_time() -> None:
    with running(LIMITS) as server:
        client = server.open(LARGE)
        assert client.answer()[0] == 415
        begun = time.monotonic()
        client.send(b"x")
        assert client.is_closed()
        assert 0.3 < time.monotonic() - begun < 5.0
        eventually(lambda: len(server.connections) == 0, 10.0)
        assert server.drops == {"body": 1}


def test_a_body_behind_an_answer_is_bounded_too() -> None:
    """Any early answer: the body of a GET, and the refusal of one request too many."""
    get = b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000000\r\n\r\n"
    with running(PATIENT) as server:
        client = server.open(get)
        assert client.answer()[0] == 200
        assert sent_until_blocked(client, 1 << 30) < MOST
    admission = Admission(3)
    with running(PATIENT, admission=admission) as server:
        client = server.open(GET)
        assert client.answer()[0] == 200
        filled(server, admission)
        for sender in (client, server.open()):  # refused by its head, and as a request
            status, headers, _ = sender.send(HUGE).answer()
            assert (status, headers["connection"]) == (429, "close")
            assert sent_until_blocked(sender, 1 << 30) < MOST


def test_requests_before_a_refused_body_get_their_answers() -> None:
    with running(LIMITS) as server:
        client = server.open(GET.replace(b"/", b"/slow", 1) + post(b"[1]") + HUGE + b"x" * 200_000)
        time.sleep(1.5)  # longer than the rest of a body may take
        server.released.set()
        answers = [client.answer() for _ in range(3)]
        assert [answer[0] for answer in answers] == [200, 200, 415]
        assert ["connection" in answer[1] for answer in answers] == [False, False, True]
        assert client.is_closed()


def test_a_client_that_closes_after_its_request_reads_the_refusal_when_its_body_is_sent() -> None:
    with running(replace(PATIENT, rest_s=5.0)) as server:
        client = server.open(LARGE.replace(b"host: x", b"host: x\r\nconnection: close"))
        eventually(lambda: any(held.cycle and held.cycle.response_complete for held in tuple(server.connections._open)))  # type: ignore[attr-defined]
        for _ in range(9):
            client.send(b"x" * 100_000)
            time.sleep(0.02)
        assert client.answer()[0] == 415
        client.close()


def test_the_rest_of_a_request_that_is_no_http_is_bounded_too() -> None:
    with running(PATIENT) as server:
        client = server.open(b"HELLO\r\n\r\n")
        assert client.answer()[0] == 400
        assert sent_until_blocked(client, 1 << 30) < MOST
