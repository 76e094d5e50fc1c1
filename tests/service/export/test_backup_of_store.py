"""Backups of a registry in an object store: made, killed, restored to a store or a directory."""

from collections.abc import Callable
from pathlib import Path

import pytest

from index.bundle.bundle import Bundle
from index.bundle.registries import AnyRegistry, open_registry
from index.bundle.registry import Registry
from index.bundle.store.object_store import ObjectStore
from index.errors import RegistryError, StoreUnavailable
from service.errors import BackupRefused
from service.export.backup.restore import verify_backup
from tests.support.shops import OpenClient, Shop, eventually, serving
from tests.support.stores.backups import make, put_back, silent
from tests.support.stores.moto_server import moto_server
from tests.support.stores.s3_server import S3Server

URL = "s3://shop/live/registry"
NEW = "s3://shop/other/registry"
VECTORS = "/vectors.npy"


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[str], AnyRegistry]:
    return lambda url: open_registry(url, tmp_path / "cache")


@pytest.fixture
def shop(tmp_path: Path, day_bundles: list[Path]) -> Shop:
    """A registry for `open_shop`, which this file puts another one in place of."""
    return Shop(tmp_path / "registry", day_bundles)


def published(registry: AnyRegistry, bundles: list[Path]) -> list[str]:
    """Publish bundles and roll back twice; what the registry says of them."""
    for bundle in bundles:
        registry.publish(bundle, force=True)
    registry.rollback()
    registry.rollback()
    return content(registry)


def content(registry: AnyRegistry) -> list[str]:
    """Current bundle, those to fall back to, and all in the order of their publication."""
    current = registry.current()
    assert current is not None
    assert all(info.problem is None for info in registry.list())
    return [current, *registry.earlier(current), *(info.id for info in registry.list())]


@pytest.fixture
def stored(s3: S3Server, opened: Callable[[str], AnyRegistry], day_bundles: list[Path]) -> list[str]:
    """What the registry in the store says after four publications."""
    assert s3.objects == {}
    return published(opened(URL), day_bundles)


def test_a_registry_is_restored_to_another_prefix_and_to_a_directory(
    stored: list[str], opened: Callable[[str], AnyRegistry], day_bundles: list[Path], tmp_path: Path
) -> None:
    made = make(tmp_path / "backup", None, "", opened(URL))
    assert made.registry is not None
    assert made.registry.current == stored[0] == day_bundles[1].name
    assert made == verify_backup(tmp_path / "backup", silent)
    assert {path.name for path in (tmp_path / "backup" / "registry").iterdir()} == {
        "pointer.json", *(bundle.name for bundle in day_bundles)
    }  # fmt: skip
    put_back(tmp_path / "backup", None, "", NEW)
    assert content(opened(NEW)) == stored
    put_back(tmp_path / "backup", None, "", tmp_path / "bundles")
    directory = Registry(tmp_path / "bundles")
    assert content(directory) == stored
    for bundle in day_bundles:
        assert len(opened(NEW).load_verified(bundle.name)) == len(Bundle.load(directory.path(bundle.name)))


def test_a_directory_is_restored_to_a_store(
    s3: S3Server, opened: Callable[[str], AnyRegistry], day_bundles: list[Path], tmp_path: Path
) -> None:
    before = published(Registry(tmp_path / "bundles"), day_bundles)
    make(tmp_path / "backup", None, "", Registry(tmp_path / "bundles"))
    put_back(tmp_path / "backup", None, "", NEW)
    assert content(opened(NEW)) == before
    assert s3.asked("PUT", VECTORS) == len(day_bundles)


def test_a_backup_that_breaks_off_goes_on_without_a_second_download(
    stored: list[str],
    s3: S3Server,
    opened: Callable[[str], AnyRegistry],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    third = opened(URL).read_pointer().places[opened(URL).list()[2].id]  # type: ignore[union-attr]
    monkeypatch.setattr("index.bundle.store.opening._MOST_RETRIES", 0)
    registry = opened(URL)
    faults = s3.faulty(lambda _method, key: "gone" if third in key and key.endswith(VECTORS) else None)
    with faults, pytest.raises(StoreUnavailable):
        make(tmp_path / "backup", None, "", registry)
    assert not (tmp_path / "backup").exists()
    before = s3.asked("GET", VECTORS)
    make(tmp_path / "backup", None, "", opened(URL))
    assert s3.asked("GET", VECTORS) - before == 2
    assert verify_backup(tmp_path / "backup", silent).registry is not None


def test_a_restore_that_breaks_off_publishes_nothing_and_goes_on(
    stored: list[str], s3: S3Server, opened: Callable[[str], AnyRegistry], tmp_path: Path
) -> None:
    make(tmp_path / "backup", None, "", opened(URL))
    before = s3.asked("PUT", VECTORS)

    def broken(step: str, done: int, every: int | None) -> None:
        if (step, done) == ("bundles", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put_back(tmp_path / "backup", None, "", NEW, report=broken)
    assert opened(NEW).current() is None
    put_back(tmp_path / "backup", None, "", NEW)
    assert s3.asked("PUT", VECTORS) - before == 4
    assert content(opened(NEW)) == stored


def test_a_registry_with_bundles_is_refused_or_replaced(
    stored: list[str], opened: Callable[[str], AnyRegistry], day_bundles: list[Path], tmp_path: Path
) -> None:
    make(tmp_path / "backup", None, "", opened(URL))
    opened(NEW).publish(day_bundles[3], force=True)
    with pytest.raises(BackupRefused, match=f"{NEW}: this registry has published bundles; .*--replace"):
        put_back(tmp_path / "backup", None, "", NEW)
    assert opened(NEW).current() == day_bundles[3].name
    put_back(tmp_path / "backup", None, "", NEW, replace=True)
    assert content(opened(NEW)) == stored


def test_a_store_without_conditional_writes_or_bundles_is_refused(
    stored: list[str], s3: S3Server, opened: Callable[[str], AnyRegistry], tmp_path: Path
) -> None:
    make(tmp_path / "backup", None, "", opened(URL))
    with pytest.raises(BackupRefused, match=f"{NEW}: has no current bundle"):
        make(tmp_path / "none", None, "", opened(NEW))
    s3.conditional = False
    with pytest.raises(RegistryError, match="no conditional writes"):
        put_back(tmp_path / "backup", None, "", NEW)


def test_a_bundle_that_is_pruned_meanwhile_is_left_out(
    stored: list[str], opened: Callable[[str], AnyRegistry], tmp_path: Path
) -> None:
    registry = opened(URL)

    def prune(step: str, done: int, every: int | None) -> None:
        if (step, done) == ("bundles", 0):
            registry.prune(1)

    made = make(tmp_path / "backup", None, "", opened(URL), report=prune).registry
    assert made is not None
    assert set(made.bundles) == {info.id for info in registry.list()}
    assert len(made.bundles) < 4


@pytest.mark.slow
def test_a_service_goes_on_from_a_registry_that_was_lost_and_restored(
    open_shop: OpenClient, day_bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto_server(monkeypatch, "shop"):
        registry = open_registry(URL, tmp_path / "cache")
        before = published(registry, day_bundles)
        with open_shop(registry=URL, registry_cache=str(tmp_path / "cache")) as client:
            eventually(lambda: serving(client) == before[0])
            make(tmp_path / "backup", None, "", registry)
            objects = ObjectStore(URL)
            objects.delete([found.key for found in objects.objects("")])
            put_back(tmp_path / "backup", None, "", URL)
            assert serving(client) == before[0]
            registry.rollback(to=before[1])
            eventually(lambda: serving(client) == before[1])
            registry.rollback(to=before[0])
        assert content(open_registry(URL, tmp_path / "other")) == before
