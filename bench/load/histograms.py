"""Reads a histogram of the service's metrics, and the quantiles of what was added to it meanwhile."""

import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

_LIMIT_S = 10.0


def buckets_of(port: int, name: str, **labels: str) -> dict[float, float]:
    """Upper bound → observations at most as large; empty where the histogram has none with these labels.

    Args:
        port: of a service on this machine.
        name: of the histogram.
        **labels: that its samples have besides ``le``.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_LIMIT_S) as answer:
        text = answer.read().decode()
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]  # untyped in the library
        for sample in family.samples
        if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items()
    }


def upper_quantile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float | None:
    """The bound below which a share of the new observations lies; None: there are none.

    Args:
        before: buckets as :func:`buckets_of` gives them.
        after: the same later.
        share: 0 to 1.

    Returns:
        The upper bound of the bucket that holds the quantile, so that it is never understated; may be infinite.
    """
    added = {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}
    total = max(added.values(), default=0.0)
    return next((bound for bound, count in added.items() if total and count >= share * total), None)
