"""Holds the simulation of `vlm2rec plan` against the service: p99 at three rates, which must agree within 25 %.

    python -m bench.capacity.queueing

The service has one worker and a core of its own; Redis and the client share the others. Calibrates at rates that are
not compared: at 50 requests a second, where nothing queues (what lies outside of the process), at 20, 40 and 60 % of
the rate of a closed loop, and in that loop (processor time of event loop and search thread, batches, and from p99 the
variation of the times). Then it compares p99 at 30, 50 and 70 %. All rates take turns, so that they see the same
machine. Every figure is the median of the rounds, or of all of them together. At the end the processor time of an
answer from two workers on all cores, over that of one. About ten minutes on a quiet machine; on a busy one neither
calibration nor measurement means anything: the file holds the load average before each round. Writes
bench/results/queueing.json, and prints a table of the rates and the coefficients as ``vlm2rec plan --coefficients``
takes them; exit code 1 where a p99 differs by more or a request failed.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.capacity.thread_times import CONNECTIONS, Turn, Used, fitted_times
from bench.index.bundles import published
from bench.load.open_loop import Client, arrivals, requests_of
from bench.measurements import commit, machine
from bench.serving.contenders import OURS
from bench.serving.plan import ServingPlan
from bench.serving.running import PATH, RunningContender
from bench.serving.setting import Setting
from cli.capacity.queueing import ServiceTimes, closed_loop, fitted_variation, open_loop

TOLERANCE: Final = 0.25
CALIBRATED: Final = (0.2, 0.4, 0.6)
COMPARED: Final = (0.3, 0.5, 0.7)
LOW_RATE: Final = 50.0
_SIMULATED: Final = 30_000


def main() -> None:
    """Calibrate, measure, simulate, compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ServingPlan.main)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each open loop")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where the bundle is kept between runs")
    parser.add_argument("--out", type=Path, default=Path("bench/results/queueing.json"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    found = compared(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found), coefficients(found, time.strftime("%Y-%m-%d", time.gmtime())), sep="\n\n")
    sys.exit(0 if all(rate["holds"] for rate in found["rates"]) else 1)


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """The calibrated times, and measured and simulated latencies at each rate."""
    own, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise SystemExit("the service must have a core of its own; give the bench at least two")
    plan = replace(ServingPlan(), main=options.items)
    made = published(options.items, options.work, lambda *_: None)
    pinned = replace(OURS, under=("taskset", "--cpu-list", str(own)))
    everywhere = OURS.with_processes(2)
    with Setting(plan, {options.items: made}) as setting:
        os.sched_setaffinity(0, others)
        setting.redis(options.items, plan.users)
        with setting.start(pinned, options.items, plan.users) as running:
            measured = _measured(setting, running, plan, options)
            alone_cpu_ms = _cpu_ms(setting, running, plan, options.rounds)
        os.sched_setaffinity(0, [own, *others])
        with setting.start(everywhere, options.items, plan.users) as running:
            two_cpu_ms = _cpu_ms(setting, running, plan, options.rounds)
    peak = measured["peak"]
    times = calibrated(measured["turns"], peak)
    rates = [
        verdict(share * peak, [turn.latencies_ms for turn in measured["turns"] if turn.share == share], times)
        for share in COMPARED
    ]
    return {
        "items": options.items,
        "peak": round(peak, 1),
        "simulated_peak": round(closed_loop(times, CONNECTIONS, _SIMULATED), 1),
        "times": said(times),
        "workers_cost": round(two_cpu_ms / alone_cpu_ms, 3),
        "rates": rates,
        "calibration": [
            verdict(rate, [turn.latencies_ms for turn in measured["turns"] if turn.share == share], times)
            for share, rate in [(LOW_RATE / peak, LOW_RATE), *((share, share * peak) for share in CALIBRATED)]
        ],
        "load_averages": measured["load_averages"],
        "machine": machine(),
        "commit": commit(),
    }


def calibrated(turns: Sequence[Turn], peak: float) -> ServiceTimes:
    """The times of the process, from the turns at the rates that are not compared.

    Args:
        turns: of all rates; those that are compared are left out.
        peak: answers a second of a closed loop.
    """
    lowest = min(turn.share for turn in turns if turn.share)
    low = [turn for turn in turns if turn.share == lowest]
    others = [turn for turn in turns if turn.share in {*CALIBRATED, 0.0}]
    latencies_ms = np.concatenate([turn.latencies_ms for turn in low])
    used_ms = sum(turn.used.loop_ms for turn in low) / sum(turn.used.searches for turn in low)
    outside_ms = np.maximum(latencies_ms[~np.isnan(latencies_ms)] - used_ms, 0)
    times = fitted_times(others, peak, outside_ms.tolist())
    p99_ms = {share * peak: _percentile([turn for turn in turns if turn.share == share], 99) for share in CALIBRATED}
    return fitted_variation(times, p99_ms)


def verdict(rate: float, runs: Sequence[NDArray[np.float64]], times: ServiceTimes) -> dict[str, Any]:
    """Medians over the rounds beside the simulation, and whether the p99 agree.

    Args:
        rate: requests a second.
        runs: measured latencies in milliseconds, of each round; NaN for a request that was not answered with 200.
        times: that are simulated.
    """
    return agreement(rate, runs, open_loop(times, rate, _SIMULATED))


def agreement(rate: float, runs: Sequence[NDArray[np.float64]], simulated: NDArray[np.float64]) -> dict[str, Any]:
    """Medians over the rounds beside simulated latencies, and whether the p99 agree.

    Args:
        rate: requests a second.
        runs: measured latencies in milliseconds, of each round; NaN for a request that was not answered with 200.
        simulated: those of the simulation.
    """
    failed = sum(int(np.isnan(run).sum()) for run in runs)
    found: dict[str, Any] = {"rate": round(rate, 1), "failed": failed}
    for percent in (50, 99):
        each = [round(float(np.nanpercentile(run, percent)), 3) for run in runs]
        found[f"p{percent}_ms"] = statistics.median(each)
        found[f"p{percent}_ms_of_rounds"] = each
        found[f"simulated_p{percent}_ms"] = round(float(np.percentile(simulated, percent)), 3)
    found["difference"] = round(found["simulated_p99_ms"] / found["p99_ms"] - 1, 3)
    return found | {"holds": failed == 0 and abs(found["difference"]) <= TOLERANCE}


def table(found: Mapping[str, Any]) -> str:
    """The compared rates as a table of Markdown."""
    lines = [
        "| requests/s | p50, measured | p50, simulated | p99, measured | p99, simulated | difference of p99 |",
        "|---|---|---|---|---|---|",
    ]
    for rate in found["rates"]:
        cells = [f"{rate[name]:.1f} ms" for name in ("p50_ms", "simulated_p50_ms", "p99_ms", "simulated_p99_ms")]
        lines.append(f"| {rate['rate']:,.0f} | {' | '.join(cells)} | {rate['difference']:+.0%} |")
    return "\n".join(lines)


def coefficients(found: Mapping[str, Any], date: str) -> str:
    """The calibrated times as coefficients of the planner, in TOML.

    Args:
        found: of a run.
        date: of the run, as year-month-day.
    """
    values = {**found["times"], "workers_cost": found["workers_cost"]}
    return "\n".join(
        f'[{name}]\nvalue = {value}\nunit = "{"ms" if name.endswith("_ms") else "ratio"}"\nbasis = "measured"\n'
        f'source = "bench/results/queueing.json, {found["items"]:,} items"\ndate = "{date}"\n'
        'command = "python -m bench.capacity.queueing"\n'
        for name, value in values.items()
    )


def said(times: ServiceTimes) -> dict[str, float]:
    """The times by the names of their coefficients."""
    quantiles = dict(zip(("p50", "p90", "p99"), np.percentile(times.outside_ms, [50, 90, 99]).tolist(), strict=True))
    return {
        **{
            name: round(getattr(times, name), 4) for name in ("loop_ms", "wake_ms", "alone_ms", "batch_ms", "search_ms")
        },
        "variation": times.variation,
        **{f"outside_{name}_ms": round(value, 3) for name, value in quantiles.items()},
    }


def _measured(
    setting: Setting, running: RunningContender, plan: ServingPlan, options: argparse.Namespace
) -> dict[str, Any]:
    """The rate of a closed loop, and all turns: of a share 0 in that loop, else at that share of its rate."""
    setting.closed(running, plan.users, CONNECTIONS, plan.warm_s)
    closed = [setting.closed(running, plan.users, CONNECTIONS, plan.closed_s)["good"] for _ in range(options.rounds)]
    peak = statistics.median(closed)
    turns, load_averages = [], []
    for number in range(1, options.rounds + 1):
        load_averages.append(round(os.getloadavg()[0], 2))
        before = Used.of(running)
        setting.closed(running, plan.users, CONNECTIONS, plan.closed_s)
        turns.append(Turn(0.0, Used.of(running) - before, np.empty(0)))
        for share in sorted({LOW_RATE / peak, *CALIBRATED, *COMPARED}):
            before = Used.of(running)
            latencies_ms = _latencies_ms(running, plan.users, share * peak, options.seconds, number)
            turns.append(Turn(share, Used.of(running) - before, latencies_ms))
            said_ms = ", ".join(f"{_percentile(turns[-1:], percent):.1f}" for percent in (50, 90, 99))
            print(f"[{number}/{options.rounds}] {share * peak:.0f}/s: p50, p90, p99 {said_ms} ms", file=sys.stderr)
    return {"peak": peak, "turns": turns, "load_averages": load_averages}


def _cpu_ms(setting: Setting, running: RunningContender, plan: ServingPlan, rounds: int) -> float:
    """Processor time of an answer in a closed loop, the median of the rounds."""
    setting.closed(running, plan.users, CONNECTIONS, plan.warm_s)
    closed = [setting.closed(running, plan.users, CONNECTIONS, plan.closed_s) for _ in range(rounds)]
    return statistics.median(one["cpu_ms"] for one in closed)


def _percentile(turns: Sequence[Turn], percent: float) -> float:
    """The median over turns of a percentile of the latency in milliseconds."""
    return statistics.median(float(np.nanpercentile(turn.latencies_ms, percent)) for turn in turns)


def _latencies_ms(running: RunningContender, users: int, rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Latencies of the requests, from the moment each was due; NaN where the answer is not a 200."""
    order = np.random.default_rng(seed).integers(users, size=4_096).tolist()
    bodies = [running.contender.body({"user_id": f"user-{user:06d}", "k": 20}) for user in order]
    client = Client(running.port)
    try:
        client.run(requests_of(PATH, bodies), time.perf_counter() + 0.05 + arrivals(rate, seconds, seed))
    finally:
        client.close()
    due, answered, status, *_ = np.array(client.records).T
    latencies: NDArray[np.float64] = np.where(status == 200, 1_000 * (answered - due), np.nan)
    return latencies


if __name__ == "__main__":
    main()
