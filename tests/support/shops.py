"""A registry with bundles that can be made current or damaged, and requests to the service that serves it."""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from index.build.build import build_bundle
from index.bundle.integrity import sha256_of, write_durably, write_stamp
from index.bundle.manifest import ENCODER_FILE, FAISS_FILE, MANIFEST_FILE, FileEntry, Manifest
from index.bundle.pointer import POINTER_FILE
from index.bundle.registry import Registry
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from service.bundles.operator_state import OperatorState

OpenClient = Callable[..., AbstractContextManager[TestClient]]

ADMIN = "an-admin-key-for-tests"
AS_ADMIN = {"X-API-Key": ADMIN}


def other_bundle(table: ItemTable, encoder: Path, out: Path, day: int, *, names: str | None = None) -> Path:
    """A bundle of the same items with vectors of that day's own; with `names`, of other items."""
    rng = np.random.default_rng(day)
    raw = {slot.name: rng.normal(size=(len(table), slot.dim)).astype(np.float32) for slot in table.layout.slots}
    raw["image"][::7] = 0
    for block in raw.values():
        block[3] = 0  # the most popular item has no slot, as in `table`
    ids = table.ids if names is None else ItemIds(f"{names}{row}" for row in range(len(table)))
    vectors = table.layout.stack(raw).astype(np.float16)
    changed = ItemTable(table.layout, ids, vectors, table.popularity, table.metadata, table.model)
    queries = EvaluationQueries(np.array([[1, 2, 4], [10, 11, -1], [20, -1, -1]]), np.array([5, 12, 21]))
    return build_bundle(changed, encoder, queries, out, now=datetime(2026, 1, day, tzinfo=UTC))


def with_file(bundle: Path, out: Path, name: str, content: bytes) -> Path:
    """A copy of a bundle in which a file has another content and the manifest vouches for it."""
    copy = out / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy)
    for path in copy.iterdir():
        path.chmod(0o644)
    (copy / name).write_bytes(content)
    manifest = Manifest.read(bundle)
    parts = {field: getattr(manifest, field) for field in Manifest.model_fields}
    parts["files"] = manifest.files | {name: FileEntry(sha256=sha256_of(copy / name), size=len(content))}
    kept = {field: part for field, part in parts.items() if field not in {"format", "id", "content", "created"}}
    sealed = Manifest.seal(manifest.created.replace(hour=12), **kept)
    (copy / MANIFEST_FILE).write_text(sealed.to_json())
    return copy.rename(out / sealed.id)


def with_blind_encoder(bundle: Path, out: Path) -> Path:
    """A bundle whose encoder overflows on every history but one of empty items, such as those of the warm-up."""
    model = onnx.load(bundle / ENCODER_FILE)
    (factor,) = [tensor for tensor in model.graph.initializer if tensor.name == "factor"]
    factor.CopyFrom(numpy_helper.from_array(np.array([3e38], dtype=np.float32), "factor"))
    scaled = next(node for node in model.graph.node if node.output[0] == "scaled")
    model.graph.node.insert(4, onnx.helper.make_node("Mul", [scaled.input[0], "factor"], ["huge"]))
    scaled.input[0] = "huge"
    return with_file(bundle, out, ENCODER_FILE, model.SerializeToString())


class Shop:
    """A registry with good bundles, oldest first, of which the first is the current one."""

    def __init__(self, root: Path, bundles: list[Path]) -> None:
        self.registry = Registry(root)
        for bundle in bundles:
            self.put(bundle)
        self.ids = [bundle.name for bundle in bundles]
        self.point(self.ids[0])

    def path(self, bundle_id: str) -> Path:
        return self.registry.root / bundle_id

    def put(self, bundle: Path) -> str:
        """Copy a bundle into the registry without making it current; its files may be damaged."""
        shutil.copytree(bundle, self.path(bundle.name))
        for path in self.path(bundle.name).iterdir():
            path.chmod(0o644)
        write_stamp(self.path(bundle.name), Manifest.read(self.path(bundle.name)))
        return bundle.name

    def point(self, bundle_id: str) -> None:
        pointer = {"format": 1, "current": bundle_id, "previous": []}
        write_durably(self.registry.root / POINTER_FILE, json.dumps(pointer).encode())

    def flip(self, bundle_id: str, name: str = "vectors.npy") -> None:
        """Change one byte of a file, its size and time kept."""
        path = self.path(bundle_id) / name
        status, content = path.stat(), bytearray(path.read_bytes())
        content[-5] ^= 0x40
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def cut(self, bundle_id: str, name: str = FAISS_FILE) -> None:
        path = self.path(bundle_id) / name
        path.write_bytes(path.read_bytes()[:-7])

    def repair(self, bundle: Path) -> None:
        """Publish again under the same id, as `vlm2rec index publish` does: a new directory in the old one's place."""
        shutil.rmtree(self.path(bundle.name))
        self.put(bundle)


def eventually(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until a condition holds and return its result."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "did not come about"
        time.sleep(0.01)
    return found


class Polls:
    """Records the active bundle and the hidden items of a replica at the start of each poll."""

    def __init__(self, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, frozenset[str]]] = []
        watched, current, sync = (
            client.app.state.watcher._operator_state,
            client.app.state.active_bundle,
            OperatorState.sync,
        )

        async def recording(state: OperatorState) -> None:
            if state is watched:
                self.seen.append((current.get().id, frozenset(state.hidden.ids)))
            await sync(state)

        monkeypatch.setattr(OperatorState, "sync", recording)

    def until(self, holds: Callable[[str, frozenset[str]], bool]) -> int:
        """How many polls from now on started before a condition held."""
        begun = len(self.seen)
        return int(eventually(lambda: [n for n, seen in enumerate(self.seen[begun:], 1) if holds(*seen)])[0]) - 1


def serving(client: TestClient) -> str:
    answer = client.post("/recommend", json={"items": ["i1", "i2"], "k": 3})
    assert answer.status_code == 200
    bundle: str = answer.json()["bundle"]
    return bundle


def returning(client: TestClient) -> None:
    """Send a request of a user with a stored history; comparisons use only such histories."""
    assert client.post("/events", json={"user_id": "back", "item_id": "i1", "event_id": "1"}).status_code == 200
    assert client.post("/recommend", json={"user_id": "back", "k": 3}).json()["strategy"] == "sequence"


def metric(client: TestClient, name: str, **labels: str) -> float:
    """The value of a metric; 0 if it was never set."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
