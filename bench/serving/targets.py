"""Computes whether each target for serving is met, with the measured value."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.serving.results import ServingResults

MOST_P90_MS = 7.0
MOST_P99_MS = 20.0
LEAST_RECALL = 0.95

# In files of earlier runs: the time that one header took to build, which was taken for the time to refuse.
WRONG_REFUSAL = "refusal_p99_ms"
NOT_AGAIN = "measured wrongly before, not measured again yet"

CONTENDER = "contenders/{{round}}/{name}/{what}"
SIZE = "sizes/{{round}}/{rows}/{what}"


@dataclass(frozen=True)
class Verdict:
    """One target.

    Attributes:
        about: which part of the page it belongs to.
        target: in words.
        measured: in words; ``not measured`` where nothing is there.
        holds: None when not measured.
        goal: it is a goal, not owed.
    """

    about: str
    target: str
    measured: str
    holds: bool | None
    goal: bool = False


def verdicts(read: ServingResults) -> list[Verdict]:
    """All targets in order."""
    return [*_main(read), *_largest(read), *_peers(read), *_overload(read), *_growth(read)]


def contender(name: str, what: str) -> str:
    """Key of a measurement of a contender, ``{round}`` left open."""
    return CONTENDER.format(name=name, what=what)


def size(rows: int, what: str) -> str:
    """Key of a measurement on a catalogue of a size, ``{round}`` left open."""
    return SIZE.format(rows=rows, what=what)


def _main(read: ServingResults) -> Iterator[Verdict]:
    about = f"{read.settings.get('main', 0):,} items"
    ours, echo = contender("vlm2rec", "closed"), contender("echo", "closed")
    rate, ratio = read.median(ours, "good"), read.ratio(ours, echo)
    yield _at_least(about, "≥ 2,000 req/s closed-loop at 64 connections", rate, 2000, "{:,.0f} req/s")
    yield _at_least(about, "≥ 0.35 × a bare FastAPI echo of the same run", ratio, 0.35, "{:.2f} ×")
    for at, goal in ((500, False), (1000, True)):
        key = contender("vlm2rec", f"open {at}")
        yield _quick(about, at, read.median(key, "p90_ms"), read.median(key, "p99_ms"), goal=goal)
    by_kind = read.measurements.get(size(read.settings.get("main", 0), "recall").format(round=1), {}).get("by_kind")
    lowest = min(by_kind, key=by_kind.get) if by_kind else ""
    value = by_kind[lowest] if by_kind else None
    target = "recall@20 ≥ 0.95, plain, with each slot × 3, each slot alone, and filtered"
    yield _at_least(about, target, value, LEAST_RECALL, f"lowest {{:.3f}} ({lowest})")


def _largest(read: ServingResults) -> Iterator[Verdict]:
    rows = max(read.settings.get("sizes", [0]))
    about = f"{rows:,} items"
    yield _at_least(
        about, "≥ 1,500 req/s closed-loop", read.median(size(rows, "closed"), "good"), 1500, "{:,.0f} req/s"
    )
    for at, goal in ((400, False), (800, True)):
        p90 = read.median(size(rows, f"open {at}"), "p90_ms")
        yield _at_most(about, f"open-loop at {at} req/s: p90 < 7 ms", p90, MOST_P90_MS, "{:.1f} ms", goal=goal)
    memory = read.median(size(rows, "memory"), "resident")
    parts = [read.value(f"bundle/{rows}", name) for name in ("vectors_bytes", "index_bytes")]
    whole = sum(part for part in parts if part is not None)
    share = memory / whole if memory is not None and whole else None
    yield _at_most(about, "resident memory ≤ 1.3 × vectors and index", share, 1.3, "{:.2f} ×")
    ready = read.median(size(rows, "start"), "ready_s")
    yield _at_most(about, "first answer within 2 s of the start of the process", ready, 2.0, "{:.1f} s")


def _peers(read: ServingResults) -> Iterator[Verdict]:
    about, ours = "peers", contender("vlm2rec", "closed")
    for name, least in (("FastAPI def", 2.0), ("FastAPI async", 1.2), ("MOSEC", 0.5)):
        ratio = read.ratio(ours, contender(name, "closed"))
        yield _at_least(about, f"≥ {least} × {name} on throughput", ratio, least, "{:.2f} ×")
    for name in ("LitServe", "BentoML", "Ray Serve"):
        ratio = read.ratio(ours, contender(name, "closed"))
        yield _at_least(about, f"ahead of {name} on throughput", ratio, 1.0, "{:.2f} ×")
        key = "open 500"
        p99 = read.ratio(contender("vlm2rec", key), contender(name, key), "p99_ms")
        yield _at_most(about, f"ahead of {name} on p99 at 500 req/s", p99, 1.0, "{:.2f} × its p99")


def _overload(read: ServingResults) -> Iterator[Verdict]:
    about, peak = "overload", "overload/{round}/peak"
    for times, least in ((2, 0.8), (5, 0.4)):
        key = f"overload/{{round}}/{times}x"
        goodput = read.ratio(key, peak)
        yield _at_least(about, f"open-loop {times} × the peak: goodput ≥ {least:.0%} of it", goodput, least, "{:.0%}")
        yield _recovered(read, about, times)
    for times in (2, 5):
        key = f"overload/{{round}}/{times}x"
        target = f"{times} × the peak: p99 of the time to refuse < 5 ms inside the server"
        found = _at_most(about, target, read.median(key, "refusal_server_p99_ms"), 5.0, "{:.2f} ms")
        measured_wrongly = found.holds is None and read.median(key, WRONG_REFUSAL) is not None
        yield replace(found, measured=NOT_AGAIN) if measured_wrongly else found
    crowd = read.ratio("overload/{round}/5x connections", peak)
    yield _at_least(about, "closed-loop with 5 × the connections: ≥ 90 % of the peak", crowd, 0.9, "{:.0%}")


def _recovered(read: ServingResults, about: str, times: int) -> Verdict:
    target = f"back to ≥ 95 % of the peak within 5 s of {times} ×"
    found = [read.measurements.get(f"overload/{number}/{times}x", {}) for number in read.rounds]
    seconds = [one["recovered_s"] for one in found if "recovered_s" in one]
    if not seconds:
        return Verdict(about, target, "not measured", None)
    late = [second for second in seconds if second is None or second > 5]
    shown = ", ".join("not within 6 s" if second is None else f"{second} s" for second in seconds)
    return Verdict(about, target, shown, not late)


def _growth(read: ServingResults) -> Iterator[Verdict]:
    sizes, rate = read.settings.get("sizes", []), (read.settings.get("size_rates") or [0])[0]
    for smaller, larger in itertools.pairwise(sizes):
        key = f"open {rate}"
        ratio = read.ratio(size(larger, key), size(smaller, key), "p50_ms")
        each = ratio ** (1 / math.log2(larger / smaller)) if ratio is not None else None
        target = f"{smaller:,} → {larger:,} items: each doubling raises p50 by < 1.25 ×"
        yield _at_most("growth", target, each, 1.25, "{:.2f} ×")
    few, many = read.settings.get("users", 0), read.settings.get("many_users", 0)
    key = f"users/{{round}}/{{}}/open {rate}"
    ratio = read.ratio(key.replace("{}", str(many)), key.replace("{}", str(few)), "p50_ms")
    each = ratio ** (1 / math.log2(many / few)) if ratio is not None else None
    yield _at_most("growth", f"{few:,} → {many:,} users: p50 stays (< 1.05 × a doubling)", each, 1.05, "{:.2f} ×")


def _quick(about: str, rate: int, p90: float | None, p99: float | None, *, goal: bool) -> Verdict:
    target = f"open-loop at {rate:,} req/s: p90 < 7 ms and p99 < 20 ms"
    if p90 is None or p99 is None:
        return Verdict(about, target, "not measured", None, goal)
    return Verdict(about, target, f"{p90:.1f} and {p99:.1f} ms", p90 < MOST_P90_MS and p99 < MOST_P99_MS, goal)


def _at_least(about: str, target: str, value: float | None, bound: float, form: str) -> Verdict:
    if value is None:
        return Verdict(about, target, "not measured", None)
    return Verdict(about, target, form.format(value), value >= bound)


def _at_most(about: str, target: str, value: float | None, bound: float, form: str, *, goal: bool = False) -> Verdict:
    if value is None:
        return Verdict(about, target, "not measured", None, goal)
    return Verdict(about, target, form.format(value), value <= bound, goal)
