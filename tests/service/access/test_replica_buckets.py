"""The rate limit of several replicas: what they admit together, with a store of numbers, and through a real Redis."""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
import redis
from starlette.testclient import TestClient

from service.access.buckets import LocalBuckets
from service.access.rate_limit import RateLimit
from service.access.replica_buckets import Charge, ReplicaBuckets
from service.errors import RateExceeded, RatesUnavailable, SettingsError
from service.settings.load import load_settings
from service.stores.rates.redis_rates import RedisRates
from tests.support.shops import OpenClient, eventually, metric
from tests.support.stores.real_redis import connection

RATE, BURST = 10.0, 5
KEY, OTHER = "the-first-key-0123", "the-second-key-0123"


class Store:
    """The buckets of all replicas as numbers."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reachable = True
        self.calls = 0
        self._full_at: dict[bytes | str, float] = {}

    async def add(self, charges: Sequence[Charge]) -> list[float]:
        self.calls += 1
        if not self.reachable:
            raise RatesUnavailable("gone")
        for caller, seconds in charges:
            self._full_at[caller] = max(self._full_at.get(caller, self.now), self.now) + seconds
        return [self._full_at[caller] - self.now for caller, _ in charges]

    async def close(self) -> None:
        pass


class Replica:
    def __init__(self, store: Store, most: int = 100) -> None:
        self.buckets = ReplicaBuckets(LocalBuckets(), store, clock=lambda: store.now, most=most)
        self.limit = RateLimit(RATE, BURST, buckets=self.buckets, clock=lambda: store.now)

    def admits(self, caller: str = "anna") -> bool:
        try:
            self.limit.take(caller)
        except RateExceeded:
            return False
        return True

    def exchange(self) -> None:
        asyncio.run(self.buckets.exchange())


def test_three_replicas_admit_what_one_may_and_a_burst_each_at_first() -> None:
    store = Store()
    replicas = [Replica(store) for _ in range(3)]
    admitted = []
    for _ in range(600):  # a minute of 300 requests a second, spread over all of them
        admitted.append(sum(replica.admits() for replica in replicas for _ in range(10)))
        for replica in replicas:
            replica.exchange()
        store.now += 0.1
    assert admitted[0] == 3 * BURST
    assert 60 * RATE <= sum(admitted) <= 60 * RATE + 3 * BURST
    alone = Replica(Store())
    assert sum(alone.admits() for _ in range(10)) == BURST


def test_a_replica_learns_what_another_admitted_when_the_caller_comes() -> None:
    store = Store()
    one, two = Replica(store), Replica(store)
    assert [one.admits() for _ in range(BURST + 1)] == [True] * BURST + [False]
    one.exchange()
    assert two.admits()  # it has not asked yet
    two.exchange()
    assert not two.admits()
    assert two.admits("bert")
    store.now += 2 / RATE  # six were admitted of five, so the second one after that is free
    assert two.admits()


def test_a_batch_is_exchanged_with_its_cost() -> None:
    store = Store()
    one, two = Replica(store), Replica(store)
    one.limit.take("anna")
    one.limit.charge("anna", 20)
    one.exchange()
    assert two.admits()
    two.exchange()
    store.now += 17 / RATE  # 22 tokens are used: after 1.7 s 5 are still missing
    assert not two.admits()
    store.now += 1.001 / RATE
    assert two.admits()


def test_without_the_store_each_replica_limits_alone_and_no_charge_is_sent_twice() -> None:
    store = Store()
    one, two = Replica(store), Replica(store)
    store.reachable = False
    assert [one.admits() for _ in range(BURST + 1)] == [True] * BURST + [False]
    with pytest.raises(RatesUnavailable):
        one.exchange()
    store.reachable = True
    one.exchange()
    assert [two.admits() for _ in range(BURST + 1)] == [True] * BURST + [False]
    two.exchange()
    store.now += 1 / RATE
    assert one.admits()


def test_nothing_is_sent_where_nobody_came_or_all_were_refused() -> None:
    store = Store()
    replica = Replica(store)
    replica.exchange()
    assert store.calls == 0
    while replica.admits():
        pass
    replica.exchange()
    assert not replica.admits()
    replica.exchange()
    assert store.calls == 1


def test_more_callers_than_it_keeps_are_limited_here_alone() -> None:
    store = Store()
    one, two = Replica(store, most=3), Replica(store)
    for caller in ("a", "b", "c", "d"):
        assert [one.admits(caller) for _ in range(BURST)] == [True] * BURST
    one.exchange()
    for caller in ("a", "d"):
        assert two.admits(caller)
    two.exchange()
    assert [two.admits("a"), two.admits("d")] == [True, False]


@pytest.fixture
def prefix(redis_url: str) -> Iterator[str]:
    name = uuid.uuid4().hex
    yield name
    with redis.Redis.from_url(redis_url) as client:
        client.delete("none", *client.scan_iter(f"{name}:*", count=10_000))


def test_redis_adds_up_and_forgets_a_full_bucket(redis_url: str, prefix: str) -> None:
    async def added() -> list[list[float]]:
        rates = RedisRates(connection(redis_url, prefix=prefix, timeout_s=5.0))
        try:
            first = await rates.add([Charge("10.0.0.1", 100.0), Charge(b"\x00digest", 60.0)])
            return [first, await rates.add([Charge("10.0.0.1", 50.0)]), await rates.add([Charge("x", 1e300)])]
        finally:
            await rates.close()

    (one, other), (together,), (most,) = asyncio.run(added())
    assert one == pytest.approx(100.0, abs=0.01)
    assert other == pytest.approx(60.0, abs=0.01)
    assert 140.0 < together <= 150.0
    assert most == 86_400.0
    with redis.Redis.from_url(redis_url) as client:
        kept = {key: client.ttl(key) for key in client.scan_iter(f"{prefix}:*", count=10_000)}
    assert 0 < min(kept.values()) <= 62
    assert max(kept.values()) <= 86_402
    assert not any(b"10.0.0.1" in key for key in kept)


def test_nobody_waits_for_a_clock_of_redis_that_went_back(redis_url: str, prefix: str) -> None:
    """As after a failover to a server whose clock is behind; to go back is to find entries of a time to come."""

    async def added() -> tuple[float, float, float]:
        rates = RedisRates(connection(redis_url, prefix=prefix, timeout_s=5.0))
        try:
            (before,) = await rates.add([Charge("anna", 10.0)])
            hour = 3600 * 1_000_000
            with redis.Redis.from_url(redis_url) as client:
                (key,) = client.scan_iter(f"{prefix}:*", count=10_000)
                for field in client.hkeys(key):
                    client.hincrby(key, field.decode(), hour)
            (behind,) = await rates.add([Charge("anna", 10.0)])
            (later,) = await rates.add([Charge("anna", 10.0)])
        finally:
            await rates.close()
        return before, behind, later

    assert asyncio.run(added()) == pytest.approx((10.0, 20.0, 30.0), abs=1.0)


def test_a_bucket_of_an_earlier_version_is_known(redis_url: str, prefix: str) -> None:
    async def added() -> float:
        rates = RedisRates(connection(redis_url, prefix=prefix, timeout_s=5.0))
        try:
            await rates.add([Charge("anna", 10.0)])
            with redis.Redis.from_url(redis_url) as client:
                (key,) = client.scan_iter(f"{prefix}:*", count=10_000)
                client.hdel(key, "at")
            (ahead,) = await rates.add([Charge("anna", 10.0)])
        finally:
            await rates.close()
        return ahead

    assert asyncio.run(added()) == pytest.approx(20.0, abs=1.0)


def test_two_services_share_the_limit_of_a_key(redis_url: str, prefix: str, open_client: OpenClient) -> None:
    with ExitStack() as services:
        one, two = (
            services.enter_context(
                open_client(
                    redis_prefix=prefix, api_keys=[KEY, OTHER], rate_limit=0.001, rate_burst=2, rate_shared=True
                )
            )
            for _ in range(2)
        )

        def status(service: TestClient, key: str) -> int:
            return service.get("/items", headers={"x-api-key": key}).status_code

        assert [status(one, KEY) for _ in range(3)] == [200, 200, 429]
        with redis.Redis.from_url(redis_url) as client:
            eventually(lambda: list(client.scan_iter(f"{prefix}:rate:*", count=10_000)))
        assert status(two, KEY) == 200  # the first of two, then it learns of the two before
        eventually(lambda: metric(two, "vlm2rec_redis_seconds_count", operation="rates") >= 1)
        assert status(two, KEY) == 429
        assert status(two, OTHER) == 200


def test_without_redis_each_service_limits_alone(open_client: OpenClient) -> None:
    with open_client(redis_url="redis://127.0.0.1:1", rate_limit=0.001, rate_burst=2, rate_shared=True) as client:
        assert [client.get("/items").status_code for _ in range(3)] == [200, 200, 429]
        eventually(lambda: metric(client, "vlm2rec_redis_errors_total", operation="rates") >= 1)
        assert client.get("/livez").status_code == 200


def test_a_shared_limit_needs_a_limit() -> None:
    with pytest.raises(SettingsError, match=r"rate_shared.*needs a rate_limit to share"):
        load_settings(registry="unused", rate_shared=True)
