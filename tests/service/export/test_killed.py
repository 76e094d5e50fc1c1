"""Exporter and Redis are killed at random while events arrive; `appendfsync always`, so Redis forgets nothing."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from demo.embedded_redis import EmbeddedRedis
from service.errors import HistoriesUnavailable
from service.stores.protocols import Event
from tests.support.stores.exports import Shop
from tests.support.stores.real_redis import open_histories


class Writer(threading.Thread):
    """Stores bulks of events until it is ended, each until it is acknowledged; now and then it erases a user."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.ended = threading.Event()
        self.events = 0

    def run(self) -> None:
        asyncio.run(self._write())

    async def _write(self) -> None:
        store = open_histories(self.url, timeout_s=0.5)
        while not self.ended.is_set():
            numbers = range(self.events, self.events + 20)
            bulk = [Event(f"u{n % 40}", f"i{n}", float(n), event_id=f"e{n}") for n in numbers]
            while True:
                try:
                    await store.append(bulk)
                except HistoriesUnavailable:
                    await asyncio.sleep(0.02)
                else:
                    break
            self.events += len(bulk)
            await asyncio.sleep(0.005)
        await store.close()


def exporter(shop: Shop) -> "subprocess.Popen[bytes]":
    options = ("--to", str(shop.root), "--redis", shop.url, "--follow", "--max-age-s", "0", "--rows-per-file", "7")
    command = [sys.executable, "-m", "cli.main", "events", "export", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))


def wait_for_files(shop: Shop, more_than: int, process: "subprocess.Popen[bytes]") -> int:
    """Wait until the exporter has written files again."""
    deadline = time.monotonic() + 60
    while (count := len(list(shop.root.glob("day=*/*.parquet")))) <= more_than:
        assert process.poll() is None, "the exporter ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return count


def kill_at_random(tmp_path: Path, kills: int, seed: int) -> None:
    chosen = random.Random(seed)
    with EmbeddedRedis(tmp_path / "redis", append_only=True, fsync_always=True) as server:
        shop = Shop(server.url, tmp_path / "export", "vlm2rec")
        writer = Writer(server.url)
        writer.start()
        process, files = exporter(shop), 0
        try:
            for kill in range(kills):
                files = wait_for_files(shop, files, process)
                threading.Event().wait(chosen.random() * 0.3)
                if kill % 2:
                    server.kill()
                    server.start()
                else:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    process = exporter(shop)
        finally:
            writer.ended.set()
            writer.join()
            process.terminate()
            process.wait()
        asyncio.run(shop.export())
    counted = Counter(row["event_id"] for row in shop.rows())
    assert writer.events > 100
    assert counted == Counter(f"e{n}" for n in range(writer.events))


def test_a_few_random_kills_lose_and_double_no_event(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 2, seed=1)


@pytest.mark.slow
def test_twenty_random_kills_lose_and_double_no_event(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 20, seed=2)
