"""Measures `POST /recommend` on a GPU: latency at 1,000 requests per second, and the highest rate with p99 < 50 ms.

    python -m bench.gpu.gpu_serving                             # 1M and 10M items on CUDA; continues the last run
    python -m bench.gpu.gpu_serving --device cpu --rows 2000    # shows that the script works; says nothing about a GPU

One `vlm2rec serve` with encoder and index on the device, histories in Redis, open-loop load from the same machine (the
rates of bench.serving.serving). A rate holds where p99 is below 50 ms and at least 99 in 100 answers are complete
within a second; it is doubled from 1,000 until it does not hold, and then narrowed down to a twentieth. Building 10M
items takes hours on few cores and some 20 GB of memory; bundles are kept in .bench. Every measurement is stored as soon
as it is done (bench/results/gpu_serving.json).
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.load.closed_loop import load_tool
from bench.measurements import Measurements
from bench.serving.contenders import OURS, Contender
from bench.serving.plan import ServingPlan
from bench.serving.running import RunningContender
from bench.serving.serving import NEIGHBOURS, prepare
from bench.serving.setting import Setting

RATE = 1_000
_ROOT = Path(__file__).parents[2]
_OUT = _ROOT / "bench" / "results" / "gpu_serving.json"
_MOST_P99_MS, _LEAST_GOOD = 50.0, 0.99
_NARROW = 1.05


def highest_rate(holds: Callable[[int], bool], first: int) -> int:
    """The highest rate that holds, to a twentieth.

    Args:
        holds: whether a rate does; a lower one than one that does is taken to do as well.
        first: that is tried first; doubled while it holds, halved down to a sixteenth while it does not.

    Returns:
        Requests a second; 0 if not even a sixteenth of the first holds.
    """
    low, high = first, 2 * first
    if holds(first):
        while holds(high):
            low, high = high, 2 * high
    else:
        low, high = first // 2, first
        while not holds(low):
            low, high = low // 2, low
            if low < first // 16:
                return 0
    while high > _NARROW * low and high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def good_enough(measured: dict[str, Any]) -> bool:
    """Whether the figures of a rate meet the criteria."""
    quick = measured.get("p99_ms", _MOST_P99_MS) < _MOST_P99_MS
    return quick and measured["good"] >= _LEAST_GOOD * measured["offered"]


def measure(setting: Setting, contender: Contender, rows: int, results: Measurements, rate: int = RATE) -> None:
    """Run the missing measurements of one catalogue on a new server."""
    if f"{rows}/highest" in results:
        return
    plan = setting.plan
    with setting.start(contender, rows, plan.users) as running:
        results.put(f"{rows}/start", {"ready_s": running.ready_s}, took_s=running.ready_s)
        setting.closed(running, plan.users, plan.connections, plan.warm_s)
        began = time.perf_counter()

        def at(rate: int) -> dict[str, Any]:
            return _offered(setting, running, rows, rate, results)

        at(rate)
        found = highest_rate(lambda rate: good_enough(at(rate)), rate)
        results.put(f"{rows}/highest", {"rate": found}, took_s=time.perf_counter() - began)
    print(f"  {rows:,} items: {found:,} req/s with p99 < {_MOST_P99_MS:.0f} ms", flush=True)


def _offered(
    setting: Setting, running: RunningContender, rows: int, rate: int, results: Measurements
) -> dict[str, Any]:
    key = f"{rows}/open {rate}"
    if key not in results:
        measured = setting.open(running, setting.plan.users, rate, setting.plan.open_s, seed=rate)
        results.put(key, measured, took_s=setting.plan.open_s)
        shown = "  ".join(f"{name} {measured[name]:.4g}" for name in ("good", "p50_ms", "p99_ms") if name in measured)
        print(f"  {key:<24} {shown}", flush=True)
    return results[key]


def main() -> None:
    """Measure everything that is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000], help="items of the catalogues")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rate", type=int, default=RATE, help="requests a second tried first")
    parser.add_argument("--seconds", type=float, default=15.0, help="of load at each rate")
    parser.add_argument("--fresh", action="store_true", help="begin anew; built bundles are kept all the same")
    parser.add_argument("--out", type=Path, help=f"default {_OUT.relative_to(_ROOT)}; on the CPU: aside")
    parser.add_argument("--work", type=Path, default=_ROOT / ".bench", help="where bundles are kept between runs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended on the way out
    aside = Path(tempfile.gettempdir()) / "vlm2rec-gpu-serving-cpu.json"
    out = options.out or (_OUT if options.device == "cuda" else aside)
    plan = ServingPlan(sizes=tuple(sorted(options.rows)), main=min(options.rows), open_s=options.seconds)
    settings = {"device": options.device, "seconds": options.seconds, "rate": options.rate, "load": load_tool()}
    settings |= {"neighbours": NEIGHBOURS}
    results = Measurements(out, settings, fresh=options.fresh)
    bundles = prepare(plan.sizes, results, options.work, NEIGHBOURS)
    contender = replace(OURS, environment={**OURS.environment, "VLM2REC_DEVICE": options.device})
    with Setting(plan, bundles) as setting:
        for rows in plan.sizes:
            measure(setting, contender, rows, results, options.rate)
    print(f"all measured: {out}")


if __name__ == "__main__":
    main()
