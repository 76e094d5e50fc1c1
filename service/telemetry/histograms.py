"""Adds to histograms of prometheus_client with fewer steps than the library takes."""

from bisect import bisect_left
from collections.abc import Callable

from prometheus_client import Histogram


def observer(histogram: Histogram) -> Callable[[float], None]:
    """The same as ``histogram.observe``, without exemplars: it finds the bucket by bisection and checks nothing.

    Args:
        histogram: without labels, or that of some labels.

    Returns:
        A function of a number, which is not NaN.
    """
    # The parts of a histogram have no public names.
    bounds, add = tuple(histogram._upper_bounds), histogram._sum.inc  # noqa: SLF001
    buckets = [bucket.inc for bucket in histogram._buckets]  # noqa: SLF001

    def observe(amount: float) -> None:
        add(amount)
        buckets[bisect_left(bounds, amount)](1)

    return observe
