"""Writes log lines in a thread, so that a slow reader of standard error never delays a request.

A write to a pipe that nobody reads blocks, and would block the event loop with it. So callers only append lines to a
bounded buffer, and a thread writes many of them together, which also costs a request less than a write per line. A line
that exceeds the buffer is dropped; a line that cannot be written (a full disk, a closed pipe) is lost. Both are
counted, and a notice with their number follows as soon as a write succeeds.

Several workers share one pipe. The kernel may put lines of another process into the middle of a write that is larger
than PIPE_BUF, so each write has whole lines of at most that size together; only a longer line can be torn.
"""

import os
import select
import threading
from collections import deque
from time import sleep
from typing import NamedTuple

import orjson

_LIMIT_BYTES = 4 << 20
_GATHER_S = 0.02
_CLOSE_TIMEOUT_S = 1.0
_PIPE_BYTES = 4096  # a pipe takes a write of at most this size whole (PIPE_BUF of Linux)


class LogWriter:
    """Takes lines from any thread without blocking, and writes them to a file descriptor in order.

    Args:
        descriptor: where the lines go; it stays open.
        limit_bytes: most bytes in the buffer.

    Attributes:
        dropped: lines that exceeded the buffer.
        failed: lines that could not be written.
    """

    def __init__(self, descriptor: int, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self._output = _LineOutput(descriptor)
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._reported = 0
        self._wake_up = threading.Event()
        self._closed = False
        self.dropped = 0
        self.failed = 0
        # A daemon: a reader that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> int:
        """Append a line to the buffer, or drop it if the buffer is full.

        Returns:
            The length of the line, as the `write` of a file does.
        """
        with self._lock:
            if self._bytes + len(line) > self._limit:
                self.dropped += 1
                return len(line)
            self._lines.append(line)
            self._bytes += len(line)
            first = len(self._lines) == 1
        if first:
            self._wake_up.set()
        return len(line)

    def flush(self) -> None:
        """Do nothing: the thread writes every line within about 20 ms."""

    def close(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Write the buffered lines and end the thread; give up after ``timeout_s`` seconds."""
        self._closed = True
        self._wake_up.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake_up.wait()
            if not self._closed:
                sleep(_GATHER_S)
            self._wake_up.clear()
            self.failed += self._output.write(self._take()).left.count(b"\n")
            self._report_losses()
            if self._closed and not self._lines:
                return

    def _take(self) -> bytes:
        """Empty the buffer."""
        with self._lock:
            lines = b"".join(self._lines)
            self._lines.clear()
            self._bytes = 0
        return lines

    def _report_losses(self) -> None:
        """Write a notice with the number of lines lost since the last notice."""
        lost = self.dropped + self.failed - self._reported
        if not lost:
            return
        if not self._output.write(_notice(lost)).left:
            self._reported += lost


class DirectLogWriter:
    """Writes lines at once and without a thread, for a process that starts others by fork and writes little.

    A line that the reader would keep waiting is dropped, and so is one that comes while another is written, as from a
    signal handler. A notice with the number of lines lost follows the next line that is written. Only where another
    process fills the pipe between poll and write does the write wait.

    Args:
        descriptor: where the lines go; it stays open.

    Attributes:
        dropped: lines that were not read in time, or came while another was written.
        failed: lines that could not be written.
    """

    def __init__(self, descriptor: int) -> None:
        self._output = _LineOutput(descriptor)
        self._lock = threading.Lock()
        self._reported = 0
        self.dropped = 0
        self.failed = 0

    def write(self, line: bytes) -> int:
        """Write a line.

        Returns:
            The length of the line, as the `write` of a file does.
        """
        if not self._lock.acquire(blocking=False):
            self.dropped += 1
            return len(line)
        try:
            self._write(line)
        finally:
            self._lock.release()
        return len(line)

    def flush(self) -> None:
        """Do nothing: every line is written already."""

    def close(self) -> None:
        """Do nothing: every line is written already."""

    def _write(self, line: bytes) -> None:
        left, failed = self._output.write(line, waits=False)
        if left:
            self.failed += failed
            self.dropped += not failed
            return
        lost = self.dropped + self.failed - self._reported
        if lost and not self._output.write(_notice(lost), waits=False).left:
            self._reported += lost


class _Written(NamedTuple):
    """What became of lines.

    Attributes:
        left: the bytes that were not written.
        failed: whether the descriptor refused them; False: its reader does not read.
    """

    left: bytes
    failed: bool


class _LineOutput:
    """A file descriptor to which whole lines are written; for one thread at a time.

    Args:
        descriptor: where the lines go; it stays open.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._writable = select.poll()  # `select` refuses descriptors from 1,024 on
        self._writable.register(descriptor, select.POLLOUT)
        self._line_is_open = False

    def write(self, lines: bytes, *, waits: bool = True) -> _Written:
        """Write lines until all are written or a write fails; first end a line that broke off.

        Args:
            lines: whole ones.
            waits: False: end where the reader would have to read first. A pipe that can be written to takes PIPE_BUF
                bytes, so no more are written at once.
        """
        if lines and self._line_is_open:
            lines = b"\n" + lines
        view, written, failed = memoryview(lines), 0, False
        try:
            while written < len(lines) and (waits or self._writable.poll(0)):
                end = _end_of_write(lines, written)
                try:
                    written += os.write(
                        self._descriptor, view[written : end if waits else min(end, written + _PIPE_BYTES)]
                    )
                except BlockingIOError:  # another process that shares the descriptor made it non-blocking
                    if not waits:
                        break
                    self._writable.poll()
        except OSError:
            failed = True
        if not written:
            return _Written(lines.removeprefix(b"\n"), failed)
        self._line_is_open = lines[written - 1 : written] != b"\n"
        return _Written(lines[written:], failed)


def _notice(lost: int) -> bytes:
    return orjson.dumps({"event": "log lines dropped", "level": "warning", "lines": lost}) + b"\n"


def _end_of_write(lines: bytes, start: int) -> int:
    """Where a write that begins at ``start`` ends: whole lines of at most PIPE_BUF bytes, or one longer line."""
    last = lines.rfind(b"\n", start, start + _PIPE_BYTES)
    if last < 0:
        last = lines.find(b"\n", start)
    return len(lines) if last < 0 else last + 1
