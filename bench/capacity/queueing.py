"""Holds the simulation of `vlm2rec plan` against the service: p99 at three rates, which must agree within 25 %.

    python -m bench.capacity.queueing

Calibrates with two runs: at 50 requests a second, where nothing queues (what lies outside of the process, and a search
alone), and in a closed loop (processor time of event loop and search threads, and the highest rate, to which the
contention of the threads is fitted). Then it measures at 30, 50 and 70 % of that rate, which the calibration has not
seen, and simulates the same. Every figure is the median of the rounds. About five minutes on a quiet machine; on a busy
one neither calibration nor measurement means anything: the file holds the load average before each stage. Writes
bench/results/queueing.json, and prints a table of them and the coefficients as ``vlm2rec plan
--coefficients`` takes them; exit code 1 where a p99 differs by more or a request failed.
"""

import argparse
import json
import os
import re
import signal
import statistics
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.index.bundles import published
from bench.load.open_loop import Client, arrivals, requests_of
from bench.measurements import commit, machine
from bench.serving.contenders import OURS
from bench.serving.plan import ServingPlan
from bench.serving.running import PATH, RunningContender
from bench.serving.setting import Setting
from cli.capacity.queueing import ServiceTimes, closed_loop, fitted_contention, open_loop

TOLERANCE: Final = 0.25
SHARES: Final = (0.3, 0.5, 0.7)
_LOW_RATE: Final = 50.0
_CONNECTIONS: Final = 64
_SIMULATED: Final = 30_000
_STAGE: Final = re.compile(r'vlm2rec_stage_seconds_(sum|count)\{[^}]*stage="(encode|search)"[^}]*\} (\S+)')


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
    plan = replace(ServingPlan(), main=options.items)
    made = published(options.items, options.work, lambda *_: None)
    with Setting(plan, {options.items: made}) as setting, setting.start(OURS, options.items, plan.users) as running:
        setting.closed(running, plan.users, _CONNECTIONS, plan.warm_s)
        load = [_load()]
        times, peak = _calibrated(setting, running, plan, options)
        print(f"peak {peak:.0f}/s, {_said(times)}", file=sys.stderr)
        rates = []
        for share in SHARES:
            rate = share * peak
            load.append(_load())
            runs = [_latencies_ms(running, plan.users, rate, options.seconds, n) for n in range(1, options.rounds + 1)]
            rates.append(verdict(rate, runs, open_loop(times, rate, _SIMULATED)))
            print(json.dumps(rates[-1]), file=sys.stderr)
    return {
        "items": options.items,
        "peak": peak,
        "simulated_peak": closed_loop(times, _CONNECTIONS, _SIMULATED),
        "times": _said(times),
        "rates": rates,
        "load_averages": load,
        "machine": machine(),
        "commit": commit(),
    }


def verdict(rate: float, runs: list[NDArray[np.float64]], simulated: NDArray[np.float64]) -> dict[str, Any]:
    """Medians over the rounds beside the simulation, and whether the p99 agree.

    Args:
        rate: requests a second.
        runs: measured latencies in milliseconds, of each round; NaN for a request that was not answered with 200.
        simulated: those of the simulation.
    """
    failed = sum(int(np.isnan(run).sum()) for run in runs)
    found: dict[str, Any] = {"rate": round(rate, 1), "failed": failed}
    for percent in (50, 99):
        measured = statistics.median(float(np.nanpercentile(run, percent)) for run in runs)
        found[f"p{percent}_ms"] = round(measured, 3)
        found[f"simulated_p{percent}_ms"] = round(float(np.percentile(simulated, percent)), 3)
    found["difference"] = round(found["simulated_p99_ms"] / found["p99_ms"] - 1, 3)
    return found | {"holds": failed == 0 and abs(found["difference"]) <= TOLERANCE}


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
    times = found["times"]
    values = {name: times[name] for name in ("loop_ms", "search_ms", "contention")}
    values["alone"] = round(times["alone_ms"] / times["search_ms"], 2)
    values |= {name: times[name] for name in ("outside_p50_ms", "outside_p90_ms", "outside_p99_ms")}
    return "\n".join(
        f'[{name}]\nvalue = {value}\nunit = "{"ms" if name.endswith("_ms") else "ratio"}"\nbasis = "measured"\n'
        f'source = "bench/results/queueing.json, {found["items"]:,} items"\ndate = "{date}"\n'
        'command = "python -m bench.capacity.queueing"\n'
        for name, value in values.items()
    )


def _calibrated(
    setting: Setting, running: RunningContender, plan: ServingPlan, options: argparse.Namespace
) -> tuple[ServiceTimes, float]:
    """The times of the process, and the answers a second of a closed loop."""
    peaks, loops_ms, searches_ms = [], [], []
    for _ in range(options.rounds):
        before = running.thread_seconds()
        began = time.perf_counter()
        good = setting.closed(running, plan.users, _CONNECTIONS, plan.closed_s)["good"]
        answered = good * (time.perf_counter() - began)
        after = running.thread_seconds()
        peaks.append(good)
        loops_ms.append(1_000 * (after[0] - before[0]) / answered)
        searches_ms.append(1_000 * (after[1] - before[1]) / answered)
    earlier = _stages(running.port)
    latencies_ms = np.concatenate(
        [_latencies_ms(running, plan.users, _LOW_RATE, options.seconds, 100 + n) for n in range(options.rounds)]
    )
    latencies_ms = latencies_ms[~np.isnan(latencies_ms)]
    alone_ms = _mean_ms(earlier, _stages(running.port))
    loop_ms, peak = statistics.median(loops_ms), statistics.median(peaks)
    times = ServiceTimes(
        loop_ms=loop_ms,
        search_ms=statistics.median(searches_ms),
        alone_ms=alone_ms,
        outside_ms=np.maximum(latencies_ms - loop_ms - alone_ms, 0).tolist(),
        threads=min(machine()["cores"], 4),
        cores=machine()["cores"],
    )
    return fitted_contention(times, peak, _CONNECTIONS), peak


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


def _load() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def _stages(port: int) -> dict[tuple[str, str], float]:
    """Sum and count of the stages `encode` and `search`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[tuple[str, str], float] = {}
    for kind, stage, value in _STAGE.findall(text):
        found[stage, kind] = found.get((stage, kind), 0.0) + float(value)
    return found


def _mean_ms(before: dict[tuple[str, str], float], after: dict[tuple[str, str], float]) -> float:
    """Mean time of encoding and searching between two readings."""
    grown = {key: after[key] - before.get(key, 0.0) for key in after}
    return sum(1_000 * grown[stage, "sum"] / grown[stage, "count"] for stage in ("encode", "search"))


def _said(times: ServiceTimes) -> dict[str, float]:
    quantiles = dict(zip(("p50", "p90", "p99"), np.percentile(times.outside_ms, [50, 90, 99]).tolist(), strict=True))
    return {
        "loop_ms": round(times.loop_ms, 4),
        "search_ms": round(times.search_ms, 4),
        "alone_ms": round(times.alone_ms, 4),
        "contention": round(times.contention, 3),
        **{f"outside_{name}_ms": round(value, 3) for name, value in quantiles.items()},
    }


if __name__ == "__main__":
    main()
