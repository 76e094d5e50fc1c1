"""Reads metrics in the form in which Prometheus scrapes them."""

from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.metrics import Metrics


def exposed(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The value of the sample of this name and exactly these labels; None where there is none."""
    for family in text_string_to_metric_families(metrics.exposition().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None
