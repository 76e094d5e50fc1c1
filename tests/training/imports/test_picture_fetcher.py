"""The fetcher against a local server: accepted and refused responses, and limits that a server cannot evade."""

import http.server
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.support.picture_server import Names, PictureServer, answer, fetcher, picture, serving
from training.imports.fetching.addresses import public_address, system_resolver
from training.imports.fetching.picture_fetcher import (
    FetchedPicture,
    FetchLimits,
    NotFetched,
    PictureFetcher,
    picture_suffix,
)


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with serving() as running:
        yield running


def at(server: PictureServer, path: str, host: str = "img.test") -> str:
    return f"http://{host}:{server.port}{path}"


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("GIF", "gif"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("TIFF", "tiff"),
        ("AVIF", "avif"),
    ],
)
def test_pictures_are_taken_by_their_first_bytes(server: PictureServer, kind: str, suffix: str) -> None:
    content = picture(kind)
    server.answers["/a"] = answer(content, kind="image/jpeg")  # the header is often wrong about which kind
    assert fetcher(server).fetch(at(server, "/a")) == FetchedPicture(content, suffix)


def test_a_request_ignores_proxies_and_has_four_headers(server: PictureServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answers["/a%20b/%C3%BC.jpg?x=1"] = answer(picture())
    assert isinstance(fetcher(server).fetch(at(server, "/a b/ü.jpg?x=1#part")), FetchedPicture)
    assert server.asked == [("/a%20b/%C3%BC.jpg?x=1", f"img.test:{server.port}")]
    assert set(server.headers[0]) == {"Host", "Accept", "Accept-Encoding", "User-Agent"}
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_connections_are_kept_and_names_resolved_once_for_each(server: PictureServer) -> None:
    names = Names()
    server.answers["/a"] = server.answers["/b"] = answer(picture())
    one = fetcher(server, names)
    for path in ("/a", "/b", "/a"):
        assert isinstance(one.fetch(at(server, path)), FetchedPicture)
    assert (server.connections, names.asked) == (1, ["img.test"])


REFUSED = {
    "html": (answer(b"<html>", kind="text/html; charset=utf-8"), "the server says that it is text/html, not a picture"),
    "html called a picture": (answer(b"<html>"), "its first bytes are those of no picture"),
    "svg": (answer(b"<svg/>", kind="image/svg+xml"), "its first bytes are those of no picture"),
    "empty": (answer(b""), "the answer is empty"),
    "compressed": (answer(picture(), Content_Encoding="gzip"), "the server compressed the answer"),
    "says it is large": (answer(picture(), Content_Length="9999999999999"), "is larger than 2,000 bytes"),
    "is large": (answer(b"\xff\xd8\xff" + b"x" * 5_000), "is larger than 2,000 bytes"),
    "gone": (answer(b"", 410), "the server answers 410"),
    "redirect to nowhere": (answer(b"", 302), "redirects to nowhere"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_permanent_failures(server: PictureServer, case: str) -> None:
    server.answers["/a"], reason = REFUSED[case]
    got = fetcher(server, most_bytes=2_000).fetch(at(server, "/a"))
    assert isinstance(got, NotFetched)
    assert got.reason.startswith(reason)
    assert not got.retryable


def test_a_body_without_length_is_cut_off_at_the_limit(server: PictureServer) -> None:
    sent = []

    def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            handler.wfile.write(b"1000\r\n" + b"\xff\xd8\xff" + b"x" * 4_093 + b"\r\n")
            sent.append(4_096)

    server.answers["/a"] = endless
    got = fetcher(server, most_bytes=100_000).fetch(at(server, "/a"))
    assert got == NotFetched("is larger than 100,000 bytes")
    assert sum(sent) < 100 << 20


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_retryable_failures(server: PictureServer, status: int) -> None:
    server.answers["/a"] = answer(b"", status)
    assert fetcher(server).fetch(at(server, "/a")) == NotFetched(f"the server answers {status}", retryable=True)


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_server_that_trickles_does_not_outlast_the_time(server: PictureServer, where: str) -> None:
    def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
        if where == "body":
            handler.wfile.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n\xff\xd8\xff"
            )
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not server.release.wait(0.05):  # each byte comes long before any read would give up
            handler.wfile.write(b"x")
        handler.close_connection = True

    server.answers["/a"] = trickle
    got = fetcher(server, seconds=0.6).fetch(at(server, "/a"))
    assert got == NotFetched("took longer than 0.6 seconds", retryable=True)


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000,
    ],
)
def test_bytes_that_are_no_answer(server: PictureServer, raw: bytes) -> None:
    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(raw)
        handler.close_connection = True

    server.answers["/a"] = send
    got = fetcher(server).fetch(at(server, "/a"))
    assert isinstance(got, NotFetched)
    assert got.reason.startswith("failed: ")
    assert got.retryable


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("ftp://img.test/a", "the address must begin with http:// or https://, it begins with 'ftp'"),
        ("file:///etc/passwd", "the address must begin with http:// or https://"),
        ("//img.test/a", "the address must begin with http:// or https://"),
        ("img.test/a.jpg", "the address must begin with http:// or https://"),
        ("http://user:secret@img.test/a", "the address must not hold a user name or password"),
        ("http://img.test:22/a", "the port 22 is not permitted"),
        ("http:///a", "the address has no proper host name"),
        ("http://img.test\\@evil.test/a", "the address "),
        ("http://exa mple/a", "the address has no proper host name"),
        ("http://[fe80::1%25eth0]/", "the address has no proper host name"),
        ("http://img.test\r\nX: y/", "the address cannot be read"),
        ("http://img.test/" + "a" * 5_000, "the address has more than 4,096 characters"),
    ],
)
def test_addresses_that_are_not_asked_for(server: PictureServer, address: str, reason: str) -> None:
    names = Names()
    got = fetcher(server, names).fetch(address)
    assert isinstance(got, NotFetched)
    assert got.reason.startswith(reason)
    assert not got.retryable
    assert (names.asked, server.asked) == ([], [])


def test_redirects_are_followed_and_counted(server: PictureServer) -> None:
    server.answers["/a"] = answer(b"", 301, Location="/b")
    server.answers["/b"] = answer(b"", 307, Location=f"http://other.test:{server.port}/c")
    server.answers["/c"] = answer(picture())
    names = Names(other_test=["127.0.0.1"])
    assert isinstance(fetcher(server, names).fetch(at(server, "/a")), FetchedPicture)
    assert list(dict.fromkeys(names.asked)) == ["img.test", "other.test"]
    server.answers["/loop"] = answer(b"", 302, Location="/loop")
    assert fetcher(server, redirects=3).fetch(at(server, "/loop")) == NotFetched("redirects more than 3 times")
    assert [path for path, _ in server.asked].count("/loop") == 4


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        (
            "http://169.254.169.254/latest/meta-data",
            "169.254.169.254 has the address 169.254.169.254, which is link-local",
        ),
        ("http://inner.test/", "inner.test has the address 10.1.2.3, which is private: only public addresses"),
        ("http://[::1]/", "::1 has the address ::1, which is not global unicast"),
        ("http://[::ffff:127.0.0.1]/", "::ffff:127.0.0.1 has the address ::ffff:7f00:1, which is IPv4-mapped"),
        ("http://img.test:6379/", "the port 6379 is not permitted"),
        ("file:///etc/passwd", "the address must begin with http"),
        ("http://u:p@img.test/", "the address must not hold a user name"),
        ("gopher://img.test/", "the address must begin with http"),
    ],
)
def test_a_redirect_is_checked_like_a_new_address(server: PictureServer, location: str, reason: str) -> None:
    server.answers["/a"] = answer(b"", 302, Location=location)
    got = fetcher(server, Names(inner_test=["10.1.2.3"])).fetch(at(server, "/a"))
    assert isinstance(got, NotFetched)
    assert got.reason.startswith(reason)
    assert len(server.asked) == 1


def test_names_of_mapped_and_shared_addresses_are_refused(server: PictureServer) -> None:
    names = Names(mapped_test=["::ffff:127.0.0.1"], nat_test=["64:ff9b::7f00:1"], shared_test=["100.64.0.1"])
    for host in ("mapped.test", "nat.test", "shared.test"):
        got = fetcher(server, names).fetch(at(server, "/a", host))
        assert isinstance(got, NotFetched)
        assert f"{host} has the address" in got.reason
        assert not got.retryable
    assert server.connections == 0


def test_as_the_command_makes_it_this_machine_is_out_of_reach(server: PictureServer) -> None:
    server.answers["/a"] = answer(picture())
    strict = PictureFetcher(
        FetchLimits(ports=frozenset({server.port})),
        rule=public_address, resolver=system_resolver, tls=ssl.create_default_context(),
    )  # fmt: skip
    for host in ("127.0.0.1", "localhost", "0x7f.1", "2130706433", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"):
        got = strict.fetch(at(server, "/a", host))
        assert isinstance(got, NotFetched), host
    assert server.connections == 0


def test_a_name_that_is_not_known_may_be_later(server: PictureServer) -> None:
    got = fetcher(server).fetch("http://nowhere.test/a")
    assert isinstance(got, NotFetched)
    assert got.reason.startswith("failed: the name nowhere.test cannot be resolved")
    assert got.retryable


def test_tls_verifies_the_name_though_the_address_is_fixed() -> None:
    with serving(tls=True) as server:
        server.answers["/a"] = answer(picture())
        names = Names(other_test=["127.0.0.1"])
        one = fetcher(server, names)
        assert isinstance(one.fetch(f"https://img.test:{server.port}/a"), FetchedPicture)
        assert server.asked == [("/a", f"img.test:{server.port}")]
        for host in ("other.test", "127.0.0.1"):
            got = one.fetch(f"https://{host}:{server.port}/a")
            assert isinstance(got, NotFetched)
            assert "certificate" in got.reason
        server.answers["/down"] = answer(b"", 302, Location="http://img.test/a")
        assert one.fetch(f"https://img.test:{server.port}/down") == NotFetched("redirects from https to http")
        strangers = PictureFetcher(
            FetchLimits(ports=frozenset({server.port})),
            rule=lambda _address: None, resolver=names, tls=ssl.create_default_context(),
        )  # fmt: skip
        got = strangers.fetch(f"https://img.test:{server.port}/a")
        assert isinstance(got, NotFetched)
        assert "certificate" in got.reason, "an authority that nobody trusts"
        assert len(server.asked) == 2


def test_tls_that_does_not_verify_is_refused() -> None:
    careless = ssl.create_default_context()
    careless.check_hostname = False
    for mode in (ssl.CERT_REQUIRED, ssl.CERT_NONE):
        careless.verify_mode = mode
        with pytest.raises(ValueError, match="tls must verify"):
            PictureFetcher(FetchLimits(), rule=public_address, resolver=system_resolver, tls=careless)


def test_a_port_where_nobody_listens(server: PictureServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        got = fetcher(server, ports=frozenset({port})).fetch(f"http://img.test:{port}/a")
    assert isinstance(got, NotFetched)
    assert got.retryable


def test_kinds_by_their_first_bytes() -> None:
    assert picture_suffix(b"RIFF\0\0\0\0WAVEfmt ") is None
    assert picture_suffix(b"\0\0\0\x18ftypmp42") is None
    assert picture_suffix(b"GIF88a") is None
    assert picture_suffix(b"%PDF-1.7") is None
    assert picture_suffix(b"") is None
