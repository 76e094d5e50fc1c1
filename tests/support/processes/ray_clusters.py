"""Ray clusters of this machine, as `ray start` makes them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile

import psutil

from tests.support.environments import without_coverage
from tests.support.stores.redis_servers import free_port

NO_RAY = "Ray is not installed; `pip install 'vlm2rec[ray]'`"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-0123456789abcdef"}


class Cluster:
    """A head with one CPU and machines with one CPU each, as `ray start` makes them; all on this machine.

    Attributes:
        address: of the head.
    """

    def __init__(self) -> None:
        self._folders: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._head = self._start_head()

    def kill_head(self) -> None:
        """Kill all that runs on the head, at once."""
        self.kill(self._head)

    def restart_head(self) -> None:
        """Start a head at the same address, after it was killed; it knows nothing of the one before."""
        self._head = self._start_head()

    def add(self) -> "subprocess.Popen[bytes]":
        """Let a machine join."""
        return self._start(f"--address={self.address}", "--node-ip-address=127.0.0.1")

    def kill(self, machine: "subprocess.Popen[bytes]") -> None:
        """Kill all that runs on a machine, at once."""
        for process in (*psutil.Process(machine.pid).children(recursive=True), machine):
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
        machine.communicate(timeout=60)

    def end(self) -> None:
        for machine in reversed(self._processes):
            if machine.poll() is None:
                self.kill(machine)
            if machine.stdout is not None:
                machine.stdout.close()  # also of one that ended with its head
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _start_head(self) -> "subprocess.Popen[bytes]":
        # Short, as it holds sockets; one for each head, as a folder says that its head still runs.
        self._folders.append(tempfile.mkdtemp(prefix="ray-"))
        options = (f"--port={self._port}", "--include-dashboard=false", f"--temp-dir={self._folders[-1]}")
        return self._start("--head", "--node-ip-address=127.0.0.1", *options)

    def _start(self, *options: str) -> "subprocess.Popen[bytes]":
        words = ("start", *options, "--num-cpus=1", "--object-store-memory=104857600", "--block")
        command = [sys.executable, "-m", "ray.scripts.scripts", *words]
        machine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=without_coverage())
        self._processes.append(machine)
        assert machine.stdout is not None
        said = b""
        while b"Ray runtime started." not in said:
            line = machine.stdout.readline()
            said += line
            assert line, said.decode()
        return machine
