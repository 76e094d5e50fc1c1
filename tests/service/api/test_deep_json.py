"""JSON of any depth is refused or answered, never a crash, alone and as a member of a batch."""

from itertools import product
from typing import Any

import orjson
import pytest
from starlette.testclient import TestClient

JSON = {"content-type": "application/json"}
DEPTHS = (10, 253, 254, 255, 256, 900, 1000, 1020, 1024, 1025, 3000, 100_000)
GOOD = {"items": ["i1", "i2"], "k": 3}


def nested(kind: str, depth: int) -> bytes:
    if kind == "lists":
        return b"[" * depth + b"]" * depth
    if kind == "objects":
        return b'{"a":' * depth + b"1" + b"}" * depth
    return b'[{"a":' * (depth // 2) + b"1" + b"}]" * (depth // 2)


KINDS = ("lists", "objects", "both")
FIELDS = {
    "/recommend": (
        b"%b",
        b'{"items": %b}',
        b'{"items": [%b]}',
        b'{"items": [{"item_id": %b}]}',
        b'{"items": ["i1"], "user_id": %b}',
        b'{"items": ["i1"], "k": %b}',
        b'{"items": ["i1"], "unknown": %b}',
        b'{"items": ["i1"], "filter": %b}',
        b'{"items": ["i1"], "filter": {"must": [{"field": "a", "eq": %b}]}}',
        b'{"items": ["i1"], "filter": {"must": [{"field": "a", "in": [%b]}]}}',
        b'{"items": ["i1"], "filter": {"must": [{"field": "a", "gt": %b}]}}',
        b'{"items": ["i1"], "filter": {"must": [%b]}}',
        b'{"items": ["i1"], "slot_weights": {"text": %b}}',
        b'{"items": ["i1"], "fields": [%b]}',
        b'{"items": ["i1"], "exclude": [%b]}',
        b'{"items": ["i1"], "history": %b}',
        b'{"items": ["i1"], "deadline_ms": %b}',
    ),
    "/similar": (b"%b", b'{"item_id": %b}', b'{"items": [%b]}', b'{"item_id": "i1", "filter": %b}'),
    "/events": (
        b"%b",
        b'{"events": %b}',
        b'{"events": [%b]}',
        b'{"user_id": "u", "item_id": %b}',
        b'{"user_id": "u", "item_id": "i1", "timestamp": %b}',
        b'{"events": [{"user_id": "u", "item_id": "i1"}, {"user_id": "u", "item_id": "i1", "type": %b}]}',
    ),
    "/recommend/batch": (b"%b", b'{"requests": %b}', b'{"requests": [{"items": ["i1"]}], "unknown": %b}'),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", FIELDS)
def test_it_is_refused_at_any_depth(client: TestClient, path: str, kind: str) -> None:
    for field, depth in product(FIELDS[path], DEPTHS):
        answer = client.post(path, content=field % nested(kind, depth), headers=JSON)
        in_list = path == "/recommend/batch" and b"requests" in field and kind != "objects" and b"unknown" not in field
        wanted = {200, 400} if in_list else {400, 422}  # a list of one member, which is refused by itself
        assert answer.status_code in wanted, (field, depth, answer.text)
        assert len(answer.content) < 3000


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_answers_the_other_members(client: TestClient, kind: str) -> None:
    alone = client.post("/recommend", json=GOOD).json()["items"]
    for field, depth in product(FIELDS["/recommend"], DEPTHS[:7]):
        body = b'{"requests": [%b, %b, %b]}' % (orjson.dumps(GOOD), field % nested(kind, depth), orjson.dumps(GOOD))
        answer = client.post("/recommend/batch", content=body, headers=JSON)
        assert answer.status_code == 200, (field, depth, answer.text)
        first, deep, last = answer.json()["answers"]
        assert first["items"] == last["items"] == alone
        assert deep["problem"]["status"] in {400, 422}, (field, depth)


def test_a_member_that_cannot_even_be_checked_is_a_problem_of_its_own(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_bundle: Any, fields: Any) -> None:
        if fields == ["crash"]:
            raise RecursionError("deep")

    monkeypatch.setattr("service.api.batch_routes.check_fields", broken)
    answer = client.post("/recommend/batch", json={"requests": [GOOD, GOOD | {"fields": ["crash"]}]})
    assert answer.status_code == 200
    good, bad = answer.json()["answers"]
    assert len(good["items"]) == 3
    assert (bad["problem"]["status"], bad["problem"]["type"]) == (500, "urn:vlm2rec:problem:internal")
    assert "deep" not in answer.text


def test_what_is_too_deep_to_show_is_named(client: TestClient) -> None:
    for kind, shown in (("lists", "a list"), ("objects", "an object")):
        answer = client.post("/recommend", content=b'{"user_id": %b}' % nested(kind, 1000), headers=JSON)
        assert answer.status_code == 422
        said = answer.json()["detail"].removeprefix("user_id must be a string; received ")
        # Python 3.12 and later can show as many levels, of which a message has the first.
        assert said == f"{shown} of too many levels to show" or (len(said) < 200 and said.endswith("…"))
