"""Connects a fetch only to addresses that pass a rule, and to exactly the address that was checked."""

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
AddressRule = Callable[[Address], str | None]
"""Why an address may not be connected to; None if it may."""
Resolver = Callable[[str, int], Sequence[str]]
"""Addresses of a host name, best first.

Raises:
    OSError: the name has no address.
"""

_MOST_ADDRESSES = 4
_REFUSED_V4 = {
    "0.0.0.0/8": "unspecified",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared",
    "127.0.0.0/8": "loopback",
    "168.63.129.16/32": "a cloud's own services",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "reserved",
    "192.52.193.0/24": "reserved",
    "192.88.99.0/24": "6to4 relay",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "reserved",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
}
_REFUSED_V6 = {
    "2001::/23": "reserved (Teredo and others)",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "2620:4f:8000::/48": "reserved",
    "3fff::/20": "documentation",
}
_REFUSED = tuple((ipaddress.ip_network(net), why) for net, why in (_REFUSED_V4 | _REFUSED_V6).items())
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


class AddressRefused(Exception):
    """No address of a host may be connected to; the message says which and why."""


def public_address(address: Address) -> str | None:
    """The rule of every fetch: public internet addresses only.

    Refused are private, loopback, link-local, shared (100.64.0.0/10), multicast, reserved, documentation and
    unspecified addresses, IPv6 beside global unicast (so IPv4-mapped, NAT64, unique-local and site-local too), and IPv6
    that carries an IPv4 address (6to4, Teredo, ISATAP).

    Returns:
        Why the address is refused; None if it passes.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return "link-local"
        if address not in _GLOBAL_V6:
            return "IPv4-mapped" if address.ipv4_mapped else "not global unicast"
        if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
            return "ISATAP"
    for network, why in _REFUSED:
        if address.version == network.version and address in network:
            return why
    return None if address.is_global else "not global"


def system_resolver(host: str, port: int) -> list[str]:
    """Addresses of a name as the system resolves it; numeric addresses in any spelling (``0x7f.1``) too."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class CheckedNetwork(httpcore2.NetworkBackend):
    """Connects to addresses that pass a rule; one deadline bounds every read and write.

    A name is resolved once per connection, and the socket connects to the checked address, never to the name. TLS still
    verifies the name. Proxy variables are not read.

    Args:
        rule: of addresses.
        resolver: of names.
    """

    def __init__(self, *, rule: AddressRule, resolver: Resolver) -> None:
        self._rule = rule
        self._resolver = resolver
        self._inner = httpcore2.SyncBackend()
        self._deadline = 0.0

    def begin(self, seconds: float) -> None:
        """Start a fetch: connections may be made and used for this many seconds."""
        self._deadline = time.monotonic() + seconds

    def remaining(self) -> float:
        """Seconds until the deadline.

        Raises:
            httpcore2.ReadTimeout: the deadline has passed.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the time of the fetch is over")
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Resolve the name and connect to the first address that passes the rule and answers.

        Raises:
            AddressRefused: no address of the host passes the rule.
            httpcore2.ConnectError: the name has no address, or none answers.
            httpcore2.TimeoutException: the deadline has passed.
        """
        del timeout, local_address  # the deadline replaces the timeout; the system chooses the local address
        error: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in self._permitted(host, port):
            try:
                stream = self._inner.connect_tcp(str(address), port, self.remaining(), None, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as failed:
                error = failed
            else:
                return _TimedStream(stream, self.remaining)
        raise error

    def _permitted(self, host: str, port: int) -> list[Address]:
        try:
            addresses = [ipaddress.ip_address(text) for text in self._resolver(host, port)]
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"the name {host} cannot be resolved ({error})") from error
        refused = [(address, why) for address in addresses if (why := self._rule(address)) is not None]
        permitted = [address for address in addresses if self._rule(address) is None]
        if refused and not permitted:
            address, why = refused[0]
            raise AddressRefused(f"{host} has the address {address}, which is {why}: only public addresses are fetched")
        return permitted[:_MOST_ADDRESSES]


class _TimedStream(httpcore2.NetworkStream):
    """A stream whose reads and writes time out at the deadline, however slowly the server sends."""

    def __init__(self, stream: httpcore2.NetworkStream, remaining: Callable[[], float]) -> None:
        self._stream = stream
        self._remaining = remaining

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        del timeout
        return self._stream.read(max_bytes, self._remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        del timeout
        self._stream.write(buffer, self._remaining())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        del timeout
        return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, self._remaining()), self._remaining)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - as the library declares it
        return self._stream.get_extra_info(info)
