"""A file system that hangs delays neither requests nor operators nor the end of the service."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from index.bundle import mapped_files
from index.bundle.manifest import REPORT_FILE
from service.bundles import loaded_bundles, registry_look
from service.runtime import file_calls
from tests.support.processes.service_process import Service
from tests.support.shops import AS_ADMIN, Shop, eventually, metric, serving

QUICK_S = 5.0


def release(pipe: Path) -> None:
    """Let those go on who wait for a writer."""
    with suppress(OSError):  # nobody waits
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


@contextmanager
def hanging(file: Path) -> Iterator[None]:
    """Opening a file does not return, as a pipe without a writer is in its place; those that wait go on at the end."""
    before, pipe = file.with_name("before"), file.with_name("pipe")
    os.mkfifo(pipe)
    file.rename(before)
    os.link(pipe, file)
    try:
        yield
    finally:
        before.rename(file)
        release(pipe)
        pipe.unlink()


def test_pins_and_hidden_items_arrive_while_the_registry_hangs(open_shop: Any, shop: Shop) -> None:
    with open_shop() as here, open_shop() as there:
        shop.point(shop.ids[1])
        eventually(lambda: serving(here) == serving(there) == shop.ids[1])
        with hanging(shop.registry.pointer):
            eventually(lambda: metric(there, "vlm2rec_watcher_errors_total", what="pointer") >= 2)
            assert here.put("/items/i1/availability", json={"available": False}, headers=AS_ADMIN).status_code == 204
            eventually(lambda: "i1" in there.app.state.watcher._operator_state.hidden.ids, QUICK_S)
            assert here.post("/bundle/rollback", headers=AS_ADMIN).status_code == 200
            eventually(lambda: serving(there) == shop.ids[0], QUICK_S)
            assert metric(there, "vlm2rec_watcher_look_age_seconds") < QUICK_S
            assert there.get("/readyz").status_code == 200
        shop.point(shop.ids[2])
        assert here.post("/bundle/reload", headers=AS_ADMIN).status_code == 200
        eventually(lambda: serving(here) == serving(there) == shop.ids[2])


def test_an_answer_that_never_comes_is_waited_for_no_longer(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `umount -l`: the call that hangs never returns, another one would."""
    monkeypatch.setattr(registry_look, "ABANDONED_S", 0.3)
    monkeypatch.setattr(file_calls, "ABANDONED_S", 0.3)
    with open_shop() as client:
        pipe = shop.registry.root / "pipe"
        os.mkfifo(pipe)
        os.link(pipe, aside := pipe.with_name("aside"))
        aside.replace(shop.registry.pointer)
        eventually(lambda: metric(client, "vlm2rec_watcher_errors_total", what="pointer") >= 2)
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])
        release(pipe)


def test_operators_get_an_answer_while_the_registry_hangs(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_bundles, "_READ_LIMIT_S", 0.3)
    with open_shop() as client, hanging(shop.registry.pointer):
        eventually(lambda: metric(client, "vlm2rec_watcher_errors_total", what="pointer"))
        refused = client.post("/bundle/reload", headers=AS_ADMIN)
        assert refused.status_code == 409
        assert "does not answer" in refused.json()["detail"]
        refused = client.post("/bundle/rollback", json={"bundle": shop.ids[2]}, headers=AS_ADMIN)
        assert refused.status_code == 409
        assert serving(client) == shop.ids[0]


def test_requests_are_answered_while_the_mapped_files_hang(
    open_shop: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, go_on, state = threading.Event(), threading.Event(), mapped_files._state

    def hanging_state(descriptor: int) -> tuple[int, int]:
        hangs.set()
        go_on.wait(60)
        return state(descriptor)

    with open_shop() as client:
        with monkeypatch.context() as patched:
            patched.setattr(mapped_files, "_state", hanging_state)
            assert hangs.wait(QUICK_S)
            began = time.monotonic()
            assert client.get("/readyz").status_code == 200
            assert client.put("/items/i1/availability", json={"available": False}, headers=AS_ADMIN).status_code == 204
            assert client.post("/recommend", json={"items": ["i5"], "k": 3}).status_code == 200
            assert time.monotonic() - began < QUICK_S
        go_on.set()
        shop.point(shop.ids[1])
        eventually(lambda: serving(client) == shop.ids[1])


def test_a_report_that_hangs_is_absent(open_shop: Any, shop: Shop) -> None:
    with open_shop() as client:
        assert client.get("/bundle").json()["report"] is not None
        with hanging(shop.path(shop.ids[0]) / REPORT_FILE):
            assert client.get("/bundle").json()["report"] is None
        # The read that hung has to end before another one begins.
        eventually(lambda: client.get("/bundle").json()["report"] is not None, QUICK_S)


def test_the_service_ends_while_the_registry_hangs(
    start: Callable[..., Service], shop: Shop, redis_url: str, tmp_path: Path
) -> None:
    variables = {"VLM2REC_REDIS_URL": redis_url, "VLM2REC_POLL_MS": "50"}
    service = start(
        "--registry", str(shop.registry.root), VLM2REC_DIRECTIVES_FILE=str(tmp_path / "directives.json"), **variables
    )
    with hanging(shop.registry.pointer):
        time.sleep(0.5)  # some polls
        code, lines = service.end()
    assert code == 0
    assert any(line["event"] == "watcher error" and "does not answer" in line["detail"] for line in lines)
