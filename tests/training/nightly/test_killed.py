"""The nightly job as a process: killed at any moment, stopped by a signal, started twice."""

import os
import signal
import time
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.support.processes.forked_commands import exit_code

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerProcess

    from conftest import Shop

HELD = """
import pathlib, time, training.embedding.catalogue_encoder as e
items, batches = e.CatalogueEncoder.items, 0
def held(self, rows):
    global batches
    batches += 1
    while batches > {batches} and not pathlib.Path({go!r}).exists():
        time.sleep(.01)
    return items(self, rows)
e.CatalogueEncoder.items = held
"""
BATCHES = 3  # of a shard
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


def held_after(shop: "Shop", shards: int, *more: object) -> "tuple[ForkServerProcess, Path]":
    """A job that has embedded some shards and holds in the next, until there is a file."""
    go = shop.home / "go"
    process = shop.start(*more, before=HELD.format(batches=BATCHES * shards, go=str(go)))
    while len(list(shop.run.glob("embeddings/work-*/*.npz"))) < shards:
        assert process.is_alive()
        time.sleep(0.005)
    return process, go


def whole(shop: "Shop") -> dict[str, bytes]:
    """The vectors and lists of the one new bundle, after a look at everything that a job leaves."""
    assert len(shop.registry.list()) == 2  # that of the night before, and one more
    lists, *others = sorted(path.name for path in (shop.run / "reindex").iterdir())
    assert (lists[:6], others) == ("lists-", ["state.json", "table-000002"])
    names = sorted(path.name for path in (shop.run / "embeddings").iterdir())
    assert names == [
        "embeddings.json", "image-000002.npy", "items-000002.parquet", "text-000002.npy", "unreadable.json",
        "unused-000002.parquet", "unused_image-000002.npy", "unused_text-000002.npy",
    ]  # fmt: skip
    assert shop.reindex()["outcome"] == "nothing to do"
    return shop.lists() | {"vectors.npy": (shop.bundle().path / "vectors.npy").read_bytes()}


def unbroken(shop: "Shop") -> tuple[dict[str, bytes], float]:
    """The vectors and lists of a job that nothing interrupts, and how long it takes."""
    assert shop.run_through("--help") == 0  # the process that is forked has imported everything then
    started = time.monotonic()
    assert shop.run_through() == 0
    seconds = time.monotonic() - started
    return whole(shop), seconds


def test_killed_again_and_again_the_vectors_are_those_of_an_unbroken_job(
    copies: "Callable[[str], Shop]", tmp_path: Path
) -> None:
    expected, _ = unbroken(copies("unbroken"))
    shop = copies("killed")
    for number in (5, 11, 17):  # in the second shard, in a later one, and while the table and the bundle are written
        process = shop.start(before=DIES.format(number=number, count=str(tmp_path / "count")))
        assert exit_code(process) == -signal.SIGKILL
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
    assert exit_code(shop.start(before=DIES.format(number=0, count=str(count)))) == 0
    expected, steps = whole(shop), int(count.read_text())
    assert steps > 50
    for number in range(1, steps + 1, 2):
        shop = copies(f"step-{number}")
        assert exit_code(shop.start(before=DIES.format(number=number, count=str(count)))) == -signal.SIGKILL
        assert shop.run_through() == 0
        assert whole(shop) == expected, number


def test_items_embedded_before_a_kill_are_not_embedded_again(copies: "Callable[[str], Shop]") -> None:
    shop = copies("killed")
    process, _ = held_after(shop, 2)
    process.kill()
    assert exit_code(process) == -signal.SIGKILL
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


def test_sigterm_stops_after_the_shard_and_the_next_job_resumes(copies: "Callable[[str], Shop]") -> None:
    shop = copies("stopped")
    textfile = shop.home / "job.prom"
    process, go = held_after(shop, 1, "--textfile", textfile)
    os.kill(process.pid or 0, signal.SIGTERM)
    go.touch()
    assert exit_code(process) == 143
    assert "vlm2rec_reindex_exit_status 143.0" in textfile.read_text()
    shards = {path.name for path in shop.run.glob("embeddings/work-*/*.npz")}
    assert not list(shop.run.glob("embeddings/work-*/*.part"))
    summary = shop.reindex()
    assert summary["embedding"]["resumed"] == 8 * len(shards)


def test_an_interruption_has_its_exit_code_and_keeps_finished_work(copies: "Callable[[str], Shop]") -> None:
    shop = copies("interrupted")
    process, _ = held_after(shop, 1)
    os.kill(process.pid or 0, signal.SIGINT)
    assert exit_code(process) == 130
    assert shop.reindex()["embedding"]["resumed"] >= 8


def test_of_two_jobs_at_once_one_ends_at_once(copies: "Callable[[str], Shop]") -> None:
    shop = copies("twice")
    first, go = held_after(shop, 1)
    assert shop.run_through() == 75
    go.touch()
    assert exit_code(first) == 0
    whole(shop)
