"""A registry in an object store: publishing, its conditions, rollback, pruning and a store with faults."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from datetime import timedelta

import pytest

from index.bundle.bundle import Bundle
from index.bundle.gate import Bounds
from index.bundle.manifest import ITEMS_FILE, VECTORS_FILE
from index.bundle.registries import open_registry
from index.bundle.store import object_store, store_registry
from index.bundle.store.object_store import ObjectChanged, ObjectStore
from index.errors import BundleInvalid, BundleNotFound, GateRefused, RegistryError, StoreUnavailable
from tests.index.bundle.store.conftest import URL
from tests.support.shops import eventually
from tests.support.stores.redis_servers import free_port
from tests.support.stores.s3_server import S3Server

POINTER = "live/registry/pointer.json"


def pointer_of(s3: S3Server) -> dict:
    return json.loads(s3.objects["live/registry/pointer.json"][0])


def test_publish_writes_objects_first_and_the_pointer_last(opened, bundles, s3):
    assert opened().current() is None
    assert opened().list() == []
    name = opened().publish(bundles[0])
    assert name == bundles[0].name == opened("b").current()
    written = [key for method, key, _ in s3.requests if method == "PUT" and "conditional-write" not in key]
    assert written[-1] == "live/registry/pointer.json"
    assert written[-2].endswith("/manifest.json")
    assert not any("conditional-write" in key for key in s3.objects)
    path = opened("b").path(name)
    assert len(Bundle.load(path, verify="full")) == 40
    assert not (path / VECTORS_FILE).stat().st_mode & 0o222
    (info,) = opened("b").list()
    assert (info.id, info.current, info.items, info.problem) == (name, True, 40, None)


def test_a_large_object_is_written_in_parts(opened, bundles, s3, monkeypatch):
    monkeypatch.setattr(object_store, "BLOCK_BYTES", 500)
    name = opened().publish(bundles[0])
    assert s3.asked("POST", VECTORS_FILE) == 2  # begins and ends the upload
    assert s3.asked("PUT", VECTORS_FILE) > 1
    assert s3.uploads == {}
    assert len(Bundle.load(opened("b").path(name), verify="full")) == 40


def test_an_unchanged_pointer_is_not_sent_again(opened, bundles, s3):
    opened().publish(bundles[0])
    reader = opened("b")
    assert reader.current() == reader.current() == bundles[0].name
    assert s3.objects["live/registry/pointer.json"]
    opened().publish(bundles[1])
    assert reader.current() == bundles[1].name


def test_a_bundle_that_is_published_already_is_not_written_again(opened, bundles, s3):
    for bundle in (bundles[0], bundles[1], bundles[0]):
        opened().publish(bundle)
    assert s3.asked("PUT", VECTORS_FILE) == 2
    assert [info.id for info in opened().list()] == [bundles[1].name, bundles[0].name]


def test_a_published_bundle_with_an_altered_object_is_written_again(opened, bundles, s3):
    name = opened().publish(bundles[0])
    key = f"live/registry/bundles/{pointer_of(s3)['places'][name]}/{ITEMS_FILE}"
    content, modified = s3.objects[key]
    s3.objects[key] = (content[:-1] + b"?", modified)
    with pytest.raises(BundleInvalid, match="sha256"):
        opened().load_verified(name)
    with pytest.raises(StoreUnavailable, match="publish the bundle again"):
        opened("b").path(name)
    opened().publish(bundles[0])
    assert len(opened().load_verified(name)) == 40
    assert len(Bundle.load(opened("b").path(name))) == 40


def test_the_gate_refuses_and_a_forced_bundle_says_so(opened, make_bundle, tmp_path, s3):
    bad = make_bundle(tmp_path / "bad", items=40, bounds=Bounds(coverage=1.0))
    with pytest.raises(GateRefused, match="coverage"):
        opened().publish(bad)
    assert s3.objects == {}
    opened().publish(bad, force=True)
    (info,) = opened("b").list()
    assert info.forced
    assert info.shortfalls


def test_a_store_without_conditional_writes_is_refused(opened, bundles, s3):
    s3.conditional = False
    for change in (lambda: opened().publish(bundles[0]), lambda: opened().prune(1), lambda: opened().rollback()):
        with pytest.raises(RegistryError, match="no conditional writes"):
            change()
    assert s3.objects == {}


def test_of_two_publishers_at_once_none_is_lost(opened, bundles, s3):
    barrier = threading.Barrier(2)
    first_writes = iter((True, True))

    def meet(method: str, key: str) -> None:
        """Both have read the pointer before either writes it."""
        if method == "PUT" and key.endswith("pointer.json") and next(first_writes, False):
            barrier.wait(10)

    publishers = [threading.Thread(target=opened(str(n)).publish, args=(bundles[n],)) for n in (0, 1)]
    s3.fault = meet
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join(30)
    s3.fault = lambda _method, _key: None
    assert {info.id for info in opened().list()} == {bundles[0].name, bundles[1].name}
    assert s3.asked("PUT", "registry/pointer.json") == 3
    assert opened().rollback() in {bundles[0].name, bundles[1].name}


def test_a_write_whose_answer_is_lost_counts_once(opened, bundles, s3):
    opened().publish(bundles[0])
    lost: list[str] = []

    def lose(method: str, key: str) -> str | None:
        if method == "PUT" and key.endswith("pointer.json") and not lost:
            lost.append(key)
            return "unanswered"
        return None

    with s3.faulty(lose):
        opened().publish(bundles[1])
    assert lost
    assert pointer_of(s3)["published"] == [bundles[0].name, bundles[1].name]


def test_a_rollback_whose_answer_is_lost_counts_once(opened, bundles, s3):
    for bundle in bundles:
        opened().publish(bundle)
    first, second, third = (bundle.name for bundle in bundles)
    for to, previous in ((None, [first]), (third, [first, second])):
        lost = iter(("unanswered",))
        with s3.faulty(lambda method, key, lost=lost: next(lost, None) if method == "PUT" and POINTER in key else None):
            opened().rollback(to)
        assert next(lost, None) is None
        assert (pointer_of(s3)["current"], pointer_of(s3)["previous"]) == (to or second, previous)
    assert pointer_of(s3)["published"] == [first, second, third]


@pytest.mark.parametrize("answer", ["unanswered", None])
def test_a_conditional_write_counts_by_what_is_there(s3, answer):
    one, other = ObjectStore(URL), ObjectStore(URL)
    one.replace("file", b"first", None)
    version = one.read("file", limit=9).version
    lost = iter((answer,))
    with s3.faulty(lambda method, _key: next(lost, None) if method == "PUT" else None):
        one.replace("file", b"mine", version)
    for content in (b"ours", b"longer"):
        with pytest.raises(ObjectChanged):
            other.replace("file", content, version)
    s3.objects.clear()
    with pytest.raises(ObjectChanged):
        other.replace("file", b"late", version)


@pytest.mark.parametrize("step", ["vectors.npy", "manifest.json", "pointer.json"])
def test_a_publication_that_breaks_off_leaves_the_old_pointer(opened, bundles, s3, step):
    opened().publish(bundles[0])
    with (
        s3.faulty(lambda method, key: "denied" if method == "PUT" and key.endswith(step) else None),
        pytest.raises(StoreUnavailable) as raised,
    ):
        opened().publish(bundles[1])
    assert "AKIDEXAMPLE" not in str(raised.value)
    assert "InvalidAccessKeyId" in str(raised.value)
    assert raised.value.__cause__ is None
    assert opened("b").current() == bundles[0].name
    opened().publish(bundles[1])
    assert opened("b").current() == bundles[1].name


def test_rollback_and_its_refusals(opened, bundles, s3):
    registry = opened()
    with pytest.raises(RegistryError, match="no earlier bundle"):
        registry.rollback()
    for bundle in bundles:
        registry.publish(bundle)
    first, second, third = (bundle.name for bundle in bundles)
    assert registry.rollback() == second == registry.current()
    assert registry.earlier(second) == [first]
    assert registry.rollback(third) == third
    for wrong, error, rule in (
        (third, RegistryError, "is the current bundle already"),
        ("20200101T000000Z-000000", BundleNotFound, "no bundle"),
        ("../x", BundleNotFound, "no bundle"),
    ):
        with pytest.raises(error, match=rule):
            registry.rollback(wrong)
    s3.objects.pop(f"live/registry/bundles/{pointer_of(s3)['places'][first]}/{VECTORS_FILE}")
    with pytest.raises(BundleInvalid, match=r"vectors.npy: is missing"):
        registry.rollback(first)
    assert registry.current() == third


def test_prune_keeps_what_is_in_use_and_deletes_objects(opened, bundles, s3, monkeypatch):
    registry = opened()
    for bundle in bundles:
        registry.publish(bundle)
    first, second, third = (bundle.name for bundle in bundles)
    with pytest.raises(RegistryError, match="at least 1"):
        registry.prune(0)
    assert registry.prune(1, spare={first}) == []
    s3.objects["live/registry/bundles/20260101T000000Z-aaaaaa.0123456789ab/vectors.npy"] = next(
        iter(s3.objects.values())
    )
    assert registry.prune(1) == [first]
    assert [info.id for info in registry.list()] == [second, third]
    assert not any(first in key for key in s3.objects)
    assert any("aaaaaa" in key for key in s3.objects)  # a publication may be at work on it
    monkeypatch.setattr(store_registry, "_ABANDONED_AFTER", timedelta(seconds=-60))
    assert registry.prune(1) == []
    assert not any("aaaaaa" in key for key in s3.objects)
    assert len(registry.load_verified(third)) == 40


def test_a_late_listing_hides_nothing_that_is_published(opened, bundles, s3):
    registry = opened()
    registry.publish(bundles[0])
    s3.unlisted.update(s3.objects)
    registry.publish(bundles[1])
    s3.unlisted.update(s3.objects)
    assert [info.id for info in registry.list()] == [bundles[0].name, bundles[1].name]
    assert registry.rollback() == bundles[0].name
    assert registry.prune(1) == []


def test_the_store_is_gone(opened, bundles, s3):
    name = opened().publish(bundles[0])
    reader = opened("b")
    reader.path(name)
    with s3.faulty(lambda _method, _key: "gone"):
        again = opened("b")
        with pytest.raises(StoreUnavailable):
            again.current()
        assert again.last_pointer().pointer.current == name
        assert again.path(name) == reader.path(name)
        assert opened("c").last_pointer() is None
    s3.objects.pop("live/registry/pointer.json")
    with pytest.raises(StoreUnavailable, match="is gone"):
        opened("b").current()


def test_an_older_pointer_does_not_count(opened, bundles, s3):
    opened().publish(bundles[0])
    old = s3.objects["live/registry/pointer.json"]
    opened().publish(bundles[1])
    reader = opened("b")
    assert reader.current() == bundles[1].name
    s3.objects["live/registry/pointer.json"] = old
    with pytest.raises(StoreUnavailable, match="is older"):
        reader.current()
    assert reader.last_pointer().pointer.current == bundles[1].name


def test_a_slow_store_is_given_up(bundles, opened, s3):
    opened().publish(bundles[0])
    quick = ObjectStore(URL, patience_s=1)
    with s3.faulty(lambda _method, _key: 1.5), pytest.raises(StoreUnavailable):
        quick.read("pointer.json", limit=1000)


POINTERS = (
    b"",
    b"[]",
    b"{}",
    b'{"format": 1, "current": null, "previous": [], "published": []}',
    b'{"format": 1, "current": null, "previous": [], "places": {}}',
    b'{"format": 1, "current": "20260101T000000Z-aaaaaa", "previous": [], "places": {}, "serial": 1}',
    b'{"format": 1, "current": null, "previous": [], "serial": 1, "places": {"20260101T000000Z-aaaaaa": "../x"}}',
    b"[" * 100_000,
)


def test_a_pointer_that_breaks_a_rule_is_refused(opened, s3, bundles):
    opened().publish(bundles[0])
    modified = s3.objects["live/registry/pointer.json"][1]
    for number, content in enumerate(POINTERS):
        s3.objects["live/registry/pointer.json"] = (content, modified)
        for use in (opened(f"reader-{number}").current, opened().rollback):
            with pytest.raises(RegistryError, match=r"pointer\.json"):
                use()


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://b",
        "s3://bucket",
        "s3://bucket/",
        "s3:bucket/x",
        "s3://key:secret@bucket/x",
        "S3://Bu/x",
        "s3://bucket/../x",
        "s3://bucket/x?y=1",
    ],
)
def test_other_urls_are_refused_without_their_user(url):
    with pytest.raises(RegistryError, match="s3://bucket/prefix") as raised:
        open_registry(url)
    assert "secret" not in str(raised.value)


def test_a_profile_is_refused_as_it_would_not_be_read(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "shop")
    with pytest.raises(RegistryError, match="profiles are not read"):
        open_registry(URL)


def made_bucket(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="PUT")) as answer:
            return answer.status == 200
    except urllib.error.URLError:
        return False  # the server has not started yet


@pytest.mark.slow
def test_the_contract_holds_on_another_server(opened, bundles, s3, monkeypatch):
    """On the server of TEST_S3_ENDPOINT with its bucket `shop`, else on moto's where it is installed."""
    endpoint = os.environ.get("TEST_S3_ENDPOINT")
    if endpoint is None:
        pytest.importorskip("moto", reason="set TEST_S3_ENDPOINT, or install the extra dev")
    with contextlib.ExitStack() as stack:
        if endpoint is None:
            port = free_port()
            server = stack.enter_context(
                subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
            )
            stack.callback(server.terminate)
            endpoint = f"http://127.0.0.1:{port}"
            eventually(lambda: made_bucket(f"{endpoint}/shop"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        registry = opened()
        for bundle in bundles:
            registry.publish(bundle)
        first, second, third = (bundle.name for bundle in bundles)
        assert opened("b").current() == third
        assert registry.current() == registry.current() == third
        assert registry.rollback() == second
        assert registry.prune(1) == []
        assert registry.rollback(third) == third
        assert registry.prune(1) == [first]
        assert [info.id for info in opened("b").list()] == [second, third]
        assert len(Bundle.load(opened("b").path(third), verify="full")) == 40
        publishers = [threading.Thread(target=opened(str(n)).publish, args=(bundles[n],)) for n in (0, 1)]
        for publisher in publishers:
            publisher.start()
        for publisher in publishers:
            publisher.join(60)
        assert {info.id for info in registry.list()} == {first, second, third}
        assert len(registry.load_verified(first)) == 40
    assert s3.requests == []
