"""Runs a contender: starts it on a free port, waits for an answer, ends it with all its processes."""

import contextlib
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bench.serving.contenders import Contender

PATH = "/recommend"
_PATIENCE_S = 120.0
_END_S = 30.0
_LIBC = ctypes.CDLL(None)
_PARENT_DEATH_SIGNAL = 1


class DidNotServe(Exception):
    """A contender ended, or did not answer in time; the message has the end of its log."""


class RunningContender:
    """A contender's process for as long as the context lasts.

    Args:
        contender: what to start.
        registry: of the published bundle.
        bundle: its directory.
        redis: URL of the histories.
        probe: a request that is sent until it is answered.
        log: file for its output.
        patience_s: seconds in which it must answer first.

    Attributes:
        port: where it listens.
        interpreter: that it runs with; of a contender under a profiler that program.
        ready_s: seconds from the start of its process to its first answer with 200.

    Raises:
        CannotInstall: its packages cannot be had.
        DidNotServe: on entering, when it ends or does not answer within ``patience_s``.
    """

    def __init__(
        self,
        contender: Contender,
        *,
        registry: str,
        bundle: str,
        redis: str,
        probe: Mapping[str, Any],
        log: Path,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self.contender = contender
        self.port = _free_port()
        self.ready_s = 0.0
        self._command = contender.command(port=self.port, registry=registry, redis=redis)
        self.interpreter = self._command[0]
        self._variables = contender.variables(port=self.port, bundle=bundle, redis=redis)
        self._probe = probe
        self._log = log
        self._patience_s = patience_s

    def __enter__(self) -> Self:
        started = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = psutil.Popen(
                self._command,
                env=self._variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_us,
            )
        try:
            self._wait(started)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pid(self) -> int:
        """Its process."""
        return int(self._process.pid)

    def ask(self, asked: Mapping[str, Any], *, timeout_s: float = 10.0) -> tuple[int, bytes]:
        """Send one request on a new connection; status and body, status 0 if nothing listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("POST", PATH, self.contender.body(asked), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def memory_bytes(self) -> dict[str, int]:
        """Memory of all its processes.

        Returns:
            ``resident`` counts pages that its processes share in each of them, ``once`` in the process that shares the
            most, and ``proportional`` divides them among all processes of the machine that have them, so that a file
            which the bench itself has mapped counts by half.
        """
        found = {"resident": 0, "proportional": 0, "once": 0, "processes": 0}
        most_shared = 0
        for process in self._family():
            try:
                memory = process.memory_full_info()
            except psutil.Error:
                continue
            found["resident"] += memory.rss
            found["proportional"] += memory.pss
            found["once"] += memory.uss
            most_shared = max(most_shared, memory.rss - memory.uss)
            found["processes"] += 1
        found["once"] += most_shared
        return found

    def cpu_seconds(self) -> float:
        """Processor time that all its processes have used."""
        used = 0.0
        for process in self._family():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            used += times.user + times.system
        return used

    def thread_seconds(self) -> tuple[float, float]:
        """Processor time of its first thread, and of all others of that process."""
        threads = self._process.threads()
        first = sum(thread.user_time + thread.system_time for thread in threads if thread.id == self._process.pid)
        return first, sum(thread.user_time + thread.system_time for thread in threads) - first

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return []

    def _wait(self, started: float) -> None:
        while time.perf_counter() - started < self._patience_s:
            status, _ = self.ask(self._probe)
            if status == 200:
                self.ready_s = time.perf_counter() - started
                return
            if self._process.poll() is not None:
                raise DidNotServe(f"ended with exit code {self._process.returncode}: {self._tail()}")
            time.sleep(0.02)
        raise DidNotServe(f"gave no answer within {self._patience_s:.0f} s, the last was {status}: {self._tail()}")

    def _end(self) -> None:
        family = self._family()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, _END_S)
        for process in alive:
            try:
                process.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(alive, _END_S)
        with contextlib.suppress(ProcessLookupError):  # whatever was started in the meantime
            os.killpg(self._process.pid, signal.SIGKILL)

    def _tail(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return json.dumps(" / ".join(lines[-3:])[-500:], ensure_ascii=False)


def end_with_us() -> None:
    """Runs in the new process: asks the kernel for SIGTERM when the bench is killed (Linux)."""
    if sys.platform == "linux":
        _LIBC.prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
