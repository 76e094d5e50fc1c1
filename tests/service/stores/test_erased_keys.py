"""After an erasure no key of Redis has the user, a session of the user or a hash of them, and the sessions are free."""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import redis
from starlette.testclient import TestClient

from service.stores.history_keys import old_keys_of, old_stream_key
from service.stores.outcomes.answer_records import user_fingerprint
from service.stores.protocols import session_owner
from tests.support.shops import AS_ADMIN, OpenClient, eventually

if TYPE_CHECKING:
    from tests.support.stores.redis_clusters import Cluster

EXPERIMENT = {"arms": [{"name": "control", "share": 0.5}, {"name": "more", "share": 0.5}]}
READERS: dict[bytes, Callable[["redis.Redis[bytes]", bytes], Any]] = {
    b"none": lambda node, key: None,  # it expired
    b"string": lambda node, key: node.get(key),
    b"hash": lambda node, key: node.hgetall(key),
    b"list": lambda node, key: node.lrange(key, 0, -1),
    b"zset": lambda node, key: node.zrange(key, 0, -1),
    b"stream": lambda node, key: node.xrange(key),
}


@pytest.fixture
def prefix() -> str:
    return f"test-{uuid.uuid4().hex}"


@dataclass(frozen=True)
class Database:
    """One Redis or a cluster: its URL for the service, and its nodes."""

    url: str
    nodes: list["redis.Redis[bytes]"]


@pytest.fixture(params=["one", "cluster"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    if request.param == "one":
        url = request.getfixturevalue("redis_url")
        with redis.Redis.from_url(url) as opened:
            yield Database(url, [opened])
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    with ExitStack() as stack:
        yield Database(cluster.url, [stack.enter_context(redis.Redis(port=server.port)) for server in cluster.nodes])


def contents(database: Database, prefix: str) -> dict[bytes, bytes]:
    """The name of each key with everything that it has, as text of Python."""
    keys = [(node, key) for node in database.nodes for key in node.scan_iter(f"{prefix}*")]
    return {key: b"\n".join(_bytes_of(READERS[node.type(key)](node, key))) for node, key in keys}


def _bytes_of(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from _bytes_of(list(value.items()))
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _bytes_of(part)


def traces_of(names: list[str]) -> dict[str, bytes]:
    """How a user or session may be written: the id, and the hashes that the service makes of one."""
    hashes = {}
    for name in names:
        for owner in (name, session_owner(name)):
            text = owner.encode()
            hashes |= {
                owner: text,
                f"fingerprint of {owner!r}": user_fingerprint(owner),
                f"SHA-256 of {owner!r}": hashlib.sha256(text).digest(),
                f"SHA-256 in hex of {owner!r}": hashlib.sha256(text).hexdigest()[:16].encode(),
                f"BLAKE2 of {owner!r}": hashlib.blake2b(text, digest_size=16).digest(),
            }
    return hashes


def where(database: Database, prefix: str, names: list[str]) -> dict[str, list[bytes]]:
    """The keys that have a trace of a user or session, by trace."""
    stored = contents(database, prefix)
    found = {}
    for trace, written in traces_of(names).items():
        keys = [key for key, value in stored.items() if written in key or written in value]
        if keys:
            found[trace] = keys
    return found


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/recommend", json={"k": 5, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def send(client: TestClient, **event: Any) -> None:
    answer = client.post("/events", json={"item_id": "i7", **event})
    assert answer.status_code == 200, answer.text


def merge(client: TestClient, user: str, session: str, status: int = 200) -> Any:
    answer = client.post(f"/users/{user}/merge", json={"session_id": session})
    assert answer.status_code == status, answer.text
    return answer.json().get("moved")


def live(client: TestClient, user: str, session: str) -> None:
    """Leave data of every kind: before and after the merge, in an experiment, with answers of both."""
    for owner in ({"session_id": session}, {"user_id": user}):
        answer = ask(client, **owner, items=["i1", "i2"])
        shown = answer["items"][0]["item_id"]
        send(client, **owner, event_id=f"e-{user}", request_id=answer["request_id"])
        send(client, **owner, type="impression")
        send(client, **{**owner, "session_id": session}, type="search")
        send(client, **owner, item_id=shown, type="purchase", value=3.0)
    assert merge(client, user, session) >= 1
    send(client, session_id=session)  # of the user now
    ask(client, user_id=user, session_id=session)
    ask(client, session_id=session, items=["i1"])


def test_no_key_has_an_erased_user_or_session(open_shop: OpenClient, database: Database, prefix: str) -> None:
    if len(database.nodes) == 1:  # the old layout does not exist in a cluster
        (node,), old = database.nodes, old_keys_of(prefix, "victim-user")
        node.rpush(old.history, "i3\x1f1\x1f")
        node.zadd(old.event_ids, {"old": 1})
        node.xadd(old_stream_key(prefix), {"user_id": "victim-user", "item_id": "i3", "timestamp": "1", "type": ""})
    shared: dict[str, Any] = {"redis_url": database.url, "redis_prefix": prefix}
    with open_shop(**shared, outcomes=True, rate_limit=1000, rate_shared=True) as client:
        assert client.put("/experiments/pictures", json=EXPERIMENT, headers=AS_ADMIN).status_code == 200
        live(client, "victim-user", "victim-session")
        live(client, "other-user", "other-session")
        names = ["victim-user", "victim-session"]
        others = ["other-user", "other-session"]
        owners = ["victim-user", session_owner("victim-session"), "other-user", session_owner("other-session")]
        marks = {f"fingerprint of {owner!r}" for owner in owners}
        eventually(lambda: marks <= {*where(database, prefix, names + others)})
        before = where(database, prefix, others)
        assert client.delete("/users/victim-user").status_code == 204
        assert where(database, prefix, names) == {}
        assert where(database, prefix, others) == before
        send(client, session_id="victim-session")  # an anonymous session again
        assert merge(client, "next-user", "victim-session") == 1
        assert client.get("/users/victim-user/history").json()["items"] == []


def test_a_session_that_is_erased_for_a_newer_one_leaves_nothing(
    open_shop: OpenClient, database: Database, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("history_records", "deployment.session_merge"):
        monkeypatch.setattr(f"service.stores.{module}.MOST_MERGES", 2)
    with open_shop(redis_url=database.url, redis_prefix=prefix, outcomes=True) as client:
        assert client.put("/experiments/pictures", json=EXPERIMENT, headers=AS_ADMIN).status_code == 200
        live(client, "victim-user", "victim-session")
        name = f"fingerprint of {session_owner('victim-session')!r}"
        eventually(lambda: name in where(database, prefix, ["victim-session"]))
        for session in ("x-second", "x-third"):
            send(client, session_id=session)
            assert merge(client, "victim-user", session) == 1
        # Later events of the session are the user's, and name it.
        assert [*where(database, prefix, ["victim-session"])] == ["victim-session"]
        assert client.delete("/users/victim-user").status_code == 204
        assert where(database, prefix, ["victim-user", "victim-session"]) == {}
