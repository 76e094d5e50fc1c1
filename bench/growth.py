"""Whether a figure grows: the slope of Theil and Sen over the second half of a run, which single peaks do not move."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST_GROWTH = 0.02
"""Largest growth within an hour that counts as flat, as a share of the figure itself."""
JUDGED = ("rss", "anonymous", "blocks", "objects")
_LEAST_S = 900.0  # of the judged half: an hour's growth is not told from less without guessing
_WINDOW_S = 120.0  # of a bundle's stay: medians over it do not see that memory rises and falls with a swap


def slope(seconds: Sequence[float], values: Sequence[float]) -> float:
    """Median of the slopes between all pairs of points, in units a second (Sen, JASA 1968); 0 with fewer than two.

    Args:
        seconds: ascending, all different.
        values: as many.
    """
    x, y = np.asarray(seconds, dtype=np.float64), np.asarray(values, dtype=np.float64)
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first]))) if len(first) else 0.0


def hourly_growth(seconds: Sequence[float], values: Sequence[float]) -> float:
    """Growth within an hour as a share of the median, from medians over windows of two minutes."""
    x, y = np.asarray(seconds, dtype=np.float64), np.asarray(values, dtype=np.float64)
    window = ((x - x[0]) // _WINDOW_S).astype(int)
    places = [window == number for number in np.unique(window)]
    middle = float(np.median(y))
    if middle == 0:
        return 0.0
    grown = slope([float(np.median(x[place])) for place in places], [float(np.median(y[place])) for place in places])
    return 3600 * grown / middle


def judge(samples: Sequence[Mapping[str, Any]], rest: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """What holds of a run: flat memory and objects, descriptors and threads back where they were.

    Args:
        samples: as `bench.soak.Sample`, oldest first.
        rest: descriptors and threads ``before`` and ``after`` the load, when nothing was asked.

    Returns:
        ``holds`` is None while the run is too short to be judged.
    """
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return {"holds": None}
    seconds = [float(sample["second"]) for sample in half]
    growth = {name: hourly_growth(seconds, [float(sample[name]) for sample in half]) for name in JUDGED}
    earlier = [int(sample["descriptors"]) for sample in samples[: len(samples) // 2]]
    later = [int(sample["descriptors"]) for sample in half]
    back = (
        all(rest["after"][name] == rest["before"][name] for name in ("descriptors", "threads"))
        if {"before", "after"} <= set(rest)
        else None
    )
    latencies = [float(sample["p99_ms"]) for sample in half if sample["p99_ms"] is not None]
    long_enough = seconds[-1] - seconds[0] >= _LEAST_S - _WINDOW_S / 2
    flat = all(share < MOST_GROWTH for share in growth.values()) and max(later) <= max(earlier)
    return {
        "judged_s": round(seconds[-1] - seconds[0], 1),
        "hourly_growth": {name: round(share, 5) for name, share in growth.items()},
        "most_growth": MOST_GROWTH,
        "descriptors_first_half": [min(earlier), max(earlier)],
        "descriptors_second_half": [min(later), max(later)],
        "descriptors_and_threads_back": back,
        "median_p99_ms": round(float(np.median(latencies)), 2) if latencies else None,
        "worst_p99_ms": max(latencies, default=None),
        "holds": (flat and back is not False) if long_enough else None,
    }
