"""Files of the active bundle are overwritten in place."""

import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.bundle.manifest import FAISS_FILE
from tests.support.shops import Shop, eventually, metric, serving

MAPPED = ["items.arrow", "vectors.npy", "indexed.npy", "missing.npy", "index.faiss"]


def refused(client: TestClient) -> dict[str, str]:
    """Refused bundles with the reason; works where no bundle answers too."""
    return {kept["bundle"]: kept["reason"] for kept in client.app.state.watcher.status()["refused"]}


@pytest.mark.parametrize("name", MAPPED)
def test_a_bundle_that_became_shorter_gives_way_to_the_one_before(open_shop: Any, shop: Shop, name: str) -> None:
    shop.point(shop.ids[1])
    with open_shop() as client:
        os.truncate(shop.path(shop.ids[1]) / name, 64)  # nothing is asked until this is noticed: it would be the end
        eventually(lambda: client.get("/readyz").json().get("bundle") == shop.ids[0])
        assert serving(client) == shop.ids[0]
        assert refused(client) == {shop.ids[1]: "altered"}
        eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 1)  # set at the end of the poll that swapped


def test_with_no_other_bundle_none_answers_until_it_is_published_again(
    open_shop: Any, shop: Shop, day_bundles: list[Path]
) -> None:
    with open_shop() as client:
        os.truncate(shop.path(shop.ids[0]) / FAISS_FILE, 0)
        answer = eventually(lambda: (found := client.get("/readyz")).status_code == 503 and found)
        assert "damaged" in answer.json()["detail"]
        assert client.post("/recommend", json={"items": ["i1"]}).status_code == 503
        assert client.get("/livez").status_code == 200
        eventually(lambda: refused(client) == {shop.ids[0]: "altered"})
        shop.repair(day_bundles[0])
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert serving(client) == shop.ids[0]
        assert refused(client) == {}


def test_a_newer_bundle_replaces_one_that_became_shorter(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        os.truncate(shop.path(shop.ids[0]) / FAISS_FILE, 0)
        eventually(lambda: client.get("/readyz").status_code == 503)
        shop.point(shop.ids[1])  # it is not compared with the shorter one: that would be the end
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert serving(client) == shop.ids[1]


def test_the_bundle_kept_for_going_back_is_dropped_when_it_is_written_to(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])
        os.truncate(shop.path(shop.ids[0]) / "vectors.npy", 0)
        eventually(lambda: client.get("/bundle").json()["swap"]["previous"] is None)
        shop.point(shop.ids[0])
        eventually(lambda: refused(client) == {shop.ids[0]: "invalid"})
        assert serving(client) == shop.ids[1]


def test_a_bundle_written_to_with_its_size_kept_is_hashed_again(open_shop: Any, shop: Shop) -> None:
    shop.point(shop.ids[1])
    with open_shop() as client:
        eventually(lambda: client.get("/bundle").json()["swap"]["verified"])
        shop.flip(shop.ids[1])
        os.utime(shop.path(shop.ids[1]) / "vectors.npy")
        eventually(lambda: serving(client) == shop.ids[0])
        assert refused(client) == {shop.ids[1]: "altered"}


def test_a_file_whose_time_changed_alone_goes_on_answering(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    verify = Bundle.verify_in_full

    def counting(self: Bundle, stop: Any) -> bool:
        whole = verify(self, stop)
        hashed.append(self.id)
        return whole

    monkeypatch.setattr(Bundle, "verify_in_full", counting)
    with open_shop() as client:
        eventually(lambda: client.get("/bundle").json()["swap"]["verified"])
        os.utime(shop.path(shop.ids[0]) / "vectors.npy")
        eventually(lambda: len(hashed) == 2)
        eventually(lambda: client.get("/bundle").json()["swap"]["verified"])
        assert serving(client) == shop.ids[0]
        assert refused(client) == {}
