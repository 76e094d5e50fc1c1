"""Prometheus metrics of clients: connections, and what is refused to whom; never by key or address."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class ClientMetrics:
    """What the connections and the rate limit count.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rate_limited = Counter(
            "vlm2rec_rate_limited", "Requests refused because their key or address called too often.", registry=registry
        )
        self._connections = Gauge("vlm2rec_connections", "Open connections.", registry=registry)
        self._dropped = Counter(
            "vlm2rec_connections_dropped", "Connections ended by the service, by reason.", ["reason"], registry=registry
        )

    def rate_limited(self) -> None:
        """Count a request that came too early."""
        self._rate_limited.inc()

    def connections(self, count: int) -> None:
        """Say how many are open now."""
        self._connections.set(count)

    def dropped(self, reason: str) -> None:
        """Count a connection that was ended, or refused."""
        self._dropped.labels(reason).inc()
