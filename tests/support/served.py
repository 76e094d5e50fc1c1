"""Runs `vlm2rec serve` as a process and reads what its generated catalogue answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")  # the names that it goes by
HOSTILE = '<img src=x onerror="window.hacked = 1"> \'</script>'


class Served:
    """A running `vlm2rec serve`; may be ended and begun again at the same address."""

    def __init__(self, registry: Path, **environment: str) -> None:
        self._registry = registry
        self._environment = {**os.environ, "VLM2REC_ACCESS_LOG": "off", "VLM2REC_LOG_LEVEL": "error", **environment}
        self._port = "0"
        self.begin()

    def begin(self) -> None:
        command = [sys.executable, "-m", "cli.main", "serve", "--registry", str(self._registry), "--port", self._port]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment)
        assert self._process.stdout is not None
        found = re.search(r"http://[\d.]+:(\d+)", self._process.stdout.readline())
        assert found is not None
        self._port = found[1]
        self.url = f"http://127.0.0.1:{self._port}/"

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=60)
