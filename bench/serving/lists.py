"""Measures what item-to-item lists cost the service: throughput of one catalogue with and without them, in turns.

    python -m bench.serving.lists --items 100000 --rounds 5

The ratio is made of the two turns of a round, which load generator, Redis and server share alike; the median over the
rounds is given. Writes JSON.
"""

import argparse
import json
import os
import signal
import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.index.bundles import published
from bench.load.closed_loop import load_tool
from bench.measurements import commit, machine
from bench.serving.contenders import OURS
from bench.serving.plan import ServingPlan
from bench.serving.serving import NEIGHBOURS
from bench.serving.setting import Setting

WITHOUT, WITH = "without lists", "with lists"


def main() -> None:
    """Build the missing bundles, measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ServingPlan.main)
    parser.add_argument("--neighbours", type=int, default=NEIGHBOURS, help="of an item in each of three lists")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=ServingPlan.closed_s, help="of load of each turn")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where bundles are kept between runs")
    parser.add_argument("--out", type=Path, help="bench/results/serving-lists-N.json if not given")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    found = measured(options)
    out = options.out or Path(f"bench/results/serving-lists-{options.items}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Answers a second, latency and memory of every turn, and the ratios of the rounds."""
    plan = replace(ServingPlan(), main=options.items, closed_s=options.seconds)
    turns: dict[str, list[dict[str, Any]]] = {WITHOUT: [], WITH: []}
    builds = {}
    with ExitStack() as stack:
        settings = {}
        for name, neighbours in ((WITHOUT, 0), (WITH, options.neighbours)):
            made = published(options.items, options.work, lambda *_: None, neighbours=neighbours)
            settings[name] = stack.enter_context(Setting(plan, {options.items: made}))
            builds[name] = made.build_s
        for number in range(1, options.rounds + 1):
            for name, setting in settings.items():
                turns[name].append(turn(setting, plan))
                print(f"[{number}/{options.rounds}] {name}: {turns[name][-1]}", file=sys.stderr, flush=True)
    return {
        "items": options.items,
        "neighbours": options.neighbours,
        "load": load_tool(),
        "throughput_ratio": ratio(turns, "good"),
        "p50_ratio": ratio(turns, "p50_ms"),
        "memory_ratio": ratio(turns, "proportional"),
        "build_s": builds,
        "turns": turns,
        "load_average": round(os.getloadavg()[0], 2),
        "commit": commit(),
        "machine": machine(),
    }


def turn(setting: Setting, plan: ServingPlan) -> dict[str, Any]:
    """One start of the service under closed-loop load."""
    with setting.start(OURS, plan.main, plan.users) as running:
        setting.closed(running, plan.users, plan.connections, plan.warm_s)
        load = setting.closed(running, plan.users, plan.connections, plan.closed_s)
        return {name: load[name] for name in ("good", "p50_ms", "p99_ms")} | running.memory_bytes()


def ratio(turns: dict[str, list[dict[str, Any]]], figure: str) -> float:
    """Median over the rounds of a figure with lists to that without."""
    pairs = zip(turns[WITHOUT], turns[WITH], strict=True)
    return round(statistics.median(listed[figure] / plain[figure] for plain, listed in pairs), 3)


if __name__ == "__main__":
    main()
