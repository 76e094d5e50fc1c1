"""A service whose registry lies in an object store that is slow, gone, late, or returns half of an object."""

import errno
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from index.bundle.manifest import VECTORS_FILE
from index.bundle.registries import open_registry
from index.bundle.store import bundle_cache
from index.bundle.store.store_registry import StoreRegistry
from index.errors import StoreUnavailable
from service.errors import BundleRefused
from tests.support.processes.service_process import Service
from tests.support.shops import AS_ADMIN, eventually, metric, serving
from tests.support.stores.s3_server import S3Server

URL = "s3://shop/registry"
POINTER = "registry/pointer.json"
Opened = Callable[..., AbstractContextManager[TestClient]]


@pytest.fixture
def publish(s3: S3Server, tmp_path: Path, day_bundles: list[Path]) -> Callable[[int], str]:
    """Publish one of the four bundles from another machine."""
    registry = open_registry(URL, tmp_path / "publisher")

    def publish_day(number: int) -> str:
        return registry.publish(day_bundles[number])

    return publish_day


@pytest.fixture
def opened(open_shop: Opened, tmp_path: Path) -> Opened:
    def open_replica(**settings: object) -> AbstractContextManager[TestClient]:
        return open_shop(**({"registry": URL, "registry_cache": tmp_path / "cache"} | settings))

    return open_replica


def ready(client: TestClient) -> bool:
    return client.get("/readyz").status_code == 200


def errors(client: TestClient, what: str) -> float:
    return metric(client, "vlm2rec_watcher_errors_total", what=what)


def test_a_new_bundle_is_downloaded_and_takes_over(opened: Opened, publish: Callable[[int], str]) -> None:
    first = publish(0)
    with opened() as client:
        assert serving(client) == first
        assert metric(client, "vlm2rec_bundle_download_bytes_total") == 0  # by the start, before there are metrics
        for number in (1, 2):
            published = publish(number)
            eventually(lambda wanted=published: serving(client) == wanted)
            assert metric(client, "vlm2rec_bundles_in_memory") <= 2
        assert metric(client, "vlm2rec_bundle_download_bytes_total") > 10_000
        assert errors(client, "pointer") == errors(client, "download") == 0
        answer = client.post("/bundle/rollback", headers=AS_ADMIN, json={"bundle": first})
        assert answer.json()["bundle"] == first
        publish(3)
        assert serving(client) == first
        assert metric(client, "vlm2rec_registry_age_seconds") == 0  # not needed while a bundle is pinned
        assert client.post("/bundle/reload", headers=AS_ADMIN).json()["pin"] is None


def test_a_store_that_is_gone_changes_nothing_until_it_returns(
    opened: Opened, publish: Callable[[int], str], s3: S3Server
) -> None:
    first = publish(0)
    with opened() as client:
        with s3.faulty(lambda _method, _key: "gone"):
            eventually(lambda: errors(client, "pointer") >= 2)
            assert metric(client, "vlm2rec_registry_age_seconds") > 0.02
            assert ready(client)
            assert serving(client) == first
            answer = client.post("/bundle/reload", headers=AS_ADMIN)
            assert answer.status_code == 409
        second = publish(1)
        eventually(lambda: serving(client) == second)
        eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 0)


def test_a_bundle_that_does_not_arrive_whole_never_answers(
    opened: Opened, publish: Callable[[int], str], s3: S3Server
) -> None:
    active = publish(0)
    with opened() as client:
        for number, fault in enumerate(("half", "altered", "missing"), start=1):
            before = errors(client, "download")
            with s3.faulty(
                lambda method, key, fault=fault: fault if method == "GET" and key.endswith(VECTORS_FILE) else None
            ):
                published = publish(number)
                eventually(lambda before=before: errors(client, "download") >= before + 2)
                assert metric(client, "vlm2rec_bundle_behind") == 1
                assert ready(client)
                assert serving(client) == active
                swap = client.get("/bundle").json()["swap"]
                assert (swap["refused"], swap["downloading"]) == ([], published)
            eventually(lambda wanted=published: serving(client) == wanted)
            active = published
        assert "downloading" not in client.get("/bundle").json()["swap"]


def test_a_slow_store_does_not_delay_what_operators_do(
    opened: Opened, publish: Callable[[int], str], s3: S3Server
) -> None:
    publish(0)
    with opened() as client, s3.faulty(lambda _method, key: 1.0 if key == POINTER else None):
        s3.requests.clear()
        eventually(lambda: s3.asked("GET", POINTER) == 1)
        polls = client.app.state.watcher
        before = polls._polled_at
        eventually(lambda: polls._polled_at > before + 0.1)
        assert s3.asked("GET", POINTER) == 1  # it has not answered yet
        client.put("/items/i1/availability", headers=AS_ADMIN, json={"available": False})
        eventually(lambda: metric(client, "vlm2rec_hidden_items") == 1)


def test_the_age_of_the_registry_is_that_of_the_last_answer(
    opened: Opened, publish: Callable[[int], str], s3: S3Server
) -> None:
    publish(0)
    with opened() as client:
        eventually(lambda: metric(client, "vlm2rec_registry_age_seconds") < 1)
        with s3.faulty(lambda _method, key: 4.0 if key == POINTER else None):
            eventually(lambda: metric(client, "vlm2rec_registry_age_seconds") > 2)
            assert errors(client, "pointer") == 0  # it has not failed yet
        eventually(lambda: metric(client, "vlm2rec_registry_age_seconds") < 1)


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, object]] = []

    def error(self, event: str, **fields: object) -> None:
        self.lines.append((event, fields.get("what")))

    warning = info = error


def test_a_full_cache_stops_no_poll_and_is_logged_once(
    opened: Opened, publish: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    publish(0)
    with opened() as client:
        log = client.app.state.watcher._errors._log = Log()
        with monkeypatch.context() as patched:
            patched.setattr(bundle_cache, "write_durably", full)
            second = publish(1)
            eventually(lambda: serving(client) == second)
            eventually(lambda: errors(client, "cache") >= 3)
            assert errors(client, "pointer") == 0
            assert ready(client)
        eventually(lambda: ("watcher recovered", "cache") in log.lines)
        assert log.lines.count(("watcher error", "cache")) == 1


def test_a_start_without_the_store_serves_the_copy(opened: Opened, publish: Callable[[int], str], s3: S3Server) -> None:
    first = publish(0)
    with opened():
        pass
    second = publish(1)
    with s3.faulty(lambda _method, _key: "gone"):
        with opened() as client:
            assert serving(client) == first
            assert ready(client)
            eventually(lambda: errors(client, "pointer") >= 1)
            s3.fault = lambda _method, _key: None
            eventually(lambda: serving(client) == second)
        s3.fault = lambda _method, _key: "gone"
        with pytest.raises(StoreUnavailable), opened(registry_cache=Path("/nonexistent/cache")):
            pass


def test_a_start_with_a_copy_of_the_bundle_before_alone(
    opened: Opened, publish: Callable[[int], str], s3: S3Server, tmp_path: Path
) -> None:
    first = publish(0)
    with opened():
        pass
    second = publish(1)

    def no_vectors(method: str, key: str) -> str | None:
        return "missing" if method == "GET" and key.endswith(VECTORS_FILE) else None

    with s3.faulty(no_vectors), opened() as client:
        assert serving(client) == first
        eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 1)
        s3.fault = lambda _method, _key: None
        eventually(lambda: serving(client) == second)
    elsewhere = opened(registry_cache=tmp_path / "empty")
    with s3.faulty(no_vectors), pytest.raises(BundleRefused, match="no such object"), elsewhere:
        pass


def test_a_rollback_to_a_bundle_that_cannot_be_downloaded_changes_nothing(
    opened: Opened, publish: Callable[[int], str], s3: S3Server
) -> None:
    first, second = publish(0), publish(1)
    with opened() as client:
        with s3.faulty(lambda _method, _key: "gone"):
            answer = client.post("/bundle/rollback", headers=AS_ADMIN, json={"bundle": first})
            assert answer.status_code == 409
            assert client.get("/bundle").json()["swap"]["pin"] is None
            assert serving(client) == second
        assert client.post("/bundle/rollback", headers=AS_ADMIN).json()["bundle"] == first


def test_a_damaged_copy_is_replaced(opened: Opened, publish: Callable[[int], str], tmp_path: Path) -> None:
    first = publish(0)
    with opened() as client:
        (path,) = (tmp_path / "cache").glob(f"*/{first}/{VECTORS_FILE}")
        before = path.stat().st_ino
        whole = path.read_bytes()
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.seek(len(whole) - 1)
            file.write(bytes([whole[-1] ^ 1]))
        eventually(lambda: path.exists() and path.stat().st_ino != before)
        assert path.read_bytes() == whole
        eventually(lambda: metric(client, "vlm2rec_bundle_behind") == 0)
        eventually(lambda: client.get("/bundle").json()["swap"]["verified"])
        assert serving(client) == first


def test_a_pointer_that_breaks_a_rule_changes_nothing(
    opened: Opened, publish: Callable[[int], str], s3: S3Server
) -> None:
    first = publish(0)
    with opened() as client:
        content, modified = s3.objects[POINTER]
        s3.objects[POINTER] = (json.dumps({**json.loads(content), "places": {}}).encode(), modified)
        eventually(lambda: errors(client, "pointer") >= 2)
        assert serving(client) == first
        s3.objects[POINTER] = (content, modified)
        second = publish(1)
        eventually(lambda: serving(client) == second)


def test_a_service_waits_for_the_first_bundle(opened: Opened, publish: Callable[[int], str], s3: S3Server) -> None:
    with opened(wait_for_bundle=True) as client:
        assert not ready(client)
        first = publish(0)
        eventually(lambda: ready(client))
        assert serving(client) == first


def test_the_copies_of_bundles_in_use_stay(opened: Opened, publish: Callable[[int], str], tmp_path: Path) -> None:
    first = publish(0)
    with opened() as client:
        size = open_registry(URL, tmp_path / "other").list()[0].size
        loader = client.app.state.watcher._loader
        registry = loader._registry
        assert isinstance(registry, StoreRegistry)
        registry._cache._limit_bytes = int(2.5 * size)
        for number in (1, 2):
            published = publish(number)
            eventually(lambda wanted=published: serving(client) == wanted)
        assert not registry.has_copy(first)
        assert [registry.has_copy(info.id) for info in registry.list()] == [False, True, True]


@pytest.mark.slow
def test_two_workers_share_one_download(
    start: Callable[..., Service], publish: Callable[[int], str], s3: S3Server, tmp_path: Path
) -> None:
    first = publish(0)
    service = start(
        *("--registry", URL, "--workers", "2", "--redis", "unix:///nonexistent/redis.sock"),
        VLM2REC_REGISTRY_CACHE=str(tmp_path / "cache"),
        VLM2REC_DIRECTIVES_FILE=str(tmp_path / "directives.json"),
        VLM2REC_POLL_MS="50",
    )
    assert service.call("GET", "/bundle")[1]["bundle"] == first
    s3.requests.clear()
    second = publish(1)
    vectors = s3.asked("GET", VECTORS_FILE)
    eventually(lambda: {service.call("GET", "/bundle")[1]["bundle"] for _ in range(20)} == {second})
    assert s3.asked("GET", VECTORS_FILE) - vectors <= 1
    s3.fault = lambda _method, _key: "gone"
    code, lines = service.end()
    assert code == 0
    assert not any("a-secret-for-tests" in str(line) for line in lines)
