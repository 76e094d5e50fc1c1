"""The head of a response is sent with its body; without a body it is neither lost nor late."""

import asyncio
from collections.abc import Callable
from time import perf_counter

import pytest

from service.http.problems import QUEUE_FULL, problem_response
from service.http.refusals import PreparedRefusal
from service.http.response_writer import ResponseWriter
from service.http.security_headers import DEFAULTS


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
    writer = ResponseWriter(transport, transport.close, bytes)
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
    writer = ResponseWriter(transport, transport.close, bytes)
    writer.write(b"HTTP/1.1 204 \r\n\r\n")
    end(writer)
    assert transport.calls == calls
    writer.flush()
    assert transport.calls == calls


def test_100_continue_is_sent_at_once(transport: Recorded) -> None:
    writer = ResponseWriter(transport, transport.close, bytes)
    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.calls == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert len(transport.calls) == 1
    writer.write(b"body")
    assert transport.calls[1:] == [b"HTTP/1.1 200 OK\r\n\r\nbody"]


def test_it_says_whether_the_connection_is_closed(transport: Recorded) -> None:
    writer = ResponseWriter(transport, transport.close, bytes)
    assert not writer.is_closing()
    transport.close()
    assert writer.is_closing()


@pytest.mark.parametrize("request_id", ["a", "0123456789abcdef0123456789abcdef", 'quo"ted \\ back', "x" * 128])
@pytest.mark.parametrize("has_body", [True, False])
def test_a_prepared_refusal_is_the_problem_with_its_request_id(request_id: str, has_body: bool) -> None:
    prepared = PreparedRefusal(QUEUE_FULL, "too many", {"Retry-After": "7"})
    prepared.to("another", began=0.0)  # one leaves no trace in the next
    head, _, body = prepared.to(request_id, began=perf_counter() - 1.5, has_body=has_body).partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    whole = problem_response(QUEUE_FULL, "too many", request_id=request_id)
    assert body == (whole.body if has_body else b"")
    assert status == b"HTTP/1.1 429 Too Many Requests"
    assert len(headers) == len(lines)
    timing = headers.pop(b"server-timing")
    assert 1500.0 <= float(timing.removeprefix(b"total;dur=")) < 100_000.0
    expected = {b"retry-after": b"7", b"x-request-id": request_id.encode(), **dict(DEFAULTS), **dict(whole.raw_headers)}
    assert headers == expected
