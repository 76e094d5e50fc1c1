"""Builds and publishes one bundle per catalogue size for the serving bench and keeps it for the next run."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bench.index.catalogues import LAYOUT, made_histories, made_lists, made_vectors
from bench.index.encoder import made_encoder, size_name
from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.bundle.encoder_pair import encoder_hash
from index.bundle.index_spec import IndexSpec
from index.bundle.manifest import ENCODER_FILE, Manifest
from index.bundle.registry import Registry
from index.errors import IndexingError
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable

HISTORY = 10
GROUP = "group"
"""A metadata column: 0 … 99 at random, so that ``{"field": "group", "lt": 50}`` allows half of the items."""
GROUPS = 100

_PROBES = 512
_POOL = 20_000
_SEED = 0
_RECORD = "published.json"

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Published:
    """A published bundle with its build times.

    Attributes:
        rows: items of its catalogue.
        registry: directory that `vlm2rec serve` reads.
        bundle: the bundle's own directory.
        kind: of its index.
        build_s: seconds of `build_bundle`: index, calibration and measuring.
        publish_s: seconds of `Registry.publish`: copy, hash, first load.
        vectors_bytes: size of the stored vectors.
        index_bytes: size of the index.
        recall: recall@20 by kind of query, from the bundle's own report.
        neighbours: of an item in each of its item-to-item lists; 0: no lists.
        built_on: day of the build, which may be that of an earlier run; empty for bundles of earlier versions.
        encoder: its layers and width, as ``2 x 64``; empty in results of earlier versions.
    """

    rows: int
    registry: str
    bundle: str
    kind: str
    build_s: float
    publish_s: float
    vectors_bytes: int
    index_bytes: int
    recall: dict[str, float]
    neighbours: int = 0
    built_on: str = ""
    encoder: str = ""


def published(rows: int, work: Path, progress: Progress, *, neighbours: int = 0) -> Published:
    """The bundle of a size, built with the product's own choice of index unless it is kept, with today's encoder.

    Args:
        rows: items of the catalogue.
        work: where bundles and their encoder are kept between runs.
        progress: called with a stage and the share of it that is done.
        neighbours: of an item in each of its three item-to-item lists; 0: no lists.
    """
    home = work / (f"catalogue-{rows}-lists-{neighbours}" if neighbours else f"catalogue-{rows}")
    encoder = made_encoder(work)
    kept = _kept(home, encoder)
    if kept is not None:
        return kept
    shutil.rmtree(home, ignore_errors=True)
    progress("catalogue", 0.0)
    table, queries = _table(rows)
    lists = made_lists(rows, neighbours) if neighbours else None
    started = time.perf_counter()
    built = build_bundle(table, encoder, queries, home / "built", IndexSpec(), lists=lists, progress=progress)
    build_s = time.perf_counter() - started
    started = time.perf_counter()
    registry = Registry(home / "registry")
    # Whatever recall it reaches is a result of the bench; refusing it would hide the result.
    bundle_id = registry.publish(built, force=True, progress=progress)
    publish_s = time.perf_counter() - started
    path = registry.path(bundle_id)
    bundle = Bundle.load(path)
    found = Published(
        rows=rows,
        registry=str(registry.root),
        bundle=str(path),
        kind=bundle.manifest.index.kind,
        build_s=build_s,
        publish_s=publish_s,
        vectors_bytes=(path / "vectors.npy").stat().st_size,
        index_bytes=sum(file.stat().st_size for file in path.glob("index.faiss")),
        recall=dict(bundle.manifest.index.recall),
        neighbours=neighbours,
        built_on=time.strftime("%Y-%m-%d", time.gmtime()),
        encoder=size_name(),
    )
    (home / _RECORD).write_text(json.dumps(asdict(found), indent=1))
    return found


def _kept(home: Path, encoder: Path) -> Published | None:
    """The bundle of an earlier run; None where there is none that is whole and has this encoder."""
    record = home / _RECORD
    if not record.exists():
        return None
    found, now = Published(**json.loads(record.read_text())), home / "registry"  # it may have been moved since
    path = now / Path(found.bundle).name
    try:
        manifest = Manifest.read(path)
    except IndexingError:
        return None
    if not manifest.files[ENCODER_FILE].sha256.startswith(encoder_hash(encoder)):
        return None
    return replace(found, registry=str(now), bundle=str(path), encoder=size_name())


def user_histories(bundle: Bundle, count: int) -> NDArray[np.int64]:
    """(count, 10) int64 rows, oldest first: for each user items that are like each other, as users take them."""
    rng = np.random.default_rng((_SEED, 2))
    pool = np.sort(rng.choice(len(bundle), min(_POOL, len(bundle)), replace=False))
    picked: NDArray[np.int64] = pool[made_histories(bundle.vectors(pool), count, HISTORY, _SEED)]
    return picked


def _table(rows: int) -> tuple[ItemTable, EvaluationQueries]:
    rng = np.random.default_rng((_SEED, 1))
    vectors = made_vectors(rows, _SEED)
    table = ItemTable(
        layout=LAYOUT,
        ids=ItemIds(f"item-{row:07d}" for row in range(rows)),
        vectors=vectors,
        popularity=rng.integers(1, 1000, rows).astype(np.int64),
        metadata=pa.table({GROUP: pa.array(rng.integers(GROUPS, size=rows), pa.int64())}),
        model={"kind": "made for the bench", "seed": _SEED},
    )
    histories = made_histories(vectors, _PROBES, HISTORY + 1, _SEED)
    return table, EvaluationQueries(histories[:, :-1].copy(), histories[:, -1].copy())
