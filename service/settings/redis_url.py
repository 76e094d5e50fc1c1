"""Reads the URL of a Redis: one server, the master that Sentinels name, or the nodes of a cluster."""

import re
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

RedisKind = Literal["one", "sentinel", "cluster"]

_SCHEME: Final = re.compile(r"(rediss?)\+(cluster|sentinel)")
_AUTHORITY: Final = re.compile(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?", re.DOTALL)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:,@\s]+)(?::([0-9]{1,5}))?")
_PATH: Final = re.compile(r"/([^/]+)(?:/([0-9]+))?/?")
_PORTS: Final = {"cluster": 6379, "sentinel": 26_379}
_MOST_HOSTS: Final = 64


class Address(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The parts of a URL that names several servers.

    Attributes:
        kind: ``cluster`` or ``sentinel``.
        addresses: of the nodes or of the Sentinels, at least one.
        server_url: the URL of the first address as that of one server, for user, password, TLS and parameters.
        service: the name under which the Sentinels know the master; empty for a cluster.
        sentinel_login: user and password of the Sentinels themselves; empty for a cluster.
    """

    kind: RedisKind
    addresses: tuple[Address, ...]
    server_url: str
    service: str = ""
    sentinel_login: tuple[tuple[str, str], ...] = ()


def kind_of(url: str) -> RedisKind:
    """What a URL names, by its scheme; ``one`` also for a URL that is none."""
    scheme = _SCHEME.fullmatch(url.partition("://")[0].lower())
    if scheme is None:
        return "one"
    return "cluster" if scheme[2] == "cluster" else "sentinel"


def parse_redis_url(url: str) -> RedisUrl:
    """Read ``redis+cluster://`` or ``redis+sentinel://``, with ``rediss`` for TLS.

    Raises:
        ValueError: with the rule, never with the URL, which may hold a password.
    """
    name, _, rest = url.partition("://")
    scheme, parts = _SCHEME.fullmatch(name.lower()), _AUTHORITY.fullmatch(rest)
    if scheme is None or parts is None:
        raise ValueError("must begin with redis+cluster://, rediss+cluster://, redis+sentinel:// or rediss+sentinel://")
    authority, path, query = parts[1], parts[2], parts[3] or ""
    userinfo, at, hosts = authority.rpartition("@")
    addresses = _addresses(hosts, _PORTS[scheme[2]])
    if scheme[2] == "cluster":
        if path not in {"", "/", "/0"} or dict(parse_qsl(query)).get("db", "0") != "0":
            raise ValueError("names a cluster, which has only the database 0: leave the path out")
        return RedisUrl("cluster", addresses, _server_url(scheme[1], userinfo + at, addresses[0], "0", query))
    service = _PATH.fullmatch(path)
    if service is None:
        raise ValueError("must end with the name of the master, as in redis+sentinel://host:26379/mymaster")
    given = parse_qsl(query, keep_blank_values=True)
    login = {name.removeprefix("sentinel_"): value for name, value in given if name in _LOGIN}
    others = urlencode([(name, value) for name, value in given if name not in _LOGIN])
    server_url = _server_url(scheme[1], userinfo + at, addresses[0], service[2] or "0", others)
    return RedisUrl("sentinel", addresses, server_url, unquote(service[1]), tuple(login.items()))


_LOGIN: Final = frozenset({"sentinel_username", "sentinel_password"})


def database_of(url: str) -> str:
    """The Redis that a URL names, without user and password: hosts, ports and database, or socket and database."""
    try:
        if kind_of(url) != "one":
            several = parse_redis_url(url)
            number = urlsplit(several.server_url).path.strip("/")
            return f"{','.join(sorted(map(str, several.addresses)))}/{several.service}#{number}"
        parts = urlsplit(url)
        host, port = (parts.hostname or "localhost").lower(), parts.port or 6379
    except ValueError:
        return ""  # refused later, with the reason
    number = dict(parse_qsl(parts.query)).get("db") or ""
    if parts.scheme == "unix":
        return f"{unquote(parts.path)}#{number or 0}"
    return f"{host}:{port}#{number or parts.path.strip('/') or 0}"


def _addresses(hosts: str, port: int) -> tuple[Address, ...]:
    found = [_HOST.fullmatch(host.strip()) for host in hosts.split(",")]
    if not hosts or len(found) > _MOST_HOSTS or not all(found):
        raise ValueError(f"must name 1 to {_MOST_HOSTS} hosts, separated by commas, as in host:port,host:port")
    addresses = [Address(one[1].strip("[]").lower(), int(one[2] or port)) for one in found if one is not None]
    if not all(0 < address.port < 65_536 for address in addresses):
        raise ValueError("must have ports of 1 to 65535")
    return tuple(dict.fromkeys(addresses))


def _server_url(scheme: str, userinfo: str, address: Address, database: str, query: str) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{scheme}://{userinfo}{host}:{address.port}/{database}" + (f"?{query}" if query else "")
