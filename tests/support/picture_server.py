"""A picture server on the loopback interface for the tests of the fetcher.

The rule that lets loopback through exists only here: the project has no setting for it.
"""

import http.server
import io
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from training.imports.fetching.addresses import Address, public_address
from training.imports.fetching.picture_fetcher import FetchLimits, PictureFetcher

# A key and certificate for img.test, made for these tests; the authority's key is gone.
TLS = Path(__file__).parent / "tls"
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def loopback_too(address: Address) -> str | None:
    """127.0.0.1 beside public addresses."""
    return None if address == ipaddress.IPv4Address("127.0.0.1") else public_address(address)


def picture(kind: str = "JPEG", side: int = 4) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "green").save(buffer, kind)
    return buffer.getvalue()


def answer(body: bytes = b"", status: int = 200, kind: str | None = "image/jpeg", **headers: str) -> Answer:
    """An answer with a length."""

    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if kind is not None:
            handler.send_header("Content-Type", kind)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return send


class PictureServer:
    """Answers by path; counts requests.

    Attributes:
        answers: path → what is answered; any other path is 404.
        asked: paths in order of asking, with the Host header.
        release: set when the server ends, for answers that wait.
        fetchers: closed with the server.
    """

    def __init__(self, tls: bool) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        self.release = threading.Event()
        self.fetchers: list[PictureFetcher] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                outer.asked.append((self.path, self.headers["Host"]))
                outer.headers.append(dict(self.headers))
                outer.answers.get(self.path, answer(b"", 404))(self)

            def log_message(self, *_: object) -> None: ...

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # the client closed the connection, as tests require
                    self.close_connection = True

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(TLS / "server.pem", TLS / "server.key")
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.release.set()
        for one in self.fetchers:
            one.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(*, tls: bool = False) -> Iterator[PictureServer]:
    server = PictureServer(tls)
    try:
        yield server
    finally:
        server.close()


def trusting() -> ssl.SSLContext:
    """TLS that trusts the authority of the tests."""
    return ssl.create_default_context(cafile=TLS / "ca.pem")


class Names:
    """A resolver with made names, which counts what it was asked for."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {"img.test": ["127.0.0.1"], **{name.replace("_", "."): to for name, to in names.items()}}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        del port
        self.asked.append(host)
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        if host not in self.names:
            raise socket.gaierror(-2, "Name or service not known")
        return self.names[host]


def fetcher(server: PictureServer, names: Names | None = None, **limits: Any) -> PictureFetcher:
    """A fetcher that reaches the server, closed with it."""
    settings = {"seconds": 20.0, "ports": frozenset({80, 443, server.port})} | limits
    made = PictureFetcher(FetchLimits(**settings), rule=loopback_too, resolver=names or Names(), tls=trusting())
    server.fetchers.append(made)
    return made
