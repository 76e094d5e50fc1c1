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
        self._fetch_seconds = Histogram(
            "vlm2rec_retriever_fetch_seconds",
            "Seconds of fetches of vectors by row from Milvus until the answer, an error or the timeout.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "vlm2rec_retriever_errors", "Searches and fetches that Milvus did not answer.", registry=registry
        )
        vectors = Counter(
            "vlm2rec_retriever_vectors",
            "Vectors of history items and list candidates by where they came from.",
            ["source"],
            registry=registry,
        )
        self._cached, self._fetched = vectors.labels("cache"), vectors.labels("milvus")
        breaker = Gauge(
            "vlm2rec_retriever_breaker_state",
            "1 for the state of the circuit breakers before Milvus, the worse one of searches and fetches.",
            ["state"],
            registry=registry,
        )
        self._breaker = {state: breaker.labels(state) for state in STATES}
        self._breaker["closed"].set(1)

    def called(self, seconds: float, answered: bool) -> None:
        """Count a search.

        Args:
            seconds: until the answer or the error.
            answered: whether there was an answer.
        """
        self._seconds.observe(seconds)
        if not answered:
            self._errors.inc()

    def fetched(self, seconds: float, answered: bool) -> None:
        """Count a fetch of vectors; the arguments are those of :meth:`called`."""
        self._fetch_seconds.observe(seconds)
        if not answered:
            self._errors.inc()

    def vectors(self, cached: int, fetched: int) -> None:
        """Count vectors that were cached, and those that were fetched."""
        self._cached.inc(cached)
        self._fetched.inc(fetched)

    def breaker_state(self, state: BreakerState) -> None:
        """Set the worst state of the circuit breakers."""
        for known, gauge in self._breaker.items():
            gauge.set(known == state)
