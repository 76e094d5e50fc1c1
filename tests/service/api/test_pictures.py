"""Pictures and text search of the catalogue over HTTP."""

import hashlib
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from service.http.entity_tags import entity_tag, none_match


def test_a_picture_with_its_tag(pictured: TestClient) -> None:
    answer = pictured.get("/items/i8/image")
    assert (answer.status_code, answer.content) == (200, b"\xff\xd8 picture of 8")
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["etag"] == f'"{hashlib.sha256(answer.content).hexdigest()[:32]}"'
    assert answer.headers["cache-control"] == "private, max-age=3600"
    assert answer.headers["x-request-id"]
    assert pictured.get("/items/%F0%9F%91%9F/image").content == b"\xff\xd8 picture of 59"
    assert pictured.get("/items/i8").json()["picture"] is True
    assert pictured.get("/items/i7").json()["picture"] is False


def test_what_the_client_has_is_not_sent_again(pictured: TestClient) -> None:
    tag = pictured.get("/items/i8/image").headers["etag"]
    for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = pictured.get("/items/i8/image", headers={"If-None-Match": sent})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"]
        assert answer.headers["x-request-id"]
        assert "content-type" not in answer.headers
    for sent in ('"other"', tag.strip('"'), ""):
        assert pictured.get("/items/i8/image", headers={"If-None-Match": sent}).status_code == 200
    assert pictured.get("/items/i9/image", headers={"If-None-Match": tag}).status_code == 200


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("i7", "no-picture"),
        ("gone", "unknown-item"),
        ("..%2f..%2fetc%2fpasswd", "unknown-item"),
        ("images%2F8.png", "unknown-item"),
        ("%00", "unknown-item"),
    ],
)
def test_there_is_no_picture(pictured: TestClient, path: str, kind: str) -> None:
    answer = pictured.get(f"/items/{path}/image")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:vlm2rec:problem:{kind}"
    assert answer.headers["x-request-id"]


def test_a_bundle_without_pictures(client: TestClient, bundle: Bundle) -> None:
    answer = client.get("/items/i8/image")
    assert answer.status_code == 404
    assert answer.json()["detail"] == f'bundle {bundle.id} has no picture of item "i8"'


def test_tags_are_compared_as_the_rfc_says() -> None:
    tag = entity_tag(b"content")
    assert tag == entity_tag(b"content") != entity_tag(b"other")
    assert none_match(None, tag)
    assert none_match('"a", W/"b"', '"c"')
    assert not none_match('"a", W/"b"', '"b"')
    assert not none_match('"a,b"', '"a,b"')
    assert none_match('"a,b"', '"b"')
    assert not none_match(" * ", tag)


def search(client: TestClient, **query: Any) -> tuple[list[str], str | None]:
    answer = client.get("/items", params=query)
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]], answer.json()["next"]


def test_search_in_ids_and_texts_page_by_page(client: TestClient) -> None:
    assert search(client, q="number 12") == (["i12"], None)
    assert search(client, q="ITEM NUMBER 12")[0] == ["i12"]
    assert search(client, q="grün")[0] == ["ein Tee/grün"]
    found: list[str] = []
    cursor: str | None = "0"
    while cursor is not None:
        page, cursor = search(client, q="shoes", limit=7, cursor=cursor)
        found += page
    assert found == [f"i{row}" for row in range(0, 58, 3)]
    assert search(client, q="shoes", cursor=10_000) == ([], None)
    assert search(client, q="images/") == ([], None)
    assert client.get("/items?q=number 12").json()["items"][0] == client.get("/items/i12").json()


@pytest.mark.parametrize("query", ["q=", "q=%00", "q=a%0Ab", f"q={'x' * 129}", "q=a&limit=0", "q=a&cursor=x"])
def test_searches_that_break_a_rule(client: TestClient, query: str) -> None:
    answer = client.get(f"/items?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] in {"q", "limit", "cursor"}


@pytest.mark.parametrize("text", [".*", "(", "[", "\\", "a|b", "^", "$", "%", "_", "👟", "é" * 128, "null"])
def test_searches_are_plain_texts(client: TestClient, text: str) -> None:
    found, _ = search(client, q=text)
    assert found == (["👟"] if text == "👟" else [])
