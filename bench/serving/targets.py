"""Computes whether each target for serving is met, with the measured value and its spread over the rounds.

Ratios within a round come first, since a slow machine does not change them. A time, and a number of answers a second,
count only where the echo of the same rounds was near its reference (:data:`ECHO_REFERENCE`).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.serving.contenders import PEERS
from bench.serving.results import ServingResults, median, shown

MOST_P90_MS = 7.0
MOST_P99_MS = 20.0
MOST_CPU_MS = 0.40
MOST_CPU_APART = 1.15
LEAST_RECALL = 0.95
ECHO_REFERENCE = 9_000.0
"""Answers a second of the echo, closed-loop, on the machine for which the times and rates of the targets are meant."""
ECHO_WITHIN = 0.2
"""Largest distance of the echo from its reference, as a share, at which a time or a rate counts."""

# In files of earlier runs: the time that one header took to build, which was taken for the time to refuse.
WRONG_REFUSAL = "refusal_p99_ms"
NOT_AGAIN = "measured wrongly before, not measured again yet"
NOT_MEASURED = "not measured"

CONTENDER = "contenders/{{round}}/{name}/{what}"
SIZE = "sizes/{{round}}/{rows}/{what}"
OVERLOAD_PEAK = "overload/{round}/peak"

_OURS = "vlm2rec"
_MIB = 2**20
_MORE_A_WORKER = 120 * _MIB
_MOST_RECOVERY_S = 5
_LEAST_ANSWERED = 0.95  # of what was offered: with fewer, the p99 of what was answered says nothing


@dataclass(frozen=True)
class Verdict:
    """One target.

    Attributes:
        about: which part of the page it belongs to.
        target: in words.
        measured: in words; ``not measured`` where nothing is there.
        holds: None when not measured, or when it does not count.
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


def cpu_by_workers(measured: Mapping[str, Any]) -> Verdict:
    """Whether an answer takes the same processor time with every number of workers.

    Args:
        measured: by :mod:`bench.serving.workers`; empty: not measured.
    """
    about = f"{measured['items']:,} items" if measured else "workers"
    target = "CPU of an answer with 1, 2 and 4 workers within 15 % of each other"
    medians = {name: one for name, one in measured.get("medians", {}).items() if name.endswith(" workers")}
    times_ms = [one["cpu_ms"] for one in medians.values()]
    if set(medians) != {f"{count} workers" for count in (1, 2, 4)}:
        return Verdict(about, target, NOT_MEASURED, None, goal=True)
    apart = max(times_ms) / min(times_ms)
    each = ", ".join(f"{name.removesuffix(' workers')}: {one['cpu_ms']:.2f} ms" for name, one in medians.items())
    source = f"; {measured['source']}" if "source" in measured else ""
    said = f"{each}, the largest {apart:.2f} × the smallest ({measured['neighbours']} neighbours in each list{source})"
    return Verdict(about, target, said, apart <= MOST_CPU_APART, goal=True)


def contender(name: str, what: str) -> str:
    """Key of a measurement of a contender, ``{round}`` left open."""
    return CONTENDER.format(name=name, what=what)


def size(rows: int, what: str) -> str:
    """Key of a measurement on a catalogue of a size, ``{round}`` left open."""
    return SIZE.format(rows=rows, what=what)


def echo_of(stage: str) -> str:
    """Key of the closed loop of the echo in the rounds of a stage, ``{round}`` left open."""
    return contender("echo", "closed") if stage == "contenders" else f"{stage}/{{round}}/echo"


def echo_rates(read: ServingResults, stage: str) -> list[float]:
    """Answers a second of the echo in the rounds of a stage, without rounds in which ours are of another run."""
    found = []
    for number in read.rounds:
        rate = read.value(echo_of(stage).format(round=number), "good")
        keys = read.of_round(stage, number)
        if stage == "contenders":  # a peer may be measured again later
            keys = [key for key in keys if key.split("/")[2] in {"echo", _OURS}]
        if rate is not None and read.are_of_one_run(keys):
            found.append(rate)
    return found


def does_not_count(read: ServingResults, stage: str) -> str:
    """Why times and rates of a stage do not count; empty: they do."""
    rates = echo_rates(read, stage)
    rate = median(rates)
    if rate is None:
        return "the echo was not measured beside it"
    if len(rates) < len(read.values(echo_of(stage), "good")):
        return "the echo of some rounds was measured at another time than the rest"
    if abs(rate / ECHO_REFERENCE - 1) > ECHO_WITHIN:
        return f"the echo gave {shown(rates, '{:,.0f}')}/s"
    return ""


def _main(read: ServingResults) -> Iterator[Verdict]:
    rows = read.settings.get("main", 0)
    about, stage = f"{rows:,} items", "contenders"
    ours = contender(_OURS, "closed")
    ratios = read.ratios(ours, contender("echo", "closed"))
    rounds = read.planned(stage)
    yield _at_least(about, "≥ 0.35 × a bare FastAPI echo of the same run", ratios, 0.35, "{:.2f}", " ×", rounds)
    goal = _at_least(about, "≥ 0.40 × a bare FastAPI echo of the same run", ratios, 0.40, "{:.2f}", " ×", rounds)
    yield replace(goal, goal=True)
    times = read.values(ours, "cpu_ms")
    cpu = _at_most(about, "≤ 0.40 ms of CPU an answer", times, MOST_CPU_MS, "{:.2f}", " ms", rounds)
    yield _counted(read, stage, replace(cpu, goal=True))
    by_kind = read.measurements.get(f"recall/{rows}", {}).get("by_kind")
    lowest = min(by_kind, key=by_kind.get) if by_kind else ""
    values = [by_kind[lowest]] if by_kind else []
    target = "recall@20 ≥ 0.95, plain, with each slot × 3, each slot alone, and filtered"
    yield _at_least(about, target, values, LEAST_RECALL, "{:.3f}", f" ({lowest}), the lowest")
    target, rates = "≥ 2,000 req/s closed-loop at 64 connections", read.values(ours, "good")
    yield _counted(read, stage, _at_least(about, target, rates, 2000, "{:,.0f}", " req/s", rounds))
    for at in (500, 1000):
        yield _counted(read, stage, _quick(read, about, at))


def _largest(read: ServingResults) -> Iterator[Verdict]:
    rows = max(read.settings.get("sizes", [0]))
    about, stage = f"{rows:,} items", "sizes"
    yield _memory(read, about, rows)
    rounds, rates = read.planned(stage), read.values(size(rows, "closed"), "good")
    found = _at_least(about, "≥ 1,500 req/s closed-loop", rates, 1500, "{:,.0f}", " req/s", rounds)
    yield _counted(read, stage, found)
    for at, goal in ((400, False), (800, True)):
        p90 = read.values(size(rows, f"open {at}"), "p90_ms")
        found = _at_most(about, f"open-loop at {at} req/s: p90 < 7 ms", p90, MOST_P90_MS, "{:.1f}", " ms", rounds)
        yield _counted(read, stage, replace(found, goal=goal))
    ready = read.values(f"start/{{round}}/{rows}", "ready_s")
    target = "with default workers, first answer within 2 s of the start of the process"
    yield _counted(read, "start", _at_most(about, target, ready, 2.0, "{:.1f}", " s", read.planned("start")))


def _memory(read: ServingResults, about: str, rows: int) -> Verdict:
    target = "memory ≤ 1.3 × vectors and index + 120 MiB for each worker beyond the first"
    key = size(rows, "memory")
    # Files of earlier runs have one worker, of which nothing is counted twice.
    used = read.values(key, "once") or read.values(key, "resident")
    parts = [read.value(f"bundle/{rows}", name) for name in ("vectors_bytes", "index_bytes")]
    workers = max(read.values(key, "workers"), default=1.0)
    allowed = 1.3 * sum(part for part in parts if part is not None) + _MORE_A_WORKER * (workers - 1)
    if not used or None in parts:
        return Verdict(about, target, NOT_MEASURED, None)
    unit = f" × that (workers: {workers:.0f})"
    return _at_most(about, target, [one / allowed for one in used], 1.0, "{:.2f}", unit, read.planned("sizes"))


def _peers(read: ServingResults) -> Iterator[Verdict]:
    about, ours, rounds = "peers", contender(_OURS, "closed"), read.planned("contenders")
    least = {"FastAPI async": 1.3, "Ray Serve": 1.3, "LitServe": 1.5, "BentoML": 1.5, "MOSEC": 0.9}
    for name, bound in least.items():
        ratios = read.ratios(ours, contender(name, "closed"))
        yield _at_least(about, f"≥ {bound} × {name} on throughput", ratios, bound, "{:.2f}", " ×", rounds)
    for at in (500, 1000):
        ratios = _p99_to_best_peer(read, at)
        target = f"at {at:,} req/s the lowest p99"
        yield _at_most(about, target, ratios, 1.0, "{:.2f}", " × that of the best peer", rounds)


def _p99_to_best_peer(read: ServingResults, rate: int) -> list[float]:
    """In each round our p99 over the lowest of the peers that answered what was offered."""
    found = []
    for number in read.rounds:
        ours = contender(_OURS, f"open {rate}").format(round=number)
        p99 = read.value(ours, "p99_ms")
        peers = []
        for peer in PEERS:
            key = contender(peer.name, f"open {rate}").format(round=number)
            good, theirs = read.value(key, "good") or 0.0, read.value(key, "p99_ms")
            answers = good >= _LEAST_ANSWERED * (read.value(key, "offered") or math.inf)
            if theirs and answers and read.are_of_one_run([ours, key]):
                peers.append(theirs)
        if p99 is not None and peers:
            found.append(p99 / min(peers))
    return found


def _overload(read: ServingResults) -> Iterator[Verdict]:
    about, rounds = "overload", read.planned("overload")
    for times, least in ((2, 0.8), (5, 0.4)):
        goodput = read.ratios(f"overload/{{round}}/{times}x", OVERLOAD_PEAK)
        target = f"open-loop {times} × the peak: goodput ≥ {least:.0%} of it"
        yield _at_least(about, target, goodput, least, "{:.0%}", rounds=rounds)
        yield _recovered(read, about, times)
    crowd = read.ratios("overload/{round}/5x connections", OVERLOAD_PEAK)
    target = "closed-loop with 5 × the connections: ≥ 90 % of the peak"
    yield _at_least(about, target, crowd, 0.9, "{:.0%}", rounds=rounds)
    for times in (2, 5):
        key = f"overload/{{round}}/{times}x"
        target = f"{times} × the peak: p99 of the time to refuse < 5 ms, from the first byte in to the last byte out"
        values, computed = (read.values(key, f"refusal_{until}_p99_ms") for until in ("written", "server"))
        found = _counted(read, "overload", _at_most(about, target, values, 5.0, "{:.2f}", " ms", rounds))
        if not values and computed:
            said = f"{shown(computed, '{:.2f}')} ms until it was computed; not measured until it was written"
            found = replace(found, measured=said)
        elif not values and read.median(key, WRONG_REFUSAL) is not None:
            found = replace(found, measured=NOT_AGAIN)
        yield found


def _recovered(read: ServingResults, about: str, times: int) -> Verdict:
    target = f"back to ≥ 95 % of the peak within 5 s of {times} × in every round"
    planned = read.planned("overload")
    found = [read.measurements.get(f"overload/{number}/{times}x", {}) for number in range(1, planned + 1)]
    tried = [one for one in found if "recovered_s" in one or "failed" in one]
    if not tried:
        return Verdict(about, target, NOT_MEASURED, None)
    seconds = [one.get("recovered_s", math.inf) for one in tried]  # infinite: the round failed
    held = all(second is not None and second <= _MOST_RECOVERY_S for second in seconds)
    said = ", ".join({None: "not within 6 s", math.inf: "failed"}.get(second, f"{second} s") for second in seconds)
    said += _fewer(len(tried), planned)
    return Verdict(about, target, said, held if len(tried) == planned or not held else None)


def _growth(read: ServingResults) -> Iterator[Verdict]:
    sizes, rate = read.settings.get("sizes", []), (read.settings.get("size_rates") or [0])[0]
    for smaller, larger in itertools.pairwise(sizes):
        key = f"open {rate}"
        each = _each_doubling(read.ratios(size(larger, key), size(smaller, key), "p50_ms"), larger / smaller)
        target = f"{smaller:,} → {larger:,} items: each doubling raises p50 by < 1.25 ×"
        yield _at_most("growth", target, each, 1.25, "{:.2f}", " ×", read.planned("sizes"))
    few, many = read.settings.get("users", 0), read.settings.get("many_users", 0)
    key = f"users/{{round}}/{{}}/open {rate}"
    ratios = read.ratios(key.replace("{}", str(many)), key.replace("{}", str(few)), "p50_ms")
    target = f"{few:,} → {many:,} users: p50 stays (< 1.05 × a doubling)"
    each = _each_doubling(ratios, many / few if few else 2)
    yield _at_most("growth", target, each, 1.05, "{:.2f}", " ×", read.planned("users"))


def _each_doubling(ratios: Sequence[float], times: float) -> list[float]:
    """The growth of each of the equal steps that double a size, from the growth at so many times the size."""
    return [ratio ** (1 / math.log2(times)) for ratio in ratios]


def _quick(read: ServingResults, about: str, rate: int) -> Verdict:
    target = f"open-loop at {rate:,} req/s: p90 < 7 ms and p99 < 20 ms"
    key = contender(_OURS, f"open {rate}")
    p90s, p99s = read.values(key, "p90_ms"), read.values(key, "p99_ms")
    p90, p99 = median(p90s), median(p99s)
    if p90 is None or p99 is None:
        return Verdict(about, target, NOT_MEASURED, None)
    measured = f"{shown(p90s, '{:.1f}')} and {shown(p99s, '{:.1f}')} ms"
    measured += _fewer(min(len(p90s), len(p99s)), read.planned("contenders"))
    return Verdict(about, target, measured, p90 < MOST_P90_MS and p99 < MOST_P99_MS)


def _counted(read: ServingResults, stage: str, found: Verdict) -> Verdict:
    """A verdict on a time or a rate; without an answer where the machine was not as fast as the reference."""
    why = does_not_count(read, stage)
    if found.holds is None or not why:
        return found
    return replace(found, measured=f"{found.measured}; does not count: {why}", holds=None)


def _at_least(
    about: str, target: str, values: Sequence[float], bound: float, form: str, unit: str = "", rounds: int = 0
) -> Verdict:
    """Whether the median is at least the bound; says so where there are fewer values than planned rounds."""
    middle = median(values)
    if middle is None:
        return Verdict(about, target, NOT_MEASURED, None)
    return Verdict(about, target, shown(values, form, unit) + _fewer(len(values), rounds), middle >= bound)


def _at_most(
    about: str, target: str, values: Sequence[float], bound: float, form: str, unit: str = "", rounds: int = 0
) -> Verdict:
    """Whether the median is at most the bound; says so where there are fewer values than planned rounds."""
    middle = median(values)
    if middle is None:
        return Verdict(about, target, NOT_MEASURED, None)
    return Verdict(about, target, shown(values, form, unit) + _fewer(len(values), rounds), middle <= bound)


def _fewer(had: int, planned: int) -> str:
    """Says that a target has fewer rounds than were planned; empty: it has all."""
    return f"; {had} of {planned} rounds" if had < planned else ""
