"""A backup of a service is restored into an empty Redis and registry; half, damaged and misplaced ones are refused."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py

from cli.app import app
from demo.embedded_redis import EmbeddedRedis
from index.bundle.registry import Registry
from service.errors import BackupInterrupted, BackupRefused
from service.export.backup.create import create_backup
from service.export.backup.manifest import MANIFEST_FILE
from service.export.backup.restore import verify_backup
from service.stores.backup.redis_backup import RedisBackup, StoredKey
from service.stores.protocols import Event, session_owner
from tests.support.shops import AS_ADMIN, OpenClient, Shop, eventually, serving
from tests.support.stores.backups import assert_same, fill, make, put_back, seen, silent, stored
from tests.support.stores.exports import Shop as Events
from tests.support.stores.exports import some_events
from tests.support.stores.real_redis import connection
from tests.support.stores.redis_servers import redis_server

ROOT = Path(__file__).parents[3]


@pytest.fixture
def empty_redis() -> Iterator[str]:
    with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture
def shop(tmp_path: Path, day_bundles: list[Path]) -> Shop:
    """A registry of four bundles, the first of them current."""
    return Shop(tmp_path / "registry", day_bundles)


@pytest.fixture
def events(redis_url: str, tmp_path: Path) -> Events:
    return Events(redis_url, tmp_path / "export")


def test_a_service_goes_on_from_a_restored_backup(
    open_shop: OpenClient, shop: Shop, empty_redis: str, tmp_path: Path, redis_url: str
) -> None:
    caps = {"history_cap": 8, "event_ids_cap": 6, "outcomes": True}
    with open_shop(redis_prefix="kept", **caps) as client:
        fill(client)
        chosen = client.post("/bundle/rollback", json={"bundle": shop.ids[2]}, headers=AS_ADMIN)
        assert chosen.status_code == 200
        before = seen(client)
    keys = stored(redis_url, "kept")
    made = make(tmp_path / "backup", redis_url, "kept", shop.registry)
    assert made.redis is not None
    assert not made.redis.erased_meanwhile
    assert list((tmp_path / "backup").iterdir())
    assert not list(tmp_path.glob(".backup*"))
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "backup").rglob("*.parquet")} == {0}

    put_back(tmp_path / "backup", empty_redis, "other", tmp_path / "bundles")
    assert_same(keys, stored(empty_redis, "other"))
    registry = Registry(tmp_path / "bundles")
    assert registry.current() == shop.registry.current()
    assert {info.id for info in registry.list()} == set(shop.ids)
    with open_shop(redis_url=empty_redis, redis_prefix="other", registry=str(registry.root), **caps) as client:
        eventually(lambda: serving(client) == shop.ids[2])
        assert seen(client) == before
        assert before["u3"] == []
        assert "i7" not in before["session"]
        again = client.post("/events", json={"user_id": "u1", "item_id": "i0", "event_id": "e82"})
        assert again.json()["duplicates"] == 1
        assert client.delete("/users/u2").status_code == 204  # finds the entries of the merged session by their ids
    left = [
        entry for _, (kind, value, _) in stored(empty_redis, "other").items() if kind == "stream" for entry in value[0]
    ]
    assert left
    assert not {"u2", "u3", session_owner("s1")} & {fields["user_id"] for _, fields in left}


def test_the_exporter_goes_on_where_it_was(events: Events, empty_redis: str, tmp_path: Path) -> None:
    async def first(histories: Any) -> None:
        await histories.append(some_events(30))
        await events.export()
        await histories.append(some_events(10, start=30))
        await histories.erase("u0")

    events.run(first)
    make(tmp_path / "backup", events.url, events.prefix)

    async def after(histories: Any) -> None:
        await histories.append(some_events(3, start=40))
        await events.export()

    events.run(after)  # exported after the backup
    put_back(tmp_path / "backup", empty_redis, "new")
    restored = Events(empty_redis, events.root, "new")

    async def on(histories: Any) -> None:
        await histories.append(some_events(5, start=43))
        done = await restored.export()
        assert done.events == 5

    restored.run(on)
    rows = restored.rows()
    assert sorted(row["item_id"] for row in rows) == sorted(
        f"i{n}" for n in range(48) if n < 30 or n % 7 or n >= 40
    )  # once each; u0 was erased before its later ones were exported


def test_a_user_who_acts_meanwhile_is_read_again(events: Events, empty_redis: str, tmp_path: Path) -> None:
    """During the scan a session is merged, a user acts and one is erased; the backup has the state afterwards."""
    session = session_owner("s")

    async def before(histories: Any) -> None:
        await histories.append([Event("u1", "a", 1.0), Event("u2", "b", 2.0), Event(session, "c", 3.0)])
        await histories.append([Event("gone", "z", 1.0)])

    async def act(histories: Any) -> None:
        await histories.merge("s", "u1")
        await histories.append([Event("u2", "d", 4.0, event_id="d"), Event("new", "e", 5.0)])

    class Busy(RedisBackup):
        """The keys change after the scan has passed them."""

        async def names(self, pattern: str = "*") -> Any:
            async for page in super().names(pattern):
                yield page
                if pattern == "*" and not self.acted:
                    self.acted = True
                    await act(self.histories)

        acted = False
        histories: Any = None

    async def whole(histories: Any) -> None:
        await before(histories)
        busy = Busy(connection(events.url, prefix=events.prefix))
        busy.histories = histories
        await create_backup(tmp_path / "backup", busy, None, silent)
        await busy.close()

    events.run(whole)
    put_back(tmp_path / "backup", empty_redis, "new")
    assert_same(stored(events.url, events.prefix), stored(empty_redis, "new"))


def some_backup(events: Events, target: Path) -> None:
    async def store(histories: Any) -> None:
        await histories.append(some_events(20))

    events.run(store)
    make(target, events.url, events.prefix)


def test_a_redis_that_is_not_empty_is_refused_or_replaced(events: Events, empty_redis: str, tmp_path: Path) -> None:
    some_backup(events, tmp_path / "backup")
    with redis_py.Redis.from_url(empty_redis, decode_responses=True) as client:
        client.set("other:key", "stays")
        client.set("new:{b001}:history:someone", "goes")
        with pytest.raises(BackupRefused, match=r"has keys of this prefix; .*replace .* with --replace"):
            put_back(tmp_path / "backup", empty_redis, "new")
        assert client.dbsize() == 2
        put_back(tmp_path / "backup", empty_redis, "new", replace=True)
        assert client.get("other:key") == "stays"
        assert not client.exists("new:{b001}:history:someone")
    assert_same(stored(events.url, events.prefix), stored(empty_redis, "new"))


def test_another_prefix_that_begins_alike_is_neither_copied_nor_deleted(
    events: Events, empty_redis: str, tmp_path: Path
) -> None:
    """As with one service under ``shop`` and another one under ``shop:eu``."""

    async def store(histories: Any) -> None:
        await histories.append(some_events(20))

    def store_in(prefix: str, url: str) -> None:
        Events(url, tmp_path / "other", prefix).run(store)

    for nested in ("eu", "events", "{eu}"):
        store_in(f"{events.prefix}:{nested}", events.url)
        store_in(f"new:{nested}", empty_redis)
    others = {name: part for name, part in stored(empty_redis, "new").items() if ":{b" in name}
    some_backup(events, tmp_path / "backup")
    put_back(tmp_path / "backup", empty_redis, "new")
    put_back(tmp_path / "backup", empty_redis, "new", replace=True)
    own = {name: part for name, part in stored(events.url, events.prefix).items() if ":{b" not in name}
    assert_same(own | others, stored(empty_redis, "new"))


def test_a_backup_of_an_earlier_version_leaves_another_prefix_as_it_is(
    events: Events, empty_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those had the keys of prefixes that begin alike too."""
    with redis_py.Redis.from_url(events.url) as client, redis_py.Redis.from_url(empty_redis) as new:
        client.set(f"{events.prefix}:eu:{{b001}}:history:anna", "of then")
        new.set("new:eu:{b001}:history:anna", "of today")
        with monkeypatch.context() as patched:
            patched.setattr("service.stores.backup.redis_backup.is_own", lambda _name: True)
            some_backup(events, tmp_path / "backup")
        put_back(tmp_path / "backup", empty_redis, "new")
        assert new.get("new:eu:{b001}:history:anna") == b"of today"


@pytest.mark.parametrize("name", [MANIFEST_FILE, "redis/000001.parquet"])
def test_a_pipe_in_a_backup_is_refused_and_not_waited_for(events: Events, tmp_path: Path, name: str) -> None:
    some_backup(events, tmp_path / "backup")
    (tmp_path / "backup" / name).unlink()
    os.mkfifo(tmp_path / "backup" / name)
    with pytest.raises(BackupRefused, match=f"{name}: (is no regular file|its content was altered)"):
        verify_backup(tmp_path / "backup", silent)


def test_a_killed_restore_starts_again_and_no_backup_is_made_of_it(
    events: Events, empty_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_backup(events, tmp_path / "backup")

    async def killed(self: RedisBackup, keys: list[StoredKey]) -> None:
        await self._restore(keys[0])
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(RedisBackup, "restore", killed)
        with pytest.raises(RuntimeError):
            put_back(tmp_path / "backup", empty_redis, "new")
    with pytest.raises(BackupRefused, match="a restore into this Redis was interrupted; finish it first"):
        make(tmp_path / "half", empty_redis, "new")
    put_back(tmp_path / "backup", empty_redis, "new")
    assert_same(stored(events.url, events.prefix), stored(empty_redis, "new"))


def test_a_killed_backup_is_no_backup_and_starts_again(
    events: Events, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    target = tmp_path / "backup"
    some_backup(events, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr("service.export.backup.create.copy_registry", killed)
        with pytest.raises(RuntimeError):
            make(target, events.url, events.prefix, shop.registry)
    assert not target.exists()
    with pytest.raises(BackupRefused, match=r"no finished backup, backup.json is missing; it was interrupted"):
        verify_backup(tmp_path / ".backup.partial", silent)
    assert make(target, events.url, events.prefix, shop.registry) == verify_backup(target, silent)
    with pytest.raises(BackupRefused, match="exists already; name a new directory"):
        make(target, events.url, events.prefix)


def test_a_damaged_backup_is_refused_before_anything_is_written(
    events: Events, shop: Shop, empty_redis: str, tmp_path: Path
) -> None:
    async def store(histories: Any) -> None:
        await histories.append(some_events(20))

    events.run(store)
    make(tmp_path / "backup", events.url, events.prefix, shop.registry)
    damages = {
        "redis/000001.parquet": "its content was altered",
        "registry/pointer.json": "its content was altered",
        f"registry/{shop.ids[0]}/vectors.npy": "the bundle in the backup is damaged",
        f"registry/{shop.ids[0]}/manifest.json": "the bundle in the backup is damaged",
        MANIFEST_FILE: "make another backup, or take another copy of this one",
    }
    for name, message in damages.items():
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "backup", copy)
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(BackupRefused, match=message):
            put_back(copy, empty_redis, "new", tmp_path / "bundles")
        (copy / name).unlink()
        with pytest.raises(BackupRefused):
            put_back(copy, empty_redis, "new", tmp_path / "bundles")
        shutil.rmtree(copy)
    newer = json.loads((tmp_path / "backup" / MANIFEST_FILE).read_text()) | {"format": 2}
    (tmp_path / "backup" / MANIFEST_FILE).write_text(json.dumps(newer))
    with pytest.raises(BackupRefused, match="backup format 2, this version reads 1; restore it with the version"):
        put_back(tmp_path / "backup", empty_redis, "new")
    assert stored(empty_redis, "new") == {}
    assert not (tmp_path / "bundles").exists()


def test_a_registry_with_bundles_and_a_missing_part_are_refused(
    events: Events, shop: Shop, empty_redis: str, tmp_path: Path
) -> None:
    some_backup(events, tmp_path / "keys")
    make(tmp_path / "bundles", None, "", shop.registry)
    both = (empty_redis, "new", shop.registry.root)
    with pytest.raises(BackupRefused, match="was made without a registry; restore it with --no-registry"):
        put_back(tmp_path / "keys", *both)
    with pytest.raises(BackupRefused, match="was made without Redis; restore it with --no-redis"):
        put_back(tmp_path / "bundles", *both)
    make(tmp_path / "backup", events.url, events.prefix, shop.registry)
    shop.point(shop.ids[3])
    with pytest.raises(BackupRefused, match="this registry has published bundles"):
        put_back(tmp_path / "backup", *both)
    put_back(tmp_path / "backup", *both, replace=True)
    assert shop.registry.current() == shop.ids[0]


def test_a_damaged_bundle_of_the_registry_is_named(shop: Shop, tmp_path: Path) -> None:
    shop.flip(shop.ids[1])
    with pytest.raises(BackupRefused, match=f"{shop.ids[1]}: is damaged .*publish it again, prune it, or leave"):
        make(tmp_path / "backup", None, "", shop.registry)


def test_redis_that_does_not_answer_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BackupInterrupted, match="a file that its URL names does not exist"):
        make(tmp_path / "backup", f"unix://{tmp_path}/none.sock", "new")


def test_the_commands(
    events: Events, shop: Shop, empty_redis: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            app([*map(str, words)])
        assert ended.value.code == 0
        return str(capsys.readouterr().out)

    async def store(histories: Any) -> None:
        await histories.append(some_events(20))

    events.run(store)
    monkeypatch.setenv("VLM2REC_REDIS_PREFIX", events.prefix)
    target, bundles = tmp_path / "backup", tmp_path / "bundles"
    out = run("backup", "create", "--to", target, "--redis", events.url, "--registry", shop.registry.root)
    assert f"4 bundles, current {shop.ids[0]}" in out
    assert run("backup", "verify", target).startswith("intact: ")
    out = run("backup", "restore", "--from", target, "--redis", empty_redis, "--registry", bundles)
    assert out.startswith("restored: ")
    assert_same(stored(events.url, events.prefix), stored(empty_redis, events.prefix))


def test_the_documented_user_of_redis_is_enough(events: Events, tmp_path: Path) -> None:
    (line,) = re.findall(r"^user backup .*$", (ROOT / "docs" / "backup.md").read_text(), re.MULTILINE)
    some_backup(events, tmp_path / "some")
    with redis_server(tmp_path, "port 0", line.replace("PASSWORD", "secret")):
        url = f"unix://backup:secret@{tmp_path}/redis.sock"
        put_back(tmp_path / "some", url, "vlm2rec")
        make(tmp_path / "backup", url, "vlm2rec")
        put_back(tmp_path / "backup", url, "vlm2rec", replace=True)
        with pytest.raises(BackupInterrupted, match="NOPERM: its user may not use keys of this prefix"):
            put_back(tmp_path / "backup", url, "other")
        assert_same(stored(events.url, events.prefix), stored(f"unix://{tmp_path}/redis.sock", "vlm2rec"))
