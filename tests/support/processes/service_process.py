"""Runs `vlm2rec serve` as a real process and reads its output."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

SERVE = [sys.executable, "-m", "cli.main", "serve"]


def has_read_all(port: int) -> bool:
    """Whether every connection to a local port is accepted and every byte sent over it is read (Linux)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    received = [queues.partition(":")[2] for _, local, _, _, queues, *_ in rows if local.endswith(f":{port:04X}")]
    return not any(int(waiting, 16) for waiting in received)  # of a listener: connections that are not accepted


class Service:
    """A running `vlm2rec serve` with its output, in one process unless arguments or variables say otherwise.

    A variable that is None is not set.
    """

    def __init__(self, *arguments: str, **environment: str | None) -> None:
        own = {"VLM2REC_WORKERS": "1", **environment}
        self.process = subprocess.Popen(
            [*SERVE, "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **{name: value for name, value in own.items() if value is not None}},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://(?:[\d.]+|\[[\da-f:]+\]):(\d+)", line)
        assert found is not None, line + (self.process.communicate(timeout=60)[1] or "")
        self.port = int(found[1])

    def call(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        sent = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            sent,
            {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read() or b"null"), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read()), error.headers

    def end(self, by: signal.Signals = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        """Exit code and log lines."""
        self.process.send_signal(by)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
