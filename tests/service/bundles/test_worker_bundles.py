"""What workers agree on about bundles: verdicts by content, room for two bundles, and who follows whom."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from service.bundles import worker_bundles
from service.bundles.worker_bundles import BundleVerdict, WorkerBundles
from service.errors import NotReady
from service.runtime.worker_board import WorkerBoard
from service.settings.worker_place import WorkerPlace


@pytest.fixture
def both(tmp_path: Path) -> tuple[WorkerBundles, WorkerBundles]:
    """Two workers of one service; their registry has a bundle `a`."""
    (tmp_path / "registry" / "a").mkdir(parents=True)
    (tmp_path / "registry" / "a" / "vectors.npy").write_bytes(b"vectors")
    (tmp_path / "shared").mkdir()

    def worker(number: int) -> WorkerBundles:
        place = WorkerPlace(number=number, count=2, directory=tmp_path / "shared")
        return WorkerBundles(place, WorkerBoard(tmp_path / "shared", 2), tmp_path / "registry")

    return worker(1), worker(2)


def test_a_verdict_is_of_the_files_as_they_were(both: tuple[WorkerBundles, WorkerBundles], tmp_path: Path) -> None:
    first, second = both
    key = first.key_of("a")
    assert second.verdict(key) is None
    first.record(key, BundleVerdict("bound", "overlap is 0.1", hashed=True))
    found = second.verdict(second.key_of("a"))
    assert found == BundleVerdict("bound", "overlap is 0.1", hashed=True)
    assert str(found.refusal()) == "overlap is 0.1"
    file = tmp_path / "registry" / "a" / "vectors.npy"
    status = file.stat()
    file.write_bytes(b"VECTORS")  # as long, and as old
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert second.key_of("a") != key
    assert first.key_of("b") != key  # there is none


def test_the_files_are_hashed_by_one_worker(both: tuple[WorkerBundles, WorkerBundles]) -> None:
    hashing, calls = threading.Event(), []

    def hash_files() -> bool:
        calls.append(1)
        hashing.wait(0.2)
        return True

    found = []
    threads = [
        threading.Thread(target=lambda worker=worker: found.append(worker.hashed_once("a", hash_files, lambda: False)))
        for worker in both
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, calls) == ([True, True], [1])


def test_a_stopped_or_failed_hashing_counts_for_nobody(both: tuple[WorkerBundles, WorkerBundles]) -> None:
    first, second = both

    def altered() -> bool:
        raise ValueError("altered")

    assert not first.hashed_once("a", lambda: False, lambda: False)
    with pytest.raises(ValueError, match="altered"):
        first.hashed_once("a", altered, lambda: False)
    with first.blocking_turn("hashing.lock"):
        assert not second.hashed_once("a", lambda: True, lambda: True)  # stopped while it waited
    assert second.hashed_once("a", lambda: True, lambda: False)


def test_one_worker_at_a_time_has_the_turn(both: tuple[WorkerBundles, WorkerBundles]) -> None:
    first, second = both
    order = []

    async def use(worker: WorkerBundles, name: str, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        async with worker.turn():
            order.append(f"{name} begins")
            await asyncio.sleep(0.1)
            order.append(f"{name} ends")

    async def go() -> None:
        await asyncio.gather(use(first, "first", 0.0), use(second, "second", 0.02))

    asyncio.run(go())
    assert order == ["first begins", "first ends", "second begins", "second ends"]


def test_there_is_room_for_two_bundles_of_all_workers(
    both: tuple[WorkerBundles, WorkerBundles], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = both
    first.hold(["b", "a"])
    second.hold(["b", "a"])

    async def go() -> None:
        waiting = asyncio.create_task(first.make_room("c", ["b"]))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert second.room_is_wanted
        assert not first.room_is_wanted  # it waits itself
        second.hold(["b"])
        await asyncio.wait_for(waiting, 5)
        assert not second.room_is_wanted
        await asyncio.wait_for(second.make_room("c", ["b"]), 5)  # the same one: two in all
        monkeypatch.setattr(worker_bundles, "_ROOM_LIMIT_S", 0.1)
        with pytest.raises(NotReady, match="other workers still use earlier bundles"):
            await second.make_room("d", ["b"])

    asyncio.run(go())


def test_one_that_is_behind_follows_the_others(both: tuple[WorkerBundles, WorkerBundles]) -> None:
    first, second = both
    assert first.followed(None) is None
    first.activated("a", ["a"])
    assert second.followed(None) == "a"  # a replacement starts with it
    second.activated("a", ["a"])
    assert first.followed("a") is second.followed("a") is None
    second.activated("b", ["b", "a"])
    assert first.followed("a") == "b"
    assert second.followed("b") is None  # it is ahead
