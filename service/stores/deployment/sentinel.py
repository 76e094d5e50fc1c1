"""Creates connections to the master that Sentinels name; each new connection asks them again."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import NoBackoff

from service.settings.redis_url import RedisUrl
from service.stores.redis_client import Connect, connection_pool

_SHORTEST_S: Final = 0.1  # of one Sentinel


class _Master:
    """Names the master to new connections, in the place of redis-py's pool.

    The clients of the Sentinels live as long as one question, so that no reply is left for the next one.

    Args:
        url: addresses of the Sentinels, and the name of the master.
        options: of the connections to the Sentinels.
    """

    is_master = True
    check_connection = False

    def __init__(self, url: RedisUrl, options: Mapping[str, Any]) -> None:
        self._addresses = list(url.addresses)
        self._service = url.service
        self._options = options
        self._asking: set[asyncio.Task[tuple[str, int]]] = set()

    async def get_master_address(self) -> tuple[str, int]:
        """Host and port of the master.

        Raises:
            MasterNotFoundError: no Sentinel answers, or none knows a master of this name that is up.
        """
        # A task that ends by its own timeouts: a cancelled handshake of redis-py would leave a socket open.
        asking = asyncio.get_running_loop().create_task(self._discover())
        self._asking.add(asking)
        asking.add_done_callback(self._ended)
        return await asyncio.shield(asking)

    def _ended(self, asking: asyncio.Task[tuple[str, int]]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # read, as the caller may have left

    async def _discover(self) -> tuple[str, int]:
        asked = list(self._addresses)
        async with Sentinel(asked, sentinel_kwargs=dict(self._options)) as sentinel:  # type: ignore[no-untyped-call]
            clients = list(sentinel.sentinels)
            host, port = await sentinel.discover_master(self._service)
            # redis-py has moved the one that answered to the front; it is the first one to ask the next time too.
            self._addresses = [asked[clients.index(client)] for client in sentinel.sentinels]
        return host, port


def sentinel_connector(url: RedisUrl, timeout_s: float) -> Connect:
    """A function that creates connections to the master, without opening them.

    Args:
        url: addresses of the Sentinels, and the name of the master.
        timeout_s: of a call. Each Sentinel has an equal part of it, and the master one, so that all are asked in time,
            but at least 0.1 s.

    Raises:
        SettingsError: redis-py does not understand user, password or parameters of the URL.
    """
    pool = connection_pool(url.server_url)
    encrypted = issubclass(pool.connection_class, SSLConnection)
    tls = {name: value for name, value in pool.connection_kwargs.items() if name.startswith("ssl_")}
    patience_s = max(_SHORTEST_S, timeout_s / (len(url.addresses) + 1))
    limits = {
        "socket_timeout": patience_s,
        "socket_connect_timeout": patience_s,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
    }
    master = _Master(url, {**tls, **limits, **dict(url.sentinel_login), "ssl": encrypted})
    options = {name: value for name, value in pool.connection_kwargs.items() if name not in {"host", "port"}}
    kind = SentinelManagedSSLConnection if encrypted else SentinelManagedConnection

    def connect() -> AbstractConnection:
        return kind(connection_pool=master, **options)  # type: ignore[no-untyped-call]

    return connect
