"""Measures the service with 1, 2 and 4 worker processes, in turns beside the echo.

    python -m bench.serving.workers --items 100000 --rounds 5

Every round starts each of them anew on the same bundle and Redis. Given are medians over the rounds: answers a second,
that rate over the echo's of the same round, milliseconds of processor time an answer, and memory. Processor time is
that of all processes of the service, from /proc. Writes JSON.
"""

import argparse
import json
import os
import signal
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.index.bundles import published
from bench.load.closed_loop import load_tool
from bench.measurements import commit, machine
from bench.serving.contenders import ECHO, OURS, Contender
from bench.serving.plan import ServingPlan
from bench.serving.serving import NEIGHBOURS
from bench.serving.setting import Setting


def main() -> None:
    """Build the missing bundle, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ServingPlan.main)
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="of an item in each of three lists")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=ServingPlan.closed_s, help="of load of each turn")
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second of the open loop")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where the bundle is kept between runs")
    parser.add_argument("--out", type=Path, help="bench/results/workers-N.json if not given")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    found = measured(options)
    out = options.out or Path(f"bench/results/workers-{options.items}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found["medians"], indent=1))


def contenders(workers: Sequence[int]) -> list[Contender]:
    """The echo, then the service with each number of workers.

    Args:
        workers: numbers of worker processes.
    """
    counts = [replace(OURS, name=f"{n} workers", environment={"VLM2REC_WORKERS": str(n)}) for n in workers]
    return [ECHO, *counts]


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Every turn, and the medians of each contender."""
    plan = replace(ServingPlan(), main=options.items, closed_s=options.seconds)
    made = published(options.items, options.work, lambda *_: None, neighbours=options.neighbours)
    everyone = contenders(options.workers)
    turns: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in everyone}
    with Setting(plan, {options.items: made}) as setting:
        for number in range(1, options.rounds + 1):
            for contender in everyone:
                turns[contender.name].append(turn(setting, contender, plan, options.rate, number))
                print(f"[{number}/{options.rounds}] {contender.name}: {turns[contender.name][-1]}", file=sys.stderr)
    return {
        "items": options.items,
        "neighbours": options.neighbours,
        "load": load_tool(),
        "medians": medians(turns),
        "turns": turns,
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "machine": machine(),
    }


def turn(setting: Setting, contender: Contender, plan: ServingPlan, rate: float, seed: int) -> dict[str, Any]:
    """One start of a contender under closed-loop load, then under an open loop."""
    with setting.start(contender, plan.main, plan.users) as running:
        setting.closed(running, plan.users, plan.connections, plan.warm_s)
        before = running.cpu_seconds()
        load = setting.closed(running, plan.users, plan.connections, plan.closed_s)
        used = running.cpu_seconds() - before
        found = {name: load[name] for name in ("good", "p50_ms", "p99_ms")}
        found["cpu_ms"] = round(1000 * used / max(load["good"] * plan.closed_s, 1), 4)
        found |= running.memory_bytes()
        opened = setting.open(running, plan.users, rate, plan.closed_s, seed)
        if "p50_ms" not in opened:
            raise SystemExit(f"{contender.name} answered no request of an open loop of {rate:g} a second")
        return found | {f"open_{name}": opened[name] for name in ("p50_ms", "p99_ms")}


def medians(turns: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Medians of every figure over the rounds, and of the rate over the echo's of the same round.

    Raises:
        SystemExit: the echo gave no good answer in a round.
    """
    failed = [number for number, echo in enumerate(turns[ECHO.name], 1) if not echo["good"]]
    if failed:
        raise SystemExit(f"the echo gave no good answer in rounds {failed}: there is no rate to compare with")
    found = {}
    for name, some in turns.items():
        each = {figure: statistics.median(turn[figure] for turn in some) for figure in some[0]}
        rates = [turn["good"] / echo["good"] for turn, echo in zip(some, turns[ECHO.name], strict=True)]
        found[name] = {"over_echo": round(statistics.median(rates), 3), **each}
    return found


if __name__ == "__main__":
    main()
