"""Computes whether a figure grows: the Theil–Sen slope over the second half of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MOST_GROWTH = 0.02
"""Largest growth within an hour that counts as flat, as a share of the figure itself."""
JUDGED = ("rss", "anonymous", "blocks")
COUNTED = ("descriptors", "stores", "threads")
"""Of these the median may not be higher in the second half: single samples fall into a swap or a reconnect."""
_LEAST_S = 900.0  # of the judged half; less is too short to estimate the growth per hour
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
    """Whether memory, descriptors and threads of a run are flat and all descriptors are closed at its end.

    Args:
        samples: as `bench.load.soak.Sample`, oldest first.
        rest: descriptors and clients ``before`` and ``after`` the load, when nothing was asked.

    Returns:
        ``holds`` is None while the run is too short to be judged.
    """
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        return {"holds": None}
    seconds = [float(sample["second"]) for sample in half]
    growth = {name: hourly_growth(seconds, [float(sample[name]) for sample in half]) for name in JUDGED}
    first = samples[: len(samples) // 2]
    counts = {name: (_spread(first, name), _spread(half, name)) for name in COUNTED}
    flat = all(later[1] <= earlier[1] for earlier, later in counts.values())
    back = None
    if {"before", "after"} <= set(rest):
        back = rest["after"]["descriptors"] == rest["before"]["descriptors"] and rest["after"]["clients"] == 0
    latencies = [float(sample["p99_ms"]) for sample in half if sample["p99_ms"] is not None]
    long_enough = seconds[-1] - seconds[0] >= _LEAST_S - _WINDOW_S / 2
    flat = flat and all(share < MOST_GROWTH for share in growth.values())
    return {
        "judged_s": round(seconds[-1] - seconds[0], 1),
        "hourly_growth": {name: round(share, 5) for name, share in growth.items()},
        "most_growth": MOST_GROWTH,
        "counts": {name: {"first_half": earlier, "second_half": later} for name, (earlier, later) in counts.items()},
        "descriptors_back": back,
        "median_p99_ms": round(float(np.median(latencies)), 2) if latencies else None,
        "worst_p99_ms": max(latencies, default=None),
        "holds": (flat and back is not False) if long_enough else None,
    }


def _spread(samples: Sequence[Mapping[str, Any]], name: str) -> tuple[int, float, int]:
    """Smallest, median and largest."""
    values = [int(sample[name]) for sample in samples]
    return min(values), float(np.median(values)), max(values)
