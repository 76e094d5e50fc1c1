"""Quantiles of what was added to a histogram of the service, by the metrics of a running application."""

import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bench.load.histograms import buckets_of, upper_quantile
from service.telemetry.metrics import Metrics


@pytest.fixture
def served() -> Iterator[tuple[Metrics, int]]:
    metrics = Metrics()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(metrics.exposition())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield metrics, server.server_port
        server.shutdown()
        thread.join()


def test_the_quantile_is_the_bound_of_the_bucket_of_what_came_meanwhile(served: tuple[Metrics, int]) -> None:
    metrics, port = served

    def buckets() -> dict[float, float]:
        return buckets_of(port, "vlm2rec_request_seconds", route="turned away")

    assert buckets() == {}
    metrics.turned_away([("POST", 3.0)] * 50)
    before = buckets()
    assert (before[1.0], before[5.0], before[math.inf]) == (0.0, 50.0, 50.0)
    assert upper_quantile(before, buckets(), 0.99) is None
    metrics.turned_away([("POST", 0.0004)] * 98 + [("GET", 0.0015), ("POST", 0.004)])
    found = [upper_quantile(before, buckets(), share) for share in (0.5, 0.98, 0.99, 1.0)]
    assert found == [0.0005, 0.0005, 0.002, 0.005]
    assert upper_quantile({}, buckets(), 0.99) == 5.0
