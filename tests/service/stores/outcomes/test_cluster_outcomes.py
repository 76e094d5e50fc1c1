"""Outcomes in a real Redis Cluster: batches go to each node by bucket, and one that stops fails its own part alone."""

import asyncio
import uuid

from service.errors import OutcomesUnavailable
from service.settings.groups import OutcomeSettings
from service.stores.history_keys import keys_of
from service.stores.outcomes.outcome_store import DUPLICATE, AnsweredItem, RecordedAnswer
from service.stores.outcomes.redis_outcomes import RedisOutcomes
from tests.service.stores.deployment.test_cluster import stopped
from tests.service.stores.outcomes.test_outcome_store import ITEMS, answer, clicked
from tests.support.stores.real_redis import connection
from tests.support.stores.redis_clusters import Cluster


def opened(cluster: Cluster, timeout_s: float = 5.0) -> RedisOutcomes:
    settings = connection(cluster.url, prefix=f"test-{uuid.uuid4().hex}", timeout_s=timeout_s)
    return RedisOutcomes(settings, OutcomeSettings())


def test_a_batch_over_all_nodes_is_stored_and_attributed_in_the_order_of_its_entries(cluster: Cluster) -> None:
    async def check() -> None:
        store, users = opened(cluster), [f"u{number}" for number in range(200)]
        stored = await store.record([answer(user, f"r{user}") for user in users[::2]])
        assert stored == [RecordedAnswer(0, [], is_first=True)] * 100
        asked = [clicked(ITEMS[number % 20], f"r{user}", user) for number, user in enumerate(users)]
        found = await store.attribute([*asked, *asked])
        first, second = found[:200], found[200:]
        for number, (one, again) in enumerate(zip(first, second, strict=True)):
            if number % 2 == 0:
                assert isinstance(one, AnsweredItem)
                assert (one.position, again) == (number % 20 + 1, DUPLICATE)
            else:
                assert (one, again) == (None, None)
        await store.forget("u0")
        assert await store.attribute([clicked(ITEMS[1], None, user) for user in ("u0", "u1")]) == [None, None]
        await store.close()

    asyncio.run(check())


def test_a_node_that_stops_fails_the_answers_and_events_of_its_own_buckets(cluster: Cluster) -> None:
    async def check() -> None:
        store, users = opened(cluster, 2.0), [f"u{number}" for number in range(60)]
        await store.record([answer(user) for user in users])
        lost = cluster.nodes[1]
        there = [cluster.owner(keys_of(store._prefix, user).history) is not lost for user in users]
        assert any(there)
        assert not all(there)
        with stopped(lost):
            found = await store.attribute([clicked(ITEMS[0], user=user) for user in users])
            stored = await store.record([answer(user) for user in users])
        assert [isinstance(one, AnsweredItem) for one in found] == there
        assert [isinstance(one, OutcomesUnavailable) for one in found] == [not one for one in there]
        assert [isinstance(one, RecordedAnswer) for one in stored] == there
        await store.close()

    asyncio.run(check())
