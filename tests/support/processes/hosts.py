"""Two hosts played by two network namespaces, joined by one cable; both see the same disks."""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """A network namespace with one address.

    Attributes:
        name: of the namespace.
        address: of its end of the cable.
        interface: name of that end.
    """

    name: str
    address: str
    interface: str

    def start(self, words: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """Start a program on this host; its output is one stream."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *words],
            env={**environment, "GLOO_SOCKET_IFNAME": self.interface},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts for the block; skips the test where that is not allowed."""
    mark = secrets.token_hex(3)
    hosts = tuple(Host(f"{mark}{side}", f"10.77.0.{n}", f"v{mark}{side}") for n, side in ((1, "a"), (2, "b")))
    first, second = hosts
    cable = ["link", "add", first.interface, "netns", first.name, "type", "veth"]
    with contextlib.ExitStack() as stack:
        try:
            for host in hosts:
                _ip("netns", "add", host.name)
                stack.callback(_ip, "netns", "delete", host.name)
            _ip(*cable, "peer", "name", second.interface, "netns", second.name)
            for host in hosts:
                _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
                for link in ("lo", host.interface):
                    _ip("-n", host.name, "link", "set", link, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            pytest.skip(f"network namespaces cannot be made here (uid {os.getuid()}): {reason}")
        yield first, second


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
