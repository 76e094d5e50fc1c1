"""A Redis without memory refuses events, and does all that frees memory or is urgent."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from redis import Redis

from service.errors import HistoriesUnavailable
from service.settings.groups import RedisSettings
from service.stores.deployment.merge_scripts import FENCE
from service.stores.deployment.opening import open_pipeline
from service.stores.protocols import Edition, Event
from service.stores.redis_histories import RedisHistories
from tests.service.conftest import OpenClient
from tests.support.stores.exports import Shop, some_events
from tests.support.stores.real_redis import connection, open_operator_state
from tests.support.stores.redis_pairs import on_a_port, program_of

ADMIN = {"X-API-Key": "an-administrators-key"}


@pytest.fixture(params=["6.2", "7.0"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a Redis of its own."""
    program = program_of(request.param)
    with on_a_port(tmp_path / "redis", "maxmemory-policy noeviction", program=program) as port:
        yield f"redis://127.0.0.1:{port}"


@contextmanager
def full(url: str) -> Iterator[None]:
    """Without memory until the end of the context."""
    with closing(Redis.from_url(url)) as admin:
        admin.config_set("maxmemory", 1)
        try:
            yield
        finally:
            admin.config_set("maxmemory", 0)


def test_events_are_exported_and_removed(url: str, tmp_path: Path) -> None:
    shop = Shop(url, tmp_path / "export")

    async def check(store: RedisHistories) -> None:
        await store.append(some_events(20))
        with full(url):
            with pytest.raises(HistoriesUnavailable, match="OOM"):
                await store.append(some_events(1))
            assert (await shop.export()).events == 20
        await store.append(some_events(20, start=20))
        with full(url):
            assert (await shop.export()).events == 20
            async with shop.events() as events:
                assert not any(part.events for part in await events.waiting() or ())
                assert await events.detach() == 0
                assert await events.is_detached()

    shop.run(check)
    assert len(shop.rows()) == 40


def test_an_erasure_waits_for_the_export(url: str, tmp_path: Path) -> None:
    shop = Shop(url, tmp_path / "export")

    async def check(store: RedisHistories) -> None:
        await store.append(some_events(20, users=2))
        await shop.export()
        with full(url):
            await store.erase("u1", store_answers_nowhere)
            assert await store.entries("u1") == []
            assert (await shop.export()).erasures == 1

    shop.run(check)


async def store_answers_nowhere(_owner: str) -> None:
    """Stands in for the erasure of answers."""


def test_users_are_erased_and_items_hidden(url: str, open_client: OpenClient) -> None:
    with open_client(redis_url=url, admin_keys=list(ADMIN.values())) as client:
        assert client.post("/events", json={"user_id": "anna", "item_id": "i1"}).status_code == 200
        with full(url):
            assert client.delete("/users/anna").status_code == 204
            hidden = client.put("/items/i2/availability", json={"available": False}, headers=ADMIN)
            assert hidden.status_code == 204
            audit = client.get("/audit", headers=ADMIN).json()["changes"]
        assert client.get("/users/anna/history").json()["items"] == []
        assert len(audit) == 1


def test_a_bundle_is_pinned_and_an_experiment_ends(url: str) -> None:
    async def check() -> None:
        state = open_operator_state(url)
        with full(url):
            assert await state.pin("20261130T000000Z-000000", Edition("", 0))
            known = await state.edition()
            assert await state.set_experiment("{}", known, instead_of=None)
            assert await state.set_experiment(None, known, instead_of="{}")
            assert await state.hide("i1", known)
            assert await state.show("i1", known)
        changes = await state.changes(Edition("", 0))
        assert (changes.pin, changes.experiment, changes.hidden) == ("20261130T000000Z-000000", None, ())
        await state.close()

    asyncio.run(check())


def test_an_erasure_fences_merges_in_progress(url: str) -> None:
    async def check(settings: RedisSettings) -> None:
        pipeline = open_pipeline(settings)
        keys = ["vlm2rec:{b000}:merges:s", "vlm2rec:{b000}:fenced_merges"]
        with full(url):
            assert await pipeline.run(FENCE, keys, ["anna", "a token", 3600], int) == 0
        assert await pipeline.call("HGET", keys[1], "a token", kind=bytes) == b""
        await pipeline.close()

    asyncio.run(check(connection(url)))


def test_events_are_refused_whole(url: str, tmp_path: Path) -> None:
    """Nothing of them is written before the command that Redis refuses."""
    shop = Shop(url, tmp_path / "export")

    async def check(store: RedisHistories) -> None:
        await store.append([Event("u", "a", 1.0)])
        with closing(Redis.from_url(url)) as admin, full(url):
            before = {key: admin.dump(key) for key in admin.scan_iter()}
            for events in ([Event("u", "b", 2.0)], some_events(3)):
                with pytest.raises(HistoriesUnavailable, match="OOM"):
                    await store.append(events)
            assert {key: admin.dump(key) for key in admin.scan_iter()} == before

    shop.run(check)
