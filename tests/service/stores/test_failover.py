"""After a failover reads, writes and operator state use the new master, with two real servers and REPLICAOF."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from service.errors import HistoriesUnavailable, OperatorStateUnavailable
from service.stores.protocols import Edition, Event
from service.stores.redis_client import connector
from service.stores.redis_histories import RedisHistories
from service.stores.redis_operator_state import RedisOperatorState
from service.stores.redis_pipeline import RedisPipeline
from service.stores.redis_renewal import Renewal
from tests.support.stores.fake_redis import FakeRedis, fake_redis, own_key, read, run
from tests.support.stores.item_ids import item_ids
from tests.support.stores.real_redis import open_histories, open_operator_state
from tests.support.stores.redis_pairs import Forwarder, on_a_port, program_of

NEW = Edition()
PATIENCE_S = 60.0


class Pair:
    """Two servers, the first of them the master, behind a forwarder to the first."""

    def __init__(self, ports: tuple[int, int], forwarder: Forwarder) -> None:
        self.ports, self.forwarder = ports, forwarder

    def command(self, which: int, *command: str | int) -> object:
        with Redis(port=self.ports[which], decode_responses=True) as client:
            return client.execute_command(*command)  # type: ignore[no-untyped-call]

    def follows(self, which: int) -> bool:
        """Whether it is a replica that has all of its master's data."""
        with Redis(port=self.ports[which]) as client:
            return client.info("replication").get("master_link_status") == "up"

    def fail_over(self) -> None:
        """The second becomes the master, and the first, whose connections stay, its replica."""
        self.command(1, "REPLICAOF", "NO", "ONE")
        self.command(0, "REPLICAOF", "127.0.0.1", self.ports[1])
        self.forwarder.target = self.ports[1]


@contextlib.asynccontextmanager
async def opened(folder: Path, version: str) -> AsyncIterator[tuple[Pair, RedisHistories, RedisOperatorState]]:
    program = program_of(version)
    with on_a_port(folder / "one", program=program) as one, on_a_port(folder / "two", program=program) as two:
        async with Forwarder(one).open() as forwarder:
            pair = Pair((one, two), forwarder)
            pair.command(1, "REPLICAOF", "127.0.0.1", one)
            await eventually_true(lambda: pair.follows(1))
            renewal = Renewal()
            histories = open_histories(forwarder.url, timeout_s=5.0, renewal=renewal)
            state = open_operator_state(forwarder.url, timeout_s=5.0, renewal=renewal)
            try:
                yield pair, histories, state
            finally:
                await histories.close()
                await state.close()


async def eventually_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def at_last(call: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a call once it is no longer refused."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(HistoriesUnavailable, OperatorStateUnavailable):
                return await call()
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.2", "7.0"])
def test_events_reads_erasure_and_operators_follow_together(tmp_path: Path, version: str) -> None:
    async def check() -> None:
        async with opened(tmp_path, version) as (pair, histories, state):
            await histories.append([Event("u", "before", 1.0)])
            assert await item_ids(histories, "u") == ["before"]
            assert await state.hide("before", NEW)
            await eventually_true(lambda: pair.command(0, "WAIT", 1, 1000) == 1)
            pair.fail_over()
            # The demoted node replicates nothing: a client that still reads from it gets stale data.
            await eventually_true(lambda: pair.follows(0))
            pair.command(0, "REPLICAOF", "127.0.0.1", 1)
            await at_last(lambda: histories.append([Event("u", "after", 2.0, event_id="e")]))
            assert await item_ids(histories, "u") == ["before", "after"]
            await histories.erase("u")
            assert await item_ids(histories, "u") == []
            assert (await state.edition()).number == 1
            assert await state.hide("after", await state.edition())
            assert pair.command(1, "ZCARD", "vlm2rec:{directives}:hidden") == 2
            assert pair.command(0, "ZCARD", "vlm2rec:{directives}:hidden") == 1

    asyncio.run(check())


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.2", "7.0"])
def test_reads_follow_an_operator_who_writes_alone(tmp_path: Path, version: str) -> None:
    async def check() -> None:
        async with opened(tmp_path, version) as (pair, histories, state):
            await histories.append([Event("u", "before", 1.0)])
            assert await item_ids(histories, "u") == ["before"]
            await state.edition()
            await eventually_true(lambda: pair.command(0, "WAIT", 1, 1000) == 1)
            pair.fail_over()
            pair.command(0, "REPLICAOF", "127.0.0.1", 1)
            pair.command(1, "UNLINK", "vlm2rec:{b062}:history:u")
            await at_last(lambda: state.pin("bundle", NEW))
            assert await item_ids(histories, "u") == []

    asyncio.run(check())


@pytest.mark.slow
@pytest.mark.parametrize("version", ["6.2", "7.0"])
def test_a_replica_that_gives_no_stale_data_is_left(tmp_path: Path, version: str) -> None:
    async def check() -> None:
        async with opened(tmp_path, version) as (pair, histories, _):
            await histories.append([Event("u", "before", 1.0)])
            assert await item_ids(histories, "u") == ["before"]
            await eventually_true(lambda: pair.command(0, "WAIT", 1, 1000) == 1)
            pair.command(0, "CONFIG", "SET", "replica-serve-stale-data", "no")
            pair.command(1, "REPLICAOF", "NO", "ONE")
            pair.command(0, "REPLICAOF", "127.0.0.1", 1)
            with pytest.raises(HistoriesUnavailable, match="MASTERDOWN: it is a replica"):
                await item_ids(histories, "u")
            pair.forwarder.target = pair.ports[1]
            assert await at_last(lambda: item_ids(histories, "u")) == ["before"]
            assert len(await histories.append([Event("u", "after", 2.0)])) == 1

    asyncio.run(check())


WRAPPED = (
    b"-ERR Error running script (call to f_b2a1): @user_script:20: @user_script: 20: "
    b"-READONLY You can't write against a read only replica. \r\n"
)
ASTRAY = {
    "READONLY of 7.0": b"-READONLY You can't write against a read only replica. script: b2a1, on @user_script:20.\r\n",
    "READONLY of 6.2": WRAPPED,
    "MASTERDOWN": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "NOREPLICAS": b"-NOREPLICAS Not enough good replicas to write.\r\n",
    "the connection closed": None,
}


@contextlib.asynccontextmanager
async def two_pipelines() -> AsyncIterator[tuple[FakeRedis, RedisPipeline, RedisPipeline]]:
    async with fake_redis() as fake:
        renewal, connect = Renewal(), connector(fake.url)
        pipelines = [RedisPipeline(connect, timeout_s=5.0, renewal=renewal) for _ in range(2)]
        try:
            yield fake, *pipelines
        finally:
            for pipeline in pipelines:
                await pipeline.close()


@pytest.mark.parametrize("name", ASTRAY)
def test_one_pipeline_on_the_wrong_node_makes_all_reconnect(name: str) -> None:
    async def astray(command: list[bytes]) -> bytes | None:
        return ASTRAY[name] if command[1] == b"write" else await own_key(command)

    async def check() -> None:
        async with two_pipelines() as (fake, reads, writes):
            assert await read(reads, "a") == ["a"]
            assert await read(writes, "b") == ["b"]
            assert fake.connections == 2
            fake.answer = astray
            with pytest.raises(Exception, match=r"READONLY|read only|MASTERDOWN|MASTER|LOADING|NOREPLICAS|closed"):
                await read(writes, "write")
            fake.answer = own_key
            assert await read(writes, "b") == ["b"]
            before = fake.connections
            assert before >= 3
            # The other has been asked nothing meanwhile; its connection is of before, and is left.
            assert await read(reads, "a") == ["a"]
            assert fake.connections == before + 1
            for pipeline in (reads, writes, reads):
                assert await read(pipeline, "c") == ["c"]
            assert fake.connections == before + 1

    run(check)


def test_a_pipeline_that_connected_too_soon_reconnects_to_the_new_master() -> None:
    """The order of a slow change of the name: both connect anew, the reader first and to the old node."""

    async def read_only(command: list[bytes]) -> bytes:
        return WRAPPED if command[1] == b"write" else await own_key(command)

    async def check() -> None:
        async with two_pipelines() as (fake, reads, writes):
            await read(reads, "a")
            fake.answer = read_only
            with pytest.raises(Exception, match="READONLY"):
                await read(writes, "write")
            await read(reads, "a")  # anew, and too soon
            connections = fake.connections
            fake.answer = own_key
            assert await read(writes, "write") == ["write"]
            assert await read(reads, "a") == ["a"]
            assert fake.connections == connections + 2

    run(check)


def test_an_idle_connection_closed_by_redis_makes_the_others_reconnect() -> None:
    async def check() -> None:
        async with two_pipelines() as (fake, reads, writes):
            await read(reads, "a")
            await read(writes, "b")
            await fake.kick()
            await read(writes, "b")
            await read(reads, "a")
            assert fake.connections == 4

    run(check)


def test_a_requested_renewal_happens_once_a_second_at_most_and_is_never_lost() -> None:
    now = [100.0]
    renewal = Renewal(lambda: now[0])
    assert renewal.number == 0
    for _ in range(3):
        renewal.request()
    assert renewal.number == 1
    renewal.request()
    assert renewal.number == 1
    now[0] += 1.0
    assert renewal.number == 2
    assert renewal.number == 2
    assert renewal.renew() == 3
    renewal.request()
    assert renewal.number == 3
