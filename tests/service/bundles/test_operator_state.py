"""A replica's copy of the operator state: updates, restoring a store that lost its data, and the local file."""

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.bundles.operator_state import RETRY_S, OperatorState, OperatorStateCopy
from service.errors import OperatorStateUnavailable
from service.stores.protocols import Edition
from tests.support.stores.memory_operator_state import MemoryOperatorState


class Replica(OperatorState):
    """An operator state that records the errors of its local file."""

    def __init__(self, store: MemoryOperatorState, path: Path) -> None:
        self.file_errors: list[str] = []
        super().__init__(store, path, self.file_errors.append)

    @property
    def known(self) -> tuple[str | None, set[str]]:
        return self.pin, set(self.hidden.ids)


def test_a_change_on_one_replica_reaches_the_other(tmp_path: Path) -> None:
    async def check() -> None:
        store = MemoryOperatorState()
        one, other = Replica(store, tmp_path / "1"), Replica(store, tmp_path / "2")
        await one.set_available("a", available=False)
        await one.set_available("b", available=False)
        await one.set_pin("p")
        assert one.known == ("p", {"a", "b"})
        await other.sync()
        assert other.known == ("p", {"a", "b"})
        await other.set_available("a", available=True)
        await other.set_pin(None)
        await one.sync()
        assert one.known == other.known == (None, {"b"})

    asyncio.run(check())


def test_a_store_that_lost_everything_is_restored_by_the_replica_that_notices(tmp_path: Path) -> None:
    async def check() -> None:
        store = MemoryOperatorState()
        one, other = Replica(store, tmp_path / "1"), Replica(store, tmp_path / "2")
        await one.set_available("a", available=False)
        await one.set_pin("p")
        await other.sync()
        store.lose()
        await other.sync()
        fresh = Replica(store, tmp_path / "3")
        await fresh.sync()
        assert fresh.known == ("p", {"a"})
        store.lose()
        await one.set_available("b", available=False)  # a change is the first to notice
        for replica in (other, fresh):
            await replica.sync()
            assert replica.known == ("p", {"a", "b"})

    asyncio.run(check())


def test_a_store_of_another_epoch_is_the_truth(tmp_path: Path) -> None:
    async def check() -> None:
        old, new = MemoryOperatorState(), MemoryOperatorState()
        before = Replica(old, tmp_path / "1")
        await before.set_available("a", available=False)
        await before.save()
        other = Replica(new, tmp_path / "2")
        await other.set_available("b", available=False)
        moved = Replica(new, tmp_path / "1")
        assert moved.known == (None, {"a"})
        await moved.sync()
        assert moved.known == (None, {"b"})

    asyncio.run(check())


def test_the_last_known_state_survives_a_restart_while_the_store_is_down(tmp_path: Path) -> None:
    path = tmp_path / "made" / "directives.json"

    async def check() -> None:
        store = MemoryOperatorState()
        before = Replica(store, path)
        await before.sync()
        assert not path.exists()  # nothing was ever said
        await before.set_available("ü", available=False)
        await before.set_pin("p")
        await before.close()
        store.available = False
        after = Replica(store, path)
        with pytest.raises(OperatorStateUnavailable):
            await after.sync()
        assert after.known == ("p", {"ü"})
        assert after.file_errors == []

    asyncio.run(check())


def test_a_change_that_the_store_did_not_take_is_not_made(tmp_path: Path) -> None:
    async def check() -> None:
        store = MemoryOperatorState()
        replica = Replica(store, tmp_path / "1")
        store.available = False
        for call in (replica.set_available("a", available=False), replica.set_pin("p")):
            with pytest.raises(OperatorStateUnavailable):
                await call
        assert replica.known == (None, set())

    asyncio.run(check())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"format": 2, "epoch": "e", "number": 1, "pin": null, "hidden": []}',
        b'{"format": 1, "epoch": 7, "number": 1, "pin": null, "hidden": []}',
        b'{"format": 1, "epoch": "e", "number": true, "pin": null, "hidden": []}',
        b'{"format": 1, "epoch": "e", "number": 1, "pin": 5, "hidden": []}',
        b'{"format": 1, "epoch": "e", "number": 1, "pin": null, "hidden": "abc"}',
        b'{"format": 1, "epoch": "e", "number": 1, "pin": null, "hidden": ["a", 5]}',
    ],
)
def test_a_file_with_other_content_is_reported_and_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "directives.json"
    path.write_bytes(content)
    replica = Replica(MemoryOperatorState(), path)
    assert replica.known == (None, set())
    (error,) = replica.file_errors
    assert error.startswith(f"{path}: the saved operator state cannot be read")


def test_a_file_that_cannot_be_written_is_reported_once_per_change(tmp_path: Path) -> None:
    async def check() -> None:
        (tmp_path / "taken").touch()
        replica = Replica(MemoryOperatorState(), tmp_path / "taken" / "directives.json")
        replica.file_errors.clear()
        await replica.set_available("a", available=False)
        for _ in range(3):
            await replica.sync()
        (error,) = replica.file_errors
        assert "the operator state cannot be saved" in error
        assert replica.known == (None, {"a"})

    asyncio.run(check())


def test_a_file_that_could_not_be_written_is_written_once_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk was full when the item was hidden; the next change may be months away."""
    path = tmp_path / "state" / "directives.json"

    async def check() -> None:
        now = 100.0
        monkeypatch.setattr("service.bundles.operator_state.monotonic", lambda: now)
        (tmp_path / "state").touch()
        replica = Replica(MemoryOperatorState(), path)
        replica.file_errors.clear()
        await replica.set_available("a", available=False)
        await replica.sync()
        (tmp_path / "state").unlink()
        await replica.sync()
        assert not path.exists()  # not at every poll: a full disk would be written to twice a second
        now += RETRY_S
        await replica.sync()
        assert OperatorStateCopy.load(path).hidden == ("a",)
        assert len(replica.file_errors) == 1

    asyncio.run(check())


def test_a_file_that_could_not_be_written_is_tried_again_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "state" / "directives.json"

    async def check() -> None:
        (tmp_path / "state").touch()
        replica = Replica(MemoryOperatorState(), path)
        await replica.set_available("a", available=False)
        await replica.sync()
        (tmp_path / "state").unlink()
        await replica.close()
        assert OperatorStateCopy.load(path).hidden == ("a",)

    asyncio.run(check())


def test_a_change_is_saved_though_the_store_fails_right_after_it(tmp_path: Path) -> None:
    """Otherwise a process that is killed in the outage starts again without it."""
    path = tmp_path / "directives.json"

    async def check() -> None:
        store = MemoryOperatorState()
        replica = Replica(store, path)
        await replica.set_available("a", available=False)
        store.available = False
        with pytest.raises(OperatorStateUnavailable):
            await replica.sync()
        assert OperatorStateCopy.load(path).hidden == ("a",)

    asyncio.run(check())


def test_a_file_edited_by_hand_can_still_be_restored(tmp_path: Path) -> None:
    path = tmp_path / "directives.json"
    kept = {"format": 1, "epoch": "e", "number": 1, "pin": None, "hidden": ["a", "b", "c"]}
    path.write_text(json.dumps(kept))
    assert OperatorStateCopy.load(path).edition == Edition("e", 3)

    async def check() -> None:
        store = MemoryOperatorState()
        await Replica(store, path).sync()
        fresh = Replica(store, tmp_path / "2")
        await fresh.sync()
        assert fresh.known == (None, {"a", "b", "c"})

    asyncio.run(check())


class Forgetful(MemoryOperatorState):
    """A store that loses everything again and again."""

    async def restore(self, *_: object) -> None:
        self.lose()


def test_a_store_that_cannot_keep_anything_is_unavailable(tmp_path: Path) -> None:
    async def check() -> None:
        store = Forgetful()
        replica = Replica(store, tmp_path / "1")
        await replica.set_available("a", available=False)
        store.lose()
        with pytest.raises(OperatorStateUnavailable, match="lost the operator state twice"):
            await replica.set_available("b", available=False)
        assert replica.known == (None, {"a"})

    asyncio.run(check())


class Racing(MemoryOperatorState):
    """A store that loses everything between two calls."""

    async def changes(self, since: Edition) -> object:  # type: ignore[override]
        self.lose()
        return await super().changes(since)


def test_a_loss_between_two_calls_shows_nothing_again(tmp_path: Path) -> None:
    async def check() -> None:
        store = Racing()
        await store.restore(Edition("e", 2), None, ["a"])
        replica = Replica(store, tmp_path / "1")
        replica._edition = Edition("e", 1)
        await replica.hidden.change(["a"], [])
        await replica.sync()
        assert replica.known == (None, {"a"})

    asyncio.run(check())


def test_a_sync_cancelled_before_its_file_is_written_loses_nothing(tmp_path: Path) -> None:
    async def check() -> None:
        asked, may_go_on = threading.Event(), threading.Event()

        class OneThread(ThreadPoolExecutor):
            def submit(self, *work: Any, **more: Any) -> Any:
                asked.set()
                return super().submit(*work, **more)

        threads = OneThread(max_workers=1)
        threads.submit(may_go_on.wait)
        asyncio.get_running_loop().set_default_executor(threads)
        replica = Replica(MemoryOperatorState(), tmp_path / "kept")
        await replica.set_pin("p")
        asked.clear()
        sync = asyncio.create_task(replica.sync())
        while not asked.is_set():
            await asyncio.sleep(0)
        sync.cancel()
        await asyncio.sleep(0)
        may_go_on.set()
        await asyncio.wait({sync})
        assert sync.cancelled()
        await replica.close()
        assert OperatorStateCopy.load(tmp_path / "kept").pin == "p"

    asyncio.run(check())
