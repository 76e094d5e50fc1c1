"""LogWriter: log lines on their way out, so that whoever reads them cannot hold up the requests.

A pipe whose reader sleeps blocks every write to it for ever, and the event loop with it. So lines are only put down
here, and a thread writes them, all that wait at once, which also costs the requests less than a write each. What does
not fit is dropped, what cannot be written (a full disk, a reader that is gone) is lost; both are counted, and the next
line that gets through says how many there were.
"""

import os
import select
import threading
from collections import deque
from time import sleep

import orjson

_LIMIT_BYTES = 4 << 20
_GATHER_S = 0.02
_PATIENCE_S = 1.0


class LogWriter:
    """Takes lines from any thread, never waits, and writes them to a file descriptor in order.

    Args:
        descriptor: where they go; stays open.
        limit_bytes: most bytes that wait.

    Attributes:
        dropped: lines that found no room.
        failed: lines that could not be written.
    """

    def __init__(self, descriptor: int, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._descriptor = descriptor
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._told = 0
        self._torn = False
        self._there_is_work = threading.Event()
        self._closed = False
        self.dropped = 0
        self.failed = 0
        # A daemon: a reader that sleeps must not keep the process from ending either.
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> int:
        """Put down a line, or drop it where there is no room; gives its length, as a file does."""
        with self._lock:
            if self._bytes + len(line) > self._limit:
                self.dropped += 1
                return len(line)
            self._lines.append(line)
            self._bytes += len(line)
            first = len(self._lines) == 1
        if first:
            self._there_is_work.set()
        return len(line)

    def flush(self) -> None:
        """Nothing: lines go out by themselves, within about 20 ms."""

    def close(self, patience_s: float = _PATIENCE_S) -> None:
        """Write what waits, for as long as somebody reads it but no longer than ``patience_s`` seconds."""
        self._closed = True
        self._there_is_work.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while True:
            self._there_is_work.wait()
            if not self._closed:
                sleep(_GATHER_S)
            self._there_is_work.clear()
            self.failed += self._write_out(self._take()).count(b"\n")
            self._tell_losses()
            if self._closed and not self._lines:
                return

    def _take(self) -> bytes:
        """What waits; its room is free from now on."""
        with self._lock:
            out = b"".join(self._lines)
            self._lines.clear()
            self._bytes = 0
        return out

    def _tell_losses(self) -> None:
        """Write how many lines were lost since this was last written."""
        lost = self.dropped + self.failed - self._told
        if not lost:
            return
        line = orjson.dumps({"event": "log lines dropped", "level": "warning", "lines": lost}) + b"\n"
        if not self._write_out(line):
            self._told += lost

    def _write_out(self, out: bytes) -> bytes:
        """Write as long as somebody reads; gives what could not be written. A line that broke off ends first."""
        if out and self._torn:
            out = b"\n" + out
        left = memoryview(out)
        try:
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # somebody who shares the descriptor set it so
                    select.select([], [self._descriptor], [])
        except OSError:
            pass
        sent = len(out) - len(left)
        if sent:
            self._torn = out[sent - 1 : sent] != b"\n"
            return bytes(left)
        return bytes(left).removeprefix(b"\n")
