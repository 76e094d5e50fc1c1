r"""Measures how many events of bulks a second each service stores, all services started at once, in short turns.

    python -m bench.events.bulk_rates --baseline ../before    # continues the last run
    python -m bench.events.bulk_rates --fresh                 # begins anew
    python -m bench.events.bulk_rates --baseline ../before --services before,loop --export-age-s 600 --warm-s 9 \
        --seconds 9 --out bench/results/bulk-rates-default-export.json

The contenders are those of `bench.events.cost`, each with a Redis of its own. There every load lasts eight seconds and
a round minutes, in which a machine that is not quiet, or whose processor is shared, becomes faster or slower by more
than what is to be measured. Here a round takes half a minute, in an order drawn anew.

A turn loads the service until its exporter is at work on what just arrived, then measures without a pause, then waits
until nothing is due to be exported and half a second more for what is attributed, so that no turn pays for another one.
The exporter takes what is a second old, so that it is at work in a turn of seconds. By default (600 s) it waits until a
quarter of a bucket's cap has arrived; a turn must then be long enough for several such quarters.

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

from bench.events.cost import EXPORT_AGE_S, ROOT, contenders, described, histories, running_exporter, shown_answers
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
from service.export.exporter import most_waiting
from service.settings.groups import HistorySettings
from service.stores.history_keys import BUCKETS, stream_key

_K: Final = 20
_EVENTS: Final = 100
_CONNECTIONS: Final = 8
_MOST_A_SECOND: Final = 90_000  # events that are made; more than any service here stores
_PATIENCE_S: Final = 30.0
_ROWS_PER_FILE: Final = 50_000  # the default of `vlm2rec events export`
_NOT_DUE: Final = most_waiting(_ROWS_PER_FILE, HistorySettings().stream_cap) - 1  # of a bucket, until they are old


@dataclass(frozen=True)
class StartedContender:
    """A running contender.

    Attributes:
        running: its process.
        store: its Redis.
        traffic: events of its users and answers.
        left: most events of a bucket that its exporter does not take yet; None: no exporter follows.
        scratch: directory for files.
    """

    running: RunningContender
    store: EmbeddedRedis
    traffic: EventTraffic
    left: int | None
    scratch: Path

    def turn(self, warm_s: float, seconds: float) -> float:
        """Events stored a second.

        Args:
            warm_s: seconds of load before it is measured.
            seconds: that are measured.

        Raises:
            RuntimeError: a request was refused, events ran out, so that some were sent twice, or what is left was not
                exported in time.
        """
        bodies = [round(_MOST_A_SECOND * of_part / _EVENTS) for of_part in (warm_s, seconds)]
        warm = self.traffic.write(self.scratch / "warm.jsonl", bodies[0], events=_EVENTS)
        path = self.traffic.write(self.scratch / "bulks.jsonl", bodies[1], events=_EVENTS)
        before = closed_loop(self.running.port, "/events", warm, _CONNECTIONS, warm_s)
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
            while self.left is not None and any(client.xlen(stream) > self.left for stream in streams):
                if time.monotonic() > until:
                    raise RuntimeError(f"the exporter must take the events that are due within {_PATIENCE_S:.0f} s")
                time.sleep(0.05)
        time.sleep(0.5)  # at most 10,000 events wait to be attributed


def chosen(baseline: Path | None, names: str | None) -> list[Contender]:
    """The services that are compared, in the order in which they are shown.

    Args:
        baseline: checkout of the service before; None: it is left out.
        names: those that are wanted, with commas between them; None: all.

    Raises:
        SystemExit: a name is of no service.
    """
    found = {contender.name: contender for contender in contenders(baseline) if contender.answers}
    wanted = list(found) if names is None else names.split(",")
    if unknown := [name for name in wanted if name not in found]:
        raise SystemExit(f"--services must name some of {', '.join(found)}, received {unknown[0]!r}")
    return [found[name] for name in wanted]


@contextmanager
def started(
    contender: Contender, made: Published, users: int, scratch: Path, *, export_age_s: float = EXPORT_AGE_S
) -> Iterator[StartedContender]:
    """A contender with a new Redis of histories and, if it has one, its exporter.

    Args:
        contender: what to start.
        made: the bundle.
        users: with a history of ten items.
        scratch: a directory of its own.
        export_age_s: age at which its exporter takes events, however few there are.
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
        left = 0 if export_age_s < _PATIENCE_S else _NOT_DUE
        with running, running_exporter(store.url, scratch, followed=followed, max_age_s=export_age_s, left=left):
            traffic = EventTraffic(items, users, list(shown_answers(running, users)), 1)
            yield StartedContender(running, store, traffic, left if followed else None, scratch)


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
    parser.add_argument("--warm-s", type=float, default=1.5, help="loaded in a turn before it is measured")
    parser.add_argument("--export-age-s", type=float, default=EXPORT_AGE_S, help="at which events are exported")
    parser.add_argument("--services", help="names with commas between them; default: all")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    about = {
        name: getattr(options, name) for name in ("items", "neighbours", "users", "seconds", "warm_s", "export_age_s")
    }
    if options.baseline is not None:
        about["baseline"] = described(options.baseline)
    results = Measurements(options.out, about, fresh=options.fresh)
    made = published(options.items, options.work, lambda *_: None, neighbours=options.neighbours)
    keys = [f"round/{number}" for number in range(1, options.rounds + 1)]
    with tempfile.TemporaryDirectory(prefix="vlm2rec-bench-") as scratch, ExitStack() as stack:
        services = {
            contender.name: stack.enter_context(
                started(
                    contender,
                    made,
                    options.users,
                    Path(scratch) / contender.name,
                    export_age_s=options.export_age_s,
                )
            )
            for contender in chosen(options.baseline, options.services)
            if any(key not in results for key in keys)
        }
        for seed, key in enumerate(keys):
            if key in results:
                continue
            began = time.perf_counter()
            order = np.random.default_rng(seed).permutation(list(services)).tolist()
            found = {name: services[name].turn(options.warm_s, options.seconds) for name in order}
            results.put(key, {"events_s": {name: found[name] for name in services}}, took_s=time.perf_counter() - began)
            print(f"[{seed + 1}/{options.rounds}] {results[key]['events_s']}", file=sys.stderr, flush=True)
    found = summary([results[key]["events_s"] for key in keys])
    results.put("summary", found, took_s=0.0)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
