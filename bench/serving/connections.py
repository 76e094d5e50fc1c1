"""Measures how evenly the workers of one service share few long-lived connections, also after one of them died.

    python -m bench.serving.connections --workers 2 --connections 4 8 64 --rounds 5

Every round opens the connections, which ask in turn and are kept, then kills one worker. Its clients connect again. All
go on asking until the connections are even: none has two more than another, or the fullest has less than 1.25 times the
mean; for ten seconds at most. Given are medians over the rounds, of the connections of the fullest worker over the
mean, and of the seconds until they were even; `ended` counts the connections that the service ended for it. Prints
JSON.
"""

import argparse
import http.client
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from bench.load.shop import Service, open_shop
from bench.measurements import commit, machine
from service.workers.handover import FEWER, SHARE

_WORK = Path(__file__).parents[2] / ".bench"
_NO_REDIS = "unix:///nonexistent/redis.sock"
_Found = TypeVar("_Found")

_PATIENCE_S = 30.0
_EVEN_S = 10.0
_PAUSE_S = 0.02  # between two rounds of requests over all connections


class Clients:
    """Connections that are kept, each with one request after the other.

    Args:
        port: of the service on this machine.
        count: connections.

    Attributes:
        ended: connections that ended with a response, as it announced.
        lost: connections that ended without one.
    """

    def __init__(self, port: int, count: int) -> None:
        self._open = [http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S) for _ in range(count)]
        self.ended = self.lost = 0

    def ask(self) -> None:
        """Send a request over each connection; where it was lost, again over a new one."""
        for client in self._open:
            try:
                self._ask(client)
            except (OSError, http.client.HTTPException):
                self.lost += 1
                client.close()
                self._ask(client)

    def close(self) -> None:
        """Close all."""
        for client in self._open:
            client.close()

    def _ask(self, client: http.client.HTTPConnection) -> None:
        client.request("GET", "/items?limit=1")
        answer = client.getresponse()
        answer.read()
        self.ended += answer.will_close


def workers_of(service: Service) -> list[psutil.Process]:
    """The workers of a service, oldest first."""
    return sorted(service.process.children(), key=lambda process: process.pid)


def counts(service: Service, workers: int) -> list[int]:
    """Open connections of each of the workers, as soon as all of them run.

    Raises:
        SystemExit: they do not within half a minute.
    """

    def found() -> list[int]:
        try:
            each = [process.net_connections("tcp") for process in workers_of(service)]
        except psutil.Error:  # one has just ended
            return []
        if len(each) != workers:
            return []
        return [sum(one.laddr[1] == service.port and one.status == "ESTABLISHED" for one in some) for some in each]

    return until(found)


def one_round(service: Service, workers: int, connections: int) -> dict[str, float]:
    """Open the connections, kill a worker, and wait until the workers share them evenly."""
    clients = Clients(service.port, connections)
    try:
        clients.ask()
        made = fullest(counts(service, workers), connections)
        victim = workers_of(service)[0]
        victim.send_signal(signal.SIGKILL)
        clients.ask()
        until(lambda: victim.pid not in [one.pid for one in workers_of(service)])
        now = counts(service, workers)
        died, ended, began = fullest(now, connections), clients.ended, time.perf_counter()
        while not is_even(now, connections) and time.perf_counter() - began < _EVEN_S:
            clients.ask()
            time.sleep(_PAUSE_S)
            now = counts(service, workers)
        return {
            "made": made,
            "after_death": died,
            "at_last": fullest(now, connections),
            "even_after_s": time.perf_counter() - began,
            "ended": clients.ended - ended,
            "lost": clients.lost,
        }
    finally:
        clients.close()
        until(lambda: not any(counts(service, workers)))


def fullest(of_workers: Sequence[int], connections: int) -> float:
    """Connections of the fullest worker over the mean.

    Args:
        of_workers: connections of each worker now; one that is just being made again is in none.
        connections: of all clients.

    Raises:
        SystemExit: no worker has any.
    """
    if not any(of_workers):
        raise SystemExit(f"{len(of_workers)} workers have no connection; the log of the service says why")
    return max(of_workers) * len(of_workers) / connections


def is_even(of_workers: Sequence[int], connections: int) -> bool:
    """Whether no worker has clearly more connections than its share; arguments and error as :func:`fullest`."""
    return fullest(of_workers, connections) < SHARE or max(of_workers) - min(of_workers) < FEWER


def until(holds: Callable[[], _Found]) -> _Found:
    """Wait until something holds, and return it.

    Raises:
        SystemExit: it does not within half a minute.
    """
    end = time.monotonic() + _PATIENCE_S
    while not (found := holds()):
        if time.monotonic() > end:
            raise SystemExit("the workers did not come back, or kept connections that were closed")
        time.sleep(_PAUSE_S)
    return found


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line.

    Raises:
        SystemExit: one is not valid.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--connections", type=int, nargs="+", default=[4, 8, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--work", type=Path, default=_WORK, help="where built bundles are kept between runs")
    options = parser.parse_args(given)
    if min(*options.workers, *options.connections, options.rounds, options.items) < 1:
        parser.error("--workers, --connections, --rounds and --items must be at least 1")
    return options


def main() -> None:
    """Measure, and print the medians."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are ended on the way out
    found: dict[str, Any] = {"rounds": options.rounds, "commit": commit(), "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="vlm2rec-connections-") as directory:
        shop = open_shop(options.work, options.items, Path(directory))
        for workers in options.workers:
            for connections in options.connections:
                log = Path(directory) / "service.log"
                with Service(shop.registry, _NO_REDIS, log, workers=str(workers)) as service:
                    rounds = [one_round(service, workers, connections) for _ in range(options.rounds)]
                medians = {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}
                found[f"{workers} workers, {connections} connections"] = medians
                print(f"{workers} workers, {connections} connections: {medians}", file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
