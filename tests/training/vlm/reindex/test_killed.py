"""The nightly job as real processes: killed at any moment, told to stop, started twice."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from training.errors import RunBusy
from training.run_lock import run_lock

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from conftest import Shop

SLOWED = """
import time, training.embed as e
items = e.CatalogueEncoder.items
e.CatalogueEncoder.items = lambda self, rows: (time.sleep(.05), items(self, rows))[1]
"""
DIES = """
import os
calls = 0
def dying(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == {number}:
            os.kill(os.getpid(), 9)
        with open({count!r}, "w") as file:
            file.write(str(calls))
        return real(*arguments, **options)
    return call
for name in ("fsync", "replace", "rename", "link", "rmdir"):
    setattr(os, name, dying(getattr(os, name)))
"""


@pytest.fixture
def changed(nightly: "Shop") -> "Shop":
    """The shop after a day with much that is new: 4 shards to embed."""
    for row in range(24):
        Image.new("RGB", (16, 16), (10 * row, 0, 200)).save(nightly.data / "images" / f"{row}.png")
    nightly.edit(
        lambda rows: [
            *rows[:-1],
            *({"item_id": f"n{row}", "title": f"new {row}", "text": "", "image": ""} for row in range(8)),
        ]
    )
    return nightly


@pytest.fixture
def copies(changed: "Shop", tmp_path: Path) -> "Callable[[str], Shop]":
    """Copies of that shop, each for one story."""
    return lambda name: type(changed)(Path(copytree(changed.home, tmp_path / name)))


def ended(process: "ForkServerProcess", within: float = 120) -> int | None:
    process.join(within)
    code = process.exitcode
    process.close()
    return code


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def whole(shop: "Shop") -> bytes:
    """The vectors of the one new bundle, after a look at everything that a job leaves."""
    assert len(shop.registry.list()) == 2  # that of the night before, and one more
    assert sorted(path.name for path in (shop.run / "reindex").iterdir()) == ["state.json", "table-000002"]
    names = sorted(path.name for path in (shop.run / "embeddings").iterdir())
    assert names == [
        "embeddings.json", "image-000002.npy", "items-000002.parquet", "text-000002.npy", "unreadable.json",
        "unused-000002.parquet", "unused_image-000002.npy", "unused_text-000002.npy",
    ]  # fmt: skip
    assert shop.reindex()["outcome"] == "nothing to do"
    return (shop.bundle().path / "vectors.npy").read_bytes()


def unbroken(shop: "Shop") -> tuple[bytes, float]:
    """The vectors of a job that nothing interrupts, and how long it takes."""
    assert shop.run_through("--help") == 0  # the process that is forked has imported everything then
    started = time.monotonic()
    assert shop.run_through() == 0
    seconds = time.monotonic() - started
    return whole(shop), seconds


def test_killed_again_and_again_the_vectors_are_those_of_an_unbroken_job(copies: "Callable[[str], Shop]") -> None:
    expected, seconds = unbroken(copies("unbroken"))
    shop = copies("killed")
    moments = np.random.default_rng(3).uniform(0.2, 0.7, 3) * seconds
    assert sum(shop.killed_after(moment) for moment in moments) >= 1
    assert shop.run_through() == 0
    assert whole(shop) == expected


@pytest.mark.slow
def test_killed_at_ten_random_moments(copies: "Callable[[str], Shop]") -> None:
    expected, seconds = unbroken(copies("unbroken"))
    killed = 0
    for number, moment in enumerate(np.random.default_rng(10).uniform(0.0, 1.0, 10)):
        shop = copies(f"killed-{number}")
        killed += shop.killed_after(moment * seconds)
        assert shop.run_through() == 0
        assert whole(shop) == expected, moment
    assert killed >= 3


@pytest.mark.slow
def test_killed_at_every_other_step_that_touches_the_disk(copies: "Callable[[str], Shop]", tmp_path: Path) -> None:
    count = tmp_path / "count"
    shop = copies("counted")
    assert ended(shop.start(before=DIES.format(number=0, count=str(count)))) == 0
    expected, steps = whole(shop), int(count.read_text())
    assert steps > 50
    for number in range(1, steps + 1, 2):
        shop = copies(f"step-{number}")
        assert ended(shop.start(before=DIES.format(number=number, count=str(count)))) == -signal.SIGKILL
        assert shop.run_through() == 0
        assert whole(shop) == expected, number


def test_what_is_embedded_before_a_kill_is_not_embedded_again(copies: "Callable[[str], Shop]") -> None:
    shop = copies("killed")
    process = shop.start(before=SLOWED)
    wait_for(lambda: len(list(shop.run.glob("embeddings/work-*/*.npz"))) >= 2)
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert "more were embedded by an interrupted job" in shop.invoke("--dry-run").output
    summary = shop.reindex()
    assert summary["embedding"]["resumed"] >= 16
    assert summary["embedding"]["resumed"] + summary["embedding"]["encoded"] == summary["embedding"]["needed"] == 30
    assert summary["items"] == {
        "total": 37,
        "new": 8,
        "changed": 22,
        "unchanged": 7,
        "deleted": 1,
        "unreadable": 0,
        "not_found": 0,
    }


def test_sigterm_stops_after_the_shard_and_the_next_job_goes_on(copies: "Callable[[str], Shop]") -> None:
    shop = copies("stopped")
    textfile = shop.home / "job.prom"
    process = shop.start("--textfile", textfile, before=SLOWED)
    wait_for(lambda: any(shop.run.glob("embeddings/work-*/000000.npz")))
    os.kill(process.pid or 0, signal.SIGTERM)
    assert ended(process) == 143
    assert "vlm2rec_reindex_exit_status 143.0" in textfile.read_text()
    shards = {path.name for path in shop.run.glob("embeddings/work-*/*.npz")}
    assert not list(shop.run.glob("embeddings/work-*/*.part"))
    summary = shop.reindex()
    assert summary["embedding"]["resumed"] == 8 * len(shards)


def test_an_interruption_has_its_code_and_leaves_what_is_done(copies: "Callable[[str], Shop]") -> None:
    shop = copies("interrupted")
    process = shop.start(before=SLOWED)
    wait_for(lambda: any(shop.run.glob("embeddings/work-*/000000.npz")))
    os.kill(process.pid or 0, signal.SIGINT)
    assert ended(process) == 130
    assert shop.reindex()["embedding"]["resumed"] >= 8


def test_of_two_jobs_at_once_one_ends_at_once(copies: "Callable[[str], Shop]") -> None:
    shop = copies("twice")
    first = shop.start(before=SLOWED)

    def taken() -> bool:
        try:
            with run_lock(shop.run, shared=True):
                return False
        except RunBusy:
            return True

    wait_for(taken)
    assert shop.run_through() == 75
    assert ended(first) == 0
    whole(shop)
