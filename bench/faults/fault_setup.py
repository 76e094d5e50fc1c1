"""Starts what the fault run needs: a Redis with synchronous writes, two replicas and a balancer."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import redis

from bench.faults.replica import END_THREADS
from demo.embedded_redis import EmbeddedRedis
from service.settings.load import GROUP_OF

_READY_S = 60.0
_BURST = 64
_DRAIN_DELAY_S = 0.5  # longer than the balancer takes to notice
_METRIC = re.compile(r"^(vlm2rec_\w+)(\{[^}]*\})? ([\d.e+-]+)$", re.MULTILINE)


class Replica:
    """A service that can be stopped and started again on the same port.

    Args:
        registry: of the bundle.
        redis_url: of the histories.
        state: a directory of its own.
        workers: processes that answer.
    """

    def __init__(self, registry: Path, redis_url: str, state: Path, workers: int = 1) -> None:
        self.port = _free_port()
        self._state = state
        self._command = [
            *(sys.executable, "-m", "bench.faults.replica", "serve", "--registry", str(registry)),
            *("--redis", redis_url, "--port", str(self.port), "--log-level", "error", "--workers", str(workers)),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self._state.mkdir(parents=True, exist_ok=True)
        settings = {"VLM2REC_DIRECTIVES_FILE": str(self._state / "directives.json")}
        if "drain_delay_s" in GROUP_OF:
            settings["VLM2REC_DRAIN_DELAY_S"] = str(_DRAIN_DELAY_S)
        with (self._state / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**os.environ, **settings}, cwd=Path(__file__).parents[2]
            )
        until = time.monotonic() + _READY_S
        while self.status("/readyz") != 200:
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"a replica did not start: {(self._state / 'log').read_text()[-400:]}")
            time.sleep(0.02)

    def end(self) -> None:
        """Stop the process gracefully and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)

    def end_threads(self) -> None:
        """End the threads of the engine, in every process that answers."""
        for pid in self._pids():
            os.kill(pid, END_THREADS)

    def kill_process(self) -> None:
        """Kill one of the processes that answer."""
        os.kill(self._pids()[0], signal.SIGKILL)

    def burst(self) -> None:
        """Send many recommendations at the same moment."""
        body = b'{"user_id":"user-0"}'
        head = b"POST /recommend HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nConnection: close\r\n"
        clients = [socket.create_connection(("127.0.0.1", self.port), timeout=5) for _ in range(_BURST)]
        for client in clients:
            client.sendall(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        for client in clients:
            with client:
                while client.recv(1 << 16):
                    pass

    def _pids(self) -> list[int]:
        """The workers; the process itself if there is only one."""
        if self._process is None:
            return []
        workers = psutil.Process(self._process.pid).children()
        return [worker.pid for worker in workers] or [self._process.pid]

    def status(self, path: str) -> int:
        """Status of a GET; 0 without an answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metrics(self) -> Counter[str]:
        """Every metric with its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            found = _METRIC.findall(answer.read().decode())
        return Counter({f"{name}{labels}": float(value) for name, labels, value in found})


class FaultSetup:
    """Redis, two replicas and the balancer, running while the context lasts.

    Args:
        registry: of a published bundle.
        work: for files of this run.
        workers: processes that answer in each replica.

    Attributes:
        redis: the server; `append only`, written through before every answer.
        replicas: two.
        port: of the balancer.
    """

    def __init__(self, registry: Path, work: Path, workers: int = 1) -> None:
        self.redis = EmbeddedRedis(work / "redis", append_only=True, fsync_always=True)
        self.replicas = [Replica(registry, self.redis.url, work / f"replica-{number}", workers) for number in (1, 2)]
        self.port = 0
        self._balancer: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.redis.start()
            for replica in self.replicas:
                replica.start()
            self._start_balancer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def admin(self) -> redis.Redis:
        """A client of the Redis itself."""
        return redis.Redis.from_url(self.redis.url, decode_responses=True)

    def metrics(self) -> Counter[str]:
        """The sum over both replicas."""
        return self.replicas[0].metrics() + self.replicas[1].metrics()

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Send one request through the balancer; status and answer, status 0 if the connection fails."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status), json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {}
        except OSError:
            return 0, {}

    def _start_balancer(self) -> None:
        command = [sys.executable, "-m", "bench.faults.balancer", *(str(replica.port) for replica in self.replicas)]
        self._balancer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        line = b"" if self._balancer.stdout is None else self._balancer.stdout.readline().strip()
        if not line:
            raise SystemExit("the balancer did not start")
        self.port = int(line)

    def _end(self) -> None:
        for replica in self.replicas:
            replica.end()
        if self._balancer is not None:
            self._balancer.terminate()
            self._balancer.communicate(timeout=30)
        self.redis.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
