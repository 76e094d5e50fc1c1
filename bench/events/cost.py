"""Measures what event types, outcomes and an exporter cost: events and recommendations of the service, in turns.

    python -m bench.events.cost --baseline ../before    # continues the last run
    python -m bench.events.cost --fresh                 # begins anew

Contenders, each started anew every round with a new Redis of the same histories:

- before: the service of another checkout (``--baseline``), on the same bundle and with the same packages
- plain: the service as it comes, with neither outcomes nor an exporter
- types: with a table of types of its own
- loop: with that table, outcomes, and an exporter that follows
- echo: FastAPI that answers constants; it shows what the machine gave in this round

The exporter has taken the events of the histories before its turn. A turn asks for recommendations at a fixed rate,
then stores single events, then bulks, both as fast as the service answers. The events are the same for all but for the
request ids of answers. Ratios are of turns of one round, medians over the rounds with the least and the largest. The
memory of answers is measured once, each of another user.

Every turn is stored as soon as it is done, so an interrupted run goes on where it was.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import psutil
import redis

from bench.events.cost_table import summary, tables
from bench.events.traffic import TABLE, EventTraffic, ShownAnswer
from bench.index.bundles import Published, published, user_histories
from bench.load.closed_loop import closed_loop, load_tool
from bench.load.histories import fill, used_bytes, user_id
from bench.measurements import Measurements
from bench.serving.contenders import ECHO, OURS, Contender
from bench.serving.running import RunningContender, end_with_us
from demo.embedded_redis import EmbeddedRedis
from index.bundle.bundle import Bundle
from index.event_export.directory import ExportDirectory
from index.event_export.manifest import DayManifest
from service.stores.history_keys import BUCKETS, stream_key

ROOT: Final = Path(__file__).parents[2]
"""Directory of the checkout."""
_K = 20
_ASKED = 200  # answers that events belong to
_MOST_HISTORIES = 10_000
_SINGLE_A_SECOND, _IN_BULKS_A_SECOND = 16_000, 120_000  # events that are made; more than any service here stores
_OUTCOMES = {"VLM2REC_OUTCOMES": "true"}
_TYPES = {"VLM2REC_EVENT_TYPES": ",".join(f"{name}={meaning}" for name, meaning in TABLE.items())}
_METRIC = re.compile(r'^vlm2rec_(events|outcome_events)_total\{(?:outcome|result)="(\w+)"\} ([\d.e+]+)$', re.MULTILINE)
_PATIENCE_S = 60.0
EXPORT_AGE_S: Final = 1.0
"""After so many seconds events are exported here, so that the exporter has work during a load; by default after 600."""


@dataclass(frozen=True)
class Sizes:
    """Sizes and durations of a run.

    Attributes:
        items: of the catalogue.
        users: with a history of ten items.
        rounds: how often all contenders are measured.
        seconds: of each load.
        rate: recommendations a second.
        connections: of the closed loops.
        bulk: events of a bulk.
        bulk_connections: of the closed loop of bulks; fewer, as bulks that wait for each other run into the timeout.
        answers: whose memory is measured.
    """

    items: int
    users: int
    rounds: int
    seconds: float
    rate: float
    connections: int
    bulk: int
    bulk_connections: int
    answers: int


def contenders(baseline: Path | None) -> list[Contender]:
    """All contenders in the order of their turns.

    Args:
        baseline: checkout of the service before; None: it is left out.

    Raises:
        SystemExit: the checkout would not run its own code.
    """
    found = [
        replace(OURS, name="plain"),
        replace(OURS, name="types", environment={**OURS.environment, **_TYPES}),
        replace(OURS, name="loop", environment={**OURS.environment, **_TYPES, **_OUTCOMES}),
        ECHO,
    ]
    if baseline is None:
        return found
    variables = {"PYTHONPATH": str(baseline.resolve())}
    asked = [sys.executable, "-P", "-c", "import service; print(service.__file__)"]
    ran = subprocess.run(asked, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    place = Path(ran.stdout.strip())
    if not place.is_relative_to(baseline.resolve()):
        raise SystemExit(f"--baseline must be a checkout with the package `service`, received {baseline}: {ran.stderr}")
    if (place.parent / "workers").exists():  # without it there is one process, and no such setting
        variables |= OURS.environment
    return [replace(OURS, name="before", arguments=("-P", *OURS.arguments), environment=variables), *found]


def described(baseline: Path) -> str:
    """The commit of a checkout, with a + where files differ from it."""
    command = ["git", "-C", str(baseline), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def histories(bundle: Bundle, users: int) -> list[list[str]]:
    """Item ids of each user's history, oldest first; from a number of users on they repeat."""
    rows = user_histories(bundle, min(users, _MOST_HISTORIES)).tolist()
    return [[bundle.ids.id(row) for row in rows[user % len(rows)]] for user in range(users)]


@contextmanager
def running_exporter(
    url: str, scratch: Path, *, followed: bool, max_age_s: float = EXPORT_AGE_S, left: int = 0
) -> Iterator[Path | None]:
    """An exporter at work that has taken the events which are due.

    Args:
        url: of Redis.
        scratch: directory in which the export is made.
        followed: whether there is one.
        max_age_s: age at which it takes events, however few there are.
        left: most events of a bucket that it may leave.

    Returns:
        Directory of the export; None without an exporter.
    """
    if not followed:
        yield None
        return
    with tempfile.TemporaryDirectory(dir=scratch) as directory:
        export = Path(directory) / "export"
        options = ["--to", str(export), "--redis", url, "--follow", "--max-age-s", str(max_age_s)]
        process = psutil.Popen(
            [sys.executable, "-m", "cli.main", "events", "export", *options],
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            preexec_fn=end_with_us,
        )
        try:
            _wait_for_export(export, url, left)
            yield export
        finally:
            process.terminate()
            process.wait(_PATIENCE_S)


def shown_answers(running: RunningContender, users: int) -> Iterator[ShownAnswer]:
    """Answers to some users, which events may belong to.

    Raises:
        RuntimeError: one was not 200.
    """
    for user in range(min(_ASKED, users)):
        status, body = running.ask({"user_id": user_id(user), "k": _K})
        if status != 200:
            raise RuntimeError(f"{running.contender.name} answered {status} to a plain request: {body[:200]!r}")
        read = json.loads(body)
        yield ShownAnswer(user_id(user), read["request_id"], [item["item_id"] for item in read["items"]])


class Turns:
    """Measures one contender at a time on one bundle.

    Args:
        made: the bundle.
        sizes: of the run.
        scratch: directory for files of the run.
    """

    def __init__(self, made: Published, sizes: Sizes, scratch: Path) -> None:
        self._made = made
        self._sizes = sizes
        self._scratch = scratch
        bundle = Bundle.load(Path(made.bundle))
        self._histories = histories(bundle, sizes.users)
        self._items = [bundle.ids.id(row) for row in range(len(bundle))]
        bodies = [json.dumps({"user_id": user_id(user), "k": _K}) for user in range(sizes.users)]
        self._bodies = scratch / "recommend.jsonl"
        self._bodies.write_text("\n".join(bodies))

    def turn(self, contender: Contender, number: int) -> dict[str, Any]:
        """All figures of a contender in a round."""
        sizes = self._sizes
        with self._running(contender) as (running, store):
            closed_loop(running.port, "/recommend", self._bodies, sizes.connections, 1.0)
            if not contender.answers:
                found = self._recommended(running, number)
                load = closed_loop(running.port, "/recommend", self._bodies, sizes.connections, sizes.seconds)
                return found | {"answers_s": load["good"]}
            traffic = EventTraffic(self._items, sizes.users, list(shown_answers(running, sizes.users)), number)
            with running_exporter(store.url, self._scratch, followed=contender.name == "loop") as export:
                found = self._recommended(running, number)
                warm = traffic.write(self._scratch / "warm.jsonl", _SINGLE_A_SECOND, events=1)
                closed_loop(running.port, "/events", warm, sizes.connections, 1.0)
                loads = (("single", 1, _SINGLE_A_SECOND), ("bulk", sizes.bulk, _IN_BULKS_A_SECOND))
                for kind, events, a_second in loads:
                    bodies = round(a_second * sizes.seconds / events)
                    path = traffic.write(self._scratch / f"{kind}.jsonl", bodies, events=events)
                    found |= self._stored(running, store, kind, path, events)
                return found | self._counted(running, export)

    def memory(self) -> dict[str, Any]:
        """Bytes in Redis of answers of 20 items, each of another user."""
        with self._running(replace(OURS, name="memory", environment={**OURS.environment, **_OUTCOMES})) as (
            running,
            store,
        ):
            for user in range(_ASKED):  # connections, scripts and buffers have their memory before it is measured
                running.ask({"user_id": user_id(user), "k": _K})
            _wait_for_answers(store.url, _ASKED)
            used = used_bytes(store.url)
            for user in range(_ASKED, _ASKED + self._sizes.answers):
                running.ask({"user_id": user_id(user), "k": _K})
            _wait_for_answers(store.url, _ASKED + self._sizes.answers)
            grown = used_bytes(store.url) - used
            with redis.Redis.from_url(store.url) as client:
                keys = list(client.scan_iter("vlm2rec:{b*}:answers*", count=10_000))
                taken = sum(int(client.memory_usage(key, samples=0) or 0) for key in keys)
        answers = self._sizes.answers
        return {
            "answers": answers,
            "bytes_an_answer": taken / (answers + _ASKED),
            "bytes_an_answer_by_used_memory": grown / answers,
        }

    @contextmanager
    def _running(self, contender: Contender) -> Iterator[tuple[RunningContender, EmbeddedRedis]]:
        """A contender on a new Redis with all histories."""
        with EmbeddedRedis() as store:
            fill(store.url, self._histories)
            with RunningContender(
                contender,
                registry=self._made.registry,
                bundle=self._made.bundle,
                redis=store.url,
                probe={"user_id": user_id(0), "k": _K},
                log=self._scratch / f"{contender.name}.log",
            ) as running:
                yield running, store

    def _recommended(self, running: RunningContender, seed: int) -> dict[str, Any]:
        """Latency of recommendations at a fixed rate, while no events arrive.

        Raises:
            RuntimeError: none was answered.
        """
        command = [sys.executable, "-m", "bench.load.open_loop", "--port", str(running.port)]
        command += ["--rate", str(self._sizes.rate), "--seconds", str(self._sizes.seconds), "--seed", str(seed)]
        ran = subprocess.run([*command, "--bodies", str(self._bodies)], check=True, capture_output=True, cwd=ROOT)
        opened: dict[str, Any] = json.loads(ran.stdout)
        if "p50_ms" not in opened:
            raise RuntimeError(f"{running.contender.name} answered no request of {self._sizes.rate:g} a second")
        return {f"recommend_{name}": opened[name] for name in ("p50_ms", "p99_ms", "good", "errors")}

    def _stored(
        self, running: RunningContender, store: EmbeddedRedis, kind: str, bodies: Path, events: int
    ) -> dict[str, Any]:
        """Figures of a closed loop of events."""
        connections = self._sizes.connections if events == 1 else self._sizes.bulk_connections
        server = psutil.Process(store.pid)
        before, before_redis = running.cpu_seconds(), _cpu_seconds(server)
        load = closed_loop(running.port, "/events", bodies, connections, self._sizes.seconds)
        used, used_redis = running.cpu_seconds() - before, _cpu_seconds(server) - before_redis
        stored = max(1.0, load["good"] * self._sizes.seconds * events)
        return {
            f"{kind}_events_s": load["good"] * events,
            f"{kind}_p50_ms": load["p50_ms"],
            f"{kind}_p99_ms": load["p99_ms"],
            f"{kind}_cpu_us": 1e6 * used / stored,
            f"{kind}_redis_cpu_us": 1e6 * used_redis / stored,
            f"{kind}_not_stored": load["refused"] + load["errors"],
        }

    def _counted(self, running: RunningContender, export: Path | None) -> dict[str, Any]:
        """What became of the events and of their outcomes, and how many were exported.

        Raises:
            RuntimeError: events were sent twice, so the figures are of less work.
        """
        time.sleep(1.1)  # the page of metrics is made once a second
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/metrics", timeout=10) as answer:
            read = _METRIC.findall(answer.read().decode())
        found: dict[str, Any] = {f"{metric}_{result}": round(float(value)) for metric, result, value in read}
        if found["events_duplicate"]:
            raise RuntimeError(f"{running.contender.name} stored faster than events are made; make more a second")
        if export is not None:
            days = ExportDirectory(export).days()
            found["exported"] = sum(file.rows for day in days for file in DayManifest.load(day).files.values())
        return found


def _cpu_seconds(process: psutil.Process) -> float:
    """Processor time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait_for_export(export: Path, url: str, left: int) -> None:
    """Wait until an exporter has begun and taken what is due, so that it does as much as events arrive."""
    until = time.monotonic() + _PATIENCE_S
    with redis.Redis.from_url(url) as client:
        streams = [stream_key("vlm2rec", bucket) for bucket in range(BUCKETS)]
        while not (export / "export.json").exists() or any(client.xlen(stream) > left for stream in streams):
            if time.monotonic() > until:
                raise RuntimeError(f"the exporter must take the histories within {_PATIENCE_S:.0f} s")
            time.sleep(0.05)


def _wait_for_answers(url: str, count: int) -> None:
    """Wait until so many answers are stored."""
    until = time.monotonic() + _PATIENCE_S
    with redis.Redis.from_url(url) as client:
        keys = [f"vlm2rec:{{b{bucket:03d}}}:answers_order" for bucket in range(BUCKETS)]
        while (stored := sum(client.llen(key) for key in keys)) < count:
            if time.monotonic() > until:
                raise RuntimeError(f"{count} answers must be stored, found {stored}")
            time.sleep(0.05)


def measured(options: argparse.Namespace, sizes: Sizes, results: Measurements) -> Sequence[str]:
    """Measure what is missing; the names of the contenders."""
    everyone = contenders(options.baseline)
    planned = [(number, contender) for number in range(1, sizes.rounds + 1) for contender in everyone]
    missing = [(number, contender) for number, contender in planned if f"{number}/{contender.name}" not in results]
    if missing or "memory" not in results:
        made = published(sizes.items, options.work, lambda *_: None, neighbours=options.neighbours)
        with tempfile.TemporaryDirectory(prefix="vlm2rec-bench-") as scratch:
            turns = Turns(made, sizes, Path(scratch))
            for number, contender in missing:
                started = time.perf_counter()
                found = turns.turn(contender, number)
                results.put(f"{number}/{contender.name}", found, took_s=time.perf_counter() - started)
                print(f"[{number}/{sizes.rounds}] {contender.name}: {found}", file=sys.stderr, flush=True)
            if "memory" not in results:
                started = time.perf_counter()
                results.put("memory", turns.memory(), took_s=time.perf_counter() - started)
    return [contender.name for contender in everyone]


def main() -> None:
    """Measure what is missing, and print the ratios and the tables of docs/events.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="checkout of the service before, such as a git worktree")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--neighbours", type=int, default=50, help="of an item in each of three lists; 0: no lists")
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--rate", type=float, default=200.0, help="recommendations a second")
    parser.add_argument("--connections", type=int, default=64, help="of the loads of events")
    parser.add_argument("--bulk", type=int, default=100, help="events of a bulk")
    parser.add_argument("--bulk-connections", type=int, default=8, help="of the loads of bulks")
    parser.add_argument("--answers", type=int, default=5000, help="whose memory is measured")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench", help="where the bundle is kept between runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "events.json")
    parser.add_argument("--fresh", action="store_true", help="begin anew; the built bundle is kept all the same")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    names = ("items", "users", "rounds", "seconds", "rate", "connections", "bulk", "bulk_connections", "answers")
    sizes = Sizes(**{name: getattr(options, name) for name in names})
    about = {name: getattr(options, name) for name in (*names, "neighbours")} | {"load": load_tool()}
    if options.baseline is not None:
        about["baseline"] = described(options.baseline)
    results = Measurements(options.out, about, fresh=options.fresh)
    everyone = measured(options, sizes, results)
    turns = {name: [results[f"{number}/{name}"] for number in range(1, sizes.rounds + 1)] for name in everyone}
    found = summary(turns, results["memory"])
    results.put("summary", found, took_s=0.0)
    print(json.dumps(found, indent=1))
    print("\n".join(tables(found)))


if __name__ == "__main__":
    main()
