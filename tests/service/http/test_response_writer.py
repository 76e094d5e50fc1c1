"""The head of a response is sent with its body; without a body it is neither lost nor late."""

import asyncio
from collections.abc import Callable

import pytest

from service.http.response_writer import ResponseWriter


class Recorded(asyncio.Transport):
    """A transport that records every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def close(self) -> None:
        self.calls.append("close")

    def is_closing(self) -> bool:
        return "close" in self.calls


@pytest.fixture
def transport() -> Recorded:
    return Recorded()


def test_head_and_body_are_one_write(transport: Recorded) -> None:
    writer = ResponseWriter(transport, transport.close)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert transport.calls == []
    writer.write(b"body")
    writer.write(b"more")
    writer.flush()
    assert transport.calls == [b"HTTP/1.1 200 OK\r\n\r\nbody", b"more"]


@pytest.mark.parametrize(
    ("end", "calls"),
    [(ResponseWriter.flush, [b"HTTP/1.1 204 \r\n\r\n"]), (ResponseWriter.close, [b"HTTP/1.1 204 \r\n\r\n", "close"])],
)
def test_a_head_without_a_body_goes_out_at_the_end(
    transport: Recorded, end: Callable[[ResponseWriter], None], calls: list[bytes | str]
) -> None:
    writer = ResponseWriter(transport, transport.close)
    writer.write(b"HTTP/1.1 204 \r\n\r\n")
    end(writer)
    assert transport.calls == calls
    writer.flush()
    assert transport.calls == calls


def test_100_continue_is_sent_at_once(transport: Recorded) -> None:
    writer = ResponseWriter(transport, transport.close)
    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.calls == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert len(transport.calls) == 1
    writer.write(b"body")
    assert transport.calls[1:] == [b"HTTP/1.1 200 OK\r\n\r\nbody"]


def test_it_says_whether_the_connection_is_closed(transport: Recorded) -> None:
    writer = ResponseWriter(transport, transport.close)
    assert not writer.is_closing()
    transport.close()
    assert writer.is_closing()
