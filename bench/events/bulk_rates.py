"""Measures how many events of bulks a second each service stores, all services started at once, in short turns.

    python -m bench.events.bulk_rates --baseline ../before    # continues the last run
    python -m bench.events.bulk_rates --fresh                 # begins anew

The contenders are those of `bench.events.cost`, each with a Redis of its own. There every load lasts eight seconds and
a round minutes, in which a machine that is not quiet, or whose processor is shared, becomes faster or slower by more
than what is to be measured. Here a round takes half a minute, in an order drawn anew.

A turn loads the service until its exporter is at work on what just arrived, then measures without a pause, then waits
until nothing is left to export and half a second more for what is attributed, so that no turn pays for another one.
Every round is stored as soon as it is done, so an interrupted run goes on where it was.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import redis

from bench.events.cost import ROOT, contenders, described, histories, running_exporter, shown_answers
from bench.events.traffic import EventTraffic
from bench.index.bundles import Published, published
from bench.load.closed_loop import closed_loop
from bench.load.histories import fill, user_id
from bench.markdown_table import markdown_table
from bench.measurements import Measurements
from bench.serving.contenders import Contender
from bench.serving.running import RunningContender
from demo.embedded_redis import EmbeddedRedis
from index.bundle.bundle import Bundle
from service.stores.history_keys import BUCKETS, stream_key

_K: Final = 20
_EVENTS: Final = 100
_CONNECTIONS: Final = 8
_MOST_A_SECOND: Final = 120_000  # events that are made; more than any service here stores
_WARM_S: Final = 1.5  # the exporter works every second
_PATIENCE_S: Final = 30.0


@dataclass(frozen=True)
class StartedContender:
    """A running contender.

    Attributes:
        running: its process.
        store: its Redis.
        traffic: events of its users and answers.
        followed: whether an exporter follows.
        scratch: directory for files.
    """

    running: RunningContender
    store: EmbeddedRedis
    traffic: EventTraffic
    followed: bool
    scratch: Path

    def turn(self, seconds: float) -> float:
        """Events stored a second.

        Raises:
            RuntimeError: a request was refused, events ran out, so that some were sent twice, or what is left was not
                exported in time.
        """
        bodies = round(_MOST_A_SECOND * (_WARM_S + seconds) / _EVENTS)
        path = self.traffic.write(self.scratch / "bulks.jsonl", bodies, events=_EVENTS)
        warm = self.scratch / "warm.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        part = round(len(lines) * _WARM_S / (_WARM_S + seconds))
        warm.write_text("".join(lines[:part]))
        path.write_text("".join(lines[part:]))
        before = closed_loop(self.running.port, "/events", warm, _CONNECTIONS, _WARM_S)
        load = closed_loop(self.running.port, "/events", path, _CONNECTIONS, seconds)
        for found in (before, load):
            if found["refused"] + found["errors"]:
                raise RuntimeError(f"{self.running.contender.name} did not store all events: {found}")
            if found["good"] * _EVENTS >= _MOST_A_SECOND:
                raise RuntimeError(f"{self.running.contender.name} stored faster than events are made")
        self._wait()
        return float(load["good"] * _EVENTS)

    def _wait(self) -> None:
        until, streams = time.monotonic() + _PATIENCE_S, [stream_key("vlm2rec", bucket) for bucket in range(BUCKETS)]
        with redis.Redis.from_url(self.store.url) as client:
            while self.followed and any(client.xlen(stream) for stream in streams):
                if time.monotonic() > until:
                    raise RuntimeError(f"the exporter must take all events within {_PATIENCE_S:.0f} s")
                time.sleep(0.05)
        time.sleep(0.5)  # at most 10,000 events wait to be attributed


@contextmanager
def started(contender: Contender, made: Published, users: int, scratch: Path) -> Iterator[StartedContender]:
    """A contender with a new Redis of histories and, if it has one, its exporter.

    Args:
        contender: what to start.
        made: the bundle.
        users: with a history of ten items.
        scratch: a directory of its own.
    """
    scratch.mkdir()
    bundle = Bundle.load(Path(made.bundle))
    items = [bundle.ids.id(row) for row in range(len(bundle))]
    followed = contender.name == "loop"
    with EmbeddedRedis() as store:
        fill(store.url, histories(bundle, users))
        running = RunningContender(
            contender,
            registry=made.registry,
            bundle=made.bundle,
            redis=store.url,
            probe={"user_id": user_id(0), "k": _K},
            log=scratch / "log",
        )
        with running, running_exporter(store.url, scratch, followed=followed):
            answers = list(shown_answers(running, users))
            yield StartedContender(running, store, EventTraffic(items, users, answers, 1), followed, scratch)


def summary(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Rates of all services, medians over the rounds, and those of the others as ratios of the first in their round.

    Args:
        rounds: events a second of each service.
    """
    first, *others = rounds[0]
    ratios = {name: [one[name] / one[first] for one in rounds] for name in others}
    return {
        "compared_with": first,
        "events_s": {name: statistics.median(one[name] for one in rounds) for name in (first, *others)},
        "ratio": {name: (statistics.median(some), min(some), max(some)) for name, some in ratios.items()},
        "quartiles": {name: np.percentile(some, [25, 75]).round(3).tolist() for name, some in ratios.items()},
    }


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table in docs/events.md.

    Args:
        found: from :func:`summary`.
    """
    rows = []
    for name, rate in found["events_s"].items():
        ratio, quartiles = found["ratio"].get(name), found["quartiles"].get(name)
        shown = "" if ratio is None else "{:.2f} ({:.2f} … {:.2f}) ×".format(ratio[0], *quartiles)
        rows.append([name, f"{rate:,.0f}/s", shown, "" if ratio is None else f"{ratio[1]:.2f} … {ratio[2]:.2f}"])
    yield from markdown_table(("service", "events of bulks", "ratio, middle half", "least and largest"), rows)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="checkout of the service before, such as a git worktree")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--neighbours", type=int, default=50, help="of an item in each of three lists; 0: no lists")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured in a turn")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench", help="where the bundle is kept between runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "bulk-rates.json")
    parser.add_argument("--fresh", action="store_true", help="begin anew; the built bundle is kept all the same")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    about = {name: getattr(options, name) for name in ("items", "neighbours", "users", "seconds")}
    if options.baseline is not None:
        about["baseline"] = described(options.baseline)
    results = Measurements(options.out, about, fresh=options.fresh)
    made = published(options.items, options.work, lambda *_: None, neighbours=options.neighbours)
    keys = [f"round/{number}" for number in range(1, options.rounds + 1)]
    with tempfile.TemporaryDirectory(prefix="vlm2rec-bench-") as scratch, ExitStack() as stack:
        services = {
            contender.name: stack.enter_context(started(contender, made, options.users, Path(scratch) / contender.name))
            for contender in contenders(options.baseline)
            if contender.answers and any(key not in results for key in keys)
        }
        for seed, key in enumerate(keys):
            if key in results:
                continue
            began = time.perf_counter()
            order = np.random.default_rng(seed).permutation(list(services)).tolist()
            found = {name: services[name].turn(options.seconds) for name in order}
            results.put(key, {"events_s": {name: found[name] for name in services}}, took_s=time.perf_counter() - began)
            print(f"[{seed + 1}/{options.rounds}] {results[key]['events_s']}", file=sys.stderr, flush=True)
    found = summary([results[key]["events_s"] for key in keys])
    results.put("summary", found, took_s=0.0)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
