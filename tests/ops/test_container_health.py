"""The health check of the image, run as Docker runs it, against servers that answer in every way."""

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.promql import OPS
from tests.support.served import Served

DOCKERFILE = (OPS.parent / "Dockerfile").read_text()

pytestmark = pytest.mark.program("bash")


def healthy(port: int) -> bool:
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    ran = subprocess.run(
        json.loads(check), env={"PATH": os.environ["PATH"], "VLM2REC_PORT": str(port)}, timeout=30, check=False
    )
    return ran.returncode == 0


@contextmanager
def answering(*parts: bytes, stays: bool = False) -> Iterator[int]:
    """A server that reads one request, sends these parts, and closes the connection or leaves it open."""
    ended = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while not request.endswith(b"\r\n\r\n"):
                request.extend(connection.recv(1000))
            for part in parts:
                connection.sendall(part)
            if stays:
                ended.wait()

    request = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        ended.set()
        thread.join()
    assert request.startswith(b"GET /readyz HTTP/1.1\r\n")


def test_a_ready_service_is_healthy(tmp_path: Path, small_registry: Path, redis_url: str) -> None:
    served = Served(small_registry, VLM2REC_REDIS_URL=redis_url)
    try:
        port = int(served.url.rstrip("/").rpartition(":")[2])
        assert healthy(port)
    finally:
        served.end()
    assert not healthy(port)


def test_an_answer_that_is_not_200_is_unhealthy() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as port:
        assert healthy(port)
    with answering(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\n200") as port:
        assert not healthy(port)
    with answering(b"") as port:
        assert not healthy(port)


def test_a_service_that_is_silent_or_absent_is_unhealthy() -> None:
    with answering(stays=True) as port:
        assert not healthy(port)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not healthy(unused.getsockname()[1])


def test_no_interpreter_is_started() -> None:
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)
    assert json.loads(check)[0] == "bash"
