"""Waits for a server process to listen, and ends it."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.shops import eventually


@contextlib.contextmanager
def listening(process: subprocess.Popen[bytes], port: int, log: Path) -> Iterator[None]:
    """A process that listens on a port of 127.0.0.1 for the duration of the context; its log says why it does not."""

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    try:
        eventually(listens)
        yield
    finally:
        process.terminate()
        process.wait(20)
