"""The watcher handles bundles that stay in use, internal failures and endless refusals."""

import errno
import mmap
import os
import shutil
import weakref
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from index.bundle import integrity
from index.bundle.bundle import Bundle
from index.errors import BundleInvalid, EncoderError
from index.items import mapped_array
from service.app import create_app
from service.bundles import loaded_bundles, refusals, watcher
from service.bundles.loaded_bundles import LoadedBundles
from service.bundles.loader import BundleLoader, refusal
from service.bundles.operator_state import OperatorState
from service.bundles.refusals import BundleRefusal, BundleRefusals
from service.bundles.startup import Startup, load_first
from service.errors import BundleRefused, RefusalReason
from service.settings.groups import BundleSettings
from service.settings.load import load_settings
from tests.support.shops import AS_ADMIN, Shop, eventually, metric, serving


def test_a_third_bundle_is_not_loaded_while_the_first_is_in_use(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_bundles, "_RELEASE_LIMIT_S", 0.2)
    with open_shop() as client:
        kept = client.app.state.active_bundle.get()
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])
        shop.point(shop.ids[2])
        answer = client.post("/bundle/reload", headers=AS_ADMIN)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:vlm2rec:problem:not-ready")
        assert "still in use" in answer.json()["detail"]
        assert serving(client) == shop.ids[1]
        assert metric(client, "vlm2rec_bundles_in_memory") == 2
        assert client.get("/bundle").json()["swap"]["refused"] == []  # it is not the new one's fault
        del kept
        eventually(lambda: serving(client) == shop.ids[2])


def test_a_bundle_in_a_reference_cycle_is_collected(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_bundles, "_RELEASE_COLLECT_S", 0.1)
    with open_shop() as client:
        cycle = [client.app.state.active_bundle.get()]
        gone = weakref.ref(cycle[0])
        cycle.append(cycle)  # type: ignore[arg-type]
        del cycle
        for bundle_id in shop.ids[1:3]:
            shop.point(bundle_id)
            eventually(lambda wanted=bundle_id: serving(client) == wanted)
        assert gone() is None


def test_the_first_bundle_is_freed_like_any_other(shop: Shop, redis_url: str, tmp_path: Path) -> None:
    settings = load_settings(
        registry=str(shop.registry.root),
        redis_url=redis_url,
        redis_prefix=f"test-{tmp_path.name}",
        directives_file=tmp_path / "directives.json",
        poll_ms=20,
    )
    first = Bundle.load(shop.path(shop.ids[0]))
    gone = weakref.ref(first)
    app = create_app(settings, startup=Startup(first))
    del first
    with TestClient(app) as client:
        for bundle_id in shop.ids[1:3]:
            shop.point(bundle_id)
            eventually(lambda wanted=bundle_id: serving(client) == wanted)
        assert gone() is None


def test_a_failed_poll_is_counted_and_the_next_one_follows(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_shop() as client:

        async def broken(_self: OperatorState) -> None:
            raise RuntimeError("an unexpected failure")

        with monkeypatch.context() as patched:
            patched.setattr(OperatorState, "sync", broken)
            eventually(lambda: metric(client, "vlm2rec_watcher_errors_total", what="look") >= 2)
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])


def test_an_unexpected_failure_of_a_change_is_retried(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_shop() as client:

        async def broken(*_: Any) -> None:
            raise RuntimeError("an unexpected failure")

        with monkeypatch.context() as patched:
            patched.setattr(LoadedBundles, "_load_and_validate", broken)
            shop.point(shop.ids[1])
            eventually(lambda: metric(client, "vlm2rec_watcher_errors_total", what="work") >= 2)
        eventually(lambda: serving(client) == shop.ids[1])


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError("too large"), "error"), (EncoderError("no such device"), "encoder")]
)
def test_after_any_error_of_loading_the_active_bundle_stays(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def broken(*_: Any, **__: Any) -> Bundle:
        raise error

    with open_shop() as client:
        monkeypatch.setattr(Bundle, "load", broken)
        shop.point(shop.ids[1])
        eventually(lambda: metric(client, "vlm2rec_bundle_refusals_total", reason=reason) == 1)
        assert serving(client) == shop.ids[0]
        assert str(error) in client.post("/bundle/reload", headers=AS_ADMIN).json()["detail"]


def test_a_bundle_that_fails_while_it_is_warmed_up_is_refused(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Bundle) -> None:
        raise EncoderError("a shape that it cannot take")

    with open_shop() as client:
        monkeypatch.setattr(Bundle, "warm_up", broken)
        shop.point(shop.ids[1])
        eventually(lambda: metric(client, "vlm2rec_bundle_refusals_total", reason="encoder") == 1)
        assert serving(client) == shop.ids[0]
        eventually(lambda: metric(client, "vlm2rec_bundles_in_memory") == 1)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_bundle_that_could_not_be_loaded_for_lack_of_resources_is_tried_again(
    code: int, open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(*_given: Any, **_options: Any) -> mmap.mmap:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(refusals, "RETRY_S", 0.1)
    with open_shop() as client:
        with monkeypatch.context() as patched:
            patched.setattr(mapped_array.mmap, "mmap", lacking)
            shop.point(shop.ids[1])
            eventually(lambda: metric(client, "vlm2rec_bundle_refusals_total", reason="resources") >= 2)
            assert serving(client) == shop.ids[0]
            (refused,) = client.get("/bundle", headers=AS_ADMIN).json()["swap"]["refused"]
            assert (refused["bundle"], refused["reason"]) == (shop.ids[1], "resources")
        eventually(lambda: serving(client) == shop.ids[1])


def test_a_clock_that_goes_back_delays_no_further_try(monkeypatch: pytest.MonkeyPatch) -> None:
    published = (1, 2)
    moved = {"time": 1_800_000_000.0, "monotonic": 100.0}
    monkeypatch.setattr(refusals, "time", lambda: moved["time"])
    monkeypatch.setattr(refusals, "monotonic", lambda: moved["monotonic"])
    refused = BundleRefusals()
    error = BundleRefused("resources", "no file is free")
    refused.add(BundleRefusal.of("one", published, error))
    assert [one.at for one in refused] == [1_800_000_000.0]
    moved["time"] -= 3600
    moved["monotonic"] += refusals.RETRY_S - 0.1
    assert refused.contains("one", published)
    moved["monotonic"] += 0.2
    assert not refused.contains("one", published)


def test_a_lack_of_resources_is_found_behind_a_translated_error() -> None:
    def translated(error: Exception) -> BundleInvalid:
        outer = BundleInvalid("not readable")
        outer.__cause__ = error
        return outer

    for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        error = OSError(code, os.strerror(code))
        assert refusal(translated(error)).reason == refusal(error).reason == "resources"
    for error in (OSError(errno.ENOENT, "x"), MemoryError("damaged sizes ask for it too")):
        assert refusal(translated(error)).reason == "invalid"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_bundle_that_could_not_be_read_is_tried_again(
    code: int, open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a network file system without its server; nothing is published when that is back."""

    def failing(*_given: Any, **_options: Any) -> mmap.mmap:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(refusals, "RETRY_S", 0.1)
    with open_shop() as client:
        with monkeypatch.context() as patched:
            patched.setattr(mapped_array.mmap, "mmap", failing)
            shop.point(shop.ids[1])
            eventually(lambda: metric(client, "vlm2rec_bundle_refusals_total", reason="unavailable") >= 2)
            assert serving(client) == shop.ids[0]
        eventually(lambda: serving(client) == shop.ids[1])


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ESTALE])
def test_the_active_bundle_is_not_altered_where_its_files_cannot_be_hashed_now(
    code: int, open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of descriptors, or as a mount does not answer; its files are hashed later."""
    tried: list[int] = []

    def failing(*_given: Any, **_options: Any) -> str:
        tried.append(code)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(watcher, "RETRY_S", 0.1)
    with open_shop() as client:
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1] and client.get("/bundle").json()["swap"]["verified"])
        with monkeypatch.context() as patched:
            patched.setattr(integrity, "sha256_of", failing)
            os.utime(shop.path(shop.ids[1]) / "vectors.npy")
            eventually(lambda: len(tried) >= 3)
            assert serving(client) == shop.ids[1]
            assert client.get("/bundle").json()["swap"]["verified"] is False
        eventually(lambda: client.get("/bundle").json()["swap"]["verified"])
        assert metric(client, "vlm2rec_bundle_refusals_total") == 0
        assert serving(client) == shop.ids[1]


def test_a_bundle_that_is_deleted_while_it_answers_goes_on(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = Bundle.verify_in_full
    looked: list[bool] = []

    def deleted_first(self: Bundle, stop: Any) -> bool:
        shutil.rmtree(self.path)
        looked.append(True)
        return verify(self, stop)

    monkeypatch.setattr(Bundle, "verify_in_full", deleted_first)
    with open_shop() as client:
        eventually(lambda: looked)
        assert serving(client) == shop.ids[0]
        assert client.get("/bundle").json()["swap"]["verified"] is False
        assert metric(client, "vlm2rec_bundle_refusals_total") == 0
        assert client.get("/bundle").json()["report"] is None


def test_every_file_is_hashed_before_the_start_where_that_is_asked_for(open_shop: Any, shop: Shop) -> None:
    with open_shop(verify="full") as client:
        assert client.get("/bundle").json()["swap"]["verified"] is True
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])
        assert client.get("/bundle").json()["swap"]["verified"] is True


def test_every_reason_is_explained() -> None:
    page = (Path(__file__).parents[3] / "docs" / "swap.md").read_text()
    for reason in get_args(RefusalReason):
        assert f"| `{reason}` |" in page, reason


def test_the_newest_hundred_refusals_are_remembered() -> None:
    refusals = BundleRefusals()
    for number in range(150):
        refusals.add(BundleRefusal.of(f"b{number}", (number,), BundleRefused("invalid", "bad")))
    assert [kept.bundle for kept in refusals] == [f"b{number}" for number in range(50, 150)]
    assert refusals.contains("b149", (149,))
    assert not refusals.contains("b149", (1, 2))  # published again
    assert not refusals.contains("b0", (0,))
    refusals.remove("b149")
    refusals.remove("unknown")
    assert not refusals.contains("b149", (149,))


def test_a_bundle_that_fails_at_the_start_is_passed_over(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    warm_up = Bundle.warm_up

    def broken(self: Bundle) -> None:
        if self.id == shop.ids[3]:
            raise EncoderError("a shape that it cannot take")
        warm_up(self)

    monkeypatch.setattr(Bundle, "warm_up", broken)
    shop.point(shop.ids[3])
    loader = BundleLoader(BundleSettings(registry=str(shop.registry.root)))
    startup = load_first(loader, None)
    assert startup.bundle is not None
    assert startup.bundle.id == shop.ids[2]
    assert [(refusal.bundle, refusal.reason) for refusal in startup.refusals] == [(shop.ids[3], "encoder")]


def test_identities_differ_between_publications(shop: Shop, day_bundles: list[Path]) -> None:
    loader = BundleLoader(BundleSettings(registry=str(shop.registry.root), device="cuda"))
    before = loader.identity(shop.ids[0])
    assert before == loader.identity(shop.ids[0])
    shop.repair(day_bundles[0])
    assert loader.identity(shop.ids[0]) != before
    assert loader.identity("20200101T000000Z-123456") == ()
    assert loader.one_thread
    with pytest.raises(BundleRefused, match="CUDAExecutionProvider") as refused:
        loader.load(shop.ids[0])
    assert refused.value.reason == "encoder"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_automatic_device_is_taken_at_its_word(shop: Shop, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("index.search.device.available_device", lambda: device)
    loader = BundleLoader(BundleSettings(registry=str(shop.registry.root), device="auto"))
    assert loader.one_thread == (device == "cuda")
    if device == "cpu":
        assert loader.load(shop.ids[0]).id == shop.ids[0]
        return
    with pytest.raises(BundleRefused, match="CUDAExecutionProvider"):  # and not silently on the CPU
        loader.load(shop.ids[0])
