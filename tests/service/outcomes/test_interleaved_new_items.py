"""Pages of interleaved answers with places for new items: they repeat nothing and keep the places of the whole."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.items.item_table import ItemTable
from tests.support.listed_bundles import with_new_items
from tests.support.shops import AS_ADMIN, OpenClient, Shop, other_bundle

NEW = [6, 13, 20, 27, 34, 41, 48, 55]
NEW_IDS = {f"i{row}" for row in NEW}
USERS = [f"user-{number}" for number in range(12)]
CUTS = [[0, 5, 10, 15, 20, 30], [0, 1, 3, 17, 18, 40], [0, 50, 57]]


@pytest.fixture(scope="module")
def bundles(small_table: ItemTable, small_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two bundles of 60 items with vectors of their own, in which eight items are new."""
    out = tmp_path_factory.mktemp("new-items")
    return [other_bundle(with_new_items(small_table, NEW, 1.0), small_encoder, out, day) for day in (1, 2)]


@pytest.fixture
def shop(tmp_path: Path, bundles: list[Path]) -> Shop:
    return Shop(tmp_path / "registry", bundles)


def run(client: TestClient, *arms: dict[str, Any]) -> None:
    named = [{"name": name, "share": 0.5, **arm} for name, arm in zip(("old", "new"), arms, strict=True)]
    body = {"interleave": True, "salt": "salt", "arms": named}
    answer = client.put("/experiments/models", json=body, headers=AS_ADMIN)
    assert answer.status_code == 200, answer.text


def asked(client: TestClient, user: str, **more: Any) -> list[dict[str, Any]]:
    answer = client.post("/recommend", json={"user_id": user, "items": ["i1", "i2"], "k": 6, **more})
    assert answer.status_code == 200, answer.text
    assert answer.json()["arm"] == "models/old+new"
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


def new_of(items: list[dict[str, Any]]) -> int:
    return sum(item["item_id"] in NEW_IDS for item in items)


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("diversity", [0.0, 0.6])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_pages_repeat_nothing_and_keep_the_places_of_the_whole(
    open_shop: OpenClient, shop: Shop, share: float, diversity: float, cuts: list[int]
) -> None:
    sent = {"fresh_share": share, "diversity": diversity}
    with open_shop(outcomes=True) as client:
        run(client, {"bundle": shop.ids[0]}, {"bundle": shop.ids[1]})
        for user in USERS:
            whole = [item["item_id"] for item in asked(client, user, k=cuts[-1], **sent)]
            so_far: list[dict[str, Any]] = []
            for start, end in pairwise(cuts):
                page = asked(client, user, offset=start, k=end - start, **sent)
                assert [one["item_id"] for one in page] == [
                    one["item_id"] for one in asked(client, user, offset=start, k=end - start, **sent)
                ]
                so_far += page
                assert new_of(so_far) >= min(int(share * end + 1e-9), len(NEW))
            assert len({item["item_id"] for item in so_far}) == len(so_far) == cuts[-1]
            assert {item["item_id"] for item in so_far} == {*whole}


@pytest.mark.parametrize("shares", [(0.0, 0.4), (0.4, 0.1)])
def test_arms_that_differ_in_their_share_give_as_many_new_items_as_alone(
    open_shop: OpenClient, shop: Shop, shares: tuple[float, float]
) -> None:
    with open_shop(outcomes=True) as client:
        run(client, *({"defaults": {"fresh_share": share}} for share in shares))
        for user in USERS:
            pages = [asked(client, user, offset=offset, k=5) for offset in range(0, 30, 5)]
            joined = [item for page in pages for item in page]
            assert len({item["item_id"] for item in joined}) == 30
            assert {item["item_id"] for item in asked(client, user, k=30)} == {item["item_id"] for item in joined}
            for end in range(5, 35, 5):
                assert new_of(joined[:end]) >= min(int(min(shares) * end + 1e-9), len(NEW))


def test_two_equal_arms_answer_as_one_and_scores_fall_within_an_arm(open_shop: OpenClient, shop: Shop) -> None:
    sent = {"fresh_share": 0.4, "explain": True}
    with open_shop(outcomes=True) as client:
        alone = [
            client.post("/recommend", json={"items": ["i1", "i2"], "offset": offset, "k": 8, **sent}).json()["items"]
            for offset in (0, 8)
        ]
        run(client, {}, {})
        for user in USERS:
            for offset, page in zip((0, 8), alone, strict=True):
                items = asked(client, user, offset=offset, k=8, **sent)
                by_id = {item["item_id"]: item for item in page}
                assert {item["item_id"] for item in items} == {*by_id}
                for item in items:
                    arm = item.pop("arm")
                    assert item == by_id[item["item_id"]]
                    item["arm"] = arm
                for arm in ("models/old", "models/new"):
                    scores = [item["score"] for item in items if item["arm"] == arm]
                    assert len(scores) == 4
                    assert scores == sorted(scores, reverse=True)


def test_where_one_arm_refuses_a_page_is_that_of_the_other(
    open_shop: OpenClient, shop: Shop, small_table: ItemTable, small_encoder: Path, tmp_path: Path
) -> None:
    others = shop.put(other_bundle(small_table, small_encoder, tmp_path, 9, names="x"))
    sent = {"user_id": "anna", "items": ["i1", "i2"], "unknown_items": "error", "fresh_share": 0.4, "offset": 8, "k": 8}
    with open_shop(outcomes=True) as client:
        alone = client.post("/recommend", json=sent).json()
        run(client, {"bundle": shop.ids[0]}, {"bundle": others})
        answer = client.post("/recommend", json=sent).json()
        assert "arm" not in answer
        assert answer["items"] == alone["items"]
        assert new_of(alone["items"])


def test_the_bundles_have_new_items(bundles: list[Path]) -> None:
    for path in bundles:
        bundle = Bundle.load(path)
        assert {bundle.ids.id(row) for row in range(60) if bundle.popularity[row] == 0} == NEW_IDS
