"""Runs `vlm2rec serve` as a process and reads what its generated catalogue answers."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")  # the names that it goes by
HOSTILE = '<img src=x onerror="window.hacked = 1"> \'</script>'


def children(pid: int) -> set[int]:
    """Process ids of the children of a process (Linux)."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


class Served:
    """A running `vlm2rec serve`; may be ended and begun again at the same address."""

    def __init__(self, registry: Path, **environment: str) -> None:
        self._registry = registry
        # One process, so that what a page hides or sets is so in the next answer; other workers follow within a second.
        own = {"VLM2REC_ACCESS_LOG": "off", "VLM2REC_LOG_LEVEL": "error", "VLM2REC_WORKERS": "1"}
        self._environment = {**os.environ, **own, **environment}
        self._port = "0"
        self.begin()

    @property
    def pid(self) -> int:
        """Process id; of several workers that of their parent."""
        return self._process.pid

    def begin(self, **environment: str) -> None:
        """Start it, with further variables from now on."""
        self._environment |= environment
        command = [sys.executable, "-m", "cli.main", "serve", "--registry", str(self._registry), "--port", self._port]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)
        assert self._process.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", self._process.stdout.readline())
        assert found is not None
        self._port = found[1]
        self.url = f"http://127.0.0.1:{self._port}/"

    def kill(self) -> None:
        """End it at once, as a crash does, and wait until its workers have ended too."""
        workers = [Path(f"/proc/{pid}") for pid in children(self.pid)]
        self._process.kill()
        self._process.communicate(timeout=60)
        deadline = time.monotonic() + 60
        while any(worker.exists() for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=60)
