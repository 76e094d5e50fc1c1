"""A pipeline to a server that is no Redis, answers with errors, closes connections or forgets scripts."""

import asyncio

import pytest
import redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from service.errors import HistoriesUnavailable, RedisUnavailable
from service.stores.redis_client import connector
from service.stores.redis_pipeline import RedisPipeline, Script
from tests.support.stores.fake_redis import (
    PATIENT_S,
    PROBE,
    fake_redis,
    linked,
    move_clock,
    own_key,
    patient_pipeline,
    read,
    read_at_last,
    run,
    until,
)
from tests.support.stores.item_ids import item_ids
from tests.support.stores.real_redis import open_histories

RUBBISH = {
    "another protocol": b"HTTP/1.1 200 OK\r\n\r\n",
    "bytes": b"\xff\x00\xfe garbage",
    "half a list": b"*2\r\n$1\r\na\r\n",
    "half a string": b"*1\r\n$5\r\nab",
    "a length below nothing": b"*1\r\n$-7\r\n",
    "a length that is none": b"$x\r\n\r\n",
    "a number": b":1\r\n",
    "a word": b"+OK\r\n",
    "nothing": b"$-1\r\n",
    "no list": b"*-1\r\n",
    "a loading server": b"-LOADING Redis is loading the dataset in memory\r\n",
    "too many clients": b"-ERR max number of clients reached\r\n",
    "a huge list": b"*1000000\r\n",
    "the end": None,
}


@pytest.mark.parametrize("name", RUBBISH)
def test_rubbish_is_refused_and_crashes_nothing(name: str) -> None:
    async def rubbish(_command: list[bytes]) -> bytes | None:
        return RUBBISH[name]

    async def check() -> None:
        async with linked(timeout_s=0.2) as (fake, pipeline):
            assert await read_at_last(pipeline, "before") == ["before"]
            fake.answer = rubbish
            for number in range(5):
                with pytest.raises(RedisUnavailable):
                    await read(pipeline, f"key {number}")
            assert pipeline.state != "closed"
            fake.answer = own_key
            await until(lambda: pipeline.state == "closed")
            assert await read_at_last(pipeline, "after") == ["after"]

    run(check)


@pytest.mark.parametrize("inner", [b":5\r\n", b"$-1\r\n", b"*1\r\n$1\r\na\r\n"])
def test_a_history_of_anything_but_strings_is_refused(inner: bytes) -> None:
    async def odd(_command: list[bytes]) -> bytes:
        return b"*2\r\n$1\r\na\r\n" + inner

    async def check() -> None:
        async with fake_redis() as fake:
            fake.answer = odd
            store = open_histories(fake.url, timeout_s=5.0)
            with pytest.raises(HistoriesUnavailable, match="another form"):
                await item_ids(store, "u")
            await store.close()

    run(check)


def test_a_reply_that_drips_is_not_waited_for() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The end never comes, but there is always something new to read."""
        try:
            await reader.read(1)
            writer.write(b"*1\r\n$100000\r\n")
            while not writer.is_closing():
                writer.write(b"1")
                drops.append(b"1")
                await asyncio.sleep(0.01)
        finally:
            writer.close()
            ended.set()

    async def check() -> None:
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        pipeline = patient_pipeline(connector(url))
        asked = asyncio.create_task(read(pipeline, "key"))
        await until(lambda: len(drops) > 10)
        assert not asked.done()
        move_clock(PATIENT_S)
        async with asyncio.timeout(PATIENT_S / 2):
            with pytest.raises(RedisUnavailable, match="no answer within"):
                await asked
        await pipeline.close()
        await ended.wait()
        server.close()
        await server.wait_closed()

    drops: list[bytes] = []
    ended = asyncio.Event()
    run(check)


def test_an_error_of_redis_is_that_callers_own() -> None:
    async def answer(command: list[bytes]) -> bytes:
        return b"-OOM command not allowed\r\n" if command[1] == b"full" else await own_key(command)

    async def check() -> None:
        async with linked(timeout_s=5.0) as (fake, pipeline):
            fake.answer = answer
            for _ in range(10):
                found = await asyncio.gather(
                    read(pipeline, "a"), read(pipeline, "full"), read(pipeline, "b"), return_exceptions=True
                )
                assert [found[0], found[2]] == [["a"], ["b"]]
                assert isinstance(found[1], OutOfMemoryError)
            assert (pipeline.state, fake.connections) == ("closed", 1)

    run(check)


def test_a_replica_is_left_for_the_new_node_but_not_at_every_call() -> None:
    async def read_only(_command: list[bytes]) -> bytes:
        return b"-READONLY You can't write against a read only replica.\r\n"

    async def check() -> None:
        async with linked(timeout_s=5.0) as (fake, pipeline):
            fake.answer = read_only
            for _ in range(20):
                with pytest.raises(ReadOnlyError):
                    await read(pipeline, "key")
            assert (fake.connections, pipeline.state) == (2, "closed")
            fake.answer = own_key
            assert await read(pipeline, "key") == ["key"]

    run(check)


def test_a_connection_closed_while_idle_costs_no_answer() -> None:
    async def check() -> None:
        async with linked(timeout_s=5.0) as (fake, pipeline):
            for number in range(5):
                assert await read(pipeline, str(number)) == [str(number)]
                await fake.kick()
            assert (pipeline.state, fake.connections) == ("closed", 5)

    run(check)


def test_what_cannot_be_sent_is_its_callers_own_error() -> None:
    async def check() -> None:
        async with linked(timeout_s=5.0) as (_, pipeline):
            found = await asyncio.gather(read(pipeline, "a"), read(pipeline, "\ud800"), return_exceptions=True)
            assert found[0] == ["a"]
            assert isinstance(found[1], UnicodeEncodeError)
            assert pipeline.state == "closed"

    run(check)


def test_a_script_that_redis_has_forgotten_is_sent_again(redis_url: str) -> None:
    def forget() -> None:
        with redis.Redis.from_url(redis_url) as client:
            client.script_flush()

    async def check() -> None:
        pipeline = RedisPipeline(connector(redis_url), timeout_s=5.0)
        script = Script("return #KEYS * 10 + tonumber(ARGV[1])")
        for _ in range(2):
            calls = [pipeline.run(script, ["a", "b"], [number], int) for number in range(5)]
            assert await asyncio.gather(*calls) == [20, 21, 22, 23, 24]
            await asyncio.to_thread(forget)
        await pipeline.close()

    run(check)


MISCONF = b"-MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.\r\n"


@pytest.mark.parametrize(
    ("answered", "comes_back"),
    [
        (MISCONF, True),
        (b"-NOPERM this user has no permissions to access one of the keys used as arguments\r\n", True),
        (b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n", True),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", True),
        (b"-LOADING Redis is loading the dataset in memory\r\n", False),
        (b"-NOAUTH Authentication required.\r\n", False),
        (b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n", False),
    ],
)
def test_any_answer_to_a_read_but_that_none_is_given_ends_an_outage(answered: bytes, comes_back: bool) -> None:
    """After a hiccup, with a PING that is refused as long as saves fail."""
    probed = 0

    async def hiccup(_command: list[bytes]) -> bytes | None:
        return None

    async def answer(command: list[bytes]) -> bytes:
        nonlocal probed
        probed += command == PROBE
        return MISCONF if command[0] == b"PING" else answered

    async def check() -> None:
        async with linked(timeout_s=5.0) as (fake, pipeline):
            assert await read(pipeline, "before") == ["before"]
            fake.answer = hiccup
            for _ in range(3):
                with pytest.raises(RedisUnavailable):
                    await read(pipeline, "key")
            assert pipeline.state != "closed"
            fake.answer = answer
            await until(lambda: probed >= (1 if comes_back else 3), 10.0)
            await until(lambda: (pipeline.state == "closed") == comes_back, 10.0)

    run(check)
