"""The contract of operator-state stores, tested on the fake in memory, a real Redis and a real cluster."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis

from service.errors import Conflict, OperatorStateUnavailable, SettingsError
from service.stores.protocols import Changes, Edition
from service.stores.redis_client import RedisWatch
from service.stores.redis_operator_state import RedisOperatorState
from tests.support.stores.memory_operator_state import MemoryOperatorState
from tests.support.stores.real_redis import open_operator_state

Store = MemoryOperatorState | RedisOperatorState
OpenStore = Callable[..., Any]
NEW = Edition()


@pytest.fixture(params=["memory", "redis", "cluster"])
def open_store(request: pytest.FixtureRequest) -> OpenStore:
    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[Store]:
        if request.param == "memory":
            yield MemoryOperatorState(**options)
            return
        clustered = request.param == "cluster"
        url = request.getfixturevalue("cluster").url if clustered else request.getfixturevalue("redis_url")
        store = open_operator_state(url, prefix=f"test-{uuid.uuid4().hex}", timeout_s=5.0, **options)
        yield store
        await store.close()

    return opened


def test_an_empty_store_has_no_edition(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            assert await store.edition() == NEW
            assert await store.changes(NEW) == Changes(NEW, None, False, ())

    asyncio.run(check())


def test_every_change_counts_one_and_the_same_again_counts_nothing(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            numbers = []
            for write in (
                store.hide("a", NEW),
                store.hide("a", NEW),
                store.hide("ü/b", NEW),
                store.show("a", NEW),
                store.show("a", NEW),
                store.show("never hidden", NEW),
                store.pin("20261124T000000Z-abcdef", NEW),
                store.pin("20261124T000000Z-abcdef", NEW),
                store.pin(None, NEW),
                store.pin(None, NEW),
            ):
                assert await write is True
                numbers.append((await store.edition()).number)
            assert numbers == [1, 1, 2, 3, 3, 3, 4, 4, 5, 5]
            epoch = (await store.edition()).epoch
            assert epoch
            assert await store.changes(NEW) == Changes(Edition(epoch, 5), None, True, ("ü/b",))

    asyncio.run(check())


def test_changes_since_a_state_are_those_alone(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            for item in "abc":
                await store.hide(item, NEW)
            since = await store.edition()
            await store.hide("d", since)
            await store.show("a", since)
            await store.show("d", since)
            await store.hide("a", since)
            await store.pin("p", since)
            now = Edition(since.epoch, 8)
            assert await store.changes(since) == Changes(now, "p", False, ("a",), ("d",))
            assert await store.changes(now) == Changes(now, "p", False, ())
            whole = await store.changes(Edition("another life", 99))
            assert (whole.whole, sorted(whole.hidden), whole.shown) == (True, ["a", "b", "c"], ())

    asyncio.run(check())


def test_a_state_too_old_to_be_caught_up_with_gets_everything(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store(shown_cap=2) as store:
            for item in "abcd":
                await store.hide(item, NEW)
            since = await store.edition()
            for item in "abc":
                await store.show(item, since)
            # "a" (change 5) is no longer remembered as shown; a reader that has seen change 5 does not need it
            assert (await store.changes(since)).whole
            assert (await store.changes(since)).hidden == ("d",)
            later = await store.changes(Edition(since.epoch, 5))
            assert (later.whole, later.shown) == (False, ("b", "c"))

    asyncio.run(check())


def test_a_large_set_is_read_whole(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            items = tuple(f"item {number}" for number in range(2345))
            await store.restore(Edition("e", 5000), "p", items)
            assert await store.edition() == Edition("e", 5000)
            found = await store.changes(NEW)
            assert found == Changes(Edition("e", 5000), "p", True, items)
            assert (await store.changes(Edition("e", 4999))).whole
            assert await store.hide("item 0", found.edition)  # hidden already
            assert await store.edition() == Edition("e", 5000)
            assert await store.show("item 0", found.edition)
            assert await store.changes(found.edition) == Changes(Edition("e", 5001), "p", False, (), ("item 0",))

    asyncio.run(check())


@pytest.mark.parametrize("known", [Edition("another life", 1), Edition("", 0)])
def test_a_store_that_is_not_behind_keeps_what_it_has(open_store: OpenStore, known: Edition) -> None:
    async def check() -> None:
        async with open_store() as store:
            await store.hide("a", NEW)
            before = await store.changes(NEW)
            await store.restore(known, "p", ["b"])
            assert await store.changes(NEW) == before
            await store.restore(Edition(before.edition.epoch, 1), "p", ["b"])
            assert await store.changes(NEW) == before
            assert await store.hide("c", known) is True

    asyncio.run(check())


def test_a_store_that_lost_something_takes_no_change_before_it_is_restored(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            lost = Edition("e", 3)
            for write in (store.hide("a", lost), store.show("a", lost), store.pin("p", lost)):
                assert await write is False
            assert await store.edition() == NEW
            await store.restore(lost, None, ["x", "y"])
            assert await store.hide("a", lost) is True
            assert await store.changes(lost) == Changes(Edition("e", 4), None, False, ("a",))
            # back in time: this life, but fewer changes
            assert await store.hide("b", Edition("e", 9)) is False
            await store.restore(Edition("e", 9), "p", [])
            assert await store.changes(NEW) == Changes(Edition("e", 9), "p", True, ())

    asyncio.run(check())


def test_concurrent_changes_are_all_counted(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            items = [f"i{number}" for number in range(50)]
            await asyncio.gather(*(store.hide(item, NEW) for item in items))
            found = await store.changes(NEW)
            assert (found.edition.number, sorted(found.hidden)) == (50, sorted(items))

    asyncio.run(check())


def test_a_store_that_is_down_says_so_in_one_way() -> None:
    errors: list[str] = []
    memory = MemoryOperatorState()
    memory.available = False
    gone = open_operator_state("unix:///nonexistent/redis.sock", watch=RedisWatch(on_error=errors.append))

    async def check(store: Store) -> None:
        for call in (
            store.edition(),
            store.changes(NEW),
            store.pin("p", NEW),
            store.hide("a", NEW),
            store.show("a", NEW),
            store.restore(Edition("e", 1), None, ["a"]),
        ):
            with pytest.raises(OperatorStateUnavailable):
                await call

    asyncio.run(check(memory))
    asyncio.run(check(gone))
    assert errors == ["directives", "directives", "pin", "hide", "show", "restore"]


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="must be a redis://"):
        open_operator_state("http://localhost")


def test_keys_in_redis_share_a_slot_and_never_expire(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        store = open_operator_state(redis_url, prefix=prefix)
        await store.restore(Edition("e", 9), "p", ["a", "b"])
        await store.show("a", Edition("e", 9))
        await store.restore(Edition("e", 1), None, ["a", "b"])  # not behind: what was put aside goes
        await store.close()

    asyncio.run(check())
    with redis.Redis.from_url(redis_url) as client:
        keys = {key.decode(): client.ttl(key) for key in client.keys(f"{prefix}*")}
        assert keys == {f"{prefix}:{{directives}}:{name}": -1 for name in ("state", "hidden", "shown")}


def test_what_others_wrote_into_a_key_is_no_crash(redis_url: str) -> None:
    prefix = f"test-{uuid.uuid4().hex}"

    async def check() -> None:
        store = open_operator_state(redis_url, prefix=prefix)
        assert await store.edition() == Edition("\ufffd", 0)
        with pytest.raises(OperatorStateUnavailable):
            await store.changes(NEW)
        await store.close()

    with redis.Redis.from_url(redis_url) as client:
        client.hset(f"{prefix}:{{directives}}:state", mapping={"epoch": b"\xff", "number": "no number"})
        client.set(f"{prefix}:{{directives}}:hidden", "not a zset")
        asyncio.run(check())


def test_an_erasure_is_named_anew_each_time_and_is_no_change(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            assert (await store.edition()).erasure == ""
            names = []
            for _ in range(2):
                await store.announce_erasure()
                names.append((await store.edition()).erasure)
            assert len({"", *names}) == 3
            assert await store.edition() == NEW
            assert await store.hide("a", NEW)
            now = await store.edition()
            assert (now.number, now.erasure) == (1, names[-1])
            await store.restore(Edition(now.epoch, 5), None, [])
            assert (await store.edition()).erasure == names[-1]

    asyncio.run(check())


def test_hidden_items_that_were_put_aside_and_are_gone_are_not_restored_as_none(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Redis evicts them, or its clock leaps over the minute for which they are kept."""
    prefix = f"test-{uuid.uuid4().hex}"
    known = Edition("e", 9)

    async def check() -> None:
        store = open_operator_state(redis_url, prefix=prefix, timeout_s=5.0)
        run = store._pipeline.run

        async def after_a_loss(*given: Any, **named: Any) -> Any:
            client.delete(*client.scan_iter(f"{prefix}:*restoring*", count=10_000))
            return await run(*given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(store._pipeline, "run", after_a_loss)
            with pytest.raises(OperatorStateUnavailable, match="restore"):
                await store.restore(known, "p", ["a", "b"])
        assert await store.edition() == NEW
        await store.restore(known, "p", ["a", "b"])
        assert (await store.changes(NEW)).hidden == ("a", "b")
        await store.close()

    with redis.Redis.from_url(redis_url) as client:
        asyncio.run(check())


def test_an_experiment_is_a_change_and_is_restored(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            before = None
            for definition, number in (("{}", 1), ("{}", 1), ("[]", 2), (None, 3), ("{}", 4)):
                assert await store.set_experiment(definition, NEW, instead_of=before)
                before = definition
                assert (await store.edition()).number == number
                assert (await store.changes(NEW)).experiment == definition
            edition = await store.edition()
            await store.restore(Edition(edition.epoch, edition.number + 3), None, ("a",), "[1]")
            changes = await store.changes(NEW)
            assert (changes.experiment, changes.hidden) == ("[1]", ("a",))
            ahead = Edition(edition.epoch, edition.number + 9)
            assert not await store.set_experiment(None, ahead, instead_of="[1]")

    asyncio.run(check())


def test_an_experiment_replaces_the_one_that_its_caller_knows_alone(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            assert await store.set_experiment("[1]", NEW, instead_of=None)
            edition = await store.edition()
            for definition, known in (("[2]", None), ("[2]", "[0]"), (None, "[0]"), (None, None)):
                with pytest.raises(Conflict, match="another experiment was started or ended meanwhile"):
                    await store.set_experiment(definition, NEW, instead_of=known)
            assert await store.set_experiment("[1]", NEW, instead_of=None)  # it runs already
            assert await store.edition() == edition
            assert await store.set_experiment("[2]", NEW, instead_of="[1]")
            assert (await store.changes(NEW)).experiment == "[2]"

    asyncio.run(check())


def test_the_audit_log_has_the_newest_entries_and_is_no_change(open_store: OpenStore) -> None:
    async def check() -> None:
        async with open_store() as store:
            assert await store.logged_changes() == []
            await asyncio.gather(*(store.log_change(str(number)) for number in range(1003)))
            assert await store.logged_changes() == [str(number) for number in reversed(range(3, 1003))]
            assert await store.edition() == NEW

    asyncio.run(check())
