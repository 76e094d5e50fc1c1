"""A Milvus with two bundles, and both retrievers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.build.build import build_bundle
from index.bundle.bundle import Bundle
from index.items.eval_queries import EvaluationQueries
from index.items.item_ids import ItemIds
from index.items.item_table import ItemTable
from service.retrieval.faiss_retriever import FAISS
from service.retrieval.guard import Guard
from service.retrieval.milvus.client import MilvusAddress, MilvusClient
from service.retrieval.retriever import Retriever
from service.stores.circuit_breaker import CircuitBreaker
from tests.support.listed_bundles import random_lists, with_lists
from tests.support.stores.milvus_server import MilvusServer, open_server

ITEMS = 1500
TIMEOUT_S = 30.0


@pytest.fixture(scope="package")
def table(small_table: ItemTable) -> ItemTable:
    """1,500 items in clusters; every eleventh is new, every tenth lacks its picture, row 3 has no slot."""
    rng = np.random.default_rng(11)
    raw = {}
    for slot in small_table.layout.slots:
        centres = rng.normal(size=(40, slot.dim))
        raw[slot.name] = (centres[rng.integers(40, size=ITEMS)] + 0.4 * rng.normal(size=(ITEMS, slot.dim))).astype("f4")
        raw[slot.name][3] = 0
    raw["image"][::10] = 0
    popularity = np.arange(ITEMS, 0, -1, dtype=np.int64)
    popularity[::11] = 0
    numbers = range(ITEMS)
    metadata = pa.table(
        {
            "title": [None if row % 50 == 5 else f'Item "{row}" \\ größer' for row in numbers],
            "category": pa.array([("shoes", "hats", "bags")[row % 3] for row in numbers]).dictionary_encode(),
            "price": [None if row % 9 == 0 else row * 0.37 for row in numbers],
            "weight": pa.array([float("nan") if row % 8 == 0 else row * 0.1 for row in numbers], pa.float32()),
            "stock": pa.array([None if row % 13 == 0 else row % 40 - 5 for row in numbers], pa.int32()),
            "sale": [None if row % 17 == 0 else row % 2 == 0 for row in numbers],
            "tags": [
                None if row % 19 == 0 else ["new"] * (row % 2) + ["red", "x y"] * (row % 5 == 0) for row in numbers
            ],
            "day": pa.array([18_000 + row for row in numbers], pa.int32()).cast(pa.date32()),
            "text": ["long " * 300 if row == 7 else "short" for row in numbers],
        }
    )
    return ItemTable(
        layout=small_table.layout,
        ids=ItemIds(f"i{row}" for row in numbers),
        vectors=small_table.layout.stack(raw).astype(np.float16),
        popularity=popularity,
        metadata=metadata,
        model={"kind": "made"},
    )


@pytest.fixture(scope="package")
def many(tmp_path_factory: pytest.TempPathFactory, table: ItemTable, small_encoder: Path) -> Bundle:
    """A bundle of these items."""
    queries = EvaluationQueries(np.array([[1, 2, 4], [10, 11, -1], [700, 701, 9]]), np.array([5, 12, 13]))
    return Bundle.load(build_bundle(table, small_encoder, queries, tmp_path_factory.mktemp("many")))


@pytest.fixture(scope="package")
def listed(tmp_path_factory: pytest.TempPathFactory, many: Bundle) -> Bundle:
    """The same bundle with item-to-item lists."""
    lists = random_lists(ITEMS, weights={"co": 30.0, "words": 2.0, "look": 9.0})
    return Bundle.load(with_lists(many.path, lists, tmp_path_factory.mktemp("listed")))


@pytest.fixture(scope="package")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """A server for all tests that do not stop it."""
    server = open_server(tmp_path_factory.mktemp("milvus"))
    yield server
    server.stop()


@pytest.fixture(scope="package")
def pushed(milvus: MilvusServer, many: Bundle, listed: Bundle) -> MilvusServer:
    """The server with both bundles."""
    from service.retrieval.milvus.push import PushOptions, push

    for bundle in (many, listed):
        client = MilvusClient(MilvusAddress(milvus.uri), TIMEOUT_S)
        record = push(bundle, client, PushOptions()).record
        client.keep_record(replace(record, ef=2 * ITEMS))  # at which the graph finds every row
        client.close()
    return milvus


@pytest.fixture(scope="package", params=["faiss", "milvus"])
def retriever(request: pytest.FixtureRequest) -> Iterator[Retriever]:
    """Each retriever, with both bundles."""
    if request.param == "faiss":
        yield FAISS
        return
    from service.retrieval.milvus.opening import VectorFetching, open_milvus

    address = MilvusAddress(request.getfixturevalue("pushed").uri)
    fetching = VectorFetching(Guard(CircuitBreaker()), cache_mb=1)
    opened = open_milvus(address, TIMEOUT_S, Guard(CircuitBreaker()), fetching)
    yield opened
    opened.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MilvusServer]:
    """A server of one test, which may stop it."""
    opened = open_server(tmp_path / "milvus")
    yield opened
    opened.stop()


@pytest.fixture
def client(server: MilvusServer) -> Iterator[MilvusClient]:
    """A client of that server."""
    opened = MilvusClient(MilvusAddress(server.uri), TIMEOUT_S)
    yield opened
    opened.close()
