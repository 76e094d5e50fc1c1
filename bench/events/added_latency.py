"""Measures what event types, outcomes and an exporter add to the latency of a recommendation, request by request.

    python -m bench.events.added_latency --baseline ../before    # continues the last run
    python -m bench.events.added_latency --fresh                 # begins anew

The services of `bench.events.cost` run at the same time, each with a Redis of its own and the same histories, and are
asked one after another for the same user, in an order that is drawn anew for every user. So whatever slows the machine
slows all of them, which turns of seconds cannot say of differences of a fifth of a millisecond. One request is in
progress at a time: this is the latency of a service that is not busy. After each answer there is a pause, in which the
work that follows an answer is done.

No events arrive, so the exporter of the service `loop` asks Redis and finds none. Every round starts all services anew:
one process of the same program may be some percent slower than another for as long as it lives.
"""

import argparse
import http.client
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.events.cost import ROOT, contenders, described, histories, running_exporter
from bench.index.bundles import Published, published
from bench.load.histories import fill, user_id
from bench.markdown_table import markdown_table
from bench.measurements import Measurements
from bench.serving.contenders import Contender
from bench.serving.running import RunningContender
from demo.embedded_redis import EmbeddedRedis
from index.bundle.bundle import Bundle

_K = 20
_WARM = 200  # requests of a service before those that are timed


class OneAtATime:
    """A kept connection to one service.

    Args:
        port: where it listens on this machine.
    """

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10.0)

    def ask_ms(self, body: bytes) -> float:
        """Milliseconds from the first byte sent to the last byte received.

        Raises:
            RuntimeError: the answer is no recommendation, or one without the history of its user.
        """
        started = time.perf_counter()
        self._connection.request("POST", "/recommend", body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        read = answer.read()
        took = 1e3 * (time.perf_counter() - started)
        if answer.status != 200 or b'"degraded":"' in read:
            raise RuntimeError(f"a service answered {answer.status}: {read[:200]!r}")
        return took

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def round_of(
    made: Published, services: Sequence[Contender], users: int, requests: int, pause_s: float, seed: int, scratch: Path
) -> dict[str, list[float]]:
    """Times of all services, milliseconds, in the order in which users were drawn.

    Args:
        made: the bundle that all serve.
        services: that run at the same time.
        users: with a history.
        requests: timed of each service.
        pause_s: seconds after each answer.
        seed: of users and orders.
        scratch: directory for logs and the export.
    """
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {service.name: [] for service in services}
    with ExitStack() as stack:
        asked = {
            service.name: stack.enter_context(_running(service, made, users, scratch / f"{service.name}-{seed}"))
            for service in services
        }
        for number in range(_WARM + requests):
            body = json.dumps({"user_id": user_id(int(random.integers(users))), "k": _K}).encode()
            for name in random.permutation(list(asked)):
                took = asked[name].ask_ms(body)
                if number >= _WARM:
                    found[name].append(took)
                time.sleep(pause_s)
    return found


@contextmanager
def _running(service: Contender, made: Published, users: int, scratch: Path) -> Iterator[OneAtATime]:
    scratch.mkdir()
    with EmbeddedRedis() as store:
        fill(store.url, histories(Bundle.load(Path(made.bundle)), users))
        with (
            RunningContender(
                service,
                registry=made.registry,
                bundle=made.bundle,
                redis=store.url,
                probe={"user_id": user_id(0), "k": _K},
                log=scratch / "log",
            ) as running,
            running_exporter(store.url, scratch, followed=service.name == "loop"),
        ):
            connection = OneAtATime(running.port)
            try:
                yield connection
            finally:
                connection.close()


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median of each service, by its name."""
    return {name: statistics.median(some) for name, some in times.items()}


def summary(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What is added to the p50 of the first service.

    Args:
        rounds: p50 of each service in milliseconds.

    Returns:
        ``p50_ms`` of all, medians over the rounds, and ``added_ms`` of the others: median, least and largest of the
        differences within a round.
    """
    first, *others = rounds[0]
    differences = {name: [one[name] - one[first] for one in rounds] for name in others}
    return {
        "compared_with": first,
        "p50_ms": {name: statistics.median(one[name] for one in rounds) for name in (first, *others)},
        "added_ms": {name: (statistics.median(some), min(some), max(some)) for name, some in differences.items()},
    }


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of the table in docs/events.md.

    Args:
        found: from :func:`summary`.
    """
    rows = []
    for name, p50 in found["p50_ms"].items():
        added = found["added_ms"].get(name)
        rows.append([name, f"{p50:.2f} ms", "" if added is None else "{:+.2f} ({:+.2f} … {:+.2f}) ms".format(*added)])
    yield from markdown_table(("service", "p50", "added"), rows)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, help="checkout of the service before, such as a git worktree")
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--neighbours", type=int, default=50, help="of an item in each of three lists; 0: no lists")
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=1_000, help="timed of each service in a round")
    parser.add_argument("--pause-ms", type=float, default=5.0, help="after each answer")
    parser.add_argument("--work", type=Path, default=ROOT / ".bench", help="where the bundle is kept between runs")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "added-latency.json")
    parser.add_argument("--fresh", action="store_true", help="begin anew; the built bundle is kept all the same")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    about = {name: getattr(options, name) for name in ("items", "neighbours", "users", "requests", "pause_ms")}
    if options.baseline is not None:
        about["baseline"] = described(options.baseline)
    results = Measurements(options.out, about, fresh=options.fresh)
    services = [contender for contender in contenders(options.baseline) if contender.answers]
    made = published(options.items, options.work, lambda *_: None, neighbours=options.neighbours)
    keys = [f"round/{number}" for number in range(1, options.rounds + 1)]
    with tempfile.TemporaryDirectory(prefix="vlm2rec-bench-") as scratch:
        for seed, key in enumerate(keys, 1):
            if key in results:
                continue
            started = time.perf_counter()
            pause_s = options.pause_ms / 1e3
            found = round_of(made, services, options.users, options.requests, pause_s, seed, Path(scratch))
            results.put(key, {"p50_ms": medians(found)}, took_s=time.perf_counter() - started)
            print(f"[{seed}/{options.rounds}] {medians(found)}", file=sys.stderr, flush=True)
    found = summary([results[key]["p50_ms"] for key in keys])
    results.put("summary", found, took_s=0.0)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
