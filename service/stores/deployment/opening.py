"""Opens pipelines to what the URL names: one Redis, the master that Sentinels name, or a cluster."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from service.settings.groups import RedisSettings
from service.settings.redis_url import Address
from service.stores.circuit_breaker import BreakerState
from service.stores.deployment.cluster_pipeline import ClusterPipeline
from service.stores.deployment.connections import NewConnection, confirmed
from service.stores.deployment.sentinel import sentinel_connector
from service.stores.redis_client import UNWATCHED, Connect, RedisWatch, connection_pool, connector, several_servers
from service.stores.redis_connection import Part
from service.stores.redis_pipeline import RedisPipeline, Script
from service.stores.redis_renewal import Renewal


class Pipeline(Protocol):
    """Sends calls to Redis, see `service.stores.redis_pipeline.RedisPipeline`."""

    async def call(self, *command: Part, kind: type) -> Any:  # noqa: ANN401 - of the given kind
        """Send a command once."""
        ...

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Part], kind: type) -> Any:  # noqa: ANN401
        """Run a script."""
        ...

    async def probe(self, key: str) -> None:
        """Read a list, to see whether Redis answers; in a cluster every node that owns slots is asked."""
        ...

    async def nodes(self) -> Sequence["Pipeline"]:
        """Pipelines to all servers that have keys: to itself, or to every node of a cluster that owns slots."""
        ...

    async def close(self) -> None:
        """Fail the waiting calls and close the connections."""
        ...


def open_pipeline(
    redis: RedisSettings,
    *,
    timeout_s: float = 0.0,
    watch: RedisWatch = UNWATCHED,
    on_state: Callable[[BreakerState], None] | None = None,
    renewal: Renewal | None = None,
    wait_replicas: int = 0,
) -> Pipeline:
    """A pipeline, which connects on first use.

    Args:
        redis: URL and timeout.
        timeout_s: shortest timeout in seconds; it replaces that of ``redis`` where it is longer.
        watch: callbacks that observe the nodes of a cluster.
        on_state: called with the breaker's new state; in a cluster with the worst one of its nodes.
        renewal: shared with the other pipelines to the same Redis; a cluster needs none, as its nodes redirect.
        wait_replicas: replicas that must confirm each exchange.

    Raises:
        SettingsError: the URL breaks a rule.
    """
    timeout_s = max(redis.timeout_s, timeout_s)
    connection = confirmed(wait_replicas, timeout_s)
    if redis.kind == "cluster":
        return _open_cluster(redis, timeout_s, watch, on_state, connection)
    one = redis.kind == "one"
    connect = connector(redis.url) if one else sentinel_connector(several_servers(redis.url), timeout_s)
    return RedisPipeline(connect, timeout_s=timeout_s, on_state=on_state, renewal=renewal, connection=connection)


def _open_cluster(
    redis: RedisSettings,
    timeout_s: float,
    watch: RedisWatch,
    on_state: Callable[[BreakerState], None] | None,
    connection: NewConnection,
) -> ClusterPipeline:
    url = several_servers(redis.url)
    pool = connection_pool(url.server_url)
    kind, options = pool.connection_class, pool.connection_kwargs

    def connect_to(address: Address) -> Connect:
        return lambda: kind(**{**options, "host": address.host, "port": address.port})

    return ClusterPipeline(url, connect_to, timeout_s=timeout_s, watch=watch, on_state=on_state, connection=connection)
