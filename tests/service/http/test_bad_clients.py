"""Slow, silent, greedy and broken clients never block a real server or its other clients."""

import contextlib
import json
import threading
import time
from dataclasses import replace
from typing import Any

import psutil
import pytest

from service.http.connections import ConnectionLimits
from tests.support.shops import eventually
from tests.support.sockets import BIG_ANSWER, GET, Client, Running, post, regular, running

LIMITS = ConnectionLimits(connections=500, request_s=0.5, crowded_s=0.3, linger_s=0.3)

PATIENT = replace(LIMITS, request_s=60)  # where it is not about being late

CHUNKED = (
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\n1\r\n"
)


def problem(client: Client, status: int, name: str) -> dict[str, Any]:
    """Check that a client gets a problem and that its connection is then closed; the problem."""
    got, headers, body = client.answer()
    assert (got, headers["connection"]) == (status, "close")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-type"] == "application/problem+json"
    details: dict[str, Any] = json.loads(body)
    assert details["type"] == f"urn:vlm2rec:problem:{name}"
    assert details["request_id"] == headers["x-request-id"]
    assert client.is_closed()
    return details | {"retry-after": headers.get("retry-after")}


def trickle(client: Client, data: bytes, seconds: float = 20.0) -> None:
    """Send a byte now and then until the server has had enough."""
    until = time.monotonic() + seconds
    try:
        for place in range(len(data)):
            client.send(data[place : place + 1])
            time.sleep(0.05)
            assert time.monotonic() < until, "nobody minds"
            client.socket.setblocking(False)
            try:
                if client.socket.recv(1, 2) is not None:  # 2: peek
                    return
            except BlockingIOError:
                pass
            finally:
                client.socket.setblocking(True)
    except OSError:
        return
    pytest.fail("all of it was taken")


def test_silence_ends() -> None:
    with running(LIMITS) as server, regular(server.port):
        silent = [server.open() for _ in range(200)]
        assert all(client.is_closed() for client in silent)
        eventually(lambda: len(server.connections) <= 1)
        eventually(lambda: server.drops == {"late": 200})


def test_a_head_that_trickles_in_ends_with_408() -> None:
    with running(LIMITS) as server, regular(server.port):
        slow = [server.open(b"GET / HTTP/1.1\r\nhost: x\r\n") for _ in range(100)]
        trickle(slow[0], b"x-a: " + b"a" * 1000)
        for client in slow:
            problem(client, 408, "request-late")
        eventually(lambda: server.drops == {"late": 100})


def test_the_second_request_on_a_connection_has_no_more_time_than_the_first() -> None:
    with running(LIMITS) as server:
        client = server.open(GET)
        assert client.answer()[0] == 200
        trickle(client, b"GET / HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 1000)
        problem(client, 408, "request-late")


def test_blank_lines_do_not_keep_a_connection() -> None:
    with running(LIMITS) as server:
        client = server.open(GET)
        assert client.answer()[0] == 200
        trickle(client, b"\r\n" * 1000)
        assert client.is_closed()
        eventually(lambda: server.drops == {"late": 1})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_trickles_in_ends_with_408(chunked: bool) -> None:
    with running(LIMITS) as server, regular(server.port):
        slow = [server.open(CHUNKED if chunked else post(b"1", 1000)) for _ in range(100)]
        trickle(slow[0], b"1\r\n1\r\n" * 500 if chunked else b" " * 900)
        problems = [problem(client, 408, "request-late") for client in slow]
        assert problems[1]["detail"] == (
            f"the body must arrive sooner; of {'unknown' if chunked else 1000} bytes 1 came in time"
        )
        eventually(lambda: server.drops == {"late": 100})


def test_a_body_for_an_answer_that_was_given_ends() -> None:
    with running(LIMITS) as server:
        client = server.open(b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n")
        assert client.answer()[0] == 200
        trickle(client, b" " * 1000)
        assert client.is_closed()
        eventually(lambda: server.drops == {"late": 1})


def test_idle_connections_stay_as_long_as_they_may_and_no_longer() -> None:
    with running(LIMITS, keep_alive_s=60) as server:
        client = server.open(GET)
        assert client.answer()[0] == 200
        assert not client.is_closed(1.2)  # more than twice as long as a request may take
        assert client.send(GET).answer()[0] == 200
        assert not server.drops
    with running(LIMITS, keep_alive_s=1) as server:
        client = server.open(GET)
        assert client.answer()[0] == 200
        assert client.is_closed()
        assert not server.drops


@pytest.mark.parametrize("path", [b"/big", b"/"])
def test_unread_responses_end_the_connection(path: bytes) -> None:
    with running(LIMITS) as server, regular(server.port):
        request = GET.replace(b"/", path, 1)
        not_reading = [server.open(request) for _ in range(5)]
        for client in not_reading:
            client.socket.settimeout(0.1)
            for _ in range(2000):
                try:
                    client.send(request * 10)
                except OSError:
                    break
                if server.drops["stalled"] + server.drops["pipeline"] >= 5:
                    break
        eventually(lambda: len(server.connections) <= 1)
        assert set(server.drops) <= {"stalled", "pipeline"}


def test_a_reader_who_takes_his_time_within_reason_gets_it_all() -> None:
    with running(ConnectionLimits(connections=9, request_s=30)) as server:
        client = server.open(GET.replace(b"/", b"/big", 1))
        time.sleep(1.0)
        status, _, body = client.answer()
        assert (status, len(body)) == (200, BIG_ANSWER)


@pytest.mark.parametrize(
    "start",
    [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nx", GET + b"GET /"],
    ids=["address", "value", "name", "second"],
)
def test_a_head_without_end_is_refused(start: bytes) -> None:
    with running(PATIENT) as server:
        client = server.open(start)
        if start.startswith(GET):
            assert client.answer()[0] == 200
        client.send(b"a" * 70_000)
        assert problem(client, 431, "head-too-large")["detail"].startswith(
            "address and headers must have at most 65536"
        )
        eventually(lambda: server.drops == {"head": 1})


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_head_over_the_limit_is_refused_however_it_comes(pieces: int) -> None:
    lines = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 1000) for number in range(70))
    head = b"GET / HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n"
    with running(PATIENT) as server:
        client, step = server.open(), len(head) // pieces + 1
        for start in range(0, len(head), step):
            client.send(head[start : start + step])
            time.sleep(0.02)
        problem(client, 431, "head-too-large")


def test_a_head_within_the_limit_is_fine_also_with_its_body_behind_it() -> None:
    head = b"POST / HTTP/1.1\r\nx-a: " + b"a" * 60_000
    with running(PATIENT) as server:
        client = server.open(head + post(b"1".ljust(90_000)).removeprefix(b"POST / HTTP/1.1"))
        assert client.answer()[2] == b"1"


def test_a_body_over_the_limit_for_heads_is_fine_however_it_comes() -> None:
    sent = post(b"1".ljust(99_000))
    with running(ConnectionLimits(connections=9, request_s=10)) as server:
        client = server.open()
        for start in range(0, len(sent), 9000):
            client.send(sent[start : start + 9000])
            time.sleep(0.02)
        assert client.answer()[2] == b"1"


def test_endless_trailers_are_refused() -> None:
    with running(PATIENT) as server:
        client = server.open(CHUNKED, b"0\r\nx-trailer: " + b"a" * 600_000)
        problem(client, 431, "head-too-large")


def test_what_is_not_http_is_refused_with_the_reason() -> None:
    with running(PATIENT) as server, regular(server.port):
        problem(server.open(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), 400, "not-http")
        problem(server.open(b"HELLO\r\n\r\n"), 400, "not-http")
        eventually(lambda: server.drops == {"malformed": 2})


def test_a_refusal_is_read_also_by_a_client_that_talks_on_and_stays() -> None:
    with running(replace(PATIENT, linger_s=2)) as server:
        client = server.open(b"HELLO\r\n\r\n")
        eventually(lambda: server.drops["malformed"])
        client.send(b"x" * 100_000)
        assert client.answer()[0] == 400
        eventually(lambda: len(server.connections) == 0)  # though the client did not close


@pytest.mark.parametrize("pipelined", [b"", GET])
def test_garbage_behind_requests_ends_the_connection_after_their_answers(
    caplog: pytest.LogCaptureFixture, pipelined: bytes
) -> None:
    with running(PATIENT) as server:
        client = server.open(GET.replace(b"/", b"/slow", 1) + pipelined + b"HELLO\r\n\r\n")
        eventually(lambda: server.drops["malformed"])
        server.released.set()
        assert [client.answer()[0] for _ in range(2 if pipelined else 1)] == [200] * (2 if pipelined else 1)
        assert client.is_closed()
        eventually(lambda: len(server.connections) == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_pipelined_requests_of_a_closed_connection_do_not_pile_up() -> None:
    with running(PATIENT) as server, regular(server.port):
        client = server.open(GET * 1000)
        for _ in range(LIMITS.pipelined + 1):
            assert client.answer()[0] == 200
        assert client.is_closed()
        eventually(lambda: server.drops == {"pipeline": 1})


def test_a_few_requests_at_once_are_answered_in_order() -> None:
    with running(PATIENT) as server:
        bodies = [str(number).encode() for number in range(LIMITS.pipelined)]
        client = server.open(b"".join(post(body) for body in bodies))
        assert [client.answer()[2] for _ in bodies] == bodies
        assert client.send(GET).answer()[0] == 200


def test_nothing_is_read_while_requests_wait_their_turn() -> None:
    with running(PATIENT) as server:
        client = server.open(GET.replace(b"/", b"/slow", 1) + GET + post(b"", 100_000_000))
        client.socket.settimeout(0.2)
        sent, until = 0, time.monotonic() + 0.3
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                sent += client.socket.send(b"x" * 100_000)
        assert sent < 20_000_000  # what the buffers of both sockets hold
        server.released.set()
        assert [client.answer()[0] for _ in range(3)] == [200, 200, 413]


def test_bodies_do_not_pile_up_behind_requests_that_are_answered_one_by_one() -> None:
    def waiting(server: Running) -> int:
        return sum(len(cycle.body) for held in server.connections._open for cycle, _ in held.pipeline)

    with running(ConnectionLimits(connections=9, request_s=10)) as server:
        client = server.open(GET.replace(b"/", b"/step", 1) * 12)
        eventually(lambda: len(server.connections) == 1)
        sender = threading.Thread(target=client.send, args=(post(b"1".ljust(95_000)) * 12,))
        sender.start()
        for answered in range(1, 9):
            server.steps.release()
            assert client.answer()[0] == 200
            time.sleep(0.03)
            assert waiting(server) < 600_000, answered
        server.steps.release(100)
        assert [client.answer()[0] for _ in range(16)] == [200] * 16
        sender.join(20)


def test_a_hundred_clients_with_big_bodies_hold_no_memory() -> None:
    with running(ConnectionLimits(500, 60.0), bodies=1_000_000) as server, regular(server.port):
        begun = psutil.Process().memory_info().rss
        big = [server.open(post(b" " * 60_000, 64_000_000)) for _ in range(50)]
        big += [server.open(post(b" " * 60_000, 90_000)) for _ in range(50)]
        for client in big[:50]:
            client.socket.setblocking(False)
        statuses = [client.answer()[0] for client in big[80:]]  # there was room for 16 of the fifty
        assert set(statuses) == {503}
        assert psutil.Process().memory_info().rss - begun < 64_000_000
        for client in big:
            client.close()
        eventually(lambda: len(server.connections) <= 1)
        assert server.open(post(b"1".ljust(90_000))).answer()[2] == b"1"  # all of the room is back
