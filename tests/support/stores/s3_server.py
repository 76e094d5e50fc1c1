"""An S3 server in memory: what a registry asks of one, with conditional writes and with faults that a test injects."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "shop"
Fault = Callable[[str, str], str | float | None]


class S3Server:
    """Objects by key. A fault is asked for with method and key before every answer.

    Its answers: ``gone`` closes the connection, ``half`` sends half of the content, ``lie`` half with a length that
    fits, ``altered`` flips a byte, ``unanswered`` carries a request out and closes the connection,
    ``missing`` is 404, ``no bucket`` 404 for all, ``denied`` 403, a number is seconds of waiting; None: no fault.
    """

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, datetime]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.fault: Fault = lambda _method, _key: None
        self.conditional = True
        self.unlisted: set[str] = set()
        self.lock = threading.RLock()
        self.uploads: dict[str, dict[int, bytes]] = {}
        server = self

        class Handler(_Handler):
            store = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def environment(self) -> dict[str, str]:
        return environment_of(self.url)

    @contextmanager
    def faulty(self, fault: Fault) -> Iterator[None]:
        self.fault = fault
        try:
            yield
        finally:
            self.fault = lambda _method, _key: None

    def asked(self, method: str, ending: str) -> int:
        return sum(found == method and key.endswith(ending) for found, key, _ in self.requests)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def environment_of(url: str) -> dict[str, str]:
    """The variables that lead to a server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests",
        "AWS_REGION": "us-east-1",
    }


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    store: S3Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    unanswered = False

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_POST = do_HEAD = do_GET  # noqa: N815 - the names that the base class calls

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.store.requests.append((self.command, key, self.headers.get("Range")))
        fault = self.store.fault(self.command, key)
        if isinstance(fault, int | float):
            time.sleep(fault)
            fault = None
        if fault == "gone":
            self.close_connection = True
            return
        if fault == "denied":
            self._answer(403, _error("InvalidAccessKeyId", "<AWSAccessKeyId>AKIDEXAMPLE</AWSAccessKeyId>"))
            return
        if fault == "no bucket":
            self._answer(404, _error("NoSuchBucket"))
            return
        assert bucket == BUCKET
        assert "AKIDEXAMPLE" in self.headers["Authorization"]
        self.unanswered = fault == "unanswered"
        with self.store.lock:
            if self.command in {"GET", "HEAD"}:
                self._list(query) if "list-type" in query else self._get(key, fault)
            elif self.command == "PUT" and "partNumber" in query:
                self.store.uploads[query["uploadId"]][int(query["partNumber"])] = body
                self._answer(200, b"", {"ETag": etag(body)})
            elif self.command == "PUT":
                self._put(key, body)
            elif "uploads" in query:
                upload = hashlib.md5(f"{key}{time.monotonic_ns()}".encode()).hexdigest()
                self.store.uploads[upload] = {}
                self._answer(200, _xml(f"<UploadId>{upload}</UploadId>", "InitiateMultipartUploadResult"))
            elif "uploadId" in query:
                uploaded = self.store.uploads.pop(query["uploadId"])
                content = b"".join(uploaded[number] for number in sorted(uploaded))
                self._put(key, content, answer=_xml(f"<ETag>{etag(content)}</ETag>", "CompleteMultipartUploadResult"))
            elif "delete" in query:
                found = re.findall(r"<Key>(.*?)</Key>", body.decode())
                for name in found:
                    self.store.objects.pop(name, None)
                gone = "".join(f"<Deleted><Key>{escape(name)}</Key></Deleted>" for name in found)
                self._answer(200, _xml(gone, "DeleteResult"))

    def _put(self, key: str, content: bytes, answer: bytes = b"") -> None:
        old = self.store.objects.get(key)
        wanted, absent = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        if self.store.conditional:
            if absent == "*" and old is not None:
                self._answer(412, _error("PreconditionFailed"))
                return
            if wanted is not None and (old is None or etag(old[0]) != wanted):
                self._answer(404 if old is None else 412, _error("NoSuchKey" if old is None else "PreconditionFailed"))
                return
        self.store.objects[key] = (content, datetime.now(UTC))
        self._answer(200, answer, {"ETag": etag(content)})

    def _get(self, key: str, fault: str | None) -> None:
        found = None if fault == "missing" else self.store.objects.get(key)
        if found is None:
            self._answer(404, _error("NoSuchKey"))
            return
        content, modified = found
        headers = {"ETag": etag(content), "Last-Modified": f"{modified:%a, %d %b %Y %H:%M:%S GMT}"}
        if self.headers.get("If-None-Match") == headers["ETag"]:
            self._answer(304, b"", headers)
            return
        status, asked = 200, self.headers.get("Range")
        if asked:
            first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{min(last, len(content) - 1)}/{len(content)}"
            status, content = 206, content[first : last + 1]
        if fault == "altered":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault == "lie":
            content = content[: len(content) // 2]
        self._answer(status, content, headers, half=fault == "half")

    def _list(self, query: dict[str, str]) -> None:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        folders: set[str] = set()
        listed = ""
        for key, (content, modified) in sorted(self.store.objects.items()):
            if not key.startswith(prefix) or key in self.store.unlisted:
                continue
            rest = key.removeprefix(prefix)
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            listed += (
                f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>{escape(etag(content))}</ETag>"
                f"<LastModified>{modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            )
        listed += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in folders)
        self._answer(200, _xml(f"<IsTruncated>false</IsTruncated>{listed}", "ListBucketResult"))

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, half: bool = False) -> None:
        if self.unanswered:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.close_connection = True


def _xml(content: str, root: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><{root}>{content}</{root}>'.encode()


def _error(code: str, more: str = "") -> bytes:
    return _xml(f"<Code>{code}</Code><Message>no</Message>{more}", "Error")
