"""Merges of sessions into users of a real Redis Cluster, whose keys are in several slots."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.errors import SessionMerged
from service.stores.deployment.cluster_histories import ClusterHistories
from service.stores.deployment.merge_scripts import CLAIM, COPY, RELEASE
from service.stores.history_keys import bucket_of
from service.stores.protocols import Event, session_owner
from service.stores.redis_erasure_scripts import ERASE
from service.stores.redis_pipeline import Script
from tests.support.stores.exports import Shop
from tests.support.stores.item_ids import item_ids
from tests.support.stores.redis_clusters import Cluster, opened

NOW = 1_000_000.0


async def two_histories(store: ClusterHistories, session: str, user: str) -> None:
    owner = session_owner(session)
    await store.append([Event(user, "u1", NOW, event_id="x"), Event(user, "u2", NOW + 20, event_id="y")])
    await store.append([Event(owner, "s1", NOW + 10, event_id="p"), Event(owner, "s2", NOW + 30, event_id="q")])
    await store.append([Event(owner, "shown", NOW, stored_in="impressions")])


class Killed(Exception):
    """The process ends here."""


def ending_after(store: ClusterHistories, steps: int) -> Callable[..., Awaitable[Any]]:
    """Runs this many scripts of a store."""
    run, left = store._writes.run, [steps]

    async def ending(*arguments: Any) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return await run(*arguments)

    return ending


@pytest.mark.parametrize("steps", range(6))
def test_a_merge_that_ended_after_any_step_is_called_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    session, user = "visit", "anna"
    assert bucket_of(session_owner(session)) != bucket_of(user)

    async def check() -> None:
        async with opened(cluster) as store:
            await two_histories(store, session, user)
            with monkeypatch.context() as patched:
                patched.setattr(store._writes, "run", ending_after(store, steps))
                if steps < 5:
                    with pytest.raises(Killed):
                        await store.merge(session, user)
                else:
                    assert await store.merge(session, user) == 2
            moved = steps > 3  # until then the session has its history, so that reads miss nothing
            assert await store.merged_into(session) == (user if moved else None)
            assert await item_ids(store, session_owner(session)) == ([] if moved else ["s1", "s2"])
            # An event of the session that is sent again is known, wherever the merge stands.
            again = Event(session_owner(session), "s1", NOW + 10, event_id="p")
            assert len(await store.append([again])) == 0
            assert await store.merge(session, user) in {0, 2}
            assert await store.merge(session, user) == 0
            assert await item_ids(store, user) == ["u1", "s1", "u2", "s2"]
            assert await item_ids(store, session_owner(session)) == []
            assert [entry.item_id for entry in await store.impressions(user)] == ["shown"]
            assert await store.merged_sessions(user) == [session]
            assert len(await store.append([again, Event(user, "u1", NOW, event_id="x")])) == 0
            assert len(await store.append([Event(session_owner(session), "s3", NOW + 40)])) == 1
            assert await item_ids(store, user) == ["u1", "s1", "u2", "s2", "s3"]
            with pytest.raises(SessionMerged):
                await store.merge(session, "another")
            await store.erase(user)
            assert not cluster.keys(f"{store._prefix}*visit*")
            assert not cluster.keys(f"{store._prefix}*anna*")
            assert await store.stream() == []

    asyncio.run(check())


@pytest.mark.parametrize("steps", range(6))
def test_an_erasure_reaches_a_session_whose_merge_ended_after_any_step(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    async def check() -> None:
        async with opened(cluster) as store:
            await two_histories(store, "visit", "anna")
            with monkeypatch.context() as patched:
                patched.setattr(store._writes, "run", ending_after(store, steps))
                with contextlib.suppress(Killed):
                    await store.merge("visit", "anna")
            is_hers = steps > 1  # claimed
            assert await store.merged_sessions("anna") == ["visit"] * is_hers
            await store.erase("anna")
            assert not cluster.keys(f"{store._prefix}*anna*")
            assert bool(cluster.keys(f"{store._prefix}*visit*")) is not is_hers
            assert [event.item_id for event in await store.stream()] == ["s1", "s2", "shown"] * (not is_hers)
            await store.erase("anna")
            assert await store.merged_sessions("anna") == []

    asyncio.run(check())


def test_an_erasure_spares_a_session_that_is_claimed_for_another_user(cluster: Cluster) -> None:
    async def check() -> None:
        async with opened(cluster) as store:
            await two_histories(store, "visit", "anna")
            claim = Gate(store, CLAIM)
            merging = asyncio.create_task(store.merge("visit", "anna"))
            await claim.reached.wait()
            merging.cancel()  # the process ends here
            async with opened(cluster, store._prefix) as other:
                assert await other.merge("visit", "bob") == 2
                await other.erase("anna")
                assert await item_ids(other, "bob") == ["s1", "s2"]
                assert await other.merged_sessions("bob") == ["visit"]

    asyncio.run(check())


def test_an_erasure_reaches_a_session_that_is_merged_meanwhile(cluster: Cluster) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        async with opened(cluster, prefix) as first, opened(cluster, prefix) as second:
            await two_histories(first, "visit", "anna")
            erases = Gate(first, ERASE)
            erasing = asyncio.create_task(first.erase("anna"))
            await erases.reached.wait()
            assert await second.merge("visit", "anna") == 2
            erases.opened.set()
            await erasing
            assert not cluster.keys(f"{prefix}*anna*")
            assert not cluster.keys(f"{prefix}*visit*")
            assert await second.stream() == []

    asyncio.run(check())


def test_a_merge_that_read_before_an_erasure_brings_nothing_back(cluster: Cluster) -> None:
    async def check() -> None:
        async with opened(cluster) as store:
            await two_histories(store, "visit", "anna")
            run, calls = store._writes.run, [0]

            async def with_an_erasure(*arguments: Any) -> Any:
                calls[0] += 1
                if calls[0] == 3:  # COPY: in between another attempt ended, and the user was erased
                    store._writes.run = run  # type: ignore[method-assign]
                    assert await store.merge("visit", "anna") == 2
                    await store.erase("anna")
                    return await run(*arguments)
                return await run(*arguments)

            store._writes.run = with_an_erasure  # type: ignore[method-assign]
            assert await store.merge("visit", "anna") == 0
            assert await store.entries("anna") == []
            assert await store.impressions("anna") == []

    asyncio.run(check())


class Gate:
    """Holds a store before one of its scripts.

    Attributes:
        reached: set when the store is there.
        opened: lets it go on.
    """

    def __init__(self, store: ClusterHistories, script: Script) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        self._run, self._script = store._writes.run, script
        store._writes.run = self.run  # type: ignore[method-assign]

    async def run(self, script: Script, *arguments: Any) -> Any:
        if script is self._script:
            self.reached.set()
            await self.opened.wait()
        return await self._run(script, *arguments)


async def both_in_progress(
    first: ClusterHistories, second: ClusterHistories
) -> tuple["asyncio.Task[int]", Gate, "asyncio.Task[int]", Gate]:
    """Two merges of one session: the first is about to delete what it has copied, which the second has read."""
    await two_histories(first, "visit", "anna")
    released, copied = Gate(first, RELEASE), Gate(second, COPY)
    of_first = asyncio.create_task(first.merge("visit", "anna"))
    await released.reached.wait()
    of_second = asyncio.create_task(second.merge("visit", "anna"))
    await copied.reached.wait()
    return of_first, released, of_second, copied


@pytest.mark.parametrize("erased", [False, True])
def test_an_attempt_that_another_one_overtakes_copies_nothing_twice(cluster: Cluster, erased: bool) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        async with opened(cluster, prefix) as first, opened(cluster, prefix) as second:
            of_first, released, of_second, copied = await both_in_progress(first, second)
            released.opened.set()
            assert await of_first == 2
            if erased:
                await first.erase("anna")
            copied.opened.set()
            assert await of_second == 0
            assert await item_ids(first, "anna") == ([] if erased else ["u1", "s1", "u2", "s2"])

    asyncio.run(check())


def test_an_erasure_ends_attempts_that_have_read(cluster: Cluster) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        async with opened(cluster, prefix) as first, opened(cluster, prefix) as second:
            of_first, released, of_second, copied = await both_in_progress(first, second)
            async with opened(cluster, prefix) as third:
                await third.erase("anna")  # and with it the session, which is recorded as merged
            copied.opened.set()
            await of_second
            released.opened.set()
            await of_first
            assert await first.entries("anna") == []
            assert await first.impressions("anna") == []

    asyncio.run(check())


def test_a_late_release_deletes_nothing_of_a_later_merge(cluster: Cluster) -> None:
    prefix, owner = f"test-{uuid.uuid4().hex}", session_owner("visit")

    async def check() -> None:
        async with opened(cluster, prefix) as first, opened(cluster, prefix) as second:
            await two_histories(first, "visit", "anna")
            released, copied = Gate(first, RELEASE), Gate(second, COPY)
            of_first = asyncio.create_task(first.merge("visit", "anna"))
            await released.reached.wait()
            async with opened(cluster, prefix) as third:
                await third.erase("anna")
                await third.append([Event(owner, "new", NOW + 50)])
                of_second = asyncio.create_task(second.merge("visit", "anna"))
                await copied.reached.wait()
                of_second.cancel()  # the process ends here
                released.opened.set()
                await of_first
                assert await third.merge("visit", "anna") == 1
                assert await item_ids(third, "anna") == ["new"]

    asyncio.run(check())


def test_the_caller_says_how_an_event_of_a_merged_session_is_the_users(cluster: Cluster) -> None:
    def of_user(event: Event, user_id: str) -> Event:
        return replace(event, user_id=user_id, arm=f"prices/of-{user_id}")

    async def check() -> None:
        async with opened(cluster) as store:
            await store.merge("visit", "anna")
            sent = [Event(session_owner("visit"), "a", NOW), Event("bob", "b", NOW), Event("anna", "c", NOW)]
            assert len(await store.append(sent, of_user)) == 3
            found = sorted((event.item_id, event.user_id, event.arm) for event in await store.stream())
            assert found == [("a", "anna", "prices/of-anna"), ("b", "bob", None), ("c", "anna", None)]

    asyncio.run(check())


def test_concurrent_merges_of_one_session_move_it_once(cluster: Cluster) -> None:
    async def check() -> None:
        async with opened(cluster) as store:
            await two_histories(store, "visit", "anna")
            moved = await asyncio.gather(*(store.merge("visit", "anna") for _ in range(3)))
            assert max(moved) == 2
            assert await item_ids(store, "anna") == ["u1", "s1", "u2", "s2"]

    asyncio.run(check())


@pytest.mark.parametrize("killed", [False, True])
def test_a_merge_reaches_the_export_once(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    shop = Shop(cluster.url, tmp_path / "export")

    async def check(store: Any) -> None:
        await two_histories(store, "visit", "anna")
        if killed:
            run = store._writes.run

            async def ending(script: Script, *arguments: Any) -> Any:
                if script is COPY:
                    raise Killed
                return await run(script, *arguments)

            with monkeypatch.context() as patched:
                patched.setattr(store._writes, "run", ending)
                with pytest.raises(Killed):
                    await store.merge("visit", "anna")
        assert await store.merge("visit", "anna") == 2
        assert await store.merge("visit", "anna") == 0
        await shop.export()

    shop.run(check)
    merges = [row for row in shop.rows() if row["type"] == "merge"]
    assert [row["user_id"] for row in merges] == [session_owner("visit")]
    assert json.loads(merges[0]["extra"])["merged_into"] == "anna"
