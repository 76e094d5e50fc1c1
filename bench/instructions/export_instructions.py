"""Counts the processor instructions of an exported event: those of the exporter and those of Redis for it.

    python -m bench.instructions.export_instructions --events 20000 --rounds 5

The exporter and Redis run under Valgrind's callgrind. The service's store stores the events of a round uncounted, in
bulks of 100 with event ids, types and for a fifth request ids; then the exporter exports them in one round to a
directory. Few events a round stand for an exporter that works often, many for one that does every ten minutes. Prints
JSON: for each round thousands of instructions of an event by library, and the commands that Redis ran for an event.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import redis

from bench.events.traffic import EventTraffic, ShownAnswer
from bench.instructions.callgrind import Counting, under_callgrind
from bench.load.histories import user_id
from demo.embedded_redis import find_redis_server
from index.event_export.directory import ExportDirectory
from service.export.exporter import Exporter
from service.settings.groups import HistorySettings, RedisSettings
from service.stores.event_export.redis_event_export import RedisEventExport
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories

_BULK: Final = 100
_ITEMS: Final = [f"item-{row:06d}" for row in range(10_000)]
_ANSWERS: Final = [ShownAnswer(user_id(user), f"{user:032x}", _ITEMS[user : user + 20]) for user in range(200)]
_NOW: Final = 1_700_000_000.0
_ROWS_PER_FILE: Final = 50_000


def made_events(traffic: EventTraffic, count: int, scratch: Path, start: int) -> list[Event]:
    """Events of the traffic, a thousand a second from a fixed time on.

    Args:
        traffic: makes them.
        count: how many.
        scratch: directory for a file of them.
        start: number of the first.
    """
    bodies = traffic.write(scratch / "events.jsonl", count, events=1).read_text().splitlines()
    return [Event(timestamp=_NOW + number / 1000, **json.loads(body)) for number, body in enumerate(bodies, start)]


async def store(url: str, events: list[Event]) -> None:
    """Store events in bulks, as the service does."""
    settings = RedisSettings(redis_url=url, redis_timeout_ms=60_000)
    histories = RedisHistories(settings, HistorySettings())
    try:
        for at in range(0, len(events), _BULK):
            await histories.append(events[at : at + _BULK])
    finally:
        await histories.close()


async def export(url: str, root: Path) -> None:
    """Be the exporter: one round for each line that is read; print a line before the first and after each."""
    directory = ExportDirectory.open_or_create(str(root))
    events = RedisEventExport(RedisSettings(redis_url=url), timeout_s=600.0)
    exporter = Exporter(events, directory, rows_per_file=_ROWS_PER_FILE)
    await exporter.attach()
    print("0", flush=True)
    while sys.stdin.readline():
        done = await exporter.export()
        print(done.events, flush=True)
    await events.close()


class Counted:
    """A process under callgrind that is counted between two of its lines.

    Args:
        command: to run.
        out: the counts are written to files whose names begin with this path.
    """

    def __init__(self, command: list[str], out: Path) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([*under_callgrind(out), *command], **pipes, text=True)  # type: ignore[call-overload]
        self.counting = Counting(self.process.pid, out)

    def ask(self) -> None:
        """Send a line."""
        if self.process.stdin is not None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def line(self) -> str:
        """The next line of the process.

        Raises:
            SystemExit: it ended.
        """
        if self.process.stdout is None or not (line := self.process.stdout.readline()):
            raise SystemExit(f"the counted process ended with exit code {self.process.wait()}")
        return str(line)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait()


def counted(events: int, rounds: int, users: int) -> list[dict[str, Any]]:
    """Thousands of instructions of an event by library, for the exporter and Redis, of each round.

    Args:
        events: of a round.
        rounds: how many.
        users: number of users.

    Raises:
        SystemExit: a process ended, or did not export all events.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="vlm2rec-bench-") as name:
        scratch = Path(name)
        url = f"unix://{scratch}/redis.sock"
        options = ["--port", "0", "--unixsocket", f"{scratch}/redis.sock", "--save", "", "--dir", name]
        server = Counted([find_redis_server(), *options], scratch / "redis")
        _await_redis(url)
        own = [sys.executable, "-m", "bench.instructions.export_instructions", "--export", f"{scratch}/export"]
        exporter = Counted([*own, "--redis", url], scratch / "exporter")
        try:
            exporter.line()
            traffic = EventTraffic(_ITEMS, users, _ANSWERS, 1)
            for number in range(rounds):
                asyncio.run(store(url, made_events(traffic, events, scratch, number * events)))
                found.append(_round(server, exporter, url, events))
        finally:
            exporter.close()
            server.close()
    return found


def _round(server: Counted, exporter: Counted, url: str, events: int) -> dict[str, Any]:
    with redis.Redis.from_url(url, socket_timeout=600.0) as client:
        client.config_resetstat()
        server.counting.start()
        exporter.counting.start()
        exporter.ask()
        if int(exporter.line()) != events:
            raise SystemExit(f"not all of {events} events were exported")
        of_exporter, _ = exporter.counting.stop()
        of_redis, _ = server.counting.stop()
        commands = client.info("commandstats")
    return {
        "exporter": _of_event(of_exporter, events),
        "redis": _of_event(of_redis, events),
        "commands": {
            name.removeprefix("cmdstat_"): round(figures["calls"] / events, 4)
            for name, figures in sorted(commands.items())
            if not name.startswith(("cmdstat_config", "cmdstat_info"))
        },
    }


def _of_event(found: dict[str, int], events: int) -> dict[str, float]:
    """Thousands of instructions of an event: all of them, then by library, the most first."""
    cost = {name: round(count / 1000 / events, 2) for name, count in sorted(found.items(), key=lambda one: -one[1])}
    return {"all": round(sum(found.values()) / 1000 / events, 2)} | {name: k for name, k in cost.items() if k >= 0.01}


def _await_redis(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
            except redis.ConnectionError:
                continue
            return


def main() -> None:
    """Count, and print the result; with ``--export`` be the exporter that is counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000, help="of a round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--redis", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export is not None:
        asyncio.run(export(options.redis, options.export))
        return
    print(json.dumps(counted(options.events, options.rounds, options.users), indent=1))


if __name__ == "__main__":
    main()
