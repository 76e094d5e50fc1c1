"""Holds the simulation of `vlm2rec plan` against the service: p99 at three rates, which must agree within 25 %.

    python -m bench.capacity.queueing

Calibrates with closed loops of 1 to 64 connections (`bench.capacity.calibration`), and measures at 30, 50 and 70 % of
the rate of 64 connections in an open loop, which the calibration has not seen. The service is as it starts by default,
with one worker a core; Redis and the client share its cores, and the simulation has them. Closed and open loops take
turns, and every figure is the median of the rounds. About five minutes on a quiet machine; on a busy one neither
calibration nor measurement means anything: the file holds the load average before each round, and the share of the
cores that the host took. Writes bench/results/queueing.json, and prints a table and the coefficients as ``vlm2rec plan
--coefficients`` takes them; exit code 1 where a p99 differs by more or a request failed.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis
from numpy.typing import NDArray

from bench.capacity.calibration import (
    CONNECTIONS,
    Target,
    by_connections,
    calibrated,
    closed_run,
    open_run,
    quantiles,
    together,
)
from bench.index.bundles import published
from bench.measurements import commit, machine, rounded
from bench.serving.contenders import OURS
from bench.serving.plan import ServingPlan
from bench.serving.setting import Setting
from cli.capacity.cores import SLICE_MS
from cli.capacity.queueing import ServiceTimes, closed_loop, open_loop

TOLERANCE: Final = 0.25
SHARES: Final = (0.3, 0.5, 0.7)
COEFFICIENTS: Final = (
    *(
        "loop_ms",
        "alone_ms",
        "batch_ms",
        "search_ms",
        "redis_ms",
        "client_ms",
        "turn_ms",
        "wake_ms",
        "contention",
        "variation",
    ),
)
_SIMULATED: Final = 20_000
_WARM_S: Final = 3.0
_IDLE_SHARE: Final = 0.05  # of the rate of 64 connections: no queues


def main() -> None:
    """Calibrate, measure, simulate, compare and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ServingPlan.main)
    parser.add_argument("--workers", type=int, default=0, help="of the service; 0: as many as it starts by itself")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each open loop")
    parser.add_argument("--closed-seconds", type=float, default=2.5, help="of each closed loop")
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
    """All closed loops, and the open ones of each rate together."""
    encoder = options.work / "encoder.onnx"
    if not encoder.exists():
        encoder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "bench.index.encoder", str(encoder)], check=True)
    plan, cores = replace(ServingPlan(), main=options.items), len(os.sched_getaffinity(0))
    made = published(options.items, options.work, encoder, lambda *_: None)
    service = OURS.with_processes(options.workers) if options.workers else OURS.with_default_processes()
    real_time = os.sched_getscheduler(0) == os.SCHED_RR
    with Setting(plan, {options.items: made}) as setting, setting.start(service, options.items, plan.users) as running:
        with redis.Redis.from_url(setting.redis(options.items, plan.users)) as client:
            target = Target(running, int(client.info("server")["process_id"]), plan.users)
        closed_run(target, CONNECTIONS[-1], _WARM_S, 0)
        loads = _loaded(target, options)
    return {
        "items": options.items,
        "workers": options.workers or cores,
        "cores": cores,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "real_time": real_time,
        "slice_ms": 1_000 * os.sched_rr_get_interval(0) if real_time else SLICE_MS,
        **loads,
        "machine": machine(),
        "commit": commit(),
    }


def _loaded(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    """Closed loops before, between and after the open ones, and the load average before each round."""
    closed: list[dict[str, Any]] = []
    opened: dict[float, list[dict[str, Any]]] = {}
    latencies_ms: dict[float, list[NDArray[np.float64]]] = {}
    idle: list[dict[str, Any]] = []
    averages = []
    for number in range(options.rounds + 1):
        averages.append(round(os.getloadavg()[0], 2))
        for rate, found in opened.items():
            run, of_run = open_run(target, rate, options.seconds, number)
            found.append(run)
            latencies_ms[rate].append(of_run)
            print(json.dumps(rounded(run | quantiles(of_run))), file=sys.stderr)
        for connections in CONNECTIONS:
            seed = 100 * number + connections
            closed.append(closed_run(target, connections, options.closed_seconds, seed))
        run, of_run = open_run(target, _IDLE_SHARE * closed[-1]["answers_s"], options.seconds, 1_000 + number)
        idle.append(run | quantiles(of_run))
        if number == 0:
            opened = {share * closed[-1]["answers_s"]: [] for share in SHARES}
            latencies_ms = {rate: [] for rate in opened}
    rates = [of_rate(opened[rate], latencies_ms[rate]) for rate in opened]
    return {"closed": rounded(closed), "idle": rounded(idle), "open": rounded(rates), "load_averages": averages}


def of_rate(runs: Sequence[dict[str, Any]], latencies_ms: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """The runs at one rate together: quantiles of all their latencies, p99 of each, sums of counts, medians else."""
    found = together(runs) | {name: sum(run[name] for run in runs) for name in ("answers", "failed")}
    rounds_ms = [float(np.percentile(of_run, 99)) for of_run in latencies_ms]
    return found | quantiles(np.concatenate(latencies_ms)) | {"rounds_p99_ms": rounds_ms}


def compared(runs: dict[str, Any]) -> dict[str, Any]:
    """The calibrated times, and measured and simulated latencies at each rate.

    Args:
        runs: of `measured`.
    """
    times = calibrated(
        runs["closed"], runs["idle"], workers=runs["workers"], cores=runs["cores"], slice_ms=runs["slice_ms"]
    )
    return {
        "times": rounded({name: getattr(times, name) for name in COEFFICIENTS}),
        "rates": [verdict(run, simulated(times, run["rate"], runs["seconds"])) for run in runs["open"]],
        "calibration": [against_closed(run, times) for run in by_connections(runs["closed"])],
        **runs,
    }


def simulated(times: ServiceTimes, rate: float, seconds: float) -> NDArray[np.float64]:
    """Latencies of open loops as long as the measured ones, at least 20,000 requests in all."""
    requests = max(1, round(rate * seconds))
    loops = math.ceil(_SIMULATED / requests)
    return np.concatenate([open_loop(times, rate, requests, seed) for seed in range(loops)])


def against_closed(run: dict[str, Any], times: ServiceTimes) -> dict[str, Any]:
    """A closed loop beside its simulation: answers a second, and quantiles of latency in milliseconds."""
    loop = closed_loop(times, int(run["connections"]), _SIMULATED // 3)
    found = {"connections": run["connections"], "answers_s": run["answers_s"], "simulated_answers_s": loop.rate}
    for percent in (50, 99):
        found[f"p{percent}_ms"] = run[f"p{percent}_ms"]
        found[f"simulated_p{percent}_ms"] = float(np.percentile(loop.latencies_ms, percent))
    return dict(rounded(found))


def verdict(measured: dict[str, Any], simulated_ms: NDArray[np.float64]) -> dict[str, Any]:
    """Measured latencies beside the simulation, and whether the p99 agree.

    Args:
        measured: of `of_rate`.
        simulated_ms: latencies of the simulation.
    """
    found: dict[str, Any] = {"rate": round(measured["rate"], 1), "failed": measured["failed"]}
    for percent in (50, 99):
        found[f"p{percent}_ms"] = round(measured[f"p{percent}_ms"], 3)
        found[f"simulated_p{percent}_ms"] = round(float(np.percentile(simulated_ms, percent)), 3)
    found["difference"] = round(found["simulated_p99_ms"] / found["p99_ms"] - 1, 3)
    return found | {"holds": found["failed"] == 0 and abs(found["difference"]) <= TOLERANCE}


def table(found: dict[str, Any]) -> str:
    """The rates as a table of Markdown."""
    lines = [
        "| requests/s | p50, measured | p50, simulated | p99, measured | p99, simulated | difference of p99 |",
        "|---|---|---|---|---|---|",
    ]
    for rate in found["rates"]:
        cells = [f"{rate[name]:.1f} ms" for name in ("p50_ms", "simulated_p50_ms", "p99_ms", "simulated_p99_ms")]
        lines.append(f"| {rate['rate']:,.0f} | {' | '.join(cells)} | {rate['difference']:+.0%} |")
    return "\n".join(lines)


def coefficients(found: dict[str, Any], date: str) -> str:
    """The calibrated times as coefficients of the planner, in TOML.

    Args:
        found: of a run.
        date: of the run, as year-month-day.
    """
    return "\n".join(
        f'[{name}]\nvalue = {found["times"][name]}\nunit = "{"ms" if name.endswith("_ms") else "ratio"}"\n'
        f'basis = "measured"\nsource = "bench/results/queueing.json, {found["items"]:,} items"\ndate = "{date}"\n'
        'command = "python -m bench.capacity.queueing"\n'
        for name in COEFFICIENTS
    )


if __name__ == "__main__":
    main()
