"""Backups and restores are killed at random while events arrive; what was acknowledged before a backup is in it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.embedded_redis import EmbeddedRedis
from service.stores.protocols import Event, HistoryEntry
from tests.support.stores.exports import Shop as Events
from tests.support.stores.real_redis import open_histories

USERS = 3000


class Writer(threading.Thread):
    """Stores bulks of events until it is ended, and merges a session now and then."""

    def __init__(self, url: str, prefix: str) -> None:
        super().__init__()
        self.url, self.prefix = url, prefix
        self.ended = threading.Event()
        self.events = 0

    def run(self) -> None:
        asyncio.run(self._write())

    async def _write(self) -> None:
        store = open_histories(self.url, prefix=self.prefix, timeout_s=20.0, history_cap=10_000)
        while not self.ended.is_set():
            numbers = range(self.events, self.events + 50)
            await store.append([Event(f"u{n % USERS}", f"i{n}", float(n), event_id=f"e{n}") for n in numbers])
            self.events += len(numbers)
            await asyncio.sleep(0.002)
        await store.close()


@pytest.fixture
def writer(redis_url: str) -> Iterator[Writer]:
    started = Writer(redis_url, f"test-{random.random()}")
    started.start()
    yield started
    started.ended.set()
    started.join(60)


def command(*words: object, prefix: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "VLM2REC_REDIS_PREFIX": prefix}
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", "backup", *map(str, words), "--no-registry"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def killed_often(words: tuple[object, ...], prefix: str, times: int) -> str:
    """Kill a command after growing times, then let it end; its output."""
    for number in range(times):
        process = command(*words, prefix=prefix)
        time.sleep(random.Random(number).uniform(0.5, 2.0))
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
        if process.returncode == 0:
            return out
    process = command(*words, prefix=prefix)
    out, errors = process.communicate(timeout=120)
    if "exists already" in errors or "has keys of this prefix" in errors:  # the one before had done its work
        return {"create": "backed up", "restore": "restored"}[str(words[0])]
    assert process.returncode == 0, errors
    return out


@pytest.mark.slow
def test_nothing_acknowledged_before_a_backup_is_missing(writer: Writer, tmp_path: Path) -> None:
    while writer.events < 20_000:
        time.sleep(0.05)
    target = tmp_path / "backup"
    known = writer.events
    assert killed_often(("create", "--to", target, "--redis", writer.url), writer.prefix, 3).startswith("backed up")
    writer.ended.set()
    writer.join(60)
    with EmbeddedRedis() as server:
        words = ("restore", "--from", target, "--redis", server.url)
        assert killed_often(words, "new", 3).startswith("restored")
        restored = Events(server.url, tmp_path / "export", "new")
        found: dict[str, list[HistoryEntry]] = {}
        arrived: list[Event] = []

        async def read(histories: object) -> None:
            store = open_histories(server.url, prefix="new", timeout_s=20.0, history_cap=10_000)
            for number in range(USERS):
                found[f"u{number}"] = await store.entries(f"u{number}")
            arrived.extend(await store.stream())
            await store.append([Event("u1", f"i{n}", float(n), event_id=f"e{n}") for n in (1, 1 + USERS)])
            assert len(await store.entries("u1")) == len(found["u1"])  # both were known
            await store.close()

        restored.run(read)
        items = {int(entry.item_id[1:]) for entries in found.values() for entry in entries}
        assert items >= set(range(known))
        for user, entries in found.items():  # in order, without a gap, each once
            numbers = [int(entry.item_id[1:]) for entry in entries]
            assert numbers == list(range(int(user[1:]), numbers[-1] + 1, USERS))
        assert {int(event.item_id[1:]) for event in arrived} >= items
