"""Heads that two servers could read differently, or that no server can serve, are refused."""

import json

import pytest

from service.http.connections import ConnectionLimits
from service.http.problems import RequestRefusal
from service.http.request_head import refusal_of
from tests.support.sockets import GET, post, running

LIMITS = ConnectionLimits(connections=500, request_s=5.0)
HOST = (b"host", b"shop.example:8000")


def answered(refusal: RequestRefusal | None) -> tuple[int, str]:
    assert refusal is not None
    return refusal.kind.status, refusal.detail


@pytest.mark.parametrize(
    "host",
    [
        b"x",
        b"",
        b"shop.example",
        b"shop.example:8000",
        b"[::1]:80",
        b"[fe80::1]",
        b"127.0.0.1",
        b"a_b.local ",
        b"a%20b",
    ],
)
def test_a_host_that_is_fine(host: bytes) -> None:
    assert refusal_of("GET", "1.1", [(b"host", host)]) is None
    assert refusal_of("GET", "1.0", [(b"host", host)]) is None


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"user@a", b"a?b", b"\xc3\xa4.example", b"a\\b", b"a\tb"])
def test_a_host_that_is_none(host: bytes) -> None:
    status, detail = answered(refusal_of("GET", "1.1", [(b"host", host)]))
    assert status == 400
    assert detail.startswith("Host must be a name or an address, and a port; received '")
    assert detail.isascii()


def test_host_is_needed_once() -> None:
    assert answered(refusal_of("GET", "1.1", [])) == (400, "Host is required in HTTP/1.1; received none")
    assert refusal_of("GET", "1.0", []) is None
    for version in ("1.0", "1.1"):
        assert answered(refusal_of("GET", version, [HOST, HOST])) == (
            400,
            "Host must be sent once; received 2",
        )


@pytest.mark.parametrize("version", ["0.9", "2.0"])
def test_other_versions(version: str) -> None:
    assert answered(refusal_of("GET", version, [HOST]))[0] == 400


def test_a_body_in_chunks_is_of_http_1_1() -> None:
    chunked = (b"transfer-encoding", b"chunked")
    assert refusal_of("POST", "1.1", [HOST, chunked]) is None
    assert refusal_of("POST", "1.1", [HOST, (b"transfer-encoding", b" Chunked ")]) is None
    assert answered(refusal_of("POST", "1.0", [HOST, chunked]))[0] == 400


HEAD = b"POST / HTTP/1.1\r\nContent-Type: application/json\r\n"
CHUNKS = b"\r\n3\r\n[1]\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "name", "detail"),
    [
        (HEAD + b"Content-Length: 3\r\n\r\n[1]", 400, "invalid-head", "Host is required"),
        (HEAD + b"Host: a\r\nHost: a\r\nContent-Length: 3\r\n\r\n[1]", 400, "invalid-head", "Host must be sent once"),
        (HEAD + b"Host: a\r\nhost: b\r\nContent-Length: 3\r\n\r\n[1]", 400, "invalid-head", "Host must be sent once"),
        (HEAD + b"Host: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n[1]", 400, "not-http", "Content-Length"),
        (HEAD + b"Host: a\r\nContent-Length: 3, 3\r\n\r\n[1]", 400, "not-http", "Content-Length"),
        (
            HEAD + b"Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n" + CHUNKS,
            400,
            "not-http",
            "Transfer-Encoding",
        ),
        (HEAD + b"Host: a\r\nTransfer-Encoding: gzip\r\n\r\n[1]", 501, "not-implemented", "received 'gzip'"),
        (HEAD + b"Host: a\r\nTransfer-Encoding: identity\r\n\r\n[1]", 501, "not-implemented", "received 'identity'"),
        (HEAD + b"Host: a\r\nTransfer-Encoding: gzip, chunked\r\n" + CHUNKS, 501, "not-implemented", "'gzip, chunked'"),
        (
            HEAD + b"Host: a\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n" + CHUNKS,
            501,
            "not-imp",
            "gzip",
        ),
        (HEAD + b"Host: a\r\nTransfer-Encoding: chunked, gzip\r\n" + CHUNKS, 501, "not-implemented", "must be chunked"),
        (HEAD + b"Host: a\r\nTransfer-Encoding: chunked, chunked\r\n" + CHUNKS, 501, "not-implemented", "must be"),
        (HEAD + b"Host: a\r\nTransfer-Encoding: xchunked\r\n" + CHUNKS, 501, "not-implemented", "must be chunked"),
        (
            HEAD + b"Host: a\r\nTransfer-Encoding: chunked\r\n" + CHUNKS.replace(b"3\r", b"g\r"),
            400,
            "not-http",
            "chunk",
        ),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400, "invalid-head", "received HTTP/2.0"),
        (b"GET /" + b"a" * 65_535 + b" HTTP/1.0\r\n\r\n", 431, "head-too-large", "at most 65536 bytes"),
        (b"GET /?" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "head-too-large", "at most 65536 bytes"),
        (b"GET http:///livez HTTP/1.1\r\nHost: a\r\n\r\n", 400, "invalid-head", "received 'http:///livez'"),
        (b"GET http://a/" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431, "head-too-large", "65536"),
    ],
)
def test_what_a_head_gets(sent: bytes, status: int, name: str, detail: str) -> None:
    with running(LIMITS) as server:
        client = server.open(sent + GET)
        got, headers, body = client.answer()
        assert (got, headers["connection"]) == (status, "close")
        assert json.loads(body)["type"].startswith(f"urn:vlm2rec:problem:{name}")
        assert detail in json.loads(body)["detail"]
        assert client.is_closed()
        assert sum(server.drops.values()) == 1


def test_the_longest_address_is_an_address() -> None:
    with running(LIMITS) as server:
        assert server.open(b"GET /" + b"a" * 65_534 + b" HTTP/1.0\r\n\r\n").answer()[0] == 200


def test_the_refusal_arrives_though_its_body_is_still_coming() -> None:
    with running(LIMITS) as server:
        for line in (b"Transfer-Encoding: gzip", b"Host: a"):
            client = server.open(HEAD + b"Host: a\r\n" + line + b"\r\nX-Length: 1\r\n\r\n" + b" " * 200_000)
            assert client.answer()[0] in {400, 501}
            assert client.is_closed()


def test_requests_before_a_refused_one_get_their_answers() -> None:
    with running(LIMITS) as server:
        client = server.open(GET.replace(b"/", b"/slow", 1) + post(b"[1]") + GET.replace(b"host: x\r\n", b"") + GET)
        server.released.set()
        assert [client.answer()[0] for _ in range(3)] == [200, 200, 400]
        assert client.is_closed()


@pytest.mark.parametrize("url", [b"http://elsewhere", b"http://elsewhere?a=b", b"http://elsewhere/", b"*"])
def test_absolute_addresses_and_the_asterisk_are_requests(url: bytes) -> None:
    with running(LIMITS) as server:
        client = server.open(b"GET " + url + b" HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        assert [client.answer()[2] for _ in range(2)] == [b"x" * 10] * 2


@pytest.mark.parametrize(("version", "interim"), [(b"1.1", True), (b"1.0", False)])
def test_only_a_client_of_http_1_1_gets_an_interim_response(version: bytes, *, interim: bool) -> None:
    """RFC 9110, 10.1.1: a client of HTTP/1.0 knows no interim response and takes it for the answer."""
    request = post(b"[1]").replace(b"HTTP/1.1", b"HTTP/" + version).replace(b"host:", b"expect: 100-continue\r\nhost:")
    with running(LIMITS) as server:
        client = server.open(request)
        statuses = [client.answer()[0] for _ in range(2 if interim else 1)]
        assert statuses == ([100, 200] if interim else [200])
