"""Going back: a pin that every replica honours, cleared by a reload; and what a service does about a bad start."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from demo.embedded_redis import EmbeddedRedis
from index.bundle.integrity import write_durably
from index.errors import RegistryError
from service.app import create_app
from service.errors import BundleRefused, StartError
from service.lifecycle import load_current
from service.settings.groups import BundleSettings
from service.settings.load import load_settings
from tests.support.shops import AS_ADMIN, Polls, Shop, eventually, metric, serving, with_blind_encoder


def swap_of(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/bundle").json()["swap"]
    return found


def post(client: TestClient, path: str, **sent: Any) -> tuple[int, dict[str, Any]]:
    answer = client.post(path, headers=AS_ADMIN, **sent)
    return answer.status_code, answer.json()


def advance(shop: Shop, *clients: TestClient) -> None:
    """From the first bundle to the second, so that the first is the one before."""
    shop.point(shop.ids[1])
    for client in clients:
        eventually(lambda client=client: serving(client) == shop.ids[1])


def test_every_replica_goes_back_within_a_second_and_on_again(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 2 * BundleSettings(registry="r").poll_s <= 1.0
    with open_shop(poll_ms=100) as one, open_shop(poll_ms=100) as other:  # both keep the bundle before in memory
        advance(shop, one, other)
        polls = Polls(other, monkeypatch)
        assert post(one, "/bundle/rollback") == (200, {"bundle": shop.ids[0], "swapped": True, "pin": shop.ids[0]})
        assert serving(one) == shop.ids[0]
        assert polls.until(lambda bundle, _: bundle == shop.ids[0]) <= 2
        for client in (one, other):
            eventually(lambda client=client: swap_of(client)["pin"] == shop.ids[0])
            eventually(lambda client=client: metric(client, "vlm2rec_bundle_pin_info", bundle=shop.ids[0]) == 1)
        shop.point(shop.ids[2])  # the pointer has no say while there is a pin
        time.sleep(0.5)
        assert [serving(one), serving(other)] == [shop.ids[0]] * 2
        assert post(other, "/bundle/reload") == (200, {"bundle": shop.ids[2], "swapped": True, "pin": None})
        eventually(lambda: serving(one) == shop.ids[2])
        assert metric(one, "vlm2rec_bundle_pin_info") == 0


def test_a_named_bundle_is_loaded_and_pinned(open_shop: Any, shop: Shop) -> None:
    with open_shop() as one, open_shop() as other:
        status, body = post(one, "/bundle/rollback", json={"bundle": shop.ids[3]})
        assert (status, body["bundle"], body["pin"]) == (200, shop.ids[3], shop.ids[3])
        eventually(lambda: serving(other) == shop.ids[3])
        status, body = post(one, "/bundle/rollback", json={"bundle": shop.ids[3]})
        assert (status, body["swapped"]) == (200, False)
        status, body = post(one, "/bundle/rollback", json={"bundle": None})  # the one that answered before
        assert (status, body["bundle"], body["pin"]) == (200, shop.ids[0], shop.ids[0])
        eventually(lambda: serving(other) == shop.ids[0])


def test_a_look_under_way_does_not_undo_it(open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The poll read the pointer before the rollback and would activate the bundle that the operator has left."""
    with open_shop(poll_ms=100) as client:
        advance(shop, client)
        loader = client.app.state.watcher._loader
        read, looked, go_on = loader.current, threading.Event(), threading.Event()

        def slow() -> str | None:
            found: str | None = read()
            looked.set()
            assert go_on.wait(20)
            return found

        monkeypatch.setattr(loader, "current", slow)
        looked.clear()
        assert looked.wait(20)
        assert post(client, "/bundle/rollback") == (200, {"bundle": shop.ids[0], "swapped": True, "pin": shop.ids[0]})
        swaps = metric(client, "vlm2rec_bundle_swaps_total")
        go_on.set()
        eventually(lambda: swap_of(client)["last_look_seconds"] < 0.1)
        time.sleep(0.5)
        assert serving(client) == shop.ids[0]
        assert metric(client, "vlm2rec_bundle_swaps_total") == swaps


def test_going_back_goes_on_to_the_first_bundle(open_shop: Any, shop: Shop) -> None:
    shop.point(shop.ids[3])
    with open_shop() as client:
        for bundle_id in shop.ids[2::-1]:
            assert post(client, "/bundle/rollback")[1]["bundle"] == bundle_id
        status, body = post(client, "/bundle/rollback")
        assert status == 409
        assert f"there is no good bundle before {shop.ids[0]}" in body["detail"]
        assert serving(client) == swap_of(client)["pin"] == shop.ids[0]


@pytest.mark.parametrize("parts", [[], [b""], [b'{"bun', b'dle": null}'], [b" ", b"null"]])
def test_an_empty_body_in_chunks_is_none(open_shop: Any, shop: Shop, parts: list[bytes]) -> None:
    with open_shop() as client:
        advance(shop, client)
        headers = AS_ADMIN if not any(parts) else AS_ADMIN | {"content-type": "application/json"}
        answer = client.post("/bundle/rollback", headers=headers, content=iter(parts))
        assert answer.request.headers["transfer-encoding"] == "chunked"
        if parts[-1:] == [b"null"]:
            assert answer.json()["errors"] == [{"field": "body", "received": "null", "rule": "must be an object"}]
        else:
            assert (answer.status_code, answer.json()["bundle"]) == (200, shop.ids[0])
        assert client.post("/bundle/rollback", headers=AS_ADMIN, content=iter([b"{}"])).status_code == 415
        without = client.post("/bundle/rollback", headers=AS_ADMIN | {"content-length": "00"})
        assert without.status_code in (200, 409)


def test_going_back_goes_by_the_order_of_publication(open_shop: Any, shop: Shop) -> None:
    """The third was published first, by a wrong clock; an operator left the second before the fourth came."""
    first, second, third, fourth = shop.ids
    pointer = {"format": 1, "current": fourth, "previous": [third, first], "published": [third, first, second, fourth]}
    write_durably(shop.registry.pointer, json.dumps(pointer).encode())
    with open_shop() as client:
        for bundle_id in (first, third):
            assert post(client, "/bundle/rollback")[1]["bundle"] == bundle_id
        assert post(client, "/bundle/rollback")[0] == 409


def test_the_bundle_in_memory_is_no_way_back_if_it_was_published_later(open_shop: Any, shop: Shop) -> None:
    first, second, _, fourth = shop.ids
    pointer = {"format": 1, "current": first, "previous": [], "published": [fourth, second, first]}
    write_durably(shop.registry.pointer, json.dumps(pointer).encode())
    with open_shop() as client:
        serving(client)
        pointer = {"format": 1, "current": fourth, "previous": [], "published": [fourth, second, first]}
        write_durably(shop.registry.pointer, json.dumps(pointer).encode())
        eventually(lambda: serving(client) == fourth)
        status, body = post(client, "/bundle/rollback")  # its name is the greatest, and it was published first
        assert (status, body["type"]) == (409, "urn:vlm2rec:problem:bundle-refused")
        shop.registry.pointer.write_bytes(b"{")  # now only names can tell, and the one in memory is at hand
        assert post(client, "/bundle/rollback")[1]["bundle"] == first


def test_a_bad_start_goes_back_by_the_order_of_publication(open_shop: Any, shop: Shop) -> None:
    first, second, _, fourth = shop.ids
    pointer = {"format": 1, "current": second, "previous": [fourth, first], "published": [fourth, first, second]}
    write_durably(shop.registry.pointer, json.dumps(pointer).encode())
    for bundle_id in (second, first):
        shop.cut(bundle_id)
    with open_shop() as client:
        assert serving(client) == fourth  # the third was never published


def test_going_back_passes_over_bad_bundles(open_shop: Any, shop: Shop) -> None:
    shop.point(shop.ids[3])
    shop.flip(shop.ids[2])
    shop.cut(shop.ids[1])
    with open_shop() as client:
        assert serving(client) == shop.ids[3]
        assert post(client, "/bundle/rollback")[1]["bundle"] == shop.ids[0]
        assert {kept["bundle"] for kept in swap_of(client)["refused"]} == {shop.ids[1], shop.ids[2]}


def test_going_back_does_not_try_again_what_was_refused(open_shop: Any, shop: Shop) -> None:
    shop.point(shop.ids[3])
    shop.cut(shop.ids[2])
    with open_shop() as client:
        shop.point(shop.ids[2])
        eventually(lambda: swap_of(client)["refused"])
        assert post(client, "/bundle/rollback")[1]["bundle"] == shop.ids[1]
        assert metric(client, "vlm2rec_bundle_refusals_total") == 1


@pytest.mark.parametrize("kind", ["unknown", "cut", "blind"])
def test_a_pin_of_a_bad_bundle_is_not_written(
    open_shop: Any, shop: Shop, day_bundles: list[Path], tmp_path: Path, kind: str
) -> None:
    bad = {
        "unknown": lambda: "20200101T000000Z-123456",
        "cut": lambda: shop.cut(shop.ids[2]) or shop.ids[2],
        "blind": lambda: shop.put(with_blind_encoder(day_bundles[1], tmp_path)),
    }[kind]()
    with open_shop() as client:
        serving(client)
        status, body = post(client, "/bundle/rollback", json={"bundle": bad})
        assert (status, body["type"]) == (409, "urn:vlm2rec:problem:bundle-refused")
        assert swap_of(client)["pin"] is None
        assert serving(client) == shop.ids[0]


@pytest.mark.parametrize("body", [{"bundle": "../../etc"}, {"bundle": 5}, {"bundel": "x"}, []])
def test_a_body_that_breaks_a_rule(open_shop: Any, body: Any) -> None:
    with open_shop() as client:
        assert post(client, "/bundle/rollback", json=body)[0] == 422


def test_reload_without_anything_new_changes_nothing(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        assert post(client, "/bundle/reload") == (200, {"bundle": shop.ids[0], "swapped": False, "pin": None})
        assert metric(client, "vlm2rec_bundle_swaps_total") == 0


def test_without_redis_nothing_is_done(open_shop: Any, shop: Shop) -> None:
    with EmbeddedRedis() as redis, open_shop(redis_url=redis.url) as client:
        advance(shop, client)
        redis.kill()
        for path in ("/bundle/rollback", "/bundle/reload"):
            answer = client.post(path, headers=AS_ADMIN)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["type"] == "urn:vlm2rec:problem:directives-unavailable"
        assert serving(client) == shop.ids[1]
        eventually(lambda: metric(client, "vlm2rec_watcher_errors_total", what="directives") >= 2)
        shop.point(shop.ids[2])  # the pointer is followed all the same
        eventually(lambda: serving(client) == shop.ids[2])
        redis.start()
        eventually(lambda: post(client, "/bundle/rollback")[0] == 200)
        assert serving(client) == shop.ids[1]


def test_redis_that_goes_away_while_a_bundle_is_loaded_leaves_everything(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from index.bundle.bundle import Bundle

    load = Bundle.load
    with EmbeddedRedis() as redis, open_shop(redis_url=redis.url) as client:

        def killing(path: Path, **options: Any) -> Bundle:
            redis.kill()
            return load(path, **options)

        monkeypatch.setattr(Bundle, "load", killing)
        assert post(client, "/bundle/rollback", json={"bundle": shop.ids[3]})[0] == 503
        assert serving(client) == shop.ids[0]
        eventually(lambda: metric(client, "vlm2rec_bundles_in_memory") == 1)
        redis.start()
        eventually(lambda: metric(client, "vlm2rec_watcher_look_age_seconds") < 0.2)
        assert swap_of(client)["pin"] is None


def test_a_pin_outlives_a_restart_with_and_without_redis(open_shop: Any, shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    with open_shop(directives_file=file) as client:
        advance(shop, client)
        # 503 where Redis does not answer in time, which a busy machine may bring about.
        eventually(lambda: post(client, "/bundle/rollback", json={"bundle": shop.ids[0]})[0] == 200)
    with open_shop(directives_file=tmp_path / "new.json") as client:  # from Redis
        assert serving(client) == shop.ids[0]
    assert json.loads(file.read_text())["pin"] == shop.ids[0]
    with open_shop(directives_file=file, redis_url="unix:///nonexistent/redis.sock") as client:  # from the file
        assert serving(client) == shop.ids[0]
        assert swap_of(client)["pin"] == shop.ids[0]


def test_a_slow_redis_at_the_start_is_waited_for(open_shop: Any, shop: Shop, tmp_path: Path) -> None:
    """Redis takes longer than a usual answer may: the pin and the hidden items hold from the first request."""
    with EmbeddedRedis() as redis, Redis.from_url(redis.url) as admin:
        with open_shop(redis_url=redis.url) as client:
            advance(shop, client)
            assert post(client, "/bundle/rollback", json={"bundle": shop.ids[0]})[0] == 200
            assert client.put("/items/i7/availability", headers=AS_ADMIN, json={"available": False}).is_success
        admin.execute_command("CLIENT PAUSE", 1500)
        with open_shop(redis_url=redis.url, redis_timeout_ms=100, poll_ms=60_000) as client:
            assert serving(client) == shop.ids[0]
            assert swap_of(client)["pin"] == shop.ids[0]
            assert metric(client, "vlm2rec_hidden_items") == 1


def test_a_bad_start_serves_the_newest_good_bundle_before(open_shop: Any, shop: Shop, day_bundles: list[Path]) -> None:
    shop.point(shop.ids[3])
    shop.cut(shop.ids[3])
    shop.cut(shop.ids[2])
    with open_shop() as client:
        assert serving(client) == shop.ids[1]
        eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 1)
        assert metric(client, "vlm2rec_bundle_refusals_total", reason="invalid") == 2
        assert swap_of(client)["wanted"] == shop.ids[3]
        shop.repair(day_bundles[3])
        eventually(lambda: serving(client) == shop.ids[3])
        eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 0)


def test_a_start_without_any_good_bundle_is_reported_and_can_be_waited_out(
    open_shop: Any, shop: Shop, day_bundles: list[Path], tmp_path: Path
) -> None:
    for bundle_id in shop.ids:
        shop.cut(bundle_id)
    bare = {"redis_url": "unix:///nonexistent/redis.sock", "directives_file": tmp_path / "none.json"}
    with pytest.raises(BundleRefused, match=rf"{shop.ids[0]}/index.faiss"):
        load_current(load_settings(registry=str(shop.registry.root), **bare))
    with open_shop(wait_for_bundle=True) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get("/livez").status_code == 200
        assert client.post("/recommend", json={"items": ["i1"]}).status_code == 503
        assert client.post("/bundle/rollback", headers=AS_ADMIN).status_code == 409
        assert client.post("/bundle/reload", headers=AS_ADMIN).status_code == 409
        shop.repair(day_bundles[0])
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert serving(client) == shop.ids[0]


def test_a_registry_that_is_still_empty_can_be_waited_for(shop: Shop, open_shop: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    with pytest.raises(StartError, match="VLM2REC_WAIT_FOR_BUNDLE"):
        load_current(load_settings(registry=str(empty), redis_url="unix:///nonexistent/redis.sock"))
    with open_shop(registry=str(empty), wait_for_bundle=True) as client:
        assert client.get("/readyz").status_code == 503
        shop.registry.root.rename(empty)
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert serving(client) == shop.ids[0]
        assert metric(client, "vlm2rec_bundle_swaps_total") == 0


def test_a_pointer_that_cannot_be_read_ends_the_start(shop: Shop, tmp_path: Path) -> None:
    shop.registry.pointer.write_bytes(b"{}")
    settings = {"registry": str(shop.registry.root), "redis_url": "unix:///nonexistent/redis.sock"}
    with pytest.raises(RegistryError, match="cannot be read"), TestClient(create_app(load_settings(**settings))):
        pass


def test_a_pin_that_is_gone_leaves_it_to_the_bundle_before_it_or_to_the_pointer(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        post(client, "/bundle/rollback", json={"bundle": shop.ids[2]})
    shop.point(shop.ids[3])
    shop.cut(shop.ids[2])
    with open_shop() as client:
        assert serving(client) == shop.ids[1]
    for bundle_id in shop.ids[:2]:
        shop.cut(bundle_id)
    with open_shop() as client:
        assert serving(client) == shop.ids[3]


def test_a_bundle_found_altered_after_the_start_gives_way(open_shop: Any, shop: Shop, day_bundles: list[Path]) -> None:
    shop.point(shop.ids[2])
    shop.flip(shop.ids[2], "vectors.npy")
    # small files are hashed at every load: a stamp that vouches for them all the same is what a large one has
    from index.bundle import integrity

    small = integrity._SMALL
    integrity._SMALL = 0
    try:
        with open_shop() as client:
            eventually(lambda: serving(client) == shop.ids[1])
            assert [kept["reason"] for kept in swap_of(client)["refused"]] == ["altered"]
            assert metric(client, "vlm2rec_bundle_refusals_total", reason="altered") == 1
            eventually(lambda: metric(client, "vlm2rec_bundles_in_memory") == 1)
            eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 1)
            assert swap_of(client)["verified"] is True
            assert swap_of(client)["previous"] is None
            shop.repair(day_bundles[2])
            eventually(lambda: serving(client) == shop.ids[2])
    finally:
        integrity._SMALL = small


def test_an_altered_bundle_goes_on_where_there_is_no_other(open_shop: Any, shop: Shop, day_bundles: list[Path]) -> None:
    from index.bundle import integrity

    shop.flip(shop.ids[0])
    small = integrity._SMALL
    integrity._SMALL = 0
    try:
        with open_shop() as client:
            eventually(lambda: metric(client, "vlm2rec_bundle_refusals_total", reason="altered") == 1)
            assert serving(client) == shop.ids[0]
            eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 1)
            shop.repair(day_bundles[0])
            eventually(lambda: metric(client, "vlm2rec_bundle_swaps_total") == 1)
            assert serving(client) == shop.ids[0]
            eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 0)
    finally:
        integrity._SMALL = small
