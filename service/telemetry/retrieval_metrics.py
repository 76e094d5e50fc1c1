"""Prometheus metrics of the store in which items are searched, where it is another process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from service.stores.circuit_breaker import STATES, BreakerState

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class RetrievalMetrics:
    """Metrics of calls of Milvus; all are 0 where FAISS is searched.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "vlm2rec_retriever_seconds",
            "Seconds of searches in Milvus until the answer, an error or the timeout.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._errors = Counter("vlm2rec_retriever_errors", "Searches that Milvus did not answer.", registry=registry)
        breaker = Gauge(
            "vlm2rec_retriever_breaker_state",
            "1 for the state of the circuit breaker before Milvus.",
            ["state"],
            registry=registry,
        )
        self._breaker = {state: breaker.labels(state) for state in STATES}
        self._breaker["closed"].set(1)

    def called(self, seconds: float, answered: bool) -> None:
        """Count a call.

        Args:
            seconds: until the answer or the error.
            answered: whether there was an answer.
        """
        self._seconds.observe(seconds)
        if not answered:
            self._errors.inc()

    def breaker_state(self, state: BreakerState) -> None:
        """Set the new state of the circuit breaker."""
        for known, gauge in self._breaker.items():
            gauge.set(known == state)
