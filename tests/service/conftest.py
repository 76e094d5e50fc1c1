"""A bundle in memory, the arithmetic of its answers in plain numpy, and an application around it."""

import dataclasses
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from starlette.testclient import TestClient

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.items.eval_queries import EvaluationQueries
from index.items.item_table import ItemTable
from index.items.thumbnails import Thumbnails, write_thumbnails
from service.app import create_app
from service.bundles.startup import Startup
from service.settings.load import load_settings
from service.telemetry import metrics_page
from tests.support.oracle import Oracle
from tests.support.processes.service_process import Service
from tests.support.shops import ADMIN, OpenClient, Shop, other_bundle


@pytest.fixture(scope="session", autouse=True)
def quiet() -> None:
    """No log lines from applications in this process; test_server.py reads those of a real one."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.fixture(scope="session", autouse=True)
def fresh_metrics() -> Iterator[None]:
    """Applications in this process render their metrics at every call, so that a test sees what it did."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics_page, "INTERVAL_S", 0.0)
        yield


@pytest.fixture(scope="session")
def bundle(small_bundle: Path) -> Bundle:
    loaded = Bundle.load(small_bundle)
    loaded.warm_up()
    return loaded


@pytest.fixture(scope="session")
def oracle(small_table: ItemTable) -> Oracle:
    return Oracle(small_table)


@pytest.fixture(scope="session")
def open_client(bundle: Bundle, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> OpenClient:
    """Open the whole application on the small bundle and a real Redis; settings by name."""

    @contextmanager
    def opened(**settings: Any) -> Iterator[TestClient]:
        chosen = {"redis_url": redis_url, "redis_prefix": f"test-{uuid.uuid4().hex}", "redis_timeout_ms": 5000}
        settings = {
            "registry": "unused",
            "directives_file": tmp_path_factory.mktemp("state") / "directives.json",
        } | settings
        app = create_app(load_settings(**{**chosen, **settings}), startup=Startup(bundle))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

    return opened


@pytest.fixture(scope="module")
def client(open_client: OpenClient) -> Iterator[TestClient]:
    with open_client() as opened:
        yield opened


@pytest.fixture(scope="session")
def day_bundles(tmp_path_factory: pytest.TempPathFactory, small_table: ItemTable, small_encoder: Path) -> list[Path]:
    """Four bundles of the items of `small_table`, one a day, each with vectors of its own; never change one."""
    out = tmp_path_factory.mktemp("day-bundles")
    return [other_bundle(small_table, small_encoder, out, day) for day in (1, 2, 3, 4)]


@pytest.fixture
def shop(tmp_path: Path, day_bundles: list[Path]) -> Shop:
    """A registry of its own with the four bundles, the first of them current."""
    return Shop(tmp_path / "registry", day_bundles)


@pytest.fixture
def open_shop(redis_url: str, tmp_path: Path, shop: Shop) -> OpenClient:
    """Open the whole application on the shop; those of one test are replicas with one Redis. Settings by name."""
    prefix = f"test-{uuid.uuid4().hex}"
    opened_so_far: list[int] = []

    @contextmanager
    def opened(**settings: Any) -> Iterator[TestClient]:
        opened_so_far.append(1)
        chosen = {
            "registry": str(shop.registry.root),
            "redis_url": redis_url,
            "redis_prefix": prefix,
            "redis_timeout_ms": 5000,
            "poll_ms": 20,
            "admin_keys": [ADMIN],
            "directives_file": tmp_path / f"directives-{len(opened_so_far)}.json",
        }
        with TestClient(create_app(load_settings(**{**chosen, **settings})), raise_server_exceptions=False) as client:
            yield client

    return opened


@pytest.fixture(scope="module")
def pictured(
    open_client: Any, tmp_path_factory: pytest.TempPathFactory, small_table: ItemTable, small_encoder: Path
) -> Iterator[TestClient]:
    """The service on a bundle in which every item but each seventh has a picture."""
    directory = tmp_path_factory.mktemp("pictured")
    with write_thumbnails(directory / "made.npy", 60) as writer:
        for row in range(60):
            writer.add(None if row % 7 == 0 else b"\xff\xd8 picture of %d" % row)
    table = dataclasses.replace(small_table, thumbnails=Thumbnails.load(directory / "made.npy", 60))
    built = build_bundle(table, small_encoder, EvaluationQueries(np.array([[1, 2]]), np.array([5])), directory)
    with open_client() as client:
        client.app.state.active_bundle.swap(Bundle.load(built))
        yield client


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def begin(*arguments: str, **environment: str) -> Service:
        started.append(Service(*arguments, **environment))
        return started[-1]

    yield begin
    for service in started:
        if service.process.poll() is None:
            service.process.kill()
        service.process.communicate()
