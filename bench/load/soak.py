"""Runs half an hour of mixed load on one service and checks that nothing grows.

    python -m bench.load.soak                                  # 30 minutes
    python -m bench.load.soak --minutes 2 --out /tmp/soak.json # a quick look; too short for a verdict on growth
    python -m bench.load.soak --workers 2 --out /tmp/soak.json # several worker processes

Users, filters, diversity, batches, bad requests, clients that leave in the middle, a bundle swap every two minutes, and
a Redis that is killed and comes back every five. Memory, file descriptors, threads and Redis are read every
five seconds, of several worker processes as sums with their parent. Measurements are written every half minute, so the
run may be ended at any moment.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import redis

from bench.faults.watched_service import EVERY_S
from bench.load.growth import judge
from bench.load.shop import WORKER_ENDED, Service, Shop, open_shop
from bench.load.soak_load import LEAST_ITEMS, Requests, SoakLoad
from bench.measurements import commit, machine
from bench.serving.plots import timelines
from demo.embedded_redis import EmbeddedRedis

_ROOT = Path(__file__).parents[2]
_OUT = _ROOT / "bench" / "results" / "soak.json"
_WORK = _ROOT / ".bench"
_ADMIN_KEY = "an-admin-key-for-the-soak"
# Small, so that what Redis keeps is full long before the half that is judged begins.
_SETTINGS = {"history_cap": "20", "event_ids_cap": "20", "stream_cap": "20000", "admin_keys": _ADMIN_KEY}
_WARM_S, _REST_S = 80.0, 4.0
_WARM_SWAP_S = 4.0  # memory is flat from about the twentieth swap on, when the heap has found its shape
_WRITE_S = 30.0
_DOWN_S = 3.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one moment.

    Attributes:
        second: since the load began.
        rss, pss, anonymous: memory of the service in MiB: resident (of several processes as ``pss``, so that a shared
            page counts once), shared pages in part, without mapped files.
        descriptors: open file descriptors that are no sockets.
        clients: connections of clients.
        stores: all other sockets, most of them connections to Redis.
        threads: of the service.
        blocks, lag_ms: see `bench.faults.watched_service`.
        redis: MiB that Redis has allocated; None while it is down.
        p99_ms: of the requests due in the last five seconds, those of bad requests left out.
    """

    second: float
    rss: float
    pss: float
    anonymous: float
    descriptors: int
    clients: int
    stores: int
    threads: int
    blocks: int
    lag_ms: float
    redis: float | None
    p99_ms: float | None


class Soak:
    """A soak run.

    Args:
        shop: what is served.
        service: the running service.
        store: its Redis.
        witness: file of `bench.faults.watched_service`.
        load: the client.
        options: from the command line.
    """

    def __init__(
        self,
        shop: Shop,
        service: Service,
        store: EmbeddedRedis,
        witness: Path,
        load: SoakLoad,
        options: argparse.Namespace,
    ) -> None:
        self._shop, self._service, self._store, self._witness, self._load = shop, service, store, witness, load
        self._options = options
        self._client = redis.Redis.from_url(store.url, socket_timeout=1.0)
        self._samples: list[Sample] = []
        self._restarts: list[float] = []
        self._swaps: list[float] = []
        self._rest: dict[str, dict[str, int]] = {}
        self._started = 0.0
        self._swapped = 0
        self._ended = False

    async def run(self) -> None:
        """Warm up, rest, load and disturb, rest again."""
        swapping = asyncio.create_task(self._swap_to_warm_up())
        await self._load.run(time.monotonic() + min(_WARM_S, 60 * self._options.minutes / 4))
        swapping.cancel()
        await asyncio.gather(swapping, return_exceptions=True)
        self._rest["before"] = await self._at_rest()
        self._load.seen.latencies.clear()
        self._started = time.monotonic()
        until = self._started + 60 * self._options.minutes
        beside = [asyncio.create_task(work) for work in (self._sample(), self._swap_often(), self._restart_often())]
        loading = asyncio.create_task(self._load.run(until))
        try:
            done, _ = await asyncio.wait([loading, *beside], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in [*beside, loading]:
                task.cancel()
            await asyncio.gather(*beside, loading, return_exceptions=True)
        await asyncio.to_thread(self._store.start)
        self._rest["after"] = await self._at_rest()
        self._ended = True
        self.write()

    async def _at_rest(self) -> dict[str, int]:
        """Descriptors, sockets and threads without requests."""
        await asyncio.sleep(_REST_S)
        seen = self._look()
        return {name: getattr(seen, name) for name in ("descriptors", "clients", "stores", "threads")}

    async def _sample(self) -> None:
        written = time.monotonic()
        while self._service.alive:
            await asyncio.sleep(EVERY_S)
            self._samples.append(self._look())
            if time.monotonic() - written > _WRITE_S:
                written = time.monotonic()
                self.write()
                last = self._samples[-1]
                print(
                    f"{last.second:6.0f} s  {last.rss:.1f} MiB ({last.anonymous:.1f} not mapped)  {last.descriptors} "
                    f"descriptors  {last.blocks:,} blocks  p99 {last.p99_ms or 0:.1f} ms  {self._counts()}",
                    flush=True,
                )
        raise SystemExit(f"the service ended: {self._service.errors()[-3:]}")

    def _look(self) -> Sample:
        each = list(_samples(self._service))
        pss = sum(one.pss for one in each)
        inside = _newest(self._witness)
        latencies = [seconds for _, seconds in self._load.seen.latencies]
        self._load.seen.latencies.clear()
        return Sample(
            second=round(time.monotonic() - self._started, 1),
            rss=each[0].rss if len(each) == 1 else pss,
            pss=pss,
            anonymous=sum(one.anonymous for one in each),
            descriptors=sum(one.descriptors for one in each),
            clients=sum(one.clients for one in each),
            stores=sum(max(one.sockets - one.clients, 0) for one in each),
            threads=sum(one.threads for one in each),
            blocks=sum(one["blocks"] for one in inside),
            lag_ms=max((one["lag_ms"] for one in inside), default=0.0),
            redis=self._redis_mib(),
            p99_ms=round(1000 * float(np.percentile(latencies, 99)), 2) if latencies else None,
        )

    def _redis_mib(self) -> float | None:
        try:
            return float(self._client.info("memory")["used_memory"]) / 2**20
        except (redis.RedisError, OSError):
            return None

    def _swap(self) -> None:
        self._swapped += 1
        self._shop.point_to(self._shop.bundles[self._swapped % len(self._shop.bundles)])

    async def _swap_to_warm_up(self) -> None:
        while True:
            self._swap()
            await asyncio.sleep(_WARM_SWAP_S)

    async def _swap_often(self) -> None:
        while True:
            await asyncio.sleep(min(120.0, 60 * self._options.minutes / 6))
            self._swap()
            self._swaps.append(time.monotonic() - self._started)

    async def _restart_often(self) -> None:
        while True:
            await asyncio.sleep(min(300.0, 60 * self._options.minutes / 4))
            self._restarts.append(time.monotonic() - self._started)
            await asyncio.to_thread(self._store.kill)
            await asyncio.sleep(_DOWN_S)
            await asyncio.to_thread(self._store.start)

    def _counts(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for by_status in self._load.seen.statuses.values():
            for status, number in by_status.items():
                found[status] = found.get(status, 0) + number
        return dict(sorted(found.items()))

    def write(self) -> None:
        """Store the measurements so far with their verdict."""
        load, options = self._load.seen, self._options
        down = [(self._started + at - 1.0, self._started + at + _DOWN_S + 5.0) for at in self._restarts]
        wrong = [one for one in load.failed if not (one[2] == 503 and any(a <= one[0] <= b for a, b in down))]
        verdict = judge([asdict(sample) for sample in self._samples], self._rest)
        verdict["unexpected_failures"] = len(wrong)
        lines = self._service.errors()
        verdict["errors_logged"] = sum('"failed"' in line for line in lines)
        verdict["worker_deaths"] = sum(WORKER_ENDED in line for line in lines)
        verdict["alive"] = self._service.alive
        found = {
            "settings": {
                "minutes": options.minutes,
                "rate": options.rate,
                "items": options.items,
                "seed": options.seed,
                "workers": options.workers,
            },
            "machine": machine(),
            "commit": commit(),
            "complete": self._ended,
            "verdict": verdict,
            "statuses": {kind: dict(sorted(counts.items())) for kind, counts in sorted(load.statuses.items())},
            "swaps_at_s": [round(at, 1) for at in self._swaps],
            "redis_killed_at_s": [round(at, 1) for at in self._restarts],
            "at_rest": self._rest,
            "failures": [[round(at - self._started, 2), *rest] for at, *rest in wrong[:50]],
            "samples": {name: [_short(asdict(one)[name]) for one in self._samples] for name in Sample.__slots__},
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        partial = options.out.with_name(f".{options.out.name}.part")
        partial.write_text(json.dumps(found, indent=1) + "\n")
        partial.replace(options.out)


@dataclass(frozen=True, slots=True)
class _ProcessSample:
    """One process at one moment; names as in :class:`Sample`, ``sockets`` are all of them."""

    rss: float
    pss: float
    anonymous: float
    descriptors: int
    sockets: int
    clients: int
    threads: int


def _samples(service: Service) -> Iterator[_ProcessSample]:
    """One of each process of the service that still runs."""
    for process in service.processes():
        with contextlib.suppress(psutil.Error, OSError):
            yield _look_at(process, service.port)


def _look_at(process: psutil.Process, port: int) -> _ProcessSample:
    with process.oneshot():
        memory, threads = process.memory_full_info(), process.num_threads()
        clients = sum(one.laddr[1] == port and bool(one.raddr) for one in process.net_connections("tcp"))
    descriptors, sockets = _descriptors(process.pid)
    anonymous = int(Path(f"/proc/{process.pid}/smaps_rollup").read_text().partition("Pss_Anon:")[2].split()[0])
    return _ProcessSample(
        memory.rss / 2**20, memory.pss / 2**20, anonymous / 2**10, descriptors, sockets, clients, threads
    )


def _newest(witness: Path) -> list[dict[str, Any]]:
    """The newest line of each process, but of those that have ended; see `bench.faults.watched_service`."""
    lines = [json.loads(line) for line in witness.read_text().splitlines()] if witness.exists() else []
    return [line for pid, line in {line["pid"]: line for line in lines}.items() if psutil.pid_exists(pid)]


def _descriptors(pid: int) -> tuple[int, int]:
    """Numbers of open files and of open sockets of a process."""
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            targets.append(str(link.readlink()))
    sockets = sum(target.startswith("socket:") for target in targets)
    return len(targets) - sockets, sockets


def _short(value: Any) -> Any:  # noqa: ANN401 - a number or None
    return float(f"{value:.6g}") if isinstance(value, float) else value


def plot(out: Path, image: Path) -> None:
    """Draw a result file."""
    found = json.loads(out.read_text())
    samples = found["samples"]
    shown = {
        "resident, MiB": samples["rss"],
        "not mapped, MiB": samples["anonymous"],
        "descriptors": samples["descriptors"],
        "Redis, MiB": samples["redis"],
        "p99, ms": samples["p99_ms"],
        "loop lag, ms": samples["lag_ms"],
    }
    minutes = [second / 60 for second in samples["second"]]
    marks = [at / 60 for at in found["redis_killed_at_s"]]
    timelines(image, minutes, shown, over="minutes (dashed: Redis killed)", marks=marks)


async def _until_ended(soak: Soak) -> None:
    task = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel if task else sys.exit)
    with contextlib.suppress(asyncio.CancelledError):
        await soak.run()


def main() -> None:
    """Soak, write, draw; exit code 1 if something grows or fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that answer")
    parser.add_argument("--out", type=Path, default=_OUT)
    parser.add_argument("--image", type=Path, default=None, help="of the plot; default beside --out")
    parser.add_argument("--work", type=Path, default=_WORK, help="where built bundles are kept between runs")
    options = parser.parse_args()
    if options.items < LEAST_ITEMS:
        parser.error(f"--items must be at least {LEAST_ITEMS}, as many as the widest request names")
    if min(options.minutes, options.rate, options.workers) <= 0:
        parser.error("--minutes, --rate and --workers must be above 0")
    settings = _SETTINGS | {"workers": str(options.workers)}
    with tempfile.TemporaryDirectory(prefix="vlm2rec-soak-") as directory:
        scratch = Path(directory)
        shop = open_shop(options.work, options.items, scratch)
        witness = scratch / "witness.jsonl"
        with (
            EmbeddedRedis(scratch / "redis", append_only=True) as store,
            Service(shop.registry, store.url, scratch / "service.log", witness=witness, **settings) as service,
        ):
            with urlopen(f"http://127.0.0.1:{service.port}/openapi.json", timeout=10) as answer:
                paths = json.loads(answer.read())["paths"]
            load = SoakLoad(service.port, Requests(shop, paths, _ADMIN_KEY, options.seed), options.rate, options.seed)
            soak = Soak(shop, service, store, witness, load, options)
            asyncio.run(_until_ended(soak))
            soak.write()
    plot(options.out, options.image or options.out.with_suffix(".svg"))
    verdict = json.loads(options.out.read_text())["verdict"]
    print(json.dumps(verdict, indent=1))
    sys.exit(0 if verdict["holds"] and not verdict["unexpected_failures"] and not verdict["worker_deaths"] else 1)


if __name__ == "__main__":
    main()
