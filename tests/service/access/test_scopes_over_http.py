"""A key of a file opens the routes of its scopes and no others, over HTTP."""

from pathlib import Path

from service.access.scopes import SCOPES
from tests.support.shops import OpenClient

KEY, ADMIN = "old-key-0123456789", "admin-key-0123456789"


def test_a_key_opens_the_routes_of_its_scopes_alone(open_client: OpenClient, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(f"key-with-the-scope-{scope} scopes={scope}" for scope in SCOPES))
    with open_client(api_keys_file=keys, outcomes=True, admin_keys=[ADMIN]) as client:
        routes = [route for route in client.app.routes if getattr(route, "key_scope", None)]  # type: ignore[attr-defined]
        assert {route.key_scope for route in routes} == set(SCOPES)
        for route in routes:
            (method,) = route.methods - {"HEAD"}
            path = route.path.replace("{user_id}", "anna").replace("{item_id}", "i1")
            for scope in SCOPES:
                headers = {"x-api-key": f"key-with-the-scope-{scope}"}
                answer = client.request(method, path, headers=headers)
                refused = answer.status_code == 403
                assert refused == (scope != route.key_scope), (path, scope)
                if refused:
                    wanted = f"the API key sent does not have the scope {route.key_scope}, which this route needs"
                    assert answer.json()["detail"] == wanted
            assert client.request(method, path, headers={"x-api-key": ADMIN}).status_code != 403


def test_every_data_route_has_a_scope_and_its_row_in_the_docs(open_client: OpenClient) -> None:
    page = (Path(__file__).parents[3] / "docs/security.md").read_text()
    with open_client() as client:
        for route in client.app.routes:  # type: ignore[attr-defined]
            tags = route.documented.tags if getattr(route, "documented", None) else ["operations"]
            if tags[0] in {"operations", "admin"}:
                assert getattr(route, "key_scope", None) is None
                continue
            (method,) = route.methods - {"HEAD"}
            path = route.path.replace("{user_id}", "{id}").replace("{item_id}", "{id}")
            row = next(line for line in page.splitlines() if line.startswith(f"| `{route.key_scope}` |"))
            assert f"`{method} {path}`" in row


def test_a_key_file_alone_closes_the_data_routes(open_client: OpenClient, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with open_client(api_keys_file=keys) as client:
        assert client.get("/items").status_code == 401
        assert client.get("/items", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/livez").status_code == 200
