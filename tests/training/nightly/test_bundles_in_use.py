"""The nightly job deletes no bundle that the replicas of a Redis have pinned, and none where it cannot ask them."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from service.stores.protocols import Edition
from tests.support.stores.real_redis import open_operator_state
from tests.support.stores.redis_servers import free_port

if TYPE_CHECKING:
    from conftest import Shop

PREFIX = "test-nightly-bundles-in-use"


def published(shop: "Shop", *titles: str) -> list[str]:
    """The ids of the first bundle and of one for each title."""
    found = [shop.registry.current() or ""]
    for title in titles:
        shop.set(0, title=title)
        found.append(shop.reindex()["bundle"])
    return found


def test_a_bundle_that_is_pinned_elsewhere_stays(
    nightly: "Shop", redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = published(nightly, "a", "b", "c")
    monkeypatch.setenv("VLM2REC_REDIS_PREFIX", PREFIX)

    async def pin() -> None:
        store = open_operator_state(redis_url, prefix=PREFIX, timeout_s=5.0)
        await store.pin(bundles[0], Edition())
        await store.close()

    asyncio.run(pin())
    assert nightly.reindex("--keep", 1, "--redis", redis_url)["pruned"] == bundles[1:2]
    assert [info.id for info in nightly.registry.list()] == [bundles[0], *bundles[2:]]


def test_nothing_is_deleted_where_redis_does_not_answer_and_a_wrong_url_ends_the_job(nightly: "Shop") -> None:
    bundles = published(nightly, "a", "b")
    dead = f"redis://127.0.0.1:{free_port()}/0"
    nightly.set(0, title="c")
    result = nightly.invoke("--keep", 1, "--redis", dead)
    assert result.exit_code == 0, result.output
    assert "--keep deletes nothing as long as pins cannot be read" in " ".join(result.output.split())
    assert [info.id for info in nightly.registry.list()] == [*bundles, nightly.registry.current()]
    nightly.set(0, title="d")
    before = nightly.registry.current()
    assert "redis_url" in nightly.reindex("--keep", 1, "--redis", "http://x", code=2)["error"]
    assert nightly.registry.current() == before
