"""Keys, headers and bodies are as /openapi.json says; `make fuzz` checks the rest against a running service."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.shops import ADMIN, OpenClient

KEY = "a-data-key-for-this-test"
BY_KEY = [{"bearer": []}, {"key": []}]


def security_by_tag(client: TestClient) -> dict[str, Any]:
    document = client.get("/openapi.json").json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    found = {tag: {str(one.get("security", document["security"])) for one in operations if one["tags"] == [tag]}
             for tag in {tag for one in operations for tag in one["tags"]}}  # fmt: skip
    return {tag: next(iter(each)) for tag, each in found.items() if len(each) == 1}


def test_without_keys_only_admin_routes_need_one(client: TestClient) -> None:
    found = security_by_tag(client)
    assert found.pop("admin") == str(BY_KEY)
    assert found.pop("operations") == "[]"
    assert found == dict.fromkeys(found, str([{}, *BY_KEY]))
    assert "recommend" in found


def test_with_keys_all_but_the_health_routes_need_one(open_client: OpenClient) -> None:
    with open_client(api_keys=[KEY], admin_keys=[ADMIN]) as client:
        found = security_by_tag(client)
        assert found.pop("operations") == "[]"
        assert found == dict.fromkeys(found, str(BY_KEY))
        assert client.get("/livez").status_code == 200
        assert client.get("/bundle").status_code == 401


@pytest.mark.parametrize(
    ("status", "header"), [(401, "WWW-Authenticate"), (405, "Allow"), (429, "Retry-After"), (503, "Retry-After")]
)
def test_what_a_refusal_brings_is_documented(client: TestClient, status: int, header: str) -> None:
    document = client.get("/openapi.json").json()
    for path in document["paths"].values():
        for operation in path.values():
            for answered, answer in operation["responses"].items():
                assert {"X-Request-ID", "Server-Timing"} <= answer["headers"].keys()
                assert (header in answer["headers"]) == (
                    answered in ({"429", "503"} if status >= 429 else {str(status)})
                )


def test_the_headers_are_there(open_client: OpenClient) -> None:
    with open_client(api_keys=[KEY]) as client:
        assert client.get("/bundle").headers["WWW-Authenticate"] == "Bearer"
        assert client.get("/recommend").headers["Allow"] == "POST"
        client.app.state.active_bundle.drain()  # type: ignore[attr-defined]
        answer = client.get("/bundle", headers={"X-API-Key": KEY})
        assert (answer.status_code, int(answer.headers["Retry-After"]) >= 1) == (503, True)


def test_what_a_body_must_have_is_in_its_schema(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    missing = {"properties": {name: {"type": "null"} for name in ("user_id", "session_id", "items")}}
    assert schemas["RecommendRequest"]["not"] == missing
    assert len(schemas["SimilarRequest"]["not"]["anyOf"]) == 2
    assert (schemas["Clause"]["minProperties"], schemas["Clause"]["maxProperties"]) == (2, 3)
    assert {"required": ["gt", "gte"]} in schemas["Clause"]["not"]["anyOf"]


def test_the_root_path_of_a_proxy_is_in_the_document(open_client: OpenClient) -> None:
    with open_client() as client:
        assert "servers" not in client.get("/openapi.json").json()
    with open_client(root_path="/shop/rec") as client:
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/shop/rec"}]
        assert client.get("/items/i1").status_code == 200  # the proxy takes the path away before it gets here
