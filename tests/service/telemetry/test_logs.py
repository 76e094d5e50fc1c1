"""Log lines, whose readers never delay a request."""

import asyncio
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.http.request_middleware import RequestMiddleware
from service.settings.groups import HttpLimits, ObservabilitySettings
from service.telemetry.log_writer import DirectLogWriter, LogWriter
from service.telemetry.metrics import Metrics
from tests.support.exposed import exposed
from tests.support.processes.service_process import Service


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def read_all(descriptor: int, lines: int) -> list[bytes]:
    out = b""
    while out.count(b"\n") < lines:
        out += os.read(descriptor, 1 << 16)
    return out.splitlines()


def test_lines_come_out_whole_and_in_order(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    sent = [b"%d %s" % (number, b"x" * (number % 300)) for number in range(5000)]
    for line in sent:
        assert writer.write(line + b"\n") == len(line) + 1
    assert read_all(pipe[0], 5000) == sent
    assert writer.dropped == 0
    writer.close()


def test_lines_of_several_writers_of_one_pipe_are_never_mixed(pipe: tuple[int, int]) -> None:
    """Each writer stands for a worker process; the reader is slow, so the pipe is full most of the time."""
    writers = [LogWriter(pipe[1]) for _ in range(2)]
    sent = [b"%d" % number * 300 for number in range(2)]
    for _ in range(1_000):
        for writer, line in zip(writers, sent, strict=True):
            writer.write(line + b"\n")
    lines = read_all(pipe[0], 2_000)
    assert sorted(lines) == sorted(sent * 1_000)
    for writer in writers:
        writer.close()


def test_a_line_longer_than_a_pipe_takes_at_once_is_written_alone(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    sent = [b"short\n", b"x" * 10_000 + b"\n", b"short again\n", b"no end of line"]
    for line in sent:
        writer.write(line)
    writer.close()
    assert os.read(pipe[0], 1 << 16) == b"".join(sent)


def test_a_writer_without_a_thread_never_waits_for_its_reader() -> None:
    reads, writes = os.pipe()
    threads = threading.active_count()
    writer = DirectLogWriter(writes)
    for _ in range(1000):  # far more than a pipe holds
        writer.write(b"x" * 999 + b"\n")
    assert threading.active_count() == threads
    assert 0 < writer.dropped < 1000
    out = b""
    while len(out) < 1000 * (1000 - writer.dropped):
        out += os.read(reads, 1 << 16)
    assert out.splitlines() == [b"x" * 999] * (1000 - writer.dropped)
    os.close(reads)
    writer.write(b"nobody reads any more\n")
    assert writer.failed == 1
    os.close(writes)


@pytest.mark.parametrize("blocks", [True, False])
def test_a_long_line_without_a_thread_is_written_whole(pipe: tuple[int, int], blocks: bool) -> None:
    os.set_blocking(pipe[1], blocks)
    writer = DirectLogWriter(pipe[1])
    sent = [b"short", b"x" * 10_000, b"short again", b"y" * 4096, b"z" * 4095]
    for line in sent:
        assert writer.write(line + b"\n") == len(line) + 1
    assert os.read(pipe[0], 1 << 16).splitlines() == sent
    assert (writer.dropped, writer.failed) == (0, 0)


@pytest.mark.parametrize("blocks", [True, False])
def test_a_long_line_without_a_thread_that_breaks_off_tears_no_other(pipe: tuple[int, int], blocks: bool) -> None:
    os.set_blocking(pipe[1], blocks)
    fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 8192)
    writer = DirectLogWriter(pipe[1])
    writer.write(b"x" * 10_000 + b"\n")
    writer.write(b"lost\n")
    assert (writer.dropped, writer.failed) == (2, 0)
    assert os.read(pipe[0], 1 << 16) == b"x" * 8192
    writer.write(b"next\n")
    broken, line, notice = os.read(pipe[0], 1 << 16).splitlines()
    assert (broken, line) == (b"", b"next")
    assert json.loads(notice).items() >= {"event": "log lines dropped", "level": "warning", "lines": 2}.items()
    writer.write(b"last\n")
    assert os.read(pipe[0], 1 << 16) == b"last\n"  # each loss is reported once


@pytest.mark.parametrize("fault", ["closed", "full disk", "reader gone"])
def test_a_writer_without_a_thread_counts_what_fails(pipe: tuple[int, int], fault: str) -> None:
    reads, writes = os.pipe()
    descriptor = os.open("/dev/full", os.O_WRONLY) if fault == "full disk" else os.dup(writes)
    writer = DirectLogWriter(descriptor)
    os.close(reads)
    os.close(writes)
    if fault == "closed":
        os.close(descriptor)
    for number in range(3):
        assert writer.write(b"line\n") == 5
        assert (writer.failed, writer.dropped) == (number + 1, 0)
    os.dup2(pipe[1], descriptor)
    writer.write(b"good again\n")
    line, notice = os.read(pipe[0], 1 << 16).splitlines()
    assert line == b"good again"
    assert json.loads(notice)["lines"] == 3
    os.close(descriptor)


def test_a_short_write_without_a_thread_goes_on(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    writer, write = DirectLogWriter(pipe[1]), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:9]))
    sent = [b"%030d" % number for number in range(5)]
    for line in sent:
        writer.write(line + b"\n")
    assert os.read(pipe[0], 1 << 16).splitlines() == sent


def test_a_line_in_the_middle_of_another_is_dropped_without_a_thread(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a signal handler: it may come while the descriptor is polled, which must not be polled twice at once."""
    writer, write = DirectLogWriter(pipe[1]), os.write

    def interrupted(descriptor: int, data: Any) -> int:
        with monkeypatch.context() as patched:
            patched.setattr(os, "write", write)
            if not writer.dropped:
                writer.write(b"of the handler\n")
            return write(descriptor, data)

    monkeypatch.setattr(os, "write", interrupted)
    writer.write(b"interrupted\n")
    line, notice = os.read(pipe[0], 1 << 16).splitlines()
    assert (line, json.loads(notice)["lines"], writer.dropped) == (b"interrupted", 1, 1)


def test_lines_that_are_not_read_are_dropped_and_reported_later(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1], limit_bytes=100_000)
    for number in range(20_000):  # more than the limit and the pipe hold together; it would never return if it waited
        writer.write(b"%099d\n" % number)
    assert writer.dropped > 15_000
    numbers, reported, out = [], 0, b""
    while len(numbers) + reported < 20_000:
        *lines, out = (out + os.read(pipe[0], 1 << 16)).split(b"\n")
        for line in lines:
            if line.startswith(b"{"):
                notice = json.loads(line)
                assert notice.items() >= {"event": "log lines dropped", "level": "warning"}.items()
                reported += notice["lines"]
            else:
                numbers.append(int(line))
    assert reported == writer.dropped
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    writer.write(b"on it goes\n")
    assert read_all(pipe[0], 1) == [b"on it goes"]
    writer.close()


def test_close_waits_for_a_reader_up_to_its_timeout(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1])
    writer.write(b"last words\n")
    writer.close()
    assert os.read(pipe[0], 100) == b"last words\n"
    stuck = LogWriter(pipe[1])
    stuck.write(b"x" * 1_000_000)
    stuck.close(0.05)
    assert stuck._thread.is_alive()
    left = 1_000_000
    while left:
        left -= len(os.read(pipe[0], left))
    stuck._thread.join(10)
    assert not stuck._thread.is_alive()


def test_a_closed_pipe_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LogWriter(writing)
    writer.write(b"to nobody\n")
    writer.close()
    assert not writer._thread.is_alive()
    assert writer.failed == 1
    os.close(writing)


def test_lines_that_cannot_be_written_are_counted_and_reported_later(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, write, tried = LogWriter(pipe[1]), os.write, threading.Event()

    def full(descriptor: int, data: Any) -> int:
        if tried.is_set() or descriptor != pipe[1]:
            raise OSError(errno.ENOSPC, "No space left on device")
        tried.set()
        return write(descriptor, data[:9])  # the first line and a half

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with writer._lock:  # so that all three go out together
            writer._lines.extend([b"line 1\n", b"line 2\n"])
            writer._bytes += 14
        writer._wake_up.set()
        while writer.failed < 1:
            time.sleep(0.001)
        assert writer.failed == 1
        writer.write(b"line 3\n")
        while writer.failed < 2:
            time.sleep(0.001)
    writer.write(b"line 4\n")
    first, torn, *others = read_all(pipe[0], 4)
    assert (first, torn) == (b"line 1", b"li")
    notice, line = sorted(others, key=lambda one: not one.startswith(b"{"))
    assert line == b"line 4"
    assert json.loads(notice).items() >= {"event": "log lines dropped", "lines": 2}.items()
    writer.write(b"line 5\n")
    assert read_all(pipe[0], 1) == [b"line 5"]  # each loss is reported once
    assert (writer.failed, writer.dropped) == (2, 0)
    writer.close()


def test_a_descriptor_that_does_not_block_loses_no_line(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = LogWriter(pipe[1])
    sent = [b"%0999d" % number for number in range(500)]  # several times what a pipe holds
    for line in sent:
        writer.write(line + b"\n")
    assert read_all(pipe[0], 500) == sent
    assert (writer.failed, writer.dropped) == (0, 0)
    writer.close()


def test_a_descriptor_may_have_a_large_number(pipe: tuple[int, int]) -> None:
    large = fcntl.fcntl(pipe[1], fcntl.F_DUPFD_CLOEXEC, 1100)
    try:
        os.set_blocking(large, False)
        writer = LogWriter(large)
        sent = [b"%0999d" % number for number in range(200)]
        for line in sent:
            writer.write(line + b"\n")
        assert read_all(pipe[0], 200) == sent
        writer.close()
    finally:
        os.close(large)


def test_lost_lines_are_in_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.telemetry.metrics.lines_dropped", lambda: 3)
    monkeypatch.setattr("service.telemetry.metrics.lines_failed", lambda: 5)
    text = Metrics().exposition().decode()
    assert "vlm2rec_log_lines_dropped 3.0" in text
    assert "vlm2rec_log_lines_failed 5.0" in text


def test_every_line_of_a_request_has_its_id() -> None:
    code = """
import logging, contextvars
from service.settings.groups import ObservabilitySettings
from service.telemetry.logs import REQUEST_ID, configure_logs, logger
configure_logs(ObservabilitySettings())
def work():
    REQUEST_ID.set("r1")
    logger().info("ours")
    logger().info("reported", request_id="r2")
    logging.getLogger("a.library").warning("theirs %s", "\\N{SNOWMAN}")
    logger().debug("too fine")
    try:
        1 / 0
    except ZeroDivisionError as error:
        logger().error("failed", exc_info=error)
contextvars.copy_context().run(work)
logger().info("nobody's")
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [(line["event"], line.get("request_id")) for line in lines] == [
        ("ours", "r1"),
        ("reported", "r2"),
        ("theirs ☃", "r1"),
        ("failed", "r1"),
        ("nobody's", None),
    ]
    assert "ZeroDivisionError" in lines[3]["exception"]
    assert all(line["timestamp"].endswith("Z") and line["level"] for line in lines)


class Lines:
    def __init__(self) -> None:
        self.statuses: list[int] = []

    def info(self, _event: str, **fields: Any) -> None:
        self.statuses.append(fields["status"])


@pytest.mark.parametrize(
    ("access_log", "logged"), [("all", [200, 204, 404, 499, 503]), ("errors", [404, 499, 503]), ("off", [])]
)
def test_which_requests_get_a_line(access_log: Any, logged: list[int]) -> None:
    lines, metrics = Lines(), Metrics()

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["status"] != 499:  # 499 stands for a client that left before its answer
            await send({"type": "http.response.start", "status": scope["status"], "headers": []})

    async def send(_message: Any) -> None:
        pass

    middleware = RequestMiddleware(
        app, metrics=metrics, log=lines, limits=HttpLimits(), observability=ObservabilitySettings(access_log=access_log)
    )  # type: ignore[arg-type]
    for status in (200, 204, 404, 499, 503):
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "status": status}
        asyncio.run(middleware(scope, None, send))  # type: ignore[arg-type]
    assert lines.statuses == logged
    assert exposed(metrics, "vlm2rec_requests_total", route="unmatched", method="GET", status="499") == 1


def test_a_reader_that_hangs_delays_no_request(start: Callable[..., Service], small_registry: Path) -> None:
    service = start("--registry", str(small_registry), "--redis", "unix:///nonexistent/redis.sock")
    for number in range(700):  # their lines are more than the 64 KiB of a pipe, which nobody reads
        assert service.call("GET", "/livez", X_Request_ID=f"n{number}")[0] == 200
    code, lines = service.end()
    assert code == 0
    assert [line["request_id"] for line in lines if line["event"] == "request"] == [f"n{n}" for n in range(700)]
