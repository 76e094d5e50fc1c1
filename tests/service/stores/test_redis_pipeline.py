"""The pipeline matches replies to callers, bounds the waiting calls and reconnects."""

import asyncio
import random
import select
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from service.errors import RedisUnavailable
from service.stores.redis_client import connector
from service.stores.redis_pipeline import MOST_WAITING, RedisPipeline
from tests.support.stores.fake_redis import (
    PATIENT_S,
    PROBE,
    FakeRedis,
    as_list,
    fake_redis,
    linked,
    move_clock,
    never,
    own_key,
    patient_pipeline,
    pipeline_tasks,
    read,
    read_at_last,
    run,
    until,
)


async def run_out(fake: FakeRedis, pipeline: RedisPipeline) -> None:
    """Let a sent call wait for longer than its timeout."""
    asked = asyncio.create_task(read(pipeline, "opens it"))
    await until(lambda: fake.keys == ["opens it"])
    move_clock(PATIENT_S)
    with pytest.raises(RedisUnavailable, match="no answer within"):
        await asked


def held_up_until_answered(connection: Any) -> None:
    """Block the event loop until the reply is in the socket."""
    poller = select.poll()  # unlike `select.select` it takes descriptors above 1023, which a long run of tests has
    poller.register(connection._writer.get_extra_info("socket").fileno(), select.POLLIN)
    assert poller.poll(60_000)


def test_late_replies_and_cancelled_callers_never_mix_up_replies() -> None:
    rng = random.Random(5)
    became: Counter[str] = Counter()

    async def answer(command: list[bytes]) -> bytes:
        slow = rng.random() < 0.02
        await asyncio.sleep(0.06 if slow else 0.0)
        return await own_key(command)

    async def ask(pipeline: RedisPipeline, key: str) -> None:
        patience = rng.choice([0.001, 0.004, 0.02, 5.0, 5.0])
        try:
            async with asyncio.timeout(patience):
                found = await read(pipeline, key)
        except TimeoutError:
            became["left"] += 1
        except RedisUnavailable:
            became["refused"] += 1
        else:
            became["answered"] += 1
            assert found == [key]

    async def user(pipeline: RedisPipeline, number: int) -> None:
        for turn in range(40):
            await ask(pipeline, f"{number}.{turn}")
            await asyncio.sleep(rng.random() * 0.02)

    async def check() -> None:
        async with linked(timeout_s=0.03) as (fake, pipeline):
            fake.answer = answer
            await asyncio.gather(*(user(pipeline, number) for number in range(25)))
            fake.answer = own_key
            await until(lambda: pipeline.state == "closed")
            for turn in range(5):
                assert await read_at_last(pipeline, f"after {turn}") == [f"after {turn}"]

    run(check)
    assert set(became) == {"answered", "left", "refused"}  # or nothing was tried


class Stubborn:
    """A connection that ignores a cancellation, as redis-py sometimes does, and reads the reply later."""

    _writer = None
    made: list["Stubborn"] = []

    def __init__(self) -> None:
        self.socket_timeout: float | None = None
        self.sent: list[bytes] = []
        self.may_answer = asyncio.Event()
        self.ever_sent: list[bytes] = []
        self.opened = self.closed = False
        self.made.append(self)

    async def connect(self) -> None:
        pass

    async def can_read(self) -> bool:
        return False

    async def send_packed_command(self, command: bytes, check_health: bool) -> None:
        assert not self.closed
        self.ever_sent.append(command)
        self.sent += [part for part in command.split(b"\r\n") if part.startswith((b"key", PROBE[1]))]

    async def read_response(self) -> Any:
        asked = self.sent.pop(0)
        while asked != PROBE[1]:
            try:
                await self.may_answer.wait()
                break
            except asyncio.CancelledError:
                continue
        return [asked]

    async def disconnect(self, nowait: bool = False) -> None:
        self.closed = True


def test_redis_gets_the_next_calls_before_the_callers_of_the_last_ones_go_on() -> None:
    async def sent_before(pipeline: RedisPipeline, key: str) -> int:
        await read(pipeline, key)
        return sum(b"key" in command for command in Stubborn.made[0].ever_sent)

    async def check() -> None:
        Stubborn.made = []
        pipeline = patient_pipeline(Stubborn)  # type: ignore[arg-type]
        first = asyncio.create_task(sent_before(pipeline, "key of one"))
        await until(lambda: bool(Stubborn.made and Stubborn.made[0].ever_sent))
        second = asyncio.create_task(sent_before(pipeline, "key of another"))
        await asyncio.sleep(0)
        Stubborn.made[0].may_answer.set()
        assert await asyncio.gather(first, second) == [2, 2]
        await pipeline.close()

    run(check)


def test_a_lost_cancellation_delivers_no_reply_to_another_caller() -> None:
    async def check() -> None:
        Stubborn.made = []
        pipeline = patient_pipeline(Stubborn)  # type: ignore[arg-type]
        asked = asyncio.create_task(read(pipeline, "key of one"))
        await until(lambda: bool(Stubborn.made and Stubborn.made[0].ever_sent))
        move_clock(PATIENT_S)
        with pytest.raises(RedisUnavailable, match="no answer within"):
            await asked
        (first,) = Stubborn.made
        await until(lambda: first.closed)
        await until(lambda: pipeline.state == "closed")
        second = Stubborn.made[-1]
        asked = asyncio.create_task(read(pipeline, "key of another"))
        await until(lambda: len(second.ever_sent) == 2)  # after the PING of the probe
        first.may_answer.set()  # now the first reply comes, to nobody
        await asyncio.sleep(0.01)
        assert not asked.done()
        third = asyncio.create_task(read(pipeline, "key of a third"))
        await asyncio.sleep(0.01)
        assert not third.done()
        second.may_answer.set()
        assert await asked == ["key of another"]
        assert await third == ["key of a third"]
        await pipeline.close()

    run(check)


def test_a_connection_that_opens_after_it_was_given_up_is_closed_unused() -> None:
    class Slow(Stubborn):
        async def connect(self) -> None:
            while not self.may_answer.is_set():
                with suppress(asyncio.CancelledError):
                    await self.may_answer.wait()
            self.closed, self.opened = False, True

    async def check() -> None:
        Slow.made = []
        pipeline = RedisPipeline(Slow, timeout_s=0.05)  # type: ignore[arg-type]
        with pytest.raises(RedisUnavailable, match="no answer within"):
            await read(pipeline, "key")
        first = Slow.made[0]
        first.may_answer.set()
        await until(lambda: first.opened and first.closed)
        assert first.ever_sent == []
        for connection in Slow.made:
            connection.may_answer.set()
        await pipeline.close()

    run(check)


def test_a_cancelled_caller_does_not_affect_its_exchange() -> None:
    async def check() -> None:
        async with linked(timeout_s=5.0) as (fake, pipeline):
            go = asyncio.Event()

            async def answer(command: list[bytes]) -> bytes:
                await go.wait()
                return await own_key(command)

            fake.answer = answer
            asked = [asyncio.create_task(read(pipeline, f"key {number}")) for number in range(20)]
            await until(lambda: bool(fake.asked))
            for task in asked[::2]:
                task.cancel()
            go.set()
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert found[1::2] == [[f"key {number}"] for number in range(1, 20, 2)]
            assert all(isinstance(left, asyncio.CancelledError) for left in found[::2])
            assert (fake.connections, pipeline.state) == (1, "closed")

    run(check)


def test_calls_of_one_moment_are_one_round_trip() -> None:
    async def check() -> None:
        async with linked(timeout_s=5.0) as (fake, pipeline):

            async def answer(command: list[bytes]) -> bytes:
                """All replies with the last command: were they asked for one after the other, there would be none."""
                if len(fake.asked) < 100:
                    return b""
                return b"".join(as_list(asked[1]) for asked in fake.asked)

            fake.answer = answer
            keys = [f"key {number}" for number in range(100)]
            assert await asyncio.gather(*(read(pipeline, key) for key in keys)) == [[key] for key in keys]
            assert (fake.keys, fake.connections) == (keys, 1)

    run(check)


@pytest.mark.parametrize(("size", "together"), [(10, 128), (300_000, 3)])
def test_an_exchange_has_so_many_calls_and_so_many_bytes(size: int, together: int) -> None:
    async def check() -> None:
        async with linked(timeout_s=10.0) as (fake, pipeline):

            async def silent(_command: list[bytes]) -> bytes:
                return b""

            fake.answer = silent
            keys = [f"{number:0{size}}" for number in range(together + 2)]
            asked = asyncio.gather(*(read(pipeline, key) for key in keys))
            await until(lambda: len(fake.asked) >= together)
            await asyncio.sleep(0.05)  # more would come now
            assert len(fake.asked) == together
            fake.answer = own_key
            (writer,) = fake.writers
            writer.write(b"".join(as_list(command[1]) for command in fake.asked))
            assert await asked == [[key] for key in keys]

    run(check)


def test_a_call_that_waited_too_long_is_not_sent() -> None:
    async def slow(command: list[bytes]) -> bytes:
        if (len(fake.asked) - 1) % 128 == 0:
            move_clock(0.6 * PATIENT_S)
        return await own_key(command)

    async def check() -> None:
        nonlocal fake
        async with linked(PATIENT_S) as (fake, pipeline):
            fake.answer = slow
            keys = [f"key {number}" for number in range(300)]
            found = await asyncio.gather(*(read(pipeline, key) for key in keys), return_exceptions=True)
            assert found[:256] == [[key] for key in keys[:256]]
            assert {str(error) for error in found[256:]} == {"not asked, as calls before it took more than 20 s"}
            assert (len(fake.asked), pipeline.state) == (256, "closed")

    fake = FakeRedis()
    run(check)


def test_a_hanging_redis_delays_few_calls_and_none_for_long() -> None:
    async def check() -> None:
        async with linked(PATIENT_S) as (fake, pipeline):
            fake.answer = never
            asked = [asyncio.create_task(read(pipeline, f"key {number}")) for number in range(MOST_WAITING + 300)]
            await until(lambda: bool(fake.asked))
            move_clock(PATIENT_S)
            async with asyncio.timeout(PATIENT_S / 2):  # all of them wait for the same moment
                found = await asyncio.gather(*asked, return_exceptions=True)
            assert Counter(type(error) for error in found) == {RedisUnavailable: MOST_WAITING + 300}
            refused = [str(error) == f"not asked, as {MOST_WAITING} calls wait already" for error in found]
            assert refused == [False] * MOST_WAITING + [True] * 300
            assert pipeline.state != "closed"

    run(check)


def test_while_it_is_open_calls_are_refused_without_being_sent() -> None:
    async def check() -> None:
        async with linked(PATIENT_S) as (fake, pipeline):
            fake.answer = never
            await run_out(fake, pipeline)
            for number in range(1000):
                call = pipeline.call("LRANGE", f"key {number}", 0, -1, kind=list)
                with pytest.raises(RedisUnavailable, match="not asked"):
                    call.send(None)  # refused in its first step: it never waits
            await asyncio.sleep(0.02)
            assert fake.keys == ["opens it"]

    run(check)


def test_it_comes_back_by_itself_on_the_connection_of_the_probe() -> None:
    async def check() -> None:
        async with linked(PATIENT_S) as (fake, pipeline):
            fake.answer = never
            await run_out(fake, pipeline)
            for probes in (1, 2, 3):
                await until(lambda probes=probes: fake.asked.count(PROBE) == probes)
                assert pipeline.state != "closed"
                fake.answer = never if probes < 3 else own_key
                move_clock(PATIENT_S)
            await until(lambda: pipeline.state == "closed")
            connections = fake.connections
            assert await read(pipeline, "key") == ["key"]
            assert fake.connections == connections

    run(check)


def test_one_probe_at_a_time_is_on_its_way() -> None:
    class Silent(Stubborn):
        async def connect(self) -> None:
            in_use.append(sum(not connection.closed for connection in self.made))

        async def read_response(self) -> Any:
            return await asyncio.get_running_loop().create_future()

    async def check() -> None:
        Silent.made = []
        pipeline = RedisPipeline(Silent, timeout_s=0.02)  # type: ignore[arg-type]
        await asyncio.gather(*(read(pipeline, str(number)) for number in range(10)), return_exceptions=True)
        await until(lambda: len(in_use) > 5)
        await pipeline.close()

    in_use: list[int] = []
    run(check)
    assert set(in_use) == {1}


def test_closing_leaves_no_waiting_call_and_no_task() -> None:
    async def check() -> None:
        async with fake_redis() as fake:
            fake.answer = never
            pipeline = RedisPipeline(connector(fake.url), timeout_s=5.0)
            asked = [asyncio.create_task(read(pipeline, f"key {number}")) for number in range(300)]
            await until(lambda: bool(fake.asked))
            await pipeline.close()
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert {str(error) for error in found} == {"this process is ending"}
            with pytest.raises(RedisUnavailable, match="ending"):
                await read(pipeline, "too late")
            assert pipeline_tasks() == []

    run(check)


def test_closing_ends_the_probing() -> None:
    async def check() -> None:
        async with linked(PATIENT_S) as (fake, pipeline):
            fake.answer = never
            await run_out(fake, pipeline)
            await until(lambda: pipeline.state == "half_open")
            async with asyncio.timeout(PATIENT_S / 2):
                await pipeline.close()
            assert pipeline_tasks() == []

    run(check)


def test_a_late_timer_does_not_count_as_a_failure_of_redis(redis_url: str) -> None:
    async def check() -> None:
        pipeline = patient_pipeline(connector(redis_url))
        assert await read(pipeline, "nothing there") == []
        connection = pipeline._connection._connection
        for _ in range(3):
            asked = asyncio.create_task(read(pipeline, "nothing there"))
            await asyncio.sleep(0)  # the call begins
            await asyncio.sleep(0)  # and is sent
            held_up_until_answered(connection)
            move_clock(3 * PATIENT_S)
            assert await asked == []
        assert pipeline.state == "closed"
        await pipeline.close()

    run(check)
