"""Erasures of users while sessions are merged into them, in a real Redis Cluster."""

import asyncio
import contextlib
import uuid
from typing import Any

import pytest

from service.errors import OutcomesUnavailable
from service.stores.deployment.cluster_histories import ClusterHistories
from service.stores.deployment.merge_scripts import CLAIM
from service.stores.protocols import session_owner
from service.stores.redis_pipeline import Script
from tests.service.stores.deployment.test_cluster_merges import Gate, Killed, ending_after, two_histories
from tests.support.stores.item_ids import item_ids
from tests.support.stores.redis_clusters import Cluster, opened


def test_an_erasure_leaves_no_merge_in_progress(cluster: Cluster) -> None:
    async def check() -> None:
        async with opened(cluster) as store:
            await two_histories(store, "visit", "anna")
            claim = Gate(store, CLAIM)
            merging = asyncio.create_task(store.merge("visit", "anna"))
            await claim.reached.wait()
            merging.cancel()  # the process ends here
            assert cluster.keys(f"{store._prefix}*merging:anna")
            async with opened(cluster, store._prefix) as other:
                await other.erase("anna")
            assert not cluster.keys(f"{store._prefix}*anna*")

    asyncio.run(check())


async def ended_after(store: ClusterHistories, script: Script, reached: asyncio.Event, goes_on: asyncio.Event) -> None:
    """A merge in a process that stands still before a script for a while, and ends after it."""
    run, done = store._writes.run, False

    async def ending(called: Script, *arguments: Any) -> Any:
        nonlocal done
        if done:
            raise Killed
        if called is script:
            reached.set()
            await goes_on.wait()
            done = True
        return await run(called, *arguments)

    store._writes.run = ending  # type: ignore[method-assign]
    with contextlib.suppress(Killed):
        await store.merge("visit", "anna")


@pytest.mark.parametrize("attempts", [1, 2])
def test_an_attempt_that_ends_after_an_erasure_leaves_no_session_of_the_user(cluster: Cluster, attempts: int) -> None:
    """It claimed the session and was to begin again, as its token was gone; no later erasure would find the session."""
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        async with contextlib.AsyncExitStack() as stack:
            stores = [await stack.enter_async_context(opened(cluster, prefix)) for _ in range(attempts + 1)]
            last, goes_on = stores.pop(), asyncio.Event()
            await two_histories(last, "visit", "anna")
            merging = []
            for store in stores:
                reached = asyncio.Event()
                merging.append(asyncio.create_task(ended_after(store, CLAIM, reached, goes_on)))
                await reached.wait()
            await last.erase("anna")
            goes_on.set()
            await asyncio.gather(*merging)
            await last.erase("anna")
            assert await item_ids(last, session_owner("visit")) == ["s1", "s2"]
            assert await last.merge("visit", "bob") == 2

    asyncio.run(check())


def test_a_merge_that_an_erasure_came_before_goes_on_after_it(cluster: Cluster) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        async with opened(cluster, prefix) as first, opened(cluster, prefix) as second:
            await two_histories(first, "visit", "anna")
            claim = Gate(first, CLAIM)
            merging = asyncio.create_task(first.merge("visit", "anna"))
            await claim.reached.wait()
            await second.erase("anna")
            claim.opened.set()
            assert await merging == 2
            assert await item_ids(second, "anna") == ["s1", "s2"]
            assert await second.merged_sessions("anna") == ["visit"]
            await second.erase("anna")
            assert not cluster.keys(f"{prefix}*anna*")
            assert not cluster.keys(f"{prefix}*visit*")

    asyncio.run(check())


def test_an_erasure_hands_on_a_session_that_is_claimed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another store fails, the erasure finds the same owners again."""

    async def check() -> None:
        async with opened(cluster) as store:
            await two_histories(store, "visit", "anna")
            with monkeypatch.context() as patched:
                patched.setattr(store._writes, "run", ending_after(store, 2))
                with pytest.raises(Killed):
                    await store.merge("visit", "anna")
            handed_on: list[str] = []

            async def failing(owner: str) -> None:
                raise OutcomesUnavailable(owner)

            async def forget(owner: str) -> None:
                handed_on.append(owner)

            with pytest.raises(OutcomesUnavailable):
                await store.erase("anna", failing)
            await store.erase("anna", forget)
            assert handed_on == [session_owner("visit"), "anna"]

    asyncio.run(check())
