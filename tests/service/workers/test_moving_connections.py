"""A connection that is to move to another worker moves between two requests: none that has arrived is lost."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import pytest
import uvloop
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from service.http.admission import Admission
from service.http.config import GuardedConfig
from service.http.connections import ConnectionLimits, Connections
from service.workers.handover import Handover, PassingProtocol
from tests.support.wire import echo

FIRST = b"POST /first HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\none"
SECOND = b"POST /second HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
THIRD = b"GET /third HTTP/1.1\r\nhost: x\r\n\r\n"
BODIES = [b"POST /first one", b"POST /second two", b"GET /third "]
Meanwhile = Callable[[socket.socket], Awaitable[None]]


class TooMany:
    """Stands in for the handover of a worker that has too many connections all the time."""

    def count(self, mine: int) -> None:
        pass

    def moves_one(self, mine: int, now: float) -> bool:
        return True


async def turns() -> None:
    """Let the server read what has arrived, and answer it."""
    for _ in range(6):
        await asyncio.sleep(0)


def answers_of(received: bytes) -> list[tuple[bytes, bool]]:
    """The body of each answer, and whether it announces the end of the connection."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append((rest[:length], b"connection: close" in head))
        received = rest[length:]
    return found


def exchanged(*parts: bytes, later: bytes = b"", meanwhile: Meanwhile | None = None) -> list[tuple[bytes, bool]]:
    """The answers of a server that ends the connection, see :func:`answers_of`.

    Args:
        *parts: each is sent when the server has read the one before. None of the requests is answered before all of
            them are sent, the last perhaps not read yet.
        later: sent when the first answer has arrived.
        meanwhile: gets the client's socket when the head of the first response has been made.
    """

    async def exchange() -> bytes:
        sent, loop = asyncio.Event(), asyncio.get_running_loop()

        async def held_back(scope: Scope, receive: Receive, send: Send) -> None:
            async def passed_on(message: Message) -> None:
                await send(message)
                if message["type"] == "http.response.start" and meanwhile is not None and scope["path"] == "/first":
                    await meanwhile(client)

            await sent.wait()
            await echo(scope, receive, passed_on)

        connections = Connections(ConnectionLimits(connections=9, request_s=60.0), retry_after_s=1)
        config = GuardedConfig(
            held_back, connections, Admission(9), ws="none", log_config=None, access_log=False, lifespan="off"
        )
        config.load()
        handover = cast("Handover", TooMany())
        made: Any = partial(
            PassingProtocol, handover, False, config=config, server_state=ServerState(), app_state={}, _loop=loop
        )
        client, server = socket.socketpair()
        for end in (client, server):
            end.setblocking(False)
        with client:
            await loop.connect_accepted_socket(made, server)
            for part in parts:
                await turns()
                client.sendall(part)
            sent.set()
            received = await loop.sock_recv(client, 65_536)
            client.sendall(later)
            while more := await loop.sock_recv(client, 65_536):
                received += more
        return received

    return answers_of(uvloop.run(exchange()))


@pytest.mark.parametrize("parts", [(FIRST, SECOND), (FIRST, SECOND, THIRD)], ids=["two", "three"])
def test_pipelined_requests_are_all_answered_wherever_they_are_cut(parts: tuple[bytes, ...]) -> None:
    whole = b"".join(parts)
    expected = [(body, number == len(parts)) for number, body in enumerate(BODIES[: len(parts)], 1)]
    assert exchanged(whole) == expected
    cuts = {cut: exchanged(whole[:cut], whole[cut:]) for cut in range(1, len(whole))}
    assert [cut for cut, answers in cuts.items() if answers != expected] == []


def test_a_request_that_has_begun_to_arrive_is_waited_for() -> None:
    expected = [(BODIES[0], False), (BODIES[1], True)]
    cuts = {cut: exchanged(FIRST + SECOND[:cut], later=SECOND[cut:]) for cut in range(1, len(SECOND))}
    assert [cut for cut, answers in cuts.items() if answers != expected] == []


def test_a_single_request_is_answered_and_the_connection_ends() -> None:
    assert exchanged(FIRST) == [(BODIES[0], True)]


def test_a_request_that_comes_after_the_announcement_is_not_begun() -> None:
    async def send_second(client: socket.socket) -> None:
        client.sendall(SECOND)
        await turns()

    assert exchanged(FIRST, meanwhile=send_second) == [(BODIES[0], True)]  # RFC 9112, 9.6
