"""Swapping to new bundles and refusing bad ones, in the whole application with a real registry and a real Redis."""

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from index.bundle import integrity
from index.bundle.bundle import Bundle
from index.bundle.manifest import ENCODER_FILE
from index.items.item_table import ItemTable
from tests.support.shops import (
    AS_ADMIN,
    Shop,
    eventually,
    metric,
    other_bundle,
    returning,
    serving,
    with_blind_encoder,
    with_file,
)


def refused(client: Any) -> dict[str, str]:
    """Refused bundles with the reason."""
    return {kept["bundle"]: kept["reason"] for kept in client.get("/bundle").json()["swap"]["refused"]}


def test_a_new_pointer_is_noticed_and_its_bundle_takes_over(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        assert serving(client) == shop.ids[0]
        assert client.get("/bundle").json()["swap"]["comparison"] is None
        returning(client)
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])
        swap = client.get("/bundle").json()["swap"]
        assert (swap["wanted"], swap["previous"], swap["pin"], swap["refused"]) == (*shop.ids[1::-1], None, [])
        assert swap["verified"] is True
        comparison = swap["comparison"]
        assert (comparison["histories"], comparison["source"], comparison["k"]) == (1, "recent", 20)
        assert comparison["old"]["bundle"], comparison["new"]["bundle"] == shop.ids[:2]
        assert metric(client, "vlm2rec_bundle_swaps_total") == 1
        assert metric(client, "vlm2rec_bundle_swap_seconds_count") == 1
        assert metric(client, "vlm2rec_bundle_info", bundle=shop.ids[1]) == 1
        assert metric(client, "vlm2rec_bundle_info") == 1
        assert metric(client, "vlm2rec_bundles_in_memory") == 2
        assert metric(client, "vlm2rec_shadow_overlap") == comparison["overlap"]
        assert metric(client, "vlm2rec_shadow_answered", side="old") == 1
        assert metric(client, "vlm2rec_shadow_coverage", side="new") == comparison["new"]["coverage"]
        shares = comparison["new"]["slot_shares"]
        assert metric(client, "vlm2rec_shadow_slot_share", side="new", slot="text") == shares["text"]
        assert metric(client, "vlm2rec_watcher_look_age_seconds") < 10


def bad_bundle(kind: str, shop: Shop, day_bundles: list[Path], table: ItemTable, tmp_path: Path) -> str:
    """Damage a bundle of the shop in one way, or add a bad one; returns its id."""
    bundle_id = shop.ids[1]
    if kind == "nowhere":
        return "20260101T000000Z-000000"
    if kind == "truncated":
        shop.cut(bundle_id)
    elif kind == "corrupt":
        shop.flip(bundle_id)
    elif kind == "a file missing":
        (shop.path(bundle_id) / "probes.npz").unlink()
    elif kind == "manifest":
        (shop.path(bundle_id) / "manifest.json").write_text("{")
    elif kind == "encoder":
        return shop.put(with_file(day_bundles[1], tmp_path, ENCODER_FILE, b"not a model"))
    elif kind == "not finite":
        return shop.put(with_blind_encoder(day_bundles[1], tmp_path))
    elif kind == "another catalogue":
        return shop.put(other_bundle(table, day_bundles[0] / ENCODER_FILE, tmp_path, 20, names="x"))
    return bundle_id


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("nowhere", "missing"),
        ("truncated", "invalid"),
        ("corrupt", "invalid"),
        ("a file missing", "invalid"),
        ("manifest", "invalid"),
        ("encoder", "invalid"),
        ("not finite", "answers"),
        ("another catalogue", "answers"),
    ],
)
def test_a_bad_bundle_never_replaces_a_good_one(
    open_shop: Any, shop: Shop, day_bundles: list[Path], small_table: ItemTable, tmp_path: Path, kind: str, reason: str
) -> None:
    bad = bad_bundle(kind, shop, day_bundles, small_table, tmp_path)
    with open_shop() as client:
        returning(client)
        shop.point(bad)
        eventually(lambda: refused(client) == {bad: reason})
        assert serving(client) == shop.ids[0]
        time.sleep(0.2)  # ten polls, none of which loads it again
        assert metric(client, "vlm2rec_bundle_behind") == 1
        assert metric(client, "vlm2rec_bundle_refusals_total", reason=reason) == 1
        assert metric(client, "vlm2rec_bundles_in_memory") == 1
        answer = client.post("/bundle/reload", headers=AS_ADMIN)
        assert answer.status_code == 409
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == "urn:vlm2rec:problem:bundle-refused"
        assert bad in answer.json()["detail"]
        assert metric(client, "vlm2rec_bundle_refusals_total", reason=reason) == 2
        assert serving(client) == shop.ids[0]
        shop.point(shop.ids[2])
        eventually(lambda: serving(client) == shop.ids[2])
        eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 0)


def test_a_repaired_bundle_of_the_same_id_is_tried_again(open_shop: Any, shop: Shop, day_bundles: list[Path]) -> None:
    shop.cut(shop.ids[1])
    with open_shop() as client:
        shop.point(shop.ids[1])
        eventually(lambda: refused(client))
        shop.repair(day_bundles[1])
        eventually(lambda: serving(client) == shop.ids[1])
        assert refused(client) == {}


def test_every_file_is_hashed_before_a_bundle_takes_over_whatever_its_stamp_says(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        integrity, "_SMALL", 0
    )  # small files are hashed at every load; a large one is taken by its stamp
    shop.flip(shop.ids[1])
    with open_shop() as client:
        shop.point(shop.ids[1])
        eventually(lambda: refused(client) == {shop.ids[1]: "invalid"})
        assert metric(client, "vlm2rec_bundle_swaps_total") == 0


def test_a_pointer_that_cannot_be_read_changes_nothing(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        pointer = shop.registry.pointer
        pointer.write_bytes(b"not json")
        eventually(lambda: metric(client, "vlm2rec_watcher_errors_total", what="pointer") >= 2)
        answer = client.post("/bundle/reload", headers=AS_ADMIN)
        assert (answer.status_code, answer.json()["title"]) == (409, "The bundle may not serve")
        pointer.unlink()
        assert client.post("/bundle/reload", headers=AS_ADMIN).status_code == 409
        assert serving(client) == shop.ids[0]
        assert client.get("/readyz").status_code == 200
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])


def test_nothing_waits_for_a_load(open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    started, go_on = threading.Event(), threading.Event()
    load = Bundle.load

    def slowly(path: Path, **options: Any) -> Bundle:
        started.set()
        assert go_on.wait(20)
        return load(path, **options)

    with open_shop() as client:
        monkeypatch.setattr(Bundle, "load", slowly)
        shop.point(shop.ids[1])
        assert started.wait(20)
        assert [serving(client) for _ in range(20)] == [shop.ids[0]] * 20
        assert client.get("/bundle").json()["swap"]["loading"] == shop.ids[1]
        assert metric(client, "vlm2rec_watcher_look_age_seconds") < 5
        go_on.set()
        eventually(lambda: serving(client) == shop.ids[1])
        assert client.get("/bundle").json()["swap"]["loading"] is None


def test_what_is_no_longer_wanted_when_it_is_loaded_does_not_take_over(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()
    load = Bundle.load

    def slowly(path: Path, **options: Any) -> Bundle:
        loaded = load(path, **options)
        if path.name == shop.ids[1]:
            started.set()
            assert go_on.wait(20)
        return loaded

    with open_shop() as client:
        monkeypatch.setattr(Bundle, "load", slowly)
        shop.point(shop.ids[1])
        assert started.wait(20)
        shop.point(shop.ids[2])
        eventually(lambda: client.get("/bundle").json()["swap"]["wanted"] == shop.ids[2])
        go_on.set()
        seen = {eventually(lambda: serving(client)) for _ in range(5)}
        eventually(lambda: seen.add(serving(client)) or shop.ids[2] in seen)
        assert seen <= {shop.ids[0], shop.ids[2]}
        assert metric(client, "vlm2rec_bundle_swaps_total") == 1
        eventually(lambda: metric(client, "vlm2rec_bundles_in_memory") == 2)


def test_at_most_two_bundles_are_ever_in_memory(
    open_shop: Any, shop: Shop, day_bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Bundle]] = []
    most: list[int] = []
    load = Bundle.load

    def counted(path: Path, **options: Any) -> Bundle:
        before = sum(bundle() is not None for bundle in alive)
        loaded = load(path, **options)
        alive.append(weakref.ref(loaded))
        most.append(before + 1)
        return loaded

    monkeypatch.setattr(Bundle, "load", counted)
    blind = shop.put(with_blind_encoder(day_bundles[1], tmp_path))
    gc.disable()  # what is let go must be gone without a collection
    try:
        with open_shop() as client:
            for bundle_id in (*shop.ids[1:], *shop.ids):
                shop.point(bundle_id)
                eventually(lambda wanted=bundle_id: serving(client) == wanted)
                shop.point(blind)
                eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 1)
                assert client.post("/bundle/reload", headers=AS_ADMIN).status_code == 409
            assert metric(client, "vlm2rec_bundles_in_memory") <= 2
    finally:
        gc.enable()
    assert len(most) >= 15
    assert max(most) == 2


def test_a_request_that_began_on_a_bundle_ends_on_it(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.recommend.recommender import Recommender

    taken, go_on = threading.Event(), threading.Event()
    recommend = Recommender.recommend

    async def delayed(self: Recommender, bundle: Bundle, *rest: Any) -> Any:
        import asyncio

        if not taken.is_set():
            taken.set()
            await asyncio.to_thread(go_on.wait, 20)
        return await recommend(self, bundle, *rest)

    with open_shop() as client:
        monkeypatch.setattr(Recommender, "recommend", delayed)
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(serving(client)))
        asking.start()
        assert taken.wait(20)
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])
        shop.point(shop.ids[2])  # a third one is not loaded while a request uses the first
        eventually(lambda: client.get("/bundle").json()["swap"]["loading"] == shop.ids[2])
        assert metric(client, "vlm2rec_bundles_in_memory") == 2
        go_on.set()
        asking.join(20)
        assert found == [shop.ids[0]]
        eventually(lambda: serving(client) == shop.ids[2])
