"""No upgrade is taken: the body behind such a head is read as a body (RFC 9110, 7.8)."""

import asyncio
import json
import socket
import time

import pytest

from service.http.connections import ConnectionLimits
from tests.support.sockets import GET, Client, post, running
from tests.support.wire import Wires

LIMITS = ConnectionLimits(connections=500, request_s=5.0)
HIDDEN = b"GET /victim HTTP/1.1\r\nHost: x\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"5\r\nGET /\r\n%x;a=b\r\n%b\r\n0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n" % (len(HIDDEN), HIDDEN)

ASKED = {
    "h2c": b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "websocket": b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\n",
    "curl": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
    "keep-alive": b"connection: keep-alive, UPGRADE\r\nUPGRADE: TLS/1.2, other\r\n",
    "several": b"Upgrade: h2c\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nConnection: upgrade\r\nUpgrade:\r\n",
}
WITH_BODY = {
    "length": (b"Content-Length: %d\r\n\r\n%b" % (len(HIDDEN), HIDDEN), HIDDEN),
    "chunked": (b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED, b"GET /" + HIDDEN),
}


def cuts(sent: bytes) -> list[list[bytes]]:
    """What is sent cut in two at every byte, in one piece, and in single bytes."""
    in_two = [[sent[:place], sent[place:]] for place in range(1, len(sent))]
    return [*in_two, [sent], [sent[place : place + 1] for place in range(len(sent))]]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("framing", WITH_BODY)
def test_the_body_is_a_body_however_it_is_cut(asked: str, framing: str) -> None:
    rest, body = WITH_BODY[framing]
    post = b"POST /first HTTP/1.1\r\nHost: x\r\n" + ASKED[asked] + rest
    wanted = [b"POST /first " + body, b"GET /next ", b"POST /first " + body]

    async def run() -> None:
        wires = Wires()
        for segments in cuts(post + NEXT + post):
            assert await wires.answers(*segments, wanted=3) == wanted, segments

    asyncio.run(run())


@pytest.mark.parametrize("asked", ASKED)
def test_one_without_a_body_is_answered_and_what_follows_too(asked: str) -> None:
    get = b"GET /first?a=b HTTP/1.1\r\nHost: x\r\n" + ASKED[asked] + b"\r\n"

    async def run() -> None:
        wires = Wires()
        for segments in cuts(get + get + NEXT):
            assert await wires.answers(*segments, wanted=3) == [b"GET /first ", b"GET /first ", b"GET /next "], segments

    asyncio.run(run())


def test_http_1_0_and_a_last_request_end_the_connection() -> None:
    async def run() -> None:
        wires = Wires()
        for line, connection in ((b"HTTP/1.0", b"Upgrade"), (b"HTTP/1.1", b"close, Upgrade")):
            head = b"POST /a %b\r\nHost: x\r\nUpgrade: h2c\r\nConnection: %b\r\n" % (line, connection)
            sent = head + b"Content-Length: 3\r\n\r\nabc" + NEXT
            for segments in cuts(sent):
                assert await wires.answers(*segments, wanted=2) == [b"POST /a abc"], segments

    asyncio.run(run())


def test_trailers_do_not_become_headers() -> None:
    seen: list[list[bytes]] = []

    async def run() -> None:
        wires = Wires()
        inner = wires._config.loaded_app

        async def app(scope: dict[str, object], receive: object, send: object) -> None:
            await inner(scope, receive, send)
            seen.append([name for name, _ in scope["headers"]])  # type: ignore[attr-defined]

        wires._config.loaded_app = app
        head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        sent = head + b"3\r\nabc\r\n0\r\nX-API-Key: stolen\r\n\r\n"
        assert await wires.answers(sent, wanted=1) == [b"POST /a abc"]

    asyncio.run(run())
    assert seen == [[b"host", b"transfer-encoding"]]


@pytest.mark.parametrize("token", [b"h2c", b"websocket", b"anything"])
def test_on_a_socket_one_answer_comes_and_the_next_request_gets_its_own(token: bytes) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: %b\r\n"
    with running(LIMITS) as server:
        client = server.open((head + b"Content-Length: %d\r\n\r\n") % (token, len(HIDDEN)))
        time.sleep(0.1)
        assert not client.is_closed(0.1)  # nothing is answered yet: the body is not here
        client.send(HIDDEN)
        status, _, body = client.answer()
        assert (status, json.loads(body)["type"]) == (400, "urn:vlm2rec:problem:malformed-json")
        assert client.send(GET).answer()[2] == b"x" * 10
        client.send((head + b"Content-Length: 3\r\n\r\n[1]") % token + GET)
        assert [client.answer()[2] for _ in range(2)] == [b"[1]", b"x" * 10]


def test_a_body_that_does_not_come_behind_an_upgrade_ends_with_408() -> None:
    with running(ConnectionLimits(connections=9, request_s=0.5)) as server:
        client = server.open(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: Upgrade\r\n"
            b"Upgrade: h2c\r\nContent-Length: 9\r\n\r\n[1"
        )
        assert client.answer()[0] == 408
        assert client.is_closed()


def test_connect_is_refused_and_nothing_behind_it_is_answered() -> None:
    with running(LIMITS) as server:
        for more in (b"", b"Content-Length: 5\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"):
            client = server.open(b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n" + more + b"\r\n" + GET)
            status, headers, body = client.answer()
            assert (status, headers["connection"]) == (501, "close")
            assert json.loads(body)["detail"] == "CONNECT is not implemented: this is not a proxy"
            assert client.is_closed()


def test_a_client_that_sends_no_more_gets_its_answers() -> None:
    with running(LIMITS) as server:
        for sent, answers in ((GET, 1), (GET * 3, 3), (GET + GET[:20], 1)):
            client = server.open(sent.replace(b"/", b"/slow", 1))
            client.socket.shutdown(socket.SHUT_WR)
            assert not client.is_closed(0.1)
            server.released.set()
            assert [client.answer()[0] for _ in range(answers)] == [200] * answers
            assert client.is_closed()
            server.released.clear()


@pytest.mark.parametrize("sent", [b"", GET[:20], post(b"[1", length=9)])
def test_a_client_that_sends_no_more_in_the_middle_is_closed(sent: bytes) -> None:
    with running(LIMITS) as server:
        client: Client = server.open(sent)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.is_closed()
