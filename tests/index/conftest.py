"""A tiny catalogue and tiny ONNX encoders whose outputs are known by hand."""

import hashlib
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from index.build.build import build_bundle
from index.bundle.index_spec import IndexSpec
from index.bundle.integrity import sha256_of
from index.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest
from index.bundle.registry import Registry
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from index.items.slots import Slot, SlotLayout
from index.search.scoring import rescore
from tests.support.mean_encoder import mean_encoder

LAYOUT = SlotLayout((Slot("text", 6), Slot("image", 4), Slot("behaviour", 2)))


@pytest.fixture(scope="session")
def layout() -> SlotLayout:
    return LAYOUT


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., Path]:
    """Write a mean-of-history encoder to a path."""

    def write(
        path: Path, layout: SlotLayout = LAYOUT, max_history: int = 12, metadata: dict[str, str] | None = None
    ) -> Path:
        onnx.save(mean_encoder(layout, max_history, newest=False, metadata=metadata), path)
        return path

    return write


@pytest.fixture(scope="session")
def encoder_path(tmp_path_factory: pytest.TempPathFactory, make_encoder: Callable[..., Path]) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


@pytest.fixture(scope="session")
def make_table() -> Callable[..., ItemTable]:
    """A catalogue of n clustered items; every seventh lacks its picture, row 3 has no slot at all."""

    def make(items: int = 300, seed: int = 0, dtype: type = np.float16) -> ItemTable:
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(12, LAYOUT.dim))
        raw = centres[rng.integers(0, 12, items)] + 0.4 * rng.normal(size=(items, LAYOUT.dim))
        slots = {slot.name: raw[:, LAYOUT.slice(slot.name)].astype(np.float32) for slot in LAYOUT.slots}
        slots["image"][::7] = 0
        if items > 3:
            for block in slots.values():
                block[3] = 0
        metadata = pa.table(
            {
                "title": [f"item {row}" for row in range(items)],
                "image": [None if row % 7 == 0 else f"images/{row}.png" for row in range(items)],
                "category": [("shoes", "hats", "bags")[row % 3] for row in range(items)],
                "price": [float(row) for row in range(items)],
                "tags": [["new"] * (row % 2) + ["sale"] * (row % 5 == 0) for row in range(items)],
            }
        )
        return ItemTable(
            layout=LAYOUT,
            ids=ItemIds(f"i{row}" for row in range(items)),
            vectors=LAYOUT.stack(slots).astype(dtype),
            popularity=np.arange(items, dtype=np.int64)[::-1] % 50,
            metadata=metadata,
            model={"kind": "made"},
        )

    return make


@pytest.fixture(scope="session")
def make_evaluation_queries() -> Callable[..., EvaluationQueries]:
    def make(items: int = 300, count: int = 40, seed: int = 1) -> EvaluationQueries:
        rng = np.random.default_rng(seed)
        histories = np.full((count, 8), -1, dtype=np.int64)
        for row in histories:
            length = int(rng.integers(1, 9))
            row[:length] = rng.integers(0, items, length)
        return EvaluationQueries(histories, rng.integers(0, items, count))

    return make


@pytest.fixture(scope="session")
def make_bundle(
    make_table: Callable[..., ItemTable], make_evaluation_queries: Callable[..., EvaluationQueries], encoder_path: Path
) -> Callable[..., Path]:
    """Build a small bundle of a kind into a directory."""

    def make(
        out: Path,
        kind: str = "flat",
        items: int = 300,
        seed: int = 0,
        evaluation: dict[str, Any] | None = None,
        **spec: object,
    ) -> Path:
        settings = {"evaluation_queries": 40, "threads": 1} | spec
        return build_bundle(
            make_table(items, seed),
            encoder_path,
            make_evaluation_queries(items),
            out,
            IndexSpec(kind=kind, **settings),
            evaluation=evaluation,
            now=datetime(2026, 11, 23, 4, 5, seed % 60, tzinfo=UTC),
        )

    return make


@pytest.fixture(scope="session")
def make_evaluation(encoder_path: Path) -> Callable[..., dict[str, Any]]:
    """What `vlm2rec evaluate --json` would write about the mean-of-history encoder."""

    def make(served: float | None = 3.0) -> dict[str, Any]:
        rows = {
            "popularity": (0.02, [1.0, 1.0, 1.0]),
            "served encoder": (0.06, [served, 2.5, 3.5]),
            "text only": (0.01, [0.5, 0.4, 0.6]),
            "image only": (0.0, [None, None, None]),
        }
        systems = [
            {"name": name, "ndcg@10": value, "ratio_to_popularity": {"ndcg@10": ratio}}
            for name, (value, ratio) in rows.items()
        ]
        return {
            "tables": [
                {"name": "test", "users": 610, "items": 300, "rows": systems},
                {"name": "cold items", "users": 5, "items": 300, "rows": []},
            ],
            "model": {"encoder": {"hash": hashlib.sha256(encoder_path.read_bytes()).hexdigest()[:16]}},
            "config": {"anything": ["else"]},
        }

    return make


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Path]) -> Path:
    """One flat bundle of 300 items; never change it."""
    return make_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy of the built bundle that a test may damage."""
    copy = tmp_path / built.name
    shutil.copytree(built, copy)
    for path in copy.iterdir():
        path.chmod(0o644)
    return copy


@pytest.fixture(scope="session")
def check_answer() -> Callable[..., None]:
    """Checks the properties of every result at any recall: (rows, scores) of queries for k under a mask."""

    def check(rows, scores, queries, vectors, mask, k) -> None:
        assert rows.shape == scores.shape == (len(queries), k)
        assert rows.dtype == np.int64
        assert scores.dtype == np.float32
        real = rows >= 0
        assert (real.sum(axis=1) == min(k, mask.sum())).all()
        assert (np.sort(real, axis=1)[:, ::-1] == real).all()  # −1 only at the end
        assert mask[rows[real]].all()
        assert np.isneginf(scores[~real]).all()
        for found, values, query in zip(rows, scores, queries, strict=True):
            own = found[found >= 0]
            assert len(set(own.tolist())) == len(own)
            np.testing.assert_allclose(values[: len(own)], vectors[own].astype(np.float64) @ query, atol=1e-5)
            order = sorted(range(len(own)), key=lambda position: (-values[position], own[position]))
            assert order == list(range(len(own)))

    return check


@pytest.fixture(scope="session")
def brute_force() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Rows and scores of every allowed row scored and sorted, with neither FAISS nor blocks."""

    def search(queries, vectors, layout, mask, k):
        rows = np.flatnonzero(mask)
        return rescore(queries, np.tile(rows, (len(queries), 1)), vectors, k)

    return search


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory, make_bundle: Callable[..., Path]) -> list[Path]:
    """Three bundles of 40 items, oldest first; never change them."""
    out = tmp_path_factory.mktemp("many")
    return [make_bundle(out, items=40, seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry."""
    return Registry(tmp_path / "registry")


@pytest.fixture
def reseal() -> Callable[..., None]:
    """Give a bundle a manifest that fits the files as they are now, and says what the test wants."""

    def seal(bundle: Path, **changes: object) -> None:
        old = Manifest.read(bundle)
        parts = {name: getattr(old, name) for name in type(old).model_fields} | changes
        for sealed in ("format", "id", "content", "created"):
            parts.pop(sealed)
        files = {
            name: FileEntry(sha256=sha256_of(bundle / name), size=(bundle / name).stat().st_size) for name in old.files
        }
        manifest = Manifest.seal(datetime(2026, 11, 23, tzinfo=UTC), **(parts | {"files": files}))
        (bundle / MANIFEST_FILE).write_text(manifest.to_json())

    return seal
