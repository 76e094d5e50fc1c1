"""Redis servers with users, passwords and certificates, for as long as a context lasts."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from shops import eventually


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def redis_server(folder: Path, *lines: str, program: str = "redis-server") -> Iterator[None]:
    """A server with lines of configuration, on `redis.sock` in the folder and wherever they say."""
    settings = ['save ""', f"dir {folder}", f"unixsocket {folder}/redis.sock", "logfile redis.log", *lines]
    (folder / "redis.conf").write_text("\n".join(settings) + "\n")
    process = subprocess.Popen([program, str(folder / "redis.conf")], stdout=subprocess.DEVNULL)

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


def program_with_tls() -> str:
    """A redis-server that speaks TLS; skips the test where none does."""
    for folder in os.environ["PATH"].split(os.pathsep):
        program = shutil.which("redis-server", path=folder)
        if program is None:
            continue
        # Without a certificate it ends at once, but only one that knows TLS says why.
        tried = subprocess.run(
            [program, "--port", "0", "--tls-port", "1"], capture_output=True, text=True, timeout=10, check=False
        )
        if "tls-cert-file" in tried.stdout + tried.stderr:
            return program
    pytest.skip("no redis-server on PATH speaks TLS")


class Certificates:
    """A certificate authority of one's own, with certificates for 127.0.0.1, made by openssl.

    Args:
        folder: where everything is put.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("no openssl on PATH")
        self._folder = folder
        self.authority = folder / "authority.pem"
        self._openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=an authority",
                      "-keyout", "authority.key", "-out", "authority.pem")  # fmt: skip

    def issue(self, name: str, alternative: str) -> tuple[Path, Path]:
        """Certificate and key."""
        (self._folder / "extensions").write_text(f"subjectAltName={alternative}\n")
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}",
                      "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        self._openssl("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "authority.pem", "-CAkey",
                      "authority.key", "-CAcreateserial", "-extfile", "extensions", "-out", f"{name}.pem")  # fmt: skip
        return self._folder / f"{name}.pem", self._folder / f"{name}.key"

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
