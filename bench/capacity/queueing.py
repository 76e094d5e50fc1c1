"""Holds the simulation of `vlm2rec plan` against the service: p99 at three rates, which must agree within 25 %.

    python -m bench.capacity.queueing

One worker of the service has the first core of this machine for itself; Redis, the client and this bench have the
others, and at least one. Calibrates with closed loops of 1 to 64 connections and with an open loop at a tenth of the
rate of 64 connections (`bench.capacity.calibration`), and measures at 30, 50 and 70 % of that rate in an open loop,
which the calibration has not seen. All of them take turns, and every figure is the median of the rounds. About six
minutes on a quiet machine; on a busy one neither calibration nor measurement means anything: the file holds the load
average before each round, and the pauses of the cores. Writes bench/results/queueing.json, and prints a table and the
coefficients as ``vlm2rec plan --coefficients`` takes them; exit code 1 where a p99 differs by more or a request failed.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis
from numpy.typing import NDArray

from bench.capacity.calibration import CONNECTIONS, Target, by_connections, calibrated, closed_run, open_run, together
from bench.capacity.pauses import PauseMeters
from bench.index.bundles import published
from bench.measurements import commit, machine, rounded
from bench.serving.contenders import OURS
from bench.serving.plan import ServingPlan
from bench.serving.setting import Setting
from cli.capacity.queueing import ServiceTimes, closed_loop, open_loop

TOLERANCE: Final = 0.25
SHARES: Final = (0.3, 0.5, 0.7)
TIMES: Final = (
    "loop_ms",
    "alone_ms",
    "handoff_ms",
    "batch_ms",
    "search_ms",
    "redis_ms",
    "client_ms",
    "wake_ms",
    "variation",
    "pauses_s",
)
_PAUSE_PERCENTS: Final = (50, 90, 99)
_LEAST: Final = 0.0001  # as a coefficient is above 0
_LOW_SHARE: Final = 0.1
_SIMULATED: Final = 30_000
_WARM_S: Final = 3.0


def main() -> None:
    """Calibrate, measure, simulate, compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ServingPlan.main)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each open loop")
    parser.add_argument("--closed-seconds", type=float, default=3.0, help="of each closed loop")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where the bundle is kept between runs")
    parser.add_argument("--out", type=Path, default=Path("bench/results/queueing.json"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    found = compared(measured(options))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found), coefficients(found, time.strftime("%Y-%m-%d", time.gmtime())), sep="\n\n")
    sys.exit(0 if all(rate["holds"] for rate in found["rates"]) else 1)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """All closed loops, and all open ones by their share of the rate of most connections.

    Raises:
        SystemExit: there is one core alone.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("this bench needs two cores: one for the service, one for Redis and the client")
    plan = replace(ServingPlan(), main=options.items)
    made = published(options.items, options.work, lambda *_: None)
    os.sched_setaffinity(0, set(cores[1:]))  # also of Redis, which this process starts
    service = replace(OURS, under=("taskset", "--cpu-list", str(cores[0])))
    with Setting(plan, {options.items: made}) as setting, setting.start(service, options.items, plan.users) as running:
        with redis.Redis.from_url(setting.redis(options.items, plan.users)) as client:
            redis_pid = int(client.info("server")["process_id"])
        with PauseMeters(cores[:2]) as meters:
            target = Target(running, redis_pid, plan.users, meters)
            closed_run(target, CONNECTIONS[-1], _WARM_S, 0)
            runs, metered = _rounds(target, options), meters.running
    os.sched_setaffinity(0, set(cores))
    return {
        "items": options.items,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "pauses_known": metered,
        **runs,
        "machine": machine(),
        "commit": commit(),
    }


def _rounds(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    """In each round the closed loops and then the open ones, and the load average before it."""
    closed: list[dict[str, Any]] = []
    opened: dict[float, list[dict[str, Any]]] = {share: [] for share in (_LOW_SHARE, *SHARES)}
    averages, peak = [], 0.0
    for number in range(options.rounds):
        averages.append(round(os.getloadavg()[0], 2))
        for connections in CONNECTIONS:
            closed.append(closed_run(target, connections, options.closed_seconds, 100 * number + connections))
            _say(closed[-1])
        peak = peak or closed[-1]["answers_s"]  # so that all rounds have the same rates
        for share, runs in opened.items():
            runs.append(open_run(target, share * peak, options.seconds, 1_000 + number))
            _say(runs[-1])
    low = opened.pop(_LOW_SHARE)
    return {
        "closed": rounded(closed),
        "low": rounded(low),
        "open": [rounded(of_rate) for of_rate in opened.values()],
        "load_averages": averages,
    }


def _say(run: Mapping[str, Any]) -> None:
    """Progress, and what to look at when a run is interrupted."""
    print(json.dumps(rounded({name: run[name] for name in run if name != "pauses_ms"})), file=sys.stderr, flush=True)


def compared(runs: dict[str, Any]) -> dict[str, Any]:
    """The calibrated times, and measured and simulated latencies at each rate.

    Args:
        runs: of `measured`.
    """
    times = calibrated(runs["closed"], runs["low"])
    rates = [(together(of_rate), open_loop(times, of_rate[0]["rate"], _SIMULATED)) for of_rate in runs["open"]]
    low = together(runs["low"])
    return {
        "times": said(times),
        "rates": [
            verdict(run, sum(one["failed"] for one in of_rate), simulated_ms)
            for (run, simulated_ms), of_rate in zip(rates, runs["open"], strict=True)
        ],
        "calibration": [
            *(against_closed(run, times) for run in by_connections(runs["closed"])),
            verdict(low, int(low["failed"]), open_loop(times, low["rate"], _SIMULATED // 3)),
        ],
        **runs,
    }


def said(times: ServiceTimes) -> dict[str, float]:
    """The times, with quantiles of the pauses, as coefficients of the planner."""
    found = {name: getattr(times, name) for name in TIMES}
    if times.pauses_ms:
        lengths_ms = np.percentile(times.pauses_ms, _PAUSE_PERCENTS).tolist()
        found |= {f"pause_p{percent}_ms": ms for percent, ms in zip(_PAUSE_PERCENTS, lengths_ms, strict=True)}
    return dict(rounded(found))


def against_closed(run: Mapping[str, Any], times: ServiceTimes) -> dict[str, Any]:
    """A closed loop beside its simulation: answers a second, and quantiles of latency in milliseconds."""
    loop = closed_loop(times, int(run["connections"]), _SIMULATED // 5)
    found = {"connections": run["connections"], "answers_s": run["answers_s"], "simulated_answers_s": loop.rate}
    for percent in (50, 99):
        found[f"p{percent}_ms"] = run[f"p{percent}_ms"]
        found[f"simulated_p{percent}_ms"] = float(np.percentile(loop.latencies_ms, percent))
    return dict(rounded(found))


def verdict(run: Mapping[str, Any], failed: int, simulated_ms: NDArray[np.float64]) -> dict[str, Any]:
    """Measured latencies beside the simulation, and whether the p99 agree.

    Args:
        run: medians over the rounds of one rate.
        failed: requests of all rounds that were not answered with 200.
        simulated_ms: latencies of the simulation.
    """
    found: dict[str, Any] = {"rate": round(run["rate"], 1), "failed": failed}
    for percent in (50, 99):
        found[f"p{percent}_ms"] = round(run[f"p{percent}_ms"], 3)
        found[f"simulated_p{percent}_ms"] = round(float(np.percentile(simulated_ms, percent)), 3)
    found["difference"] = round(found["simulated_p99_ms"] / found["p99_ms"] - 1, 3)
    return found | {"holds": failed == 0 and abs(found["difference"]) <= TOLERANCE}


def table(found: Mapping[str, Any]) -> str:
    """The rates as a table of Markdown."""
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
    units = {"variation": "ratio", "pauses_s": "pauses a second"}
    return "\n".join(
        f'[{name}]\nvalue = {max(value, _LEAST)}\nunit = "{units.get(name, "ms")}"\nbasis = "measured"\n'
        f'source = "bench/results/queueing.json, {found["items"]:,} items"\ndate = "{date}"\n'
        'command = "python -m bench.capacity.queueing"\n'
        for name, value in found["times"].items()
    )


if __name__ == "__main__":
    main()
