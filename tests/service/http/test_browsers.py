"""Security headers of every response, the policy of the page at /docs, and CORS."""

import base64
import hashlib
import re
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.bundles.active_bundle import ActiveBundle
from service.http.problems import HEAD_TOO_LARGE, RequestRefusal
from service.http.request_context import CONTEXT, RequestContext
from service.http.security_headers import missing_headers
from tests.support.shops import OpenClient

SHOP = "https://shop.example"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("GET", "/metrics", 200),
        ("GET", "/items", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 200),
        ("GET", "/nothing", 404),
        ("PUT", "/recommend", 405),
        ("POST", "/recommend", 415),
        ("POST", "/bundle/reload", 403),
        ("DELETE", "/users/nobody", 204),
    ],
)
def test_every_answer_has_them(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path, follow_redirects=False)
    assert answer.status_code == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "server" not in answer.headers
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert len(answer.headers) == len(set(answer.headers))  # none twice


def test_what_an_answer_says_itself_stays() -> None:
    assert (b"cache-control", b"no-store") in missing_headers([(b"content-type", b"a")])
    kept = missing_headers([(b"cache-control", b"max-age=9"), (b"content-security-policy", b"p")])
    assert {name for name, _ in kept} == {b"x-content-type-options", b"referrer-policy"}
    assert b"content-security-policy" in dict(missing_headers([(b"cache-control", b"x")]))
    assert b"cache-control" in dict(missing_headers([(b"content-security-policy", b"x")]))


def test_the_documentation_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r"""(?:src|href)=["']([^"']*)["']""", page.text)
    assert sorted(loaded) == ["data:,", "docs/swagger-ui.css", "docs/swagger-ui.js"]
    assert "url: 'openapi.json'," in page.text  # relative as well: a proxy may put a prefix before all of it
    script, style = client.get("/docs/swagger-ui.js"), client.get("/docs/swagger-ui.css")
    assert script.headers["content-type"].startswith("text/javascript")
    assert style.headers["content-type"].startswith("text/css")
    assert "SwaggerUIBundle" in script.text
    assert script.headers["cache-control"] == "public, max-age=86400"


def test_only_the_script_of_the_page_itself_may_run(client: TestClient) -> None:
    page = client.get("/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert policy["connect-src"] == "'self'"


@pytest.mark.parametrize(
    ("method", "names"),
    [("POST", "content-type,traceparent,tracestate"), ("HEAD", "x-api-key, traceparent"), ("GET", "baggage")],
)
def test_a_page_that_is_listed_may_trace_its_requests(open_client: OpenClient, method: str, names: str) -> None:
    asked = {"origin": SHOP, "access-control-request-method": method, "access-control-request-headers": names}
    with open_client(cors_origins=SHOP) as client:
        allowed = client.options("/recommend", headers=asked)
        assert (allowed.status_code, allowed.text) == (200, "OK")
        permitted = {name.strip() for name in allowed.headers["access-control-allow-headers"].lower().split(",")}
        assert {name.strip() for name in names.split(",")} <= permitted


def test_no_page_of_another_origin_may_call_unless_it_is_listed(open_client: OpenClient) -> None:
    asked = {"origin": SHOP, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    with open_client() as client:
        assert client.options("/recommend", headers=asked).status_code == 405
        assert "access-control-allow-origin" not in client.get("/items", headers={"origin": SHOP}).headers
    with open_client(cors_origins=f"{SHOP}, https://other.example:8443") as client:
        allowed = client.options("/recommend", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == SHOP
        assert "x-api-key" in allowed.headers["access-control-allow-headers"].lower()
        assert allowed.headers["x-request-id"]
        answer = client.get("/items", headers={"origin": SHOP})
        assert answer.headers["access-control-allow-origin"] == SHOP
        assert "access-control-allow-credentials" not in answer.headers
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        foreign = {**asked, "origin": "https://evil.example"}
        assert client.options("/recommend", headers=foreign).status_code == 400
        assert "access-control-allow-origin" not in client.get("/items", headers=foreign).headers


@pytest.mark.parametrize(("method", "path"), [("GET", "/items/i1"), ("GET", "/items"), ("GET", "/users/u/history")])
def test_a_page_can_read_an_unexpected_error(
    open_client: OpenClient, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    def broken(_bundle: ActiveBundle) -> None:
        raise ZeroDivisionError

    with open_client(cors_origins=SHOP) as client:
        monkeypatch.setattr(ActiveBundle, "admit", broken)
        answer = client.request(method, path, headers={"origin": SHOP})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, SHOP)
        assert answer.json()["type"] == "urn:vlm2rec:problem:internal"
        assert answer.headers["vary"] == "Origin"
        assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        assert len(answer.headers) == len(set(answer.headers))
        foreign = client.request(method, path, headers={"origin": "https://evil.example"})
        assert (foreign.status_code, "access-control-allow-origin" in foreign.headers) == (500, False)


def test_a_page_can_read_a_refusal_of_its_head(open_client: OpenClient) -> None:
    with open_client(cors_origins=SHOP) as client:
        app: Any = client.app

        async def refused(scope: Any, receive: Any, send: Any) -> None:
            refusal = RequestRefusal(HEAD_TOO_LARGE, "too large")
            context = {CONTEXT: RequestContext(time.perf_counter(), refusal)}
            await app(scope if scope["type"] != "http" else scope | context, receive, send)

        asked = {"origin": SHOP, "access-control-request-method": "GET"}
        for method in ("GET", "OPTIONS"):
            answer = TestClient(refused).request(method, "/items", headers=asked)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (431, SHOP)
