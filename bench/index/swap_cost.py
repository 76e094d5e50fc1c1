"""Measures what a swap of a large bundle costs those who are asking meanwhile: seconds until it answers, latencies."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.load.swap import point_to, sealed_again
from index.bundle.registry import Registry

_BEFORE_S = 10.0  # of requests before the pointer moves, to compare with
_AFTER_S = 2.0  # of requests after the first answer of the new bundle
_LONGEST_S = 900.0


def second_bundle(registry: Registry, bundle: Path, work: Path) -> str:
    """Publish a copy of the bundle with files and an id of its own, and point the registry at the first one again.

    Args:
        registry: has the bundle.
        bundle: its directory.
        work: gets the copy; one that is there from an earlier run is taken.

    Returns:
        The id of the copy.
    """
    again = work / "again"
    copies = sorted(again.iterdir()) if again.is_dir() else []
    copy = copies[0] if copies else sealed_again(bundle, again, hours=1)
    identifier = registry.publish(copy, force=True)
    point_to(registry.root, bundle.name)
    return identifier


def swap_under_requests(registry: Path, new: str, ask: Callable[[], str]) -> dict[str, Any]:
    """Ask one request after another, move the pointer meanwhile, and go on until the new bundle has answered for long.

    Args:
        registry: directory whose pointer names the active bundle.
        new: id of the bundle to swap to.
        ask: sends a request and returns the id of the bundle that answered.

    Returns:
        Seconds from the move of the pointer to the first answer of the new bundle, and milliseconds of the requests
        before and after the move.

    Raises:
        SystemExit: the new bundle did not answer within 15 minutes.
    """
    moved: list[float] = []

    def move() -> None:
        time.sleep(_BEFORE_S)
        moved.append(time.perf_counter())
        point_to(registry, new)

    mover = threading.Thread(target=move)
    mover.start()
    asked: list[tuple[float, float]] = []  # when, milliseconds
    first = float("inf")
    started = time.perf_counter()
    while time.perf_counter() < min(first + _AFTER_S, started + _LONGEST_S):
        begun = time.perf_counter()
        answered_by = ask()
        ended = time.perf_counter()
        asked.append((begun, 1000 * (ended - begun)))
        if answered_by == new and first == float("inf"):
            first = ended
    mover.join()
    if first == float("inf"):
        raise SystemExit(f"bundle {new} did not answer within {_LONGEST_S:.0f} s")
    return {
        "seconds_to_first_answer": round(first - moved[0], 2),
        "before_ms": _quantiles([spent for begun, spent in asked if begun < moved[0]]),
        "during_ms": _quantiles([spent for begun, spent in asked if begun >= moved[0]]),
    }


def _quantiles(spent: list[float]) -> dict[str, float]:
    found = {f"p{percent}": round(float(np.percentile(spent, percent)), 3) for percent in (50, 90, 99)}
    return found | {"max": round(max(spent), 3), "requests": len(spent)}
