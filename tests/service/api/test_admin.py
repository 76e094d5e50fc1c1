"""Admin keys, and the missing modalities of a response."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from index.bundle.bundle import Bundle
from index.items.item_table import MISSING_FILE
from index.items.modality_status import ModalityStatus
from service.app import create_app
from service.bundles.startup import Startup
from service.errors import SettingsError
from service.settings.load import load_settings
from tests.support.shops import ADMIN, metric, with_file

DATA = "a-data-key-for-tests"
ADMIN_CALLS: list[Callable[..., Any]] = [
    lambda client, **sent: client.put("/items/i1/availability", json={"available": True}, **sent),
    lambda client, **sent: client.post("/bundle/reload", **sent),
    lambda client, **sent: client.post("/bundle/rollback", **sent),
]


def with_key(key: str) -> dict[str, Any]:
    return {"headers": {"authorization": f"Bearer {key}"}}


@pytest.mark.parametrize("call", ADMIN_CALLS)
def test_without_admin_keys_admin_routes_are_closed(open_client: Any, call: Callable[..., Any]) -> None:
    with open_client(api_keys=[DATA]) as client:
        for sent in ({}, with_key(DATA), with_key(ADMIN)):
            answer = call(client, **sent)
            assert (answer.status_code, answer.json()["type"]) == (403, "urn:vlm2rec:problem:key-refused")


@pytest.mark.parametrize("call", ADMIN_CALLS)
def test_only_an_admin_key_opens_admin_routes(open_client: Any, call: Callable[..., Any]) -> None:
    with open_client(api_keys=[DATA], admin_keys=[ADMIN]) as client:
        assert call(client).status_code == 401
        assert call(client, **with_key(DATA)).status_code == 403
        assert call(client, **with_key(ADMIN)).status_code in {204, 409}  # let in


def test_an_admin_key_opens_data_routes_too(open_client: Any) -> None:
    with open_client(api_keys=[DATA], admin_keys=[ADMIN]) as client:
        assert client.get("/items/i1").status_code == 401
        for key in (DATA, ADMIN):
            assert client.get("/items/i1", **with_key(key)).status_code == 200


def test_admin_keys_alone_do_not_close_data_routes(open_client: Any) -> None:
    with open_client(admin_keys=[ADMIN]) as client:
        assert client.get("/items/i1").status_code == 200
        assert client.get("/items/i1", **with_key("a-key-that-nobody-knows")).status_code == 200


def test_a_key_is_for_data_or_for_administrators() -> None:
    with pytest.raises(
        SettingsError,
        match="must be of one kind only: an API key, an admin key or a metrics key, got a value not shown",
    ):
        load_settings(registry="r", api_keys=[DATA], admin_keys=[DATA])
    with pytest.raises(SettingsError, match=r"admin_keys: .*16 to 512 ASCII characters"):
        load_settings(registry="r", admin_keys="short")


def test_admin_routes_take_no_query_and_respect_draining(open_client: Any) -> None:
    with open_client(admin_keys=[ADMIN]) as client:
        assert client.post("/bundle/reload?now=1", **with_key(ADMIN)).status_code == 422
        client.app.state.active_bundle.drain()
        assert client.put("/items/i1/availability", json={"available": True}, **with_key(ADMIN)).status_code == 503


def test_a_watcher_that_has_ended_is_not_ready(open_client: Any) -> None:
    with open_client() as client:
        assert client.get("/readyz").status_code == 200
        client.portal.call(client.app.state.watcher.stop)
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:vlm2rec:problem:not-ready")
        assert client.post("/recommend", json={"items": ["i1"]}).status_code == 200


@pytest.fixture
def unreadable(small_bundle: Path, tmp_path: Path) -> Bundle:
    """The small bundle, in which the picture of `i7` could not be read and that of `i14` was not found."""
    missing = np.load(small_bundle / MISSING_FILE)
    missing[7, 1], missing[14, 1] = ModalityStatus.UNREADABLE, ModalityStatus.NOT_FOUND
    np.save(tmp_path / "missing.npy", missing)
    changed = with_file(small_bundle, tmp_path, MISSING_FILE, (tmp_path / "missing.npy").read_bytes())
    return Bundle.load(changed)


def test_what_an_item_lacks_is_said_and_counted(unreadable: Bundle, redis_url: str, tmp_path: Path) -> None:
    settings = load_settings(registry="unused", redis_url=redis_url, directives_file=str(tmp_path / "d.json"))
    with TestClient(create_app(settings, startup=Startup(unreadable))) as client:
        # every seventh lacks its picture, row 3 has nothing; see `small_table`
        lacking = {f"i{row}": {"image": "absent"} for row in range(0, 60, 7)}
        lacking |= {"i7": {"image": "unreadable"}, "i14": {"image": "not_found"}}
        lacking["i3"] = {"text": "absent", "image": "absent", "behaviour": "cold"}
        body = client.post("/recommend", json={"user_id": "nobody-at-all", "k": 60}).json()
        assert {item["item_id"]: item["missing"] for item in body["items"] if item["missing"]} == lacking
        assert client.get("/items/i7").json()["missing"] == {"image": "unreadable"}
        body = client.post("/similar", json={"item_id": "i1", "k": 60}).json()
        del lacking["i3"]
        assert {item["item_id"]: item["missing"] for item in body["items"] if item["missing"]} == lacking
        for name, of_one in (("vlm2rec_bundle_missing_items", 1), ("vlm2rec_answered_missing_total", 2)):
            assert metric(client, name, slot="image", reason="unreadable") == of_one
            assert metric(client, name, slot="image", reason="not_found") == of_one
            assert metric(client, name, slot="image", reason="absent") == of_one * 7 + 1
            assert metric(client, name, slot="behaviour", reason="cold") == 1
            assert metric(client, name, slot="text", reason="absent") == 1


def test_every_change_is_in_the_audit_log(open_client: Any) -> None:
    with open_client(api_keys=[DATA], admin_keys=[ADMIN]) as client:
        assert client.get("/audit", **with_key(DATA)).status_code == 403
        assert client.get("/audit", **with_key(ADMIN)).json() == {"changes": []}
        for call in ADMIN_CALLS:
            call(client, **with_key(ADMIN))
        hidden = client.put("/items/i2/availability", json={"available": False}, **with_key(ADMIN))
        assert (
            client.put("/items/nothing/availability", json={"available": False}, **with_key(ADMIN)).status_code == 404
        )
        changes = client.get("/audit", **with_key(ADMIN)).json()["changes"]
        assert [(change["action"], change["target"]) for change in changes] == [
            ("hide item", "i2"), ("roll back", None), ("reload", None), ("show item", "i1"),
        ]  # fmt: skip
        assert {change["key"] for change in changes} == {hashlib.sha256(ADMIN.encode()).hexdigest()[:8]}
        assert {change["name"] for change in changes} == {None}
        assert changes[0]["request_id"] == hidden.headers["x-request-id"]
        assert [change["at"] for change in changes] == sorted((change["at"] for change in changes), reverse=True)


def test_the_audit_log_names_who_has_a_name(open_client: Any, tmp_path: Path) -> None:
    bob, carl = "key-of-bob-0123456789", "key-of-carl-0123456789"
    file = tmp_path / "admin-keys"
    file.write_text(f"{bob} name=bob@shop.example\n{carl}\n")
    with open_client(admin_keys=f"{ADMIN} name=anna", admin_keys_file=file) as client:
        for key in (ADMIN, bob, carl):
            hidden = client.put("/items/i2/availability", json={"available": False}, **with_key(key))
            assert hidden.status_code == 204
        changes = client.get("/audit", **with_key(ADMIN)).json()["changes"]
        assert [change["name"] for change in changes] == [None, "bob@shop.example", "anna"]
        assert changes[2]["key"] == hashlib.sha256(ADMIN.encode()).hexdigest()[:8]


def test_without_redis_nothing_is_changed_unnoted(open_client: Any) -> None:
    with open_client(admin_keys=[ADMIN], redis_url="redis://127.0.0.1:1", redis_timeout_ms=50) as client:
        for call in ADMIN_CALLS:
            assert call(client, **with_key(ADMIN)).status_code == 503
