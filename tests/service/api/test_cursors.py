"""Cursors of the catalogue: a page of another bundle is refused, never skipped over."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.bundle.manifest import ENCODER_FILE
from index.items.item_table import ItemTable
from service.api.cursors import Cursor, next_cursor
from tests.support.shops import Shop, eventually, other_bundle, serving


def walk(client: TestClient, **query: Any) -> list[str]:
    """All pages, as a client takes them that knows nothing of cursors."""
    found: list[str] = []
    page = client.get("/items", params=query).json()
    while True:
        found += [item["item_id"] for item in page["items"]]
        if page["next"] is None:
            return found
        page = client.get("/items", params={**query, "cursor": page["next"]}).json()


@pytest.mark.parametrize("query", [{}, {"q": "item"}])
def test_a_cursor_of_before_a_swap_says_so(
    open_shop: Any, shop: Shop, day_bundles: list[Path], small_table: ItemTable, tmp_path: Path, query: dict[str, str]
) -> None:
    other = shop.put(other_bundle(small_table, day_bundles[0] / ENCODER_FILE, tmp_path, 20, names="x"))
    with open_shop() as client:
        first = client.get("/items", params={"limit": 25, **query}).json()
        shop.point(other)
        eventually(lambda: serving(client) == other)
        refused = client.get("/items", params={"limit": 25, **query, "cursor": first["next"]})
        assert refused.status_code == 410
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:vlm2rec:problem:catalogue-changed"
        for part in (shop.ids[0], other, "begin again without a cursor"):
            assert part in refused.json()["detail"]
        anew = walk(client, limit=25, **query)
        assert anew == [f"x{row}" for row in range(60) if not query or row != 5]


def test_after_going_back_a_cursor_holds_again(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        cursor = client.get("/items", params={"limit": 25}).json()["next"]
        for bundle_id, status in ((shop.ids[1], 410), (shop.ids[0], 200)):
            shop.point(bundle_id)
            eventually(lambda wanted=bundle_id: serving(client) == wanted)
            assert client.get("/items", params={"cursor": cursor}).status_code == status


def test_pages_of_a_search_end_to_end(client: TestClient, bundle: Bundle) -> None:
    titled = [bundle.ids.id(row) for row in range(60) if row != 5]  # that one has no title
    for limit in (1, 7, 60):
        assert walk(client, limit=limit, q="item number") == titled
        assert walk(client, limit=limit) == [bundle.ids.id(row) for row in range(60)]


def test_a_cursor_of_another_search_is_refused(client: TestClient) -> None:
    cursor = client.get("/items", params={"limit": 5, "q": "item"}).json()["next"]
    browsing = client.get("/items", params={"limit": 5}).json()["next"]
    for wrong in ({"cursor": cursor}, {"cursor": cursor, "q": "number"}, {"cursor": browsing, "q": "item"}):
        answer = client.get("/items", params=wrong)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "cursor"
        assert "must be `next` of a page with the same q" in answer.json()["detail"]


def test_a_number_is_a_place_in_whichever_catalogue_answers(client: TestClient, bundle: Bundle) -> None:
    page = client.get("/items", params={"limit": 1, "cursor": 7}).json()
    assert page["items"][0]["item_id"] == "i7"
    assert page["next"] == f"8.{bundle.id}"


@pytest.mark.parametrize("q", [None, "shoes", "👟", "a.b"])
def test_a_cursor_is_read_as_it_was_written(q: str | None) -> None:
    bundle = "20261123T040501Z-4f3a9c"
    text = next_cursor(123, bundle, q)
    cursor = Cursor.read(text)
    assert (str(cursor), cursor.position, cursor.bundle) == (text, 123, bundle)
    cursor.check(bundle, q)
