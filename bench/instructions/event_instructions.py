"""Counts what an event costs with and without outcomes: processor instructions of the service and calls of Redis.

    python -m bench.instructions.event_instructions --items 100000 --neighbours 50

The service runs with one worker under Valgrind's callgrind, once with `VLM2REC_OUTCOMES` and once without, and gets the
same single events, bulks and recommendations. What waits in its queue is done before a count ends. A fifth of the
events are about items of earlier answers. Other load of the machine does not change the instructions, and changes how
many calls of Redis events share only a little; times of Redis are those of its own statistics, which it does change.
Prints both for each event and each recommendation, and writes JSON.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis

from bench.events.traffic import EventTraffic, ShownAnswer
from bench.index.bundles import Published, published
from bench.instructions.callgrind import Counting, under_callgrind
from bench.instructions.instructions import Callers, counted_contender
from bench.load.histories import user_id
from bench.measurements import commit
from bench.serving.plan import ServingPlan
from bench.serving.quality import K
from bench.serving.running import PATH, RunningContender
from bench.serving.setting import Setting

_PATIENCE_S = 900.0
_IDLE_S = 3.0
_SHOWN = 100  # answers that events belong to
_QUIET_S = 5.0  # without a script of Redis: nothing waits in the queue of the service
_OUTCOMES = {"outcomes": {"VLM2REC_OUTCOMES": "true"}, "plain": dict[str, str]()}


@dataclass(frozen=True)
class Load:
    """Requests of one kind.

    Attributes:
        name: as the results call it.
        path: of the route.
        together: requests at a time.
        units: events or recommendations in each.
        bodies: the requests, an even number; the first half is not counted.
    """

    name: str
    path: str
    together: int
    units: int
    bodies: Sequence[bytes]

    @property
    def counted(self) -> int:
        """How many requests are counted."""
        return len(self.bodies) // 2


def main() -> None:
    """Count, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=ServingPlan.main)
    parser.add_argument("--neighbours", type=int, default=0, help="of an item in each of three lists; 0: no lists")
    parser.add_argument("--users", type=int, default=2000, help="with a history of ten items")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="where the bundle is kept between runs")
    parser.add_argument("--out", type=Path, default=Path("bench/results/event-instructions.json"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is ended on the way out
    made = published(options.items, options.work, lambda *_: None, neighbours=options.neighbours)
    plan = replace(ServingPlan(), main=options.items, users=options.users)
    found: dict[str, Any] = {"items": options.items, "neighbours": options.neighbours, "commit": commit()}
    for name, variables in _OUTCOMES.items():
        found[name] = counted(made, plan, variables)
        print(json.dumps({name: found[name]}, indent=1), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


def counted(made: Published, plan: ServingPlan, variables: dict[str, str]) -> dict[str, Any]:
    """Costs by kind of request of a service with these variables, on a new Redis."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="vlm2rec-bench-") as directory, Setting(plan, {plan.main: made}) as setting:
        out = Path(directory) / "callgrind"
        service = counted_contender(under_callgrind(out))
        service = replace(service, environment={**service.environment, **variables})
        with setting.start(service, plan.main, plan.users, patience_s=_PATIENCE_S) as running:
            counting, url = Counting(running.pid, out), setting.redis(plan.main, plan.users)
            for load in _loads(setting, plan, running, Path(directory)):
                with Callers(running.port, load.together, load.path) as callers:
                    callers.ask(load.bodies[: load.counted])
                    _wait_until_quiet(url)
                    found[load.name] = _cost(counting, url, load, callers)
    return found


def _loads(setting: Setting, plan: ServingPlan, running: RunningContender, scratch: Path) -> list[Load]:
    shown = []
    for user in range(_SHOWN):
        status, body = running.ask({"user_id": user_id(user), "k": K}, timeout_s=_PATIENCE_S)
        if status != 200:
            raise RuntimeError(f"the service answered {status} to a plain request: {body[:200]!r}")
        read = json.loads(body)
        shown.append(ShownAnswer(user_id(user), read["request_id"], [item["item_id"] for item in read["items"]]))
    ids = setting.bundle(plan.main).ids
    traffic = EventTraffic([ids.id(row) for row in range(plan.main)], plan.users, shown, 1)

    def bodies(count: int, events: int) -> list[bytes]:
        return traffic.write(scratch / "bodies.jsonl", count, events=events).read_bytes().splitlines()

    asked = [json.dumps({"user_id": user_id(user), "k": K}).encode() for user in range(_SHOWN, _SHOWN + 256)]
    return [
        Load("recommendation, 1 at a time", PATH, 1, 1, asked[:128]),
        Load("recommendation, 8 at a time", PATH, 8, 1, asked[128:]),
        Load("event, 64 at a time", "/events", 64, 1, bodies(1024, 1)),
        Load("event in bulks of 100, 4 at a time", "/events", 4, 100, bodies(48, 100)),
    ]


def _cost(counting: Counting, url: str, load: Load, callers: Callers) -> dict[str, Any]:
    """Thousands of instructions of the service, and calls of Redis with their microseconds, for each unit of a load."""
    with _statistics(url) as commands:
        counting.start()
        callers.ask(load.bodies[load.counted :])
        _wait_until_quiet(url)
        busy, busy_s = counting.stop()
    counting.start()
    time.sleep(_IDLE_S)
    idle, idle_s = counting.stop()
    units = load.units * load.counted
    of_load = sum(count - idle.get(name, 0) * busy_s / idle_s for name, count in busy.items())
    return {
        "instructions_k": round(of_load / 1000 / units, 2),
        "redis_us": round(sum(usec for name, (_, usec) in commands.items() if name.startswith("eval")) / units, 2),
        "redis_calls": {name: round(calls / units, 3) for name, (calls, _) in sorted(commands.items())},
    }


@contextmanager
def _statistics(url: str) -> Iterator[dict[str, tuple[int, float]]]:
    """A dict that gets the calls of each command meanwhile, and their microseconds."""
    found: dict[str, tuple[int, float]] = {}
    with redis.Redis.from_url(url) as client:
        client.config_resetstat()
        yield found
        for name, figures in client.info("commandstats").items():
            if not name.startswith(("cmdstat_config", "cmdstat_info")):
                found[name.removeprefix("cmdstat_")] = (figures["calls"], figures["usec"])


def _wait_until_quiet(url: str) -> None:
    """Wait until the service has run no script in Redis for a while, as nothing waits in its queue."""
    until, since, seen = time.monotonic() + _PATIENCE_S, time.monotonic(), -1
    with redis.Redis.from_url(url) as client:
        while time.monotonic() < min(until, since + _QUIET_S):
            calls = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
            if calls != seen:
                since, seen = time.monotonic(), calls
            time.sleep(0.2)


if __name__ == "__main__":
    main()
