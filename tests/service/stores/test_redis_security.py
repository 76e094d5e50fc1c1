"""Redis over TLS and with the ACL user of docs/security.md; missing permissions give a clear error."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from time import time

import pytest
from redis import Redis
from starlette.testclient import TestClient

from service.errors import HistoriesUnavailable, SettingsError
from service.stores.protocols import Edition, Event, session_owner
from service.stores.redis_histories import RedisHistories
from tests.support.shops import OpenClient, eventually, metric
from tests.support.stores.exports import Shop
from tests.support.stores.real_redis import open_histories, open_operator_state
from tests.support.stores.redis_clusters import redis_cluster
from tests.support.stores.redis_servers import Certificates, free_port, program_with_tls, redis_server

PAGE = Path(__file__).parents[3] / "docs" / "security.md"
PASSWORD = "a-password-of-the-service"
ADMIN = "an-admin-key-0123456789"


WATCHER = "user watcher on >watching ~* &* +@all"
HANDSHAKE = {"auth", "ping"}
FEATURES = {"select", "wait", "cluster|slots", "asking"}  # the page says when
BACKUP = {"dump", "pttl", "restore", "scan"}  # of another user: docs/backup.md


def documented_user() -> str:
    (line,) = re.findall(r"^user vlm2rec .*$", PAGE.read_text(), re.MULTILINE)
    return str(line).replace("PASSWORD", PASSWORD)


@pytest.fixture(scope="module")
def guarded_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A server whose only user, but one that watches it, is the one in docs/security.md; where its socket is."""
    folder, line = tmp_path_factory.mktemp("redis-acl"), documented_user()
    assert "resetchannels ~vlm2rec:* -@all +" in line
    assert not re.search(r"[+]@|allcommands|allkeys|~[*]", line)
    with redis_server(folder, "port 0", "user default off", line, WATCHER):
        yield folder / "redis.sock"


def refusals(socket: Path, user: str = "vlm2rec") -> list[tuple[str, str]]:
    """What a user asked for and was refused since the last call: the reason and the command or key."""
    with Redis(unix_socket_path=str(socket), username="watcher", password="watching", decode_responses=True) as client:
        found = client.acl_log()
        client.acl_log_reset()
    return [(entry["reason"], entry["object"]) for entry in found if entry["username"] == user]


def test_the_documented_user_may_run_what_the_code_runs_and_nothing_else(guarded_redis: Path) -> None:
    with Redis(unix_socket_path=str(guarded_redis), username="watcher", password="watching") as client:
        known = {name.lower() for name in client.command()}
    quoted = {
        word.lower()
        for file in (PAGE.parents[1] / "service/stores").rglob("*.py")
        if file.name != "redis_reasons.py"  # names the errors of Redis
        for word in re.findall(r"['\"]([A-Z]{3,})['\"]", file.read_text())
    }
    allowed = set(re.findall(r"[+](\S+)", documented_user()))
    run = {"cluster|slots" if name == "cluster" else name for name in quoted & known}
    assert run - allowed == BACKUP | FEATURES - {"select"}  # of the handshake
    assert allowed - run == HANDSHAKE
    for name in FEATURES | allowed:
        assert f"+{name}" in PAGE.read_text()


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
    assert refusals(guarded_redis) == []


def test_it_is_enough_for_sessions_outcomes_and_experiments(guarded_redis: Path, open_client: OpenClient) -> None:
    url, admin = f"unix://vlm2rec:{PASSWORD}@{guarded_redis}", {"x-api-key": ADMIN}
    with open_client(redis_url=url, redis_prefix="vlm2rec:o", admin_keys=[ADMIN], outcomes=True) as client:
        arms = [{"name": name, "share": 0.5} for name in ("old", "new")]
        put = client.put("/experiments/e", json={"interleave": True, "arms": arms}, headers=admin)
        assert put.status_code == 200
        visit = {"session_id": "s", "item_id": "i1"}
        late = [{**visit, "timestamp": at} for at in (time() - 5, time() - 9)]
        assert client.post("/events", json={"events": [*late, {**visit, "type": "impression"}]}).status_code == 200
        answer = client.post("/recommend", json={"session_id": "s"}).json()
        assert answer["arm"] == "e/old+new"
        click = {"session_id": "s", "item_id": answer["items"][0]["item_id"], "type": "click"}
        assert client.post("/events", json={**click, "request_id": answer["request_id"]}).status_code == 200
        eventually(lambda: any(one.get("clicks") for one in client.get("/outcomes").json()["outcomes"]))
        assert client.post("/users/anna/merge", json={"session_id": "s"}).json()["moved"] == 3
        assert client.delete("/experiments/e", headers=admin).is_success
        assert len(client.get("/audit", headers=admin).json()["changes"]) == 2
        assert client.delete("/users/anna").status_code == 204
    assert refusals(guarded_redis) == []


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
    assert refusals(guarded_redis) == []


def test_it_is_enough_for_the_layout_without_buckets(guarded_redis: Path) -> None:
    with Redis(unix_socket_path=str(guarded_redis), username="watcher", password="watching") as client:
        client.xadd("vlm2rec:old:events", {"user_id": "anna", "item_id": "a", "timestamp": "1", "type": ""})
        for user in ("anna", "bob"):
            client.rpush(f"vlm2rec:old:{{{user}}}:history", "a\x1f1\x1f")
            client.zadd(f"vlm2rec:old:{{{user}}}:events", {"e": 1.0})

    async def all_of_it() -> None:
        store = open_histories(f"unix://vlm2rec:{PASSWORD}@{guarded_redis}", prefix="vlm2rec:old", timeout_s=5.0)
        assert len(await store.append([Event("anna", "b", 2.0, event_id="f")])) == 1
        assert [entry.item_id for entry in await store.entries("anna")] == ["a", "b"]
        await store.append([Event(session_owner("s"), "c", 3.0)])
        assert await store.merge("s", "bob") == 1
        await store.erase("anna")
        await store.erase("bob")
        await store.close()

    asyncio.run(all_of_it())
    assert refusals(guarded_redis) == []


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
    assert refusals(guarded_redis) == []


ONLY_FOR_FEATURES = ("hscan", "hlen", "hdel", "hgetall")


async def two_sessions(store: RedisHistories) -> None:
    """Events of two sessions, a merge that is repeated and one that erases the older session, and an erasure."""
    try:
        for session in ("s", "t"):
            await store.append([Event(session_owner(session), "a", 1.0, event_id="e")])
            assert await store.merge(session, "anna") == 1
            assert await store.merge(session, "anna") == 0
        await store.append([Event(session_owner("t"), "b", 2.0)])
        await store.erase("anna")
    finally:
        await store.close()


def test_without_export_and_outcomes_one_redis_needs_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.stores.history_records.MOST_MERGES", 1)
    less = " ".join([documented_user(), *(f"-{name}" for name in ONLY_FOR_FEATURES)])
    with redis_server(tmp_path, "port 0", "user default off", less, WATCHER):
        url = f"unix://vlm2rec:{PASSWORD}@{tmp_path}/redis.sock"
        asyncio.run(two_sessions(open_histories(url, prefix="vlm2rec", timeout_s=5.0)))
        assert refusals(tmp_path / "redis.sock") == []


@pytest.mark.parametrize("without", [None, "hscan", "hlen", "hdel", "hgetall", "asking"])
def test_a_cluster_needs_more_for_merges_and_erasures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: str | None
) -> None:
    monkeypatch.setattr("service.stores.deployment.session_merge.MOST_MERGES", 1)
    line = f"{documented_user()} +cluster|slots +asking" + (f" -{without}" if without else "")
    with redis_cluster(tmp_path / "nodes", line, masters=1) as cluster:
        store = open_histories(cluster.url.replace("//", f"//vlm2rec:{PASSWORD}@"), prefix="vlm2rec", timeout_s=5.0)
        if without in {None, "hscan", "asking"}:  # an export; a slot that moves
            asyncio.run(two_sessions(store))
        else:
            with pytest.raises(HistoriesUnavailable, match=f"NOPERM: its user may not run the command {without}"):
                asyncio.run(two_sessions(store))


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
