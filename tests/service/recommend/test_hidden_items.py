"""A hidden item is never recommended, on no replica and by no request, but still shapes a query."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from starlette.testclient import TestClient

from demo.embedded_redis import EmbeddedRedis
from index.bundle.bundle import Bundle
from service.bundles.operator_state import OperatorState
from service.recommend.hidden_items import HiddenItems, available_rows
from service.stores.protocols import Edition
from tests.support.shops import ADMIN, AS_ADMIN, Polls, Shop, eventually, metric, serving
from tests.support.stores.memory_operator_state import MemoryOperatorState


def make_available(client: TestClient, item: str, available: bool) -> int:
    path = f"/items/{quote(item, safe='')}/availability"
    return client.put(path, json={"available": available}, headers=AS_ADMIN).status_code


def answered(client: TestClient, path: str = "/recommend", **body: Any) -> list[str]:
    answer = client.post(path, json={"k": 100, **body})
    assert answer.status_code == 200
    return [item["item_id"] for item in answer.json()["items"]]


QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "sequence": ("/recommend", {"items": ["i1", "i2"]}),
    "pushed away": ("/recommend", {"items": [{"item_id": "i1", "weight": -1.0}]}),
    "similar": ("/similar", {"item_id": "i1"}),
    "popular": ("/recommend", {"user_id": "nobody"}),
    "filtered": ("/recommend", {"items": ["i1"], "filter": {"must": [{"field": "category", "in": ["hats", "bags"]}]}}),
    "diverse": ("/recommend", {"items": ["i1", "i2"], "diversity": 0.5}),
    "slot weights": ("/recommend", {"items": ["i1", "i2"], "slot_weights": {"image": 3.0, "text": 0.0}}),
    "popular, filtered": ("/recommend", {"user_id": "nobody", "filter": {"must": [{"field": "price", "gte": 10}]}}),
    "seen too": ("/recommend", {"items": ["i1", "i4"], "exclude_seen": False}),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_hidden_item_is_answered_nowhere_and_nothing_else_changes(open_client: Any, question: str) -> None:
    path, body = QUESTIONS[question]
    with open_client(admin_keys=[ADMIN]) as client:
        before = answered(client, path, **body)
        for item in (hidden := [before[0], before[3], before[-1]]):
            assert make_available(client, item, False) == 204
        after = answered(client, path, **body)
        if question == "diverse":
            assert sorted(after) == sorted(set(before) - set(hidden))
        else:
            assert after == [item for item in before if item not in hidden]
        pages = [item for offset in range(0, 60, 7) for item in answered(client, path, **body, k=7, offset=offset)]
        assert pages == after
        for item in hidden:
            assert make_available(client, item, True) == 204
        assert answered(client, path, **body) == before


def test_a_hidden_item_in_a_history_still_shapes_the_query(open_client: Any) -> None:
    with open_client(admin_keys=[ADMIN]) as client:
        before = answered(client, items=["i1", "i2"])
        assert make_available(client, "i2", False) == 204
        assert answered(client, items=["i1", "i2"]) == before
        similar = answered(client, "/similar", item_id="i2")
        assert len(similar) == 58
        assert client.post("/recommend", json={"items": ["i2"]}).json()["history_used"] == 1


def test_all_hidden_is_answered_with_nothing(open_client: Any, bundle: Bundle) -> None:
    with open_client(admin_keys=[ADMIN]) as client:
        for row in range(len(bundle)):
            assert make_available(client, bundle.ids.id(row), False) == 204
        assert answered(client, items=["i1"]) == answered(client, user_id="nobody") == []
        assert metric(client, "vlm2rec_hidden_items") == 60


def test_the_catalogue_says_what_is_hidden(open_client: Any) -> None:
    with open_client(admin_keys=[ADMIN]) as client:
        assert make_available(client, "ein Tee/grün", False) == 204
        assert client.get(f"/items/{quote('ein Tee/grün', safe='')}").json()["available"] is False
        assert client.get("/items/i1").json()["available"] is True
        page = client.get("/items?limit=100").json()["items"]
        assert [item["item_id"] for item in page if not item["available"]] == ["ein Tee/grün"]


def test_an_item_that_is_not_there(open_client: Any) -> None:
    with open_client(admin_keys=[ADMIN]) as client:
        for available in (False, True):
            assert make_available(client, "gone", available) == 404
        assert make_available(client, "i1", True) == 204  # not hidden: nothing to do
        for body in ({}, {"available": "no"}, {"available": True, "until": 5}, []):
            assert client.put("/items/i1/availability", json=body, headers=AS_ADMIN).status_code == 422


def test_every_replica_hides_within_a_second(open_shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_shop(poll_ms=100) as one, open_shop(poll_ms=100) as other:
        best = answered(one, items=["i1"])[0]
        polls = Polls(other, monkeypatch)
        assert make_available(one, best, False) == 204
        assert best not in answered(one, items=["i1"])  # here at once
        assert polls.until(lambda _, hidden: best in hidden) <= 2
        assert best not in answered(other, items=["i1"])
        assert make_available(other, best, True) == 204
        eventually(lambda: answered(one, items=["i1"])[0] == best)


def test_what_is_hidden_stays_hidden_in_the_next_bundle(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        assert make_available(client, "i7", False) == 204
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])
        assert "i7" not in answered(client, items=["i1"])
        assert make_available(client, "i8", False) == 204
        assert client.post("/bundle/rollback", headers=AS_ADMIN).json()["bundle"] == shop.ids[0]
        assert {"i7", "i8"}.isdisjoint(answered(client, items=["i1"]))
        assert make_available(client, "i7", True) == 204
        assert "i7" in answered(client, items=["i1"])


def test_an_item_that_left_the_catalogue_can_still_be_shown_again(open_shop: Any, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text(json.dumps({"format": 1, "epoch": "e", "number": 3, "pin": None, "hidden": ["left", "i5"]}))
    with open_shop(directives_file=file) as client:
        assert "i5" not in answered(client, items=["i1"])
        assert make_available(client, "left", False) == 404
        assert make_available(client, "left", True) == 204
        assert make_available(client, "left", True) == 404


def test_what_is_hidden_outlives_redis_and_a_restart_without_it(open_shop: Any, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    with EmbeddedRedis() as redis:
        with open_shop(redis_url=redis.url, directives_file=file) as client:
            assert make_available(client, "i5", False) == 204
            eventually(file.exists)
            redis.kill()
            assert "i5" not in answered(client, items=["i1"])
            refused = client.put("/items/i6/availability", json={"available": False}, headers=AS_ADMIN)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "i6" in answered(client, items=["i1"])
        with open_shop(redis_url=redis.url, directives_file=file) as client:
            assert "i5" not in answered(client, items=["i1"])
            redis.start()  # empty: it has no disk
            with open_shop(redis_url=redis.url, directives_file=tmp_path / "other.json") as fresh:
                eventually(lambda: "i5" not in answered(fresh, items=["i1"]))


def test_an_outdated_bitmap_is_computed_again(bundle: Bundle) -> None:
    def left_out(available: Any) -> set[int]:
        """The rows with a slot that a search finds no more."""
        found = bundle.search(bundle.vectors(np.array([8])), 60, allowed=available).rows
        return set(np.flatnonzero(bundle.indexed).tolist()) - set(found.ravel().tolist())

    hidden = HiddenItems(["i1", "i2", "no item"])
    assert hidden.available(bundle) is hidden.available(bundle)
    snapshot = hidden.snapshot()
    elsewhere = available_rows(bundle, snapshot.ids)
    assert left_out(elsewhere) == {1, 2}
    asyncio.run(hidden.change(["i4"], ["i2"]))
    asyncio.run(hidden.adopt(bundle, elsewhere, snapshot))
    assert left_out(hidden.available(bundle)) == {1, 4}
    assert left_out(elsewhere) == {1, 2}  # a request that has it sees no change
    asyncio.run(hidden.change([], ["i1", "i4", "no item"]))
    assert hidden.available(bundle) is None
    assert ("i1" in hidden, len(hidden)) == (False, 0)


def as_oracle(bundle: Bundle, hidden: set[str]) -> list[bool]:
    return [bundle.ids.id(row) not in hidden for row in range(len(bundle))]


def test_a_large_set_is_applied_beside_the_event_loop_and_takes_effect_at_once(
    bundle: Bundle, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"gone-{number}" for number in range(100_000)}
    begun, may_end, work = threading.Event(), threading.Event(), available_rows

    def held_up(of: Bundle, ids: Any) -> Any:
        begun.set()
        assert may_end.wait(20)  # only the event loop lets it go on, which is therefore free
        return work(of, ids)

    monkeypatch.setattr("service.recommend.hidden_items.available_rows", held_up)

    async def check() -> None:
        store, other = MemoryOperatorState(), Bundle.load(small_bundle)
        await store.restore(Edition("e", 200_000), "pinned", [*many, "i5"])
        replica = OperatorState(store, tmp_path / "directives.json", lambda _error: None)
        hidden = replica.hidden
        await hidden.change(["i1"], [])
        await hidden.adopt(bundle, work(bundle, hidden.ids), hidden.snapshot())
        before, known = hidden.available(bundle), hidden.snapshot()
        applying = asyncio.create_task(replica.sync())
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert hidden.available(bundle) is before
        assert (len(hidden), "i5" in hidden, replica.pin) == (1, False, None)
        await hidden.adopt(other, work(other, known.ids), known)  # a bundle that takes over meanwhile
        may_end.set()
        await applying
        assert hidden.ids == many | {"i5"}
        assert replica.pin == "pinned"
        for one in (bundle, other):
            found = hidden.available(one)
            assert found is not None
            assert found.mask.tolist() == as_oracle(one, {"i5"})

    asyncio.run(check())


@pytest.mark.parametrize("unknown", [0, 300])
def test_any_change_large_or_small_gives_the_same(bundle: Bundle, unknown: int) -> None:
    others = [f"gone-{number}" for number in range(unknown)]  # enough of them for a thread

    async def check() -> None:
        hidden = HiddenItems()
        await hidden.adopt(bundle, available_rows(bundle, ()), hidden.snapshot())
        late = hidden.snapshot()
        for replace, hide, show, left in (
            (False, ["i1", "i2", *others], ["i9"], {"i1", "i2"}),
            (False, ["i3"], ["i1", *others], {"i2", "i3"}),
            (True, ["i4", "i3", *others], [], {"i3", "i4"}),
            (True, ["i4"], [], {"i4"}),
        ):
            await (hidden.replace(hide) if replace else hidden.change(hide, show))
            found = hidden.available(bundle)
            assert found is not None
            assert found.mask.tolist() == as_oracle(bundle, left)
        await hidden.adopt(bundle, available_rows(bundle, late.ids), late)
        found = hidden.available(bundle)
        assert found is not None
        assert found.mask.tolist() == as_oracle(bundle, {"i4"})
        await hidden.replace(())
        assert hidden.available(bundle) is None

    asyncio.run(check())
