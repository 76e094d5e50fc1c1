"""Every refusal is a problem document, never a stack trace and never a 500."""

import gzip
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from service.http.problems import KINDS

KEY = "a-key-of-the-shop-1"
JSON = {"content-type": "application/json"}


def check_problem(answer: Any, status: int, name: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "total;dur=" in answer.headers["server-timing"]
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:vlm2rec:problem:{name}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return body


@pytest.mark.parametrize("path", ["/recommend", "/similar", "/events"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"k": NaN}', b"\xff", b"[" * 3000, b'{"user_id": "\\ud800"}', b"nonsense"]
)
def test_what_is_no_json(client: TestClient, path: str, body: bytes) -> None:
    problem = check_problem(client.post(path, content=body, headers=JSON), 400, "malformed-json")
    assert problem["detail"].startswith("the body must be JSON; ")


@pytest.mark.parametrize("path", ["/recommend", "/similar", "/events"])
def test_what_is_not_declared_as_json(client: TestClient, path: str) -> None:
    problem = check_problem(client.post(path, content=b"{}"), 415, "unsupported-media-type")
    assert problem["detail"] == "content-type must be application/json in UTF-8; received nothing"
    answer = client.post(path, content=b"{}", headers={"content-type": "text/plain"})
    assert 'received "text/plain"' in check_problem(answer, 415, "unsupported-media-type")["detail"]


@pytest.mark.parametrize("path", ["/recommend", "/recommend/batch", "/similar", "/events"])
@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP", "identity, gzip", "x-unknown"])
def test_a_body_that_is_encoded(client: TestClient, path: str, coding: str) -> None:
    answer = client.post(path, content=gzip.compress(b'{"items": ["i1"]}'), headers=JSON | {"content-encoding": coding})
    problem = check_problem(answer, 415, "unsupported-media-type")
    assert problem["detail"] == (f'content-encoding must be identity: send the body as it is; received "{coding}"')
    assert answer.headers["accept-encoding"] == "identity"


def test_a_body_that_is_said_to_be_as_it_is(client: TestClient) -> None:
    for coding in ("identity", ""):
        answer = client.post("/recommend", json={"items": ["i1"]}, headers={"content-encoding": coding})
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/recommend", "/similar", "/events"])
def test_ten_megabytes(client: TestClient, path: str) -> None:
    big = b'{"user_id": "' + b"x" * 10_000_000 + b'"}'
    detail = "the body must have at most 1048576 bytes; send fewer items or events at once"
    assert check_problem(client.post(path, content=big, headers=JSON), 413, "body-too-large")["detail"] == detail

    def parts() -> Iterator[bytes]:
        for start in range(0, len(big), 100_000):
            yield big[start : start + 100_000]

    answer = client.post(path, content=parts(), headers=JSON)
    assert answer.request.headers["transfer-encoding"] == "chunked"
    check_problem(answer, 413, "body-too-large")


def test_the_largest_body_that_is_accepted(open_client: Any) -> None:
    with open_client(body_limit_bytes=2000) as client:
        body = b'{"items": ["i1"]}'
        assert client.post("/recommend", content=body.ljust(2000), headers=JSON).status_code == 200
        check_problem(client.post("/recommend", content=body.ljust(2001), headers=JSON), 413, "body-too-large")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nowhere"),
        ("POST", "/recommend/"),
        ("POST", "/recommend/batches"),
        ("POST", "/%72ecommend"),
        ("GET", "/users"),
        ("GET", "/users/u/profiles"),
        ("GET", "/users//history"),
        ("DELETE", "/users/a/b"),
        ("GET", "/items/"),
        ("GET", "/items/ein Tee/grün"),
        ("GET", "/é"),
        ("GET", "/nowhere//"),
    ],
)
def test_paths_without_a_route(client: TestClient, method: str, path: str) -> None:
    problem = check_problem(client.request(method, path), 404, "unknown-path")
    assert problem["detail"].startswith("no route has the path /")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/recommend", "POST"),
        ("PUT", "/events", "POST"),
        ("POST", "/items/i1", "GET, HEAD"),
        ("HEAD", "/recommend", "POST"),
        ("OPTIONS", "/recommend", "POST"),
        ("PATCH", "/bundle", "GET, HEAD"),
        ("OPTIONS", "/experiments/models", "DELETE, GET, HEAD, PUT"),  # three routes
        ("OPTIONS", "/users/samples", "GET, HEAD"),  # not those of /users/{user_id}
    ],
)
def test_methods_that_a_path_does_not_take(client: TestClient, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    assert answer.headers["allow"] == allowed
    if method == "HEAD":
        assert answer.status_code == 405
        return
    problem = check_problem(answer, 405, "method-not-allowed")
    assert problem["detail"] == f"{path} takes {allowed}; received {method}"


@pytest.mark.parametrize(
    ("query", "named", "received"),
    [("k=5", "k", '"5"'), ("debug", "debug", '""'), ("%FF=1", "\ufffd", '"1"'), ("&&", "query", '"&&"')],
)
def test_query_parameters_are_not_ignored(client: TestClient, query: str, named: str, received: str) -> None:
    answer = client.post(f"/recommend?{query}", json={"items": ["i1"]})
    problem = check_problem(answer, 422, "rule-broken")
    assert problem["detail"] == f"query parameter {named} is not known to this route; received {received}"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": ["i1"], "k": 0}, "k"),
        ({"items": ["i1"], "k": 1001}, "k"),
        ({"items": ["i1"], "k": "x"}, "k"),
        ({"items": ["i1"], "k": 10**30}, "k"),
        ({"items": [{"item_id": "i1", "weight": None}]}, "items[0].weight"),
        ({"items": ["i1"], "colour": "red"}, "colour"),
        ({"items": [["i1"]]}, "items[0]"),
        ({"items": {"i1": 1}}, "items"),
        ({}, "body"),
        (["i1"], "body"),
        ("i1", "body"),
        (None, "body"),
    ],
)
def test_a_broken_rule(client: TestClient, body: Any, field: str) -> None:
    answer = client.post("/recommend", content=json.dumps(body), headers=JSON)
    problem = check_problem(answer, 422, "rule-broken")
    assert problem["errors"][0]["field"] == field
    assert problem["detail"].startswith(f"{field} ")


def test_at_most_twenty_violations_are_listed(client: TestClient) -> None:
    body = {"items": ["i1"], **{f"field{number}": 1 for number in range(100)}}
    problem = check_problem(client.post("/recommend", json=body), 422, "rule-broken")
    assert len(problem["errors"]) == 20
    assert problem["detail"].endswith("(and 99 more)")


@pytest.mark.parametrize("given", ["x" * 129, "tab\there", "", "ümlaut".encode()])
def test_a_request_id_that_is_none_is_replaced(client: TestClient, given: str | bytes) -> None:
    made = client.get("/livez", headers=[("X-Request-ID", given)]).headers["x-request-id"]
    assert len(made) == 32
    assert made.isalnum()


def test_keys(open_client: Any) -> None:
    with open_client(api_keys=f"{KEY},another-key-of-the-shop") as client:
        body = {"items": ["i1"]}
        answer = client.post("/recommend", json=body)
        check_problem(answer, 401, "key-missing")
        assert answer.headers["www-authenticate"] == "Bearer"
        check_problem(client.post("/recommend", json=body, headers={"X-API-Key": "wrong"}), 403, "key-refused")
        assert client.post("/recommend", json=body, headers={"X-API-Key": KEY}).status_code == 200
        bearer = {"Authorization": "Bearer another-key-of-the-shop"}
        assert client.post("/recommend", json=body, headers=bearer).status_code == 200
        for path in ("/bundle", "/items", "/items/i1", "/users/u/history"):
            check_problem(client.get(path), 401, "key-missing")
        check_problem(client.delete("/users/u"), 401, "key-missing")
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 200


def test_an_unexpected_error_shows_nothing(
    client: TestClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret inner workings")

    monkeypatch.setattr(bundle, "search", broken)
    answer = client.post("/recommend", json={"items": ["i1"]}, headers={"X-Request-ID": "find me"})
    problem = check_problem(answer, 500, "internal")
    assert problem["detail"] == "the log has the reason under request_id find me"
    assert "secret" not in answer.text
    monkeypatch.undo()
    assert client.post("/recommend", json={"items": ["i1"]}).status_code == 200


def test_problem_kinds_are_distinct() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)


def test_one_bad_request_does_not_disturb_another(client: TestClient) -> None:
    wanted = client.post("/recommend", json={"items": ["i1", "i2"]}).json()["items"]
    wrong: list[str] = []

    def ask(number: int) -> None:
        for _ in range(10):
            if number % 2:
                answer = client.post("/recommend", json={"items": ["i1", "i2"]})
                if answer.status_code != 200 or answer.json()["items"] != wanted:
                    wrong.append(answer.text)
            elif client.post("/recommend", content=b'{"items": [', headers=JSON).status_code != 400:
                wrong.append("not refused")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
