"""The head of an answer goes out with its body, and never gets lost or late for want of one."""

import asyncio
from collections.abc import Callable

import pytest

from service.http.answer_writer import AnswerWriter


class Recorded(asyncio.Transport):
    """A transport that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes | str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.told.append(bytes(data))

    def close(self) -> None:
        self.told.append("close")

    def is_closing(self) -> bool:
        return "close" in self.told


@pytest.fixture
def transport() -> Recorded:
    return Recorded()


def test_head_and_body_are_one_write(transport: Recorded) -> None:
    answer = AnswerWriter(transport, transport.close)
    answer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert transport.told == []
    answer.write(b"body")
    answer.write(b"more")
    answer.flush()
    assert transport.told == [b"HTTP/1.1 200 OK\r\n\r\nbody", b"more"]


@pytest.mark.parametrize(
    ("end", "told"),
    [(AnswerWriter.flush, [b"HTTP/1.1 204 \r\n\r\n"]), (AnswerWriter.close, [b"HTTP/1.1 204 \r\n\r\n", "close"])],
)
def test_a_head_without_a_body_goes_out_at_the_end(
    transport: Recorded, end: Callable[[AnswerWriter], None], told: list[bytes | str]
) -> None:
    answer = AnswerWriter(transport, transport.close)
    answer.write(b"HTTP/1.1 204 \r\n\r\n")
    end(answer)
    assert transport.told == told
    answer.flush()
    assert transport.told == told


def test_whoever_waits_for_100_continue_gets_it_at_once(transport: Recorded) -> None:
    answer = AnswerWriter(transport, transport.close)
    answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.told == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    answer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert len(transport.told) == 1
    answer.write(b"body")
    assert transport.told[1:] == [b"HTTP/1.1 200 OK\r\n\r\nbody"]


def test_it_says_whether_the_connection_is_closed(transport: Recorded) -> None:
    answer = AnswerWriter(transport, transport.close)
    assert not answer.is_closing()
    transport.close()
    assert answer.is_closing()
