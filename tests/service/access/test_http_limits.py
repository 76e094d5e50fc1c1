"""The rate limit over HTTP: which requests count together, which are exempt, and the refusal."""

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.support.shops import OpenClient, metric

ONE, TWO, ADMIN = "the-first-key-0123", "the-second-key-0123", "the-admin-key-0123"


def asked(client: TestClient, key: str | None = None, times: int = 1, path: str = "/items") -> list[int]:
    headers = {} if key is None else {"x-api-key": key}
    return [client.get(path, headers=headers).status_code for _ in range(times)]


def test_it_is_off_unless_it_is_set(client: TestClient) -> None:
    assert asked(client, times=50) == [200] * 50
    assert metric(client, "vlm2rec_rate_limited_total") == 0


def test_every_key_has_a_rate_of_its_own_and_admin_keys_too(open_client: OpenClient) -> None:
    with open_client(api_keys=[ONE, TWO], admin_keys=[ADMIN], rate_limit=0.01, rate_burst=3) as client:
        assert asked(client, ONE, 5) == [200, 200, 200, 429, 429]
        assert asked(client, TWO, 1) == [200]
        assert asked(client, ADMIN, 4) == [200, 200, 200, 429]
        assert client.post("/bundle/reload", headers={"x-api-key": ADMIN}).status_code == 429  # one account for both
        bearer = {"authorization": f"Bearer {ONE}"}
        assert client.post("/recommend", json={"items": ["i1"]}, headers=bearer).status_code == 429
        assert asked(client, "a-key-that-is-wrong", 9) == [403] * 9
        assert metric(client, "vlm2rec_rate_limited_total") == 5
        assert metric(client, "vlm2rec_requests_total", route="/items", status="429") == 3


def test_without_keys_every_address_has_one(open_client: OpenClient) -> None:
    with open_client(rate_limit=0.01, rate_burst=2) as client:
        assert asked(client, times=3) == [200, 200, 429]
        assert asked(client, "a-key-is-not-looked-at", 1) == [429]
        forwarded = {"x-forwarded-for": "10.0.0.9"}
        assert client.get("/items", headers=forwarded).status_code == 429  # no proxy is trusted


def test_a_refusal_says_when_to_come_back(open_client: OpenClient) -> None:
    with open_client(rate_limit=0.1, rate_burst=1) as client:
        assert asked(client) == [200]
        answer = client.post("/recommend", json={"user_id": "u"})
        assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert 9 <= int(answer.headers["retry-after"]) <= 10
        body: dict[str, Any] = answer.json()
        assert body["type"] == "urn:vlm2rec:problem:rate-exceeded"
        assert body["detail"] == "at most 0.1 requests a second, 1 at once, are answered to each key or address"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/docs", "/openapi.json"])
def test_health_and_metrics_are_exempt(open_client: OpenClient, path: str) -> None:
    with open_client(rate_limit=0.01, rate_burst=1) as client:
        assert asked(client) == [200]
        assert asked(client, times=5, path=path) == [200] * 5
        assert asked(client) == [429]


def test_a_batch_counts_as_its_members(open_client: OpenClient) -> None:
    from starlette.requests import Request

    from service.access.auth import KeyRing
    from service.access.key_file import KeyFile
    from service.access.rate_limit import RateLimit
    from service.errors import RateExceeded

    now = [0.0]
    limit = RateLimit(10.0, 10, clock=lambda: now[0])
    ring = KeyRing([KeyFile("api_keys_file", [ONE, TWO])], open_without_keys=True, limit=limit)

    def request(key: str) -> Request:
        return Request({"type": "http", "headers": [(b"x-api-key", key.encode())]})

    ring.admit(request(ONE))
    ring.charge(request(ONE), 256)
    ring.admit(request(TWO))
    now[0] = 24.6  # 256 less the 9 that were saved up besides, at ten a second
    with pytest.raises(RateExceeded):
        ring.admit(request(ONE))
    now[0] = 24.8
    ring.admit(request(ONE))
    open_ring = KeyRing([], open_without_keys=True)
    open_ring.admit(request(ONE))
    open_ring.charge(request(ONE), 256)  # no limit, nothing to count


def test_a_batch_counts_as_many_as_it_has_members(open_client: OpenClient) -> None:
    with open_client(rate_limit=0.01, rate_burst=3) as client:
        ask = {"items": ["i1"]}
        assert client.post("/recommend/batch", json={"requests": [ask] * 3}).status_code == 200
        assert client.post("/recommend", json=ask).status_code == 429
