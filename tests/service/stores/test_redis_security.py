"""Redis over TLS and with the ACL user of docs/security.md; missing permissions give a clear error."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.errors import SettingsError
from service.stores.protocols import Edition, Event
from service.stores.redis_histories import RedisHistories
from tests.support.shops import OpenClient, eventually, metric
from tests.support.stores.exports import Shop
from tests.support.stores.real_redis import open_histories, open_operator_state
from tests.support.stores.redis_servers import Certificates, free_port, program_with_tls, redis_server

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
PASSWORD = "a-password-of-the-service"
ADMIN = "an-admin-key-0123456789"


@pytest.fixture(scope="module")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server whose only user is the one in docs/security.md; where its socket is."""
    (line,) = re.findall(r"^user vlm2rec .*$", PAGE.read_text(), re.MULTILINE)
    folder = tmp_path_factory.mktemp("redis-acl")
    assert "resetchannels ~vlm2rec:* -@all +" in line
    assert not re.search(r"[+]@|allcommands|allkeys|~[*]", line)
    with redis_server(folder, "port 0", "user default off", line.replace("PASSWORD", PASSWORD)):
        yield folder / "redis.sock"


def store_and_read(client: TestClient) -> tuple[int, str | None, str]:
    """Status of an event, and how a recommendation for the same user came about."""
    stored = client.post("/events", json={"user_id": "anna", "item_id": "i1", "event_id": "1"}).status_code
    answer = client.post("/recommend", json={"user_id": "anna"})
    assert answer.status_code == 200
    return stored, answer.json()["degraded"], client.get("/readyz").json()["redis"]


def test_the_documented_user_is_enough(guarded_redis: Path, open_client: OpenClient) -> None:
    url = f"unix://vlm2rec:{PASSWORD}@{guarded_redis}"
    admin = {"x-api-key": ADMIN}
    shared = {"rate_limit": 1000.0, "rate_shared": True}
    with open_client(redis_url=url, redis_prefix="vlm2rec", admin_keys=[ADMIN], **shared) as client:
        assert store_and_read(client) == (200, None, "up")
        assert client.get("/users/anna/history").json()["items"][0]["item_id"] == "i1"
        for available in (False, True):
            body = {"available": available}
            assert client.put("/items/i2/availability", json=body, headers=admin).status_code == 204
        assert client.delete("/users/anna").status_code == 204
        assert client.get("/users/anna/history").json()["items"] == []
        eventually(lambda: metric(client, "vlm2rec_redis_seconds_count", operation="rates") >= 1)
        assert "vlm2rec_redis_errors_total{" not in client.get("/metrics").text


def test_it_is_enough_for_the_pin_and_for_taking_everything_back(guarded_redis: Path) -> None:
    async def all_of_it() -> None:
        store = open_operator_state(f"unix://vlm2rec:{PASSWORD}@{guarded_redis}", prefix="vlm2rec:b", shown_cap=1)
        nothing = await store.edition()
        assert await store.pin("bundle", nothing)
        for item in ("a", "b"):
            assert await store.hide(item, nothing)
            assert await store.show(item, nothing)
        now = await store.edition()
        await store.restore(Edition(now.epoch, now.number + 5), "bundle", ["x", "y"])
        changes = await store.changes(nothing)
        assert (changes.pin, sorted(changes.hidden)) == ("bundle", ["x", "y"])
        await store.close()
        histories = open_histories(f"unix://vlm2rec:{PASSWORD}@{guarded_redis}", prefix="vlm2rec:b")
        assert await histories.stream() == []
        await histories.close()

    asyncio.run(all_of_it())


def test_it_is_enough_for_an_export(guarded_redis: Path, tmp_path: Path) -> None:
    shop = Shop(f"unix://vlm2rec:{PASSWORD}@{guarded_redis}", tmp_path / "export", "vlm2rec:exported")

    async def all_of_it(store: RedisHistories) -> None:
        await shop.export()
        await store.append([Event("anna", str(number), 1.0) for number in range(3)])
        await store.erase("anna")
        await store.append([Event("anna", str(number), 1.0) for number in range(3)])
        done = await shop.export()
        assert (done.events, done.erasures, done.lost) == (2, 1, 2)
        async with shop.events() as events:
            assert await events.detach() == 0

    shop.run(all_of_it, stream_cap=64 * 2)


@pytest.mark.parametrize(
    ("user", "prefix"),
    [(f"vlm2rec:{PASSWORD}@", "another"), ("vlm2rec:wrong@", "vlm2rec"), ("nobody:wrong@", "vlm2rec"), ("", "vlm2rec")],
)
def test_less_degrades(guarded_redis: Path, open_client: OpenClient, user: str, prefix: str) -> None:
    with open_client(redis_url=f"unix://{user}{guarded_redis}", redis_prefix=prefix) as client:
        stored, degraded, redis = store_and_read(client)
        assert (stored, degraded) == (503, "history_unavailable")
        assert redis == ("up" if prefix == "another" else "down")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.program("redis-server")  # that of the wheel does not speak TLS
@pytest.mark.parametrize("mutual", [False, True])
def test_tls(tmp_path: Path, certificates: Certificates, open_client: OpenClient, mutual: bool) -> None:
    program, port = program_with_tls(), free_port()
    certificate, key = certificates.issue("127.0.0.1")
    ours, our_key = certificates.issue("service")
    lines = (
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {certificate}",
        f"tls-key-file {key}",
        f"tls-ca-cert-file {certificates.authority}",
        f"tls-auth-clients {'yes' if mutual else 'no'}",
        f"requirepass {PASSWORD}",
    )
    url = f"rediss://:{PASSWORD}@127.0.0.1:{port}/0"
    trusted = f"{url}?ssl_ca_certs={certificates.authority}"
    identified = f"{trusted}&ssl_certfile={ours}&ssl_keyfile={our_key}"
    with redis_server(tmp_path, *lines, program=program):
        with open_client(redis_url=identified) as client:
            assert store_and_read(client) == (200, None, "up")
        bad = [url, trusted.replace("127.0.0.1", "localhost"), url.replace("rediss", "redis")]
        for refused in [*bad, trusted] if mutual else bad:
            with open_client(redis_url=refused, redis_timeout_ms=400) as client:
                assert store_and_read(client) == (503, "history_unavailable", "down"), refused
        if not mutual:
            with open_client(redis_url=trusted) as client:
                assert store_and_read(client) == (200, None, "up")


@pytest.mark.parametrize("query", ["?ssl_ca_cert=x", "?colour=red", "?socket_timeout=fast"])
def test_a_parameter_unknown_to_redis_is_reported_at_the_start(query: str) -> None:
    with pytest.raises(SettingsError, match="redis_url must be a redis://, rediss:// or unix:// URL"):
        open_histories(f"rediss://:{PASSWORD}@localhost/0{query}")
    with pytest.raises(SettingsError):
        open_histories("redis://localhost/0?ssl_ca_certs=x")  # needs rediss://


def test_a_missing_certificate_degrades(open_client: OpenClient) -> None:
    with open_client(redis_url="rediss://127.0.0.1:1/0?ssl_ca_certs=/nowhere.pem") as client:
        assert store_and_read(client) == (503, "history_unavailable", "down")
